"""Looking at a model while it trains: the loss on held-out images at fixed masks, and pictures of what it makes."""

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import VQModel
from diffusers.utils import numpy_to_pil
from PIL import Image
from torch import nn

from ..image_tokens import decode_images
from ..masking import sample_masks
from ..modeling_mage import MageForMaskedImageModeling
from ..pipeline_mage import MagePipeline
from ..scheduling_mage import MageScheduler
from ..visualization import draw_grid

VALIDATION_SEED = 0


@torch.no_grad()
def evaluate(model: nn.Module, tokens: torch.Tensor, batch_size: int, accelerator: Accelerator) -> dict[str, float]:
    """
    Loss and accuracy on held-out tokens. Their masks are always the same, drawn with the training's masking ratios.

    Args:
        model (`nn.Module`): a prepared [`MageForPreTraining`].
        tokens (`torch.Tensor` of shape `(num_images, sequence_length)`): the same in all processes, which share the
            work.
    """
    config = accelerator.unwrap_model(model).mage.config
    was_training = model.training
    model.eval()
    batches = list(enumerate(tokens.split(batch_size)))
    num_rounds = -(-len(batches) // accelerator.num_processes)
    sums = torch.zeros(3, device=accelerator.device)
    for i in range(num_rounds):
        # In the last round there may be less to do than processes; sharded models need all of them all the same.
        number, batch = batches[(i * accelerator.num_processes + accelerator.process_index) % len(batches)]
        is_new = i * accelerator.num_processes + accelerator.process_index < len(batches)
        generator = torch.Generator().manual_seed(VALIDATION_SEED + number)
        masks = sample_masks(config, len(batch), generator=generator, device=accelerator.device)
        _, metrics = model(batch.to(accelerator.device), masks)
        values = torch.stack([metrics["reconstruction_loss"], metrics["accuracy"], torch.ones_like(metrics["loss"])])
        sums += values.float() * len(batch) * is_new
    model.train(was_training)
    loss, accuracy, count = accelerator.reduce(sums, "sum").tolist()
    return {"validation_loss": loss / count, "validation_accuracy": accuracy / count}


def sample_tokens(
    model: MageForMaskedImageModeling, num_images: int, num_inference_steps: int, seed: int
) -> torch.Tensor:
    """(num_images, sequence_length) tokens made from nothing, without touching torch's global generator."""
    pipe = MagePipeline(model, MageScheduler(model.config.mask_token_id))
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    (tokens,) = pipe(
        num_images=num_images,
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
