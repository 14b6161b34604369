"""Pictures of tensors, for the cards of the clothes."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from transformers_mage.visualization import draw_grid


def draw_images(images: Tensor, num_columns: int, scale: int = 2, gap: int = 2) -> Image.Image:
    """[`draw_grid`] of images of shape `(N, 1, height, width)`, uint8; the picture is grey too."""
    return draw_grid([Image.fromarray(image[0].numpy()) for image in images], num_columns, scale, gap).convert("L")


def draw_rows(rows: Sequence[Tensor]) -> Image.Image:
    """Rows of equally many images each."""
    return draw_images(torch.cat(list(rows)), num_columns=len(rows[0]))
