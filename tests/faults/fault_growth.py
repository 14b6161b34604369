"""Memory, open files, threads and processes over 3,000 updates and 2,000 samples: flat."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.in_process import MODEL_FLAGS, load_script
from transformers_mage import MageForMaskedImageModeling, MagePipeline, MageScheduler
from transformers_mage.sampling import Sampler
from transformers_mage.training.run import TrainingRun

from .disturbing import processes_of, run_alone, said
from .table import note_growth

Script = Callable[[list[str]], None]
UPDATES, SAMPLES, BATCH = 3000, 2000, 20
# From a sixth of the way to the end, in MB: what Python's own heap may do. One leaked batch of tokens an update would
# be several times as much.
BOUND = 12


def usage(session: int) -> tuple[float, int, int, int]:
    """Memory in MB, open files, threads and processes of all processes of a session together."""
    memory, files, threads, processes = 0.0, 0, 0, processes_of(session)
    for pid in processes:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        memory += int(status["VmRSS"].split()[0]) / 1024
        threads += int(status["Threads"])
        files += len(os.listdir(f"/proc/{pid}/fd"))
    return memory, files, threads, len(processes)


def watch(owner: type, name: str, every: int, file: Path):
    """Has `owner.name` write down the usage after every so many calls."""
    original, calls = getattr(owner, name), []

    def watched(*args, **kwargs):
        result = original(*args, **kwargs)
        calls.append(name)
        if len(calls) % every == 0:
            with file.open("a") as lines:
                print(*usage(os.getsid(0)), file=lines)
        return result

    setattr(owner, name, watched)


def check_flat(name: str, file: Path, count: int):
    rows = [[float(word) for word in line.split()] for line in file.read_text().splitlines()]
    assert len(rows) == 6
    note_growth(name, count, rows)
    first, last = rows[0], rows[-1]
    assert last[0] - first[0] < BOUND, rows
    assert last[1:] == first[1:], rows


@pytest.mark.parametrize("loading", [[], ["--streaming", "--dataloader_num_workers", "2"]], ids=["memory", "streamed"])
def test_updates(
    train_mage: Script, image_folder: Path, tokenizer_folder: Path, tmp_path: Path, loading: list[str], request
):
    flags = [*MODEL_FLAGS, "--dataset_name", image_folder, "--tokenizer_name_or_path", tokenizer_folder, "--use_ema"]
    flags += ["--max_train_steps", UPDATES, "--checkpointing_steps", "250", "--checkpoints_total_limit", "2"]
    flags += ["--validation_split", "test", "--validation_steps", "250", "--sample_steps", "250", *loading]

    def run(folder: Path):
        watch(TrainingRun, "_note_update", UPDATES // 6, tmp_path / "usage")
        train_mage([*flags, "--output_dir", folder])

    assert run_alone(run, tmp_path / "run") == 0, said(tmp_path / "run")
    check_flat(f"updates, {request.node.callspec.id}", tmp_path / "usage", UPDATES)


def test_samples(mage_folder: Path, tmp_path: Path):
    model = MageForMaskedImageModeling.from_pretrained(mage_folder)
    MagePipeline(model, MageScheduler(model.config.mask_token_id)).save_pretrained(tmp_path / "model")
    flags = ["--pretrained_model_name_or_path", tmp_path / "model", "--num_images", SAMPLES, "--batch_size", BATCH]

    def run(folder: Path):
        watch(Sampler, "__call__", SAMPLES // BATCH // 6, tmp_path / "usage")
        load_script("generate")([*flags, "--num_inference_steps", "4", "--output_dir", folder])

    assert run_alone(run, tmp_path / "run") == 0, said(tmp_path / "run")
    check_flat("samples", tmp_path / "usage", SAMPLES)
