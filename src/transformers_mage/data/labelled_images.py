"""Labelled images of any classification set: classes numbered, subsets drawn, evaluation crops made."""

import dataclasses
from dataclasses import dataclass

import datasets
import numpy as np
import torch
from datasets import Dataset

from .batches import DataError
from .images import BrokenImageError, center_view, open_image
from .labels import IGNORED_LABEL, Classes, draw_subset
from .loading import Columns


@dataclass
class LabelledImages:
    """
    A split whose labels are numbers of classes.

    Attributes:
        dataset (`datasets.Dataset`): with two columns, one of encoded images.
        columns ([`Columns`]): their names.
        classes ([`Classes`]): what the numbers stand for.
    """

    dataset: Dataset
    columns: Columns
    classes: Classes

    @classmethod
    def of(cls, dataset: Dataset, columns: Columns, classes: Classes) -> "LabelledImages":
        """
        Raises:
            DataError: where a column is missing, holds no images, or labels of other classes.
        """
        missing = [name for name in (columns.image, columns.label) if name not in dataset.column_names]
        if missing or columns.label is None or not len(dataset):
            problem = f'no column "{missing[0]}" but {dataset.column_names}' if missing else "no images"
            raise DataError(f"A split of the data set has {problem}.")
        numbers = classes.number(dataset[columns.label][:], columns.label)
        images = encoded_images(dataset, columns.image)
        return cls(images.add_column(columns.label, numbers), columns, classes)

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def labels(self) -> np.ndarray:
        return np.asarray(self.dataset[self.columns.label][:])

    def select(self, indices: np.ndarray) -> "LabelledImages":
        return dataclasses.replace(self, dataset=self.dataset.select(indices))

    def draw(self, shots_per_class: int | None, label_fraction: float | None, seed: int) -> np.ndarray:
        """
        Indices of a class-balanced subset; see [`draw_subset`].

        Raises:
            ValueError: where there are too few images.
        """
        return draw_subset(self.labels, shots_per_class, label_fraction, seed)


def encoded_images(dataset: Dataset, image_column: str) -> Dataset:
    """
    A dataset with a column of encoded images alone.

    Raises:
        DataError: if none of the first ones can be decoded.
    """
    column = dataset.select_columns([image_column])
    error: Exception | None = None
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
    raise DataError(f'The column "{image_column}" holds no images that can be decoded: {error}')


class EvaluationImages(torch.utils.data.Dataset):
    """
    The evaluation crops of images, a batch at a time: "pixel_values", uint8, and "labels". A broken image is black,
    and its label one that does not count.

    Args:
        dataset (`datasets.Dataset`): with encoded images.
        columns ([`Columns`]): names of its columns; without labels, all are 0.
        shape (`tuple[int, int, int]`): channels, height and width.
    """

    def __init__(self, dataset: Dataset, columns: Columns, shape: tuple[int, int, int]):
        self.dataset = dataset
        self.columns = columns
        self.shape = shape

    @classmethod
    def of(cls, images: LabelledImages, shape: tuple[int, int, int]) -> "EvaluationImages":
        return cls(images.dataset, images.columns, shape)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        rows = self.dataset[indices]
        pixel_values = torch.zeros(len(indices), *self.shape, dtype=torch.uint8)
        labels = torch.tensor(rows[self.columns.label] if self.columns.label else [0] * len(indices))
        for i, image in enumerate(rows[self.columns.image]):
            try:
                pixel_values[i] = center_view(image, self.shape[1:], self.shape[0])
            except BrokenImageError:
                labels[i] = IGNORED_LABEL
        return {"pixel_values": pixel_values, "labels": labels}
