"""Few-shot subsets: fixed, seeded, and with the same number of images, or the same share, of every class."""

from collections.abc import Sequence

import numpy as np


def draw_subset(
    labels: Sequence[int], shots_per_class: int | None = None, label_fraction: float | None = None, seed: int = 0
) -> np.ndarray:
    """
    Indices of a class-balanced subset, in order. A larger subset of the same seed holds the smaller ones.

    Args:
        labels (`Sequence[int]` of length `num_images`): classes.
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
        size = shots_per_class if shots_per_class is not None else max(round(float(label_fraction * count)), 1)
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


def hold_out(labels: Sequence[int], share: float = 0.2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
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
