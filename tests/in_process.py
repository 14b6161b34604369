"""The training scripts as functions that run in this process, or in a child of it."""

import importlib.util
import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from accelerate.state import AcceleratorState, GradientState

ROOT = Path(__file__).parents[1]
VQ_FLAGS = ["--vq_config.in_channels", "1", "--vq_config.out_channels", "1", "--vq_config.num_vq_embeddings", "16"]
VQ_FLAGS += ["--vq_config.block_out_channels", "[8, 8]", "--vq_config.norm_num_groups", "4"]
VQ_FLAGS += ["--vq_config.down_block_types", "[DownEncoderBlock2D, DownEncoderBlock2D]"]
VQ_FLAGS += ["--vq_config.up_block_types", "[UpDecoderBlock2D, UpDecoderBlock2D]", "--image_size", "8"]
VQ_FLAGS += ["--vq_config.mid_block_add_attention", "false", "--train_batch_size", "8", "--report_to", "none"]
MODEL_FLAGS = ["--model.image_size", "8", "--model.hidden_size", "16", "--model.num_hidden_layers", "1"]
MODEL_FLAGS += ["--model.num_attention_heads", "2", "--model.decoder_hidden_size", "16"]
MODEL_FLAGS += ["--model.decoder_num_hidden_layers", "1", "--model.decoder_num_attention_heads", "2"]
MODEL_FLAGS += ["--train_batch_size", "8", "--report_to", "none"]


def forget_accelerate():
    """Makes the next `Accelerator` of this process as if it were the first, which decides for all that follow."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def load_module(name: str) -> ModuleType:
    """scripts/NAME.py."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_script(name: str) -> Callable[[list[str]], None]:
    """`main` of scripts/NAME.py, made to start afresh each time; its names are in `module`."""
    module = load_module(name)

    def run(argv: list[str]):
        forget_accelerate()
        module.main([str(word) for word in argv])

    run.module = vars(module)
    return run


def in_child(function: Callable[..., None], *args) -> int:
    """Runs `function` in a process of its own. Gives the exit status, negative the signal that ended it."""
    child = multiprocessing.get_context("fork").Process(target=_alone, args=(function, *args))
    child.start()
    child.join(300)
    assert child.exitcode is not None, "the child hangs"
    return child.exitcode


def _alone(function: Callable[..., None], *args):
    # Threads do not survive a fork.
    torch.set_num_threads(1)
    function(*args)


def last_step(folder: Path) -> int:
    """The last update that a training wrote figures of."""
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
