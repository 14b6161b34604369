"""
Puts thirty test images of each kind of clothes into one picture, which travels with this example.

    python -m examples.fashion.bundle --dataset_name outputs/fashion/data

They are of Fashion-MNIST, whose licence stands beside the picture in LICENSE.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .images import load_split
from .make_dataset import CLASSES
from .pictures import draw_images

PICTURE = Path(__file__).with_name("test_images.png")
PER_CLASS, SIDE = 30, 28


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", type=Path, default=Path("outputs", "fashion", "data"))
    arguments = parser.parse_args(argv)
    images, labels = load_split(arguments.dataset_name, "test")
    first = torch.cat([(labels == kind).nonzero()[:PER_CLASS, 0] for kind in range(len(CLASSES))])
    draw_images(images[first], PER_CLASS, scale=1, gap=0).save(PICTURE, optimize=True)


def load_bundled() -> tuple[Tensor, Tensor]:
    """
    Thirty unseen images of each kind, without the data set.

    Returns:
        `torch.Tensor` of shape `(300, 1, 28, 28)`, uint8, and of shape `(300,)`, the kinds.
    """
    sheet = torch.from_numpy(np.array(Image.open(PICTURE)))
    images = sheet.unflatten(0, (-1, SIDE)).unflatten(2, (-1, SIDE)).transpose(1, 2).flatten(0, 1)
    return images[:, None], torch.arange(len(CLASSES)).repeat_interleave(PER_CLASS)


if __name__ == "__main__":
    main()
