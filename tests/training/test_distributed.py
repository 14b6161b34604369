"""The same images give the same gradients, however they are spread over processes and micro-batches."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, debug_launcher
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tests.in_process import forget_accelerate
from transformers_mage import MageConfig, MageForMaskedImageModeling, MageMasks, sample_masks
from transformers_mage.training.contrastive import contrast_micro_batches
from transformers_mage.training.pretraining import MageForPreTraining

pytestmark = pytest.mark.slow

IMAGES = 16


def pretraining_model(contrastive_weight: float) -> MageForPreTraining:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = MageConfig(codebook_size=32, image_size=64, patch_size=16, **sizes, **decoder, **dropout)
    return MageForPreTraining(MageForMaskedImageModeling(config), contrastive_weight)


def part_of(masks: MageMasks, rows: torch.Tensor) -> MageMasks:
    masked = masks.bool_masked_pos[rows]
    return MageMasks(masked, masks.bool_dropped_pos[rows], masks.num_dropped, int(masked.sum()))


def gradients(
    file: Path, contrastive_weight: float, accumulation: int = 1, shards: bool = False, together: bool = True
):
    """
    Saves the gradients of one update over the same images: those of all processes and micro-batches together, or of
    some that know nothing of each other.
    """
    torch.set_num_threads(1)
    forget_accelerate()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    model = pretraining_model(contrastive_weight)
    config = model.mage.config
    model = shard(model) if shards else accelerator.prepare(model)
    views = 2 if contrastive_weight else 1
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(config.codebook_size, (views * IMAGES, config.sequence_length), generator=generator)
    masks = sample_masks(config, len(input_ids), generator=generator)
    images = torch.arange(IMAGES).chunk(accelerator.num_processes * accumulation)
    micro_batches = []
    for number in range(accumulation):
        mine = images[number * accelerator.num_processes + accelerator.process_index]
        rows = torch.cat([mine + IMAGES * view for view in range(views)])
        micro_batches.append({"input_ids": input_ids[rows], "masks": part_of(masks, rows)})
    for kwargs in contrast_micro_batches(model, micro_batches) if contrastive_weight and together else micro_batches:
        with accelerator.accumulate(model):
            loss, _ = model(**kwargs)
            accelerator.backward(loss)
    parameters = accelerator.unwrap_model(model).named_parameters()
    found = {name: whole(parameter.grad) for name, parameter in parameters if parameter.grad is not None}
    if accelerator.is_main_process:
        is_sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
        topology = {"num_processes": accelerator.num_processes, "is_sharded": is_sharded}
        torch.save({"gradients": found, "topology": topology}, file)
    accelerator.end_training()


def shard(model: MageForPreTraining) -> MageForPreTraining:
    """Accelerate does FSDP2 on accelerators only; on the CPU, PyTorch's own function does what it would do."""
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for module in model.modules():
        if type(module).__name__ == "MageLayer":
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_same(first: Path, second: Path):
    first, second = torch.load(first)["gradients"], torch.load(second)["gradients"]
    assert first
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-7)


@pytest.mark.usefixtures("clean_environment")
@pytest.mark.parametrize("contrastive_weight", [0.0, 0.1], ids=["mage", "mage-c"])
@pytest.mark.parametrize("shards", [False, True], ids=["ddp", "fsdp2"])
def test_two_processes_equal_one(tmp_path: Path, contrastive_weight: float, shards: bool):
    gradients(tmp_path / "one", contrastive_weight, together=False)
    debug_launcher(gradients, (tmp_path / "two", contrastive_weight, 1, shards, False), num_processes=2)
    assert torch.load(tmp_path / "two")["topology"] == {"num_processes": 2, "is_sharded": shards}
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.usefixtures("clean_environment")
@pytest.mark.parametrize("contrastive_weight", [0.0, 0.1], ids=["mage", "mage-c"])
def test_two_micro_batches_equal_one(tmp_path: Path, contrastive_weight: float):
    gradients(tmp_path / "one", contrastive_weight, together=False)
    gradients(tmp_path / "two", contrastive_weight, accumulation=2)
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.usefixtures("clean_environment")
@pytest.mark.parametrize("shards", [False, True], ids=["ddp", "fsdp2"])
def test_two_contrastive_micro_batches_of_two_processes_equal_one(tmp_path: Path, shards: bool):
    gradients(tmp_path / "one", 0.1, together=False)
    debug_launcher(gradients, (tmp_path / "four", 0.1, 2, shards), num_processes=2)
    assert torch.load(tmp_path / "four")["topology"] == {"num_processes": 2, "is_sharded": shards}
    assert_same(tmp_path / "one", tmp_path / "four")


@pytest.mark.usefixtures("clean_environment")
def test_the_contrastive_loss_sees_the_images_of_all_processes_and_micro_batches(tmp_path: Path):
    """Were the negatives only those of the own micro-batch, the gradients would be those of two halves."""
    gradients(tmp_path / "one", 0.1, together=False)
    gradients(tmp_path / "halves", 0.1, accumulation=2, together=False)
    with pytest.raises(AssertionError):
        assert_same(tmp_path / "one", tmp_path / "halves")
