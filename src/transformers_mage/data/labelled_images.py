"""Labelled images of any classification set: columns found, classes numbered, subsets drawn, evaluation crops made."""

import logging
from dataclasses import dataclass

import datasets
import numpy as np
import torch
from datasets import Dataset

from .images import BrokenImageError, center_view, open_image
from .labels import IGNORED_LABEL, Classes, draw_subset

logger = logging.getLogger(__name__)


@dataclass
class LabelledImages:
    """
    A split whose labels are numbers of classes.

    Attributes:
        dataset (`datasets.Dataset`): with two columns, one of encoded images.
        image_column, label_column (`str`): their names.
        classes ([`Classes`]): what the numbers stand for.
    """

    dataset: Dataset
    image_column: str
    label_column: str
    classes: Classes

    @classmethod
    def of(cls, dataset: Dataset, image_column: str, label_column: str, classes: Classes) -> "LabelledImages":
        """
        Raises:
            SystemExit: with a message, where a column is missing, holds no images, or labels of other classes.
        """
        missing = [name for name in (image_column, label_column) if name not in dataset.column_names]
        if missing or not len(dataset):
            problem = f'no column "{missing[0]}" but {dataset.column_names}' if missing else "no images"
            raise SystemExit(f"A split of the dataset has {problem}.")
        numbers = classes.number(dataset[label_column][:], label_column)
        images = encoded_images(dataset, image_column)
        return cls(images.add_column(label_column, numbers), image_column, label_column, classes)

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def labels(self) -> np.ndarray:
        return np.asarray(self.dataset[self.label_column][:])

    def select(self, indices: np.ndarray) -> "LabelledImages":
        return LabelledImages(self.dataset.select(indices), self.image_column, self.label_column, self.classes)

    def draw(self, shots_per_class: int | None, label_fraction: float | None, seed: int) -> np.ndarray:
        """
        Indices of a class-balanced subset; see [`draw_subset`].

        Raises:
            SystemExit: with a message, where there are too few images.
        """
        try:
            return draw_subset(self.labels, shots_per_class, label_fraction, seed)
        except ValueError as error:
            raise SystemExit(f"No such subset can be drawn: {error}") from error


def find_image_column(dataset: Dataset, name: str) -> str:
    """
    The column that is named, or else the only one with images.

    Raises:
        SystemExit: naming the columns that there are.
    """
    if name in dataset.column_names:
        return name
    images = [column for column, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    if len(images) != 1:
        raise SystemExit(f'There is no column "{name}" but {dataset.column_names}: say `--image_column NAME`.')
    return images[0]


def encoded_images(dataset: Dataset, image_column: str) -> Dataset:
    """
    A dataset with a column of encoded images alone.

    Raises:
        SystemExit: with a message, if none of the first ones can be decoded.
    """
    column, error = dataset.select_columns([image_column]), None
    try:
        column = column.cast_column(image_column, datasets.Image(decode=False))
        for row in column.take(min(len(column), 10)):
            try:
                open_image(row[image_column], channels=3)
                return column
            except BrokenImageError as broken:
                error = broken
    except (TypeError, ValueError, NotImplementedError) as wrong_type:
        error = wrong_type
    raise SystemExit(f'The column "{image_column}" holds no images that can be decoded: {error}')


class EvaluationImages(torch.utils.data.Dataset):
    """
    The evaluation crops of images, a batch at a time: "pixel_values", uint8, and "labels". A broken image is black,
    and its label one that does not count.

    Args:
        dataset (`datasets.Dataset`): with encoded images.
        image_column, label_column (`str`): names of the columns; without labels, all are 0.
        shape (`tuple[int, int, int]`): channels, height and width.
    """

    def __init__(self, dataset: Dataset, image_column: str, label_column: str | None, shape: tuple[int, int, int]):
        self.dataset = dataset
        self.image_column = image_column
        self.label_column = label_column
        self.shape = tuple(shape)

    @classmethod
    def of(cls, images: LabelledImages, shape: tuple[int, int, int]) -> "EvaluationImages":
        return cls(images.dataset, images.image_column, images.label_column, shape)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        rows = self.dataset[indices]
        pixel_values = torch.zeros(len(indices), *self.shape, dtype=torch.uint8)
        labels = torch.tensor(rows[self.label_column] if self.label_column else [0] * len(indices))
        for i, image in enumerate(rows[self.image_column]):
            try:
                pixel_values[i] = center_view(image, self.shape[1:], self.shape[0])
            except BrokenImageError:
                labels[i] = IGNORED_LABEL
        return {"pixel_values": pixel_values, "labels": labels}
