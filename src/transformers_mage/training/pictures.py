"""Pictures of what a model makes while it trains."""

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import VQModel
from diffusers.utils import numpy_to_pil
from PIL import Image

from ..image_tokens import decode_images
from ..modeling_mage import MageForMaskedImageModeling
from ..pipeline_mage import MagePipeline
from ..scheduling_mage import MageScheduler
from ..visualization import draw_grid


def sample_tokens(
    model: MageForMaskedImageModeling,
    num_images: int,
    num_inference_steps: int,
    seed: int,
    representations: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    (num_images, sequence_length) tokens made from nothing, or one image of each of as many representations, without
    touching torch's global generator.
    """
    pipe = MagePipeline(model, MageScheduler(model.config.mask_token_id))
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    (tokens,) = pipe(
        num_images=num_images if representations is None else 1,
        representations=representations,
        num_inference_steps=num_inference_steps,
        generator=generator,
        output_type="latent",
        return_dict=False,
    )
    return tokens.flatten(1)


def picture(tokenizer: VQModel, tokens: torch.Tensor, grid_size: tuple[int, int], columns: int) -> Image.Image:
    """A grid of the images that `tokens`, of shape `(num_images, sequence_length)`, stand for."""
    pixels = decode_images(tokenizer, tokens.to(tokenizer.device).unflatten(1, grid_size))
    return draw_grid(to_images(pixels), columns)


def to_images(pixels: torch.Tensor) -> list[Image.Image]:
    """Images of pixels, of shape `(num_images, channels, height, width)`, in [0, 1]."""
    return numpy_to_pil(pixels.clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy())


def save_picture(image: Image.Image, name: str, step: int, output_dir: str | Path, accelerator: Accelerator):
    """Writes a picture to `output_dir`/samples and to the trackers that take images."""
    folder = Path(output_dir, "samples")
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / f"{name}-{step:08d}.png")
    array = np.asarray(image.convert("RGB"))
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({name: array[None]}, step=step, dataformats="NHWC")
        elif tracker.name == "wandb":
            tracker.log_images({name: [image]}, step=step)
