"""Models whose weights are elsewhere until they are needed give what they give with all their weights at hand."""

import copy
from pathlib import Path

import accelerate
import pytest
import torch
import torch.distributed as dist
from diffusers.hooks import apply_group_offloading, apply_layerwise_casting
from PIL import Image
from torch import nn

from tests.side_by_side import run_side_by_side
from transformers_mage import MageConfig, MageForMaskedImageModeling, MageModel, MagePipeline, MageScheduler

TOKENS = torch.arange(2 * 64).view(2, 64) % 16
MASK = TOKENS % 3 == 0


@pytest.fixture
def model(small_config: MageConfig) -> MageForMaskedImageModeling:
    return MageForMaskedImageModeling(MageConfig(**{**small_config.to_dict(), "num_classes": 3})).eval()


@torch.no_grad()
def everything(model: MageForMaskedImageModeling, pixel_values: torch.Tensor) -> list[torch.Tensor]:
    """What the model and its tokenizer compute, by all ways that there are to them."""
    tokens = model.get_image_tokens(pixel_values)
    masked = model(input_ids=TOKENS, bool_masked_pos=MASK, class_labels=torch.tensor([-1, 2]))
    features = model.mage(pixel_values).last_hidden_state
    return [tokens, features, masked.logits, masked.loss, model.decode_image_tokens(TOKENS)]


def assert_same(results: list[torch.Tensor], expected: list[torch.Tensor]):
    for result, other in zip(results, expected, strict=True):
        torch.testing.assert_close(result, other, rtol=1e-5, atol=1e-6)


def offload_to_cpu(model: nn.Module, folder: Path) -> nn.Module:
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def offload_to_disk(model: nn.Module, folder: Path) -> nn.Module:
    return accelerate.disk_offload(model, str(folder), execution_device=torch.device("cpu"))


@pytest.mark.parametrize("offload", [offload_to_cpu, offload_to_disk])
def test_weights_that_come_module_by_module(model, pixel_values, tmp_path, offload):
    expected = everything(model, pixel_values)
    model = offload(model, tmp_path)

    assert all(parameter.is_meta for parameter in model.parameters())
    assert_same(everything(model, pixel_values), expected)


@pytest.mark.parametrize("device_map", [{"": "disk"}, {"": "cpu"}, {"mage": "disk", "decoder": "cpu", "head": "disk"}])
def test_device_maps(model, pixel_values, tmp_path, device_map):
    expected = everything(model, pixel_values)
    model.save_pretrained(tmp_path / "model")

    loaded = MageForMaskedImageModeling.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offloaded"
    )

    assert_same(everything(loaded, pixel_values), expected)


@pytest.mark.parametrize("device_map", ["auto", "sequential"])
def test_device_maps_that_split_the_model(model, pixel_values, tmp_path, device_map):
    expected = everything(model, pixel_values)
    model.save_pretrained(tmp_path / "model")
    size = sum(parameter.nbytes for parameter in model.parameters())

    loaded = MageForMaskedImageModeling.from_pretrained(
        tmp_path / "model",
        device_map=device_map,
        max_memory={"cpu": size // 2},
        offload_folder=tmp_path / "offloaded",
    )

    assert any(parameter.is_meta for parameter in loaded.parameters())
    assert_same(everything(loaded, pixel_values), expected)


def test_pipelines_edit_with_weights_that_come_module_by_module(model):
    pipe = MagePipeline(model, MageScheduler(model.config.mask_token_id, num_inference_steps=3))
    pipe.set_progress_bar_config(disable=True)
    photo = Image.new("RGB", (32, 32), "orange")
    call = {"image": photo, "strength": 0.5, "class_labels": 1, "guidance_scale": 1.0, "output_type": "pt"}
    expected = pipe(generator=torch.Generator().manual_seed(0), **call).images

    accelerate.cpu_offload(pipe.model, execution_device=torch.device("cpu"))

    images = pipe(generator=torch.Generator().manual_seed(0), **call).images
    torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-5)


class Elsewhere(accelerate.hooks.ModelHook):
    """Stands for the hook of `enable_model_cpu_offload`: brings the whole model when a method of it is called."""

    def init_hook(self, module: nn.Module) -> nn.Module:
        self.weights = copy.deepcopy(module.state_dict())
        return module.to("meta")

    def pre_forward(self, module: nn.Module, *args, **kwargs):
        if any(parameter.is_meta for parameter in module.parameters()):
            module.to_empty(device="cpu").load_state_dict(self.weights)
        return args, kwargs


@pytest.mark.parametrize("first", ["get_image_tokens", "decode_image_tokens", "forward"])
def test_any_method_brings_the_model(model, pixel_values, first):
    arguments = {"get_image_tokens": pixel_values, "decode_image_tokens": TOKENS, "forward": pixel_values}[first]
    expected = getattr(model, first)(arguments)

    accelerate.hooks.add_hook_to_module(model, Elsewhere())

    assert next(model.parameters()).is_meta
    result = getattr(model, first)(arguments)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("offload_type", ["block_level", "leaf_level"])
def test_groups_that_come_from_files(model, pixel_values, tmp_path, offload_type):
    expected = everything(model, pixel_values)

    apply_group_offloading(
        model,
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type=offload_type,
        num_blocks_per_group=1,
        offload_to_disk_path=str(tmp_path),
    )

    assert_same(everything(model, pixel_values), expected)


def test_weights_stored_in_eight_bits(model, pixel_values):
    """As many as diffusers' hooks cast, and the same as those rounded once and for all."""
    rounded = copy.deepcopy(model)
    for module in rounded.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            for parameter in module.parameters():
                parameter.data = parameter.data.to(torch.float8_e4m3fn).float()
    # The codebook is an embedding too, and the tokenizer must not be rounded.
    rounded.mage.vqvae.load_state_dict(model.mage.vqvae.state_dict())
    expected = everything(rounded, pixel_values)

    apply_layerwise_casting(
        model, torch.float8_e4m3fn, torch.float32, skip_modules_pattern=("norm", "vqvae"), non_blocking=False
    )

    assert model.mage.embeddings.word_embeddings.weight.dtype == torch.float8_e4m3fn
    assert_same(everything(model, pixel_values), expected)


def _train_sharded(rank: int, world_size: int, folder: str, config: dict):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size)
    mesh = init_device_mesh("cpu", (world_size,))
    torch.manual_seed(0)
    model = MageForMaskedImageModeling(MageConfig(**config)).train()
    for module in reversed(list(model.modules())):
        if type(module).__name__ in model._no_split_modules:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    _train_three_steps(model)
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    if rank == 0:
        torch.save(weights, f"{folder}/sharded.pt")
    # Neither may leave while the other still talks to it.
    dist.barrier()
    dist.destroy_process_group()


def _train_three_steps(model: nn.Module):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    pixels = torch.linspace(0, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
    for _ in range(3):
        model(pixels, bool_masked_pos=MASK, class_labels=torch.tensor([-1, 2])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_sharded_training(small_config, tmp_path, world_size):
    """Both processes see the same batch, so that they learn what one of them does."""
    values = {"num_classes": 3, "class_dropout_prob": 0.0}
    values |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = {**small_config.to_dict(), **values}
    torch.manual_seed(0)
    model = MageForMaskedImageModeling(MageConfig(**config)).train()
    _train_three_steps(model)

    run_side_by_side(_train_sharded, world_size, str(tmp_path), config, processes=world_size)

    sharded = torch.load(tmp_path / "sharded.pt", weights_only=True)
    assert sharded.keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(sharded[name], weight, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: name)


def test_encoders_alone_are_offloaded_too(model, pixel_values, tmp_path):
    model.save_pretrained(tmp_path / "model")
    expected = model.mage(pixel_values).pooler_output

    encoder = MageModel.from_pretrained(tmp_path / "model", device_map={"": "disk"}, offload_folder=tmp_path / "disk")

    torch.testing.assert_close(encoder(pixel_values).pooler_output, expected, rtol=1e-5, atol=1e-6)
