"""Halves of clothes, hidden and painted anew."""

import torch
from PIL import Image
from torch import Tensor

from transformers_mage import MagePipeline

from .judge import IMAGE_SIZE
from .sampling import to_uint8

Box = tuple[int, int, int, int]
HALF = IMAGE_SIZE // 2
# Left, upper, right and lower edge of what is hidden.
HALVES: dict[str, Box] = {
    "upper": (0, 0, IMAGE_SIZE, HALF),
    "lower": (0, HALF, IMAGE_SIZE, IMAGE_SIZE),
    "left": (0, 0, HALF, IMAGE_SIZE),
    "right": (HALF, 0, IMAGE_SIZE, IMAGE_SIZE),
}
GREY = 128


def hide_half(images: Tensor, box: Box) -> Tensor:
    """The images `(N, 1, 28, 28)`, uint8, with grey in the box: what is given to the model."""
    left, upper, right, lower = box
    hidden = images.clone()
    hidden[:, :, upper:lower, left:right] = GREY
    return hidden


def paint_half(pipe: MagePipeline, images: Tensor, box: Box) -> Tensor:
    """The images `(N, 1, 28, 28)`, uint8, with what is in the box painted anew: neither it nor the class is told."""
    mask = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE))
    mask.paste(255, box)
    painted = []
    for number, batch in enumerate(hide_half(images, box).split(250)):
        photos = [Image.fromarray(image[0].numpy()).convert("RGB") for image in batch]
        generator = torch.Generator().manual_seed(number)
        output = pipe(image=photos, mask_image=mask, generator=generator, feather=0, output_type="pt")
        painted.append(to_uint8(output.images).cpu())
    return torch.cat(painted)
