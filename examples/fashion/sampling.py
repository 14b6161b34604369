"""Many samples of a pipeline, as tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from examples.device import bfloat16, device, is_on_processor
from transformers_mage import MagePipeline

from .judge import as_grey


def load_pipeline(name_or_path: str, bf16: bool = False) -> MagePipeline:
    """A pipeline without progress bars; its weights are float32 even if it computes in bfloat16."""
    pipe = MagePipeline.from_pretrained(name_or_path).to(device())
    pipe.set_progress_bar_config(disable=True)
    if bf16:
        if is_on_processor():
            # For 50 tokens, in bfloat16, twice as fast as sdpa.
            pipe.model.set_attn_implementation("eager")
        pipe.model.forward = bfloat16()(pipe.model.forward)
    return pipe


def generate(
    pipe: MagePipeline,
    num_images: int,
    batch_size: int = 250,
    class_labels: Sequence[int] | None = None,
    seed: int = 0,
    **kwargs,
) -> Tensor:
    """
    Args:
        pipe ([`MagePipeline`]): its progress bars are best disabled.
        num_images (`int`): how many.
        batch_size (`int`): how many at once; each batch has a generator of its own.
        class_labels (`Sequence[int]` of length `num_images`, *optional*): of a class-conditional model.
        seed (`int`): other seeds give other images; batch i's generator starts from `1000 * seed + i`.
        kwargs: of the pipeline's call, as `temperature`.

    Returns:
        `torch.Tensor` of shape `(num_images, 1, height, width)`, uint8.
    """
    images = []
    starts = range(0, num_images, batch_size)
    for number, start in enumerate(tqdm(starts, desc="Generating", mininterval=5, leave=False)):
        size = min(batch_size, num_images - start)
        if class_labels is None:
            classes = {"num_images": size}
        else:
            classes = {"class_labels": list(class_labels[start : start + size])}
        generator = torch.Generator().manual_seed(1000 * seed + number)
        images.append(to_uint8(pipe(generator=generator, output_type="pt", **classes, **kwargs).images).cpu())
    return torch.cat(images)


def to_uint8(images: Tensor) -> Tensor:
    """(N, 1, height, width) uint8 of images in [0, 1], grey or RGB."""
    return (as_grey(images) * 255).round().clamp(0, 255).to(torch.uint8)
