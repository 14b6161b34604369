"""
The pipeline with models that are somewhere else between their calls: the same pictures, with and without an image to
edit, twice in a row. The CPU stands for the accelerator.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, disk_offload
from diffusers.hooks import apply_layerwise_casting

from transformers_mage import MageConfig, MageForMaskedImageModeling, MagePipeline, MageScheduler

CPU = torch.device("cpu")
IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
MASK = np.arange(32)[:, None].repeat(32, axis=1) >= 16
CALLS = [{"class_labels": [1, 2], "guidance_scale": 1.0}, {"image": IMAGE, "mask_image": MASK}]


@pytest.fixture
def pipe(small_config: MageConfig) -> MagePipeline:
    config = MageConfig(**small_config.to_dict() | {"num_classes": 3})
    pipe = MagePipeline(
        MageForMaskedImageModeling(config).eval(), MageScheduler(config.mask_token_id, num_inference_steps=3)
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images_of(pipe: MagePipeline) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [pipe(generator=generator, output_type="pt", **call).images for call in CALLS for _ in range(2)]


OFFLOADING: dict[str, Callable] = {
    "model": lambda pipe, folder: pipe.enable_model_cpu_offload(device="cpu"),
    # What `enable_sequential_cpu_offload` does, which takes accelerators only.
    "sequential": lambda pipe, folder: cpu_offload(pipe.model, CPU),
    "disk": lambda pipe, folder: disk_offload(pipe.model, folder, CPU),
    "blocks": lambda pipe, folder: pipe.enable_group_offload(
        CPU, offload_type="block_level", num_blocks_per_group=1, offload_to_disk_path=folder
    ),
    "leaves": lambda pipe, folder: pipe.enable_group_offload(
        CPU, offload_type="leaf_level", offload_to_disk_path=folder
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", OFFLOADING)
def test_offloaded_pipelines_make_the_same_pictures(pipe, tmp_path, way):
    expected = images_of(pipe)
    tokens = torch.arange(16).view(1, 4, 4)
    preview = pipe.preview(tokens)

    OFFLOADING[way](pipe, str(tmp_path))

    for made, image in zip(images_of(pipe), expected, strict=True):
        assert torch.equal(made, image)
    pipe._code_colors = None
    assert torch.equal(pipe.preview(tokens), preview)


def test_an_offloaded_model_is_fetched_before_an_image_is_encoded(pipe):
    """The hook moves the whole model on `forward`; reading an image to edit comes before the first one."""
    pipe.enable_model_cpu_offload(device="cpu")
    fetched, hook = [], pipe.model._hf_hook
    pre_forward = hook.pre_forward
    hook.pre_forward = lambda module, *args, **kwargs: fetched.append(1) or pre_forward(module, *args, **kwargs)
    pipe.vqvae.encoder.register_forward_pre_hook(lambda module, args: fetched.append("encodes"))

    pipe(image=IMAGE, mask_image=MASK)

    assert fetched.index(1) < fetched.index("encodes")


@pytest.mark.slow
@pytest.mark.parametrize("device_map", ["cpu", "auto", "balanced", CPU, {"": "cpu"}, {"": "disk"}])
def test_a_device_map_is_the_models(pipe, tmp_path, device_map):
    expected = images_of(pipe)
    pipe.save_pretrained(tmp_path / "saved")

    loaded = MagePipeline.from_pretrained(
        tmp_path / "saved", device_map=device_map, offload_folder=str(tmp_path / "offloaded")
    )
    loaded.set_progress_bar_config(disable=True)

    # What diffusers keeps, and asks before it moves a pipeline.
    assert loaded.hf_device_map == device_map
    for made, image in zip(images_of(loaded), expected, strict=True):
        assert torch.equal(made, image)


def test_weights_stored_in_8_bits_make_pictures_near_those_in_32(pipe):
    expected = images_of(pipe)
    apply_layerwise_casting(pipe.model, torch.float8_e4m3fn, torch.float32)
    assert pipe.model.head.dense.weight.dtype == torch.float8_e4m3fn

    made = images_of(pipe)

    assert torch.equal(made[2][..., :16, :], expected[2][..., :16, :])  # what is kept
    assert (made[0] - expected[0]).abs().mean() < 0.2
