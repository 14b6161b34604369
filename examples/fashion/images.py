"""The images of the data set of `make_dataset.py` as tensors."""

from pathlib import Path

import numpy as np
import torch
from datasets import load_from_disk
from torch import Tensor


def load_split(dataset_name: str | Path, split: str) -> tuple[Tensor, Tensor]:
    """
    All images of a split and their kinds.

    Returns:
        `torch.Tensor` of shape `(N, 1, 28, 28)`, uint8, and of shape `(N,)`.
    """
    rows = load_from_disk(str(dataset_name))[split]
    pixels = np.stack([np.asarray(image) for image in rows["image"]])
    return torch.from_numpy(pixels)[:, None], torch.tensor(rows["label"][:])
