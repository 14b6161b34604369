"""Labels: what they are called, how they are numbered, and few-shot subsets of them."""

import logging
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import torch
from datasets import ClassLabel, Dataset, IterableDataset

from .batches import DataError

logger = logging.getLogger(__name__)

# The label of broken images, which no metric and no loss counts.
IGNORED_LABEL = -100


def read_labels(dataset: Dataset, label_column: str | None) -> torch.Tensor | None:
    """(num_images,) classes, where the dataset has them."""
    column = class_column(dataset, label_column)
    return torch.tensor(dataset[column][:]) if column else None


def class_column(dataset: Dataset | IterableDataset, name: str | None) -> str | None:
    """The column with the labels, if there is one and it holds numbers."""
    if name not in (dataset.column_names or []):
        return None
    feature = (dataset.features or {}).get(name)
    return name if feature is None or str(getattr(feature, "dtype", "")).startswith(("int", "uint")) else None


@dataclass
class Classes:
    """
    The classes of a dataset.

    Attributes:
        ids (`dict[Any, int]`): their numbers, from 0 on, by what stands in the dataset.
        names (`list[str]`): their names, in this order.
    """

    ids: dict[Any, int]
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, dataset: Dataset, label_column: str) -> "Classes":
        """
        Numbers the labels of a column: those of `ClassLabel` are kept, other integers and strings sorted.

        Raises:
            DataError: for labels that are not classes, or all the same.
        """
        feature = dataset.features[label_column]
        if isinstance(feature, ClassLabel):
            values, names = list(range(feature.num_classes)), list(feature.names)
        else:
            values = _sorted_values(dataset, label_column)
            names = [str(value) for value in values]
            if values != list(range(len(values))):
                logger.info(f'The labels of "{label_column}" become classes 0 to {len(values) - 1}: {names[:5]}...')
        if len(values) < 2:
            raise DataError(f'There must be two classes or more; the column "{label_column}" holds only {names}.')
        return cls({value: i for i, value in enumerate(values)}, names)

    def number(self, labels: list[Any], label_column: str) -> np.ndarray:
        """
        The classes' numbers of what stands in a column.

        Raises:
            DataError: for labels that are not among the classes.
        """
        unknown = sorted(set(labels) - set(self.ids), key=str)
        if unknown:
            raise DataError(
                f'The column "{label_column}" holds {unknown[:5]}, which are none of the {len(self)} classes of '
                "training (-1 usually says that there is no label). Leave such images out."
            )
        return np.array([self.ids[label] for label in labels])


def _sorted_values(dataset: Dataset, label_column: str) -> list[Any]:
    feature = dataset.features[label_column]
    if not isinstance(feature, datasets.Value):
        raise DataError(f'The column "{label_column}" must hold classes, integers or strings; it holds {feature}.')
    values = dataset.unique(label_column)
    if None in values:
        raise DataError(f'Some images have no label in the column "{label_column}". Leave them out.')
    kinds = {type(value) for value in values}
    if kinds not in ({int}, {str}, {bool}):
        names = sorted(kind.__name__ for kind in kinds)
        raise DataError(f'The column "{label_column}" must hold classes, integers or strings; it holds {names}.')
    return sorted(values)


def draw_subset(
    labels: npt.ArrayLike, shots_per_class: int | None = None, label_fraction: float | None = None, seed: int = 0
) -> np.ndarray:
    """
    Indices of a class-balanced subset, in order. A larger subset of the same seed holds the smaller ones.

    Args:
        labels (array of shape `(num_images,)`): classes.
        shots_per_class (`int`, *optional*): images of each class.
        label_fraction (`float`, *optional*): share of each class's images instead, and at least one.
        seed (`int`): of the draw.

    Returns:
        `np.ndarray` of shape `(subset_size,)`; all indices where neither is given.

    Raises:
        ValueError: if both are given, for values that would not do, or if a class has fewer images than shots.
    """
    _check(shots_per_class, label_fraction)
    labels = np.asarray(labels)
    if shots_per_class is None and label_fraction is None:
        return np.arange(len(labels))
    classes, counts = np.unique(labels, return_counts=True)
    if shots_per_class is not None and counts.min() < shots_per_class:
        few = int(classes[counts.argmin()])
        raise ValueError(
            f"{shots_per_class} images of each class are asked for, but class {few} has {counts.min()}. Ask for "
            f"{counts.min()} or fewer."
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = []
    for label, count in zip(classes, counts, strict=True):
        size = shots_per_class or max(round(float((label_fraction or 1) * count)), 1)
        chosen.append(order[labels[order] == label][:size])
    return np.sort(np.concatenate(chosen))


def _check(shots_per_class: int | None, label_fraction: float | None):
    if shots_per_class is not None and label_fraction is not None:
        raise ValueError(
            f"Say either `shots_per_class` or `label_fraction`, got {shots_per_class} and {label_fraction}."
        )
    if shots_per_class is not None and shots_per_class < 1:
        raise ValueError(f"`shots_per_class` must be at least 1, got {shots_per_class}.")
    if label_fraction is not None and not 0 < label_fraction <= 1:
        raise ValueError(f"`label_fraction` must lie in (0, 1], got {label_fraction}.")


def hold_out(labels: npt.ArrayLike, share: float = 0.2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """
    Splits the indices of a training set into two, to choose hyper-parameters on the second: `share` of each class,
    rounded down, so that a class of few images gives none.
    """
    labels = np.asarray(labels)
    order = np.random.default_rng(seed).permutation(len(labels))
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        held_out[members[: int(share * len(members))]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
