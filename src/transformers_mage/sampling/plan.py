"""Which images a process makes, in which batches, from which randomness and of which classes."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from ..conditioning import resolve_class_labels
from ..configuration_mage import MageConfig


def generator_of(seed: int, index: int) -> torch.Generator:
    """
    The randomness of image `index` of a run. It depends on nothing else, and no two of 2^32 images share it.

    Consecutive seeds, from a start that is hashed from `seed`, rather than a hash of both: torch's generator on the
    CPU tells 2^32 seeds apart, so that hashes would make the first twins after some 65,000 images.
    """
    start = np.random.SeedSequence(seed).generate_state(1, np.uint32)[0]
    return torch.Generator().manual_seed((int(start) + index) % 2**32)


def batches_of(
    num_images: int, batch_size: int, unit_size: int, process_index: int = 0, num_processes: int = 1
) -> Iterator[tuple[list[int], int]]:
    """
    The batches of one process: processes take turns in units of `unit_size` images, of which files are made.

    Every batch is full, so that rounding does not depend on where a run ends or is cut in parts: the last one of a
    unit goes beyond it.

    Yields:
        the indices of `batch_size` images, and how many of them, from the first on, are to be kept.
    """
    for first in range(process_index * unit_size, num_images, num_processes * unit_size):
        end = min(first + unit_size, num_images)
        for start in range(first, end, batch_size):
            yield list(range(start, start + batch_size)), min(batch_size, end - start)


class ClassPlan:
    """
    The class of every image.

    Args:
        config ([`MageConfig`]): the model's.
        source (`str`, *optional*):
            `"balanced"`, each class as often, in turn; `"none"`, no class; or a text file with the id or the name of
            one class a line, line i for image i. By default a class-conditional model's are balanced.
        num_images (`int`): images to make.

    Raises:
        ValueError: for classes of an unconditional model, a file with too few lines, or classes that do not exist.
    """

    def __init__(self, config: MageConfig, source: str | None, num_images: int):
        self.num_classes = config.num_classes
        self.labels: np.ndarray | None = None
        source = source or ("balanced" if config.num_classes else "none")
        self.is_balanced = source == "balanced"
        if self.is_balanced:
            resolve_class_labels(config, 0)  # refuses an unconditional model
        elif source != "none":
            self.labels = _read_labels(config, Path(source), num_images)

    @classmethod
    def of(cls, config: MageConfig, labels: Sequence[int]) -> "ClassPlan":
        """Image i of class `labels[i]`, and over again after the last one."""
        plan = cls(config, "balanced", len(labels))
        plan.is_balanced, plan.labels = False, np.asarray(labels)
        return plan

    def __getitem__(self, indices: Sequence[int]) -> list[int] | None:
        """Classes of images, of those beyond the last one too."""
        if self.is_balanced:
            return [index % self.num_classes for index in indices]
        if self.labels is None:
            return None
        return [int(self.labels[index % len(self.labels)]) for index in indices]

    def describe(self) -> str | None:
        """What tells it from another plan."""
        if self.labels is None:
            return "balanced" if self.is_balanced else None
        return f"sha256:{hashlib.sha256(self.labels.tobytes()).hexdigest()}"


def _read_labels(config: MageConfig, path: Path, num_images: int) -> np.ndarray:
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise ValueError(
            f"The classes must be `balanced`, `none` or a file with one a line: {path} cannot be read ({error})."
        ) from error
    if len(lines) < num_images:
        raise ValueError(f"{path} has {len(lines)} lines, a class each, for {num_images} images.")
    ids: dict[str, int] = {}
    for number, line in enumerate(lines[:num_images], start=1):
        if line not in ids:
            ids[line] = _label_of(config, line.strip(), f"{path}, line {number}")
    return np.array([ids[line] for line in lines[:num_images]], dtype=np.int32)


def _label_of(config: MageConfig, text: str, place: str) -> int:
    label = int(text) if text.lstrip("-").isdigit() else text
    try:
        labels = resolve_class_labels(config, [label])
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    assert labels is not None
    return labels[0]
