"""The images as they are trained on: squares of one size, whole ones only, in three splits, in an order of chance."""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets.arrow_writer import ArrowWriter
from PIL.Image import Image

from ..data.batches import DataError
from ..data.images import BrokenImageError
from ..data.labels import Classes
from ..data.loading import Columns, DatasetSpec, load_split
from ..files import written_aside
from ..progress import progress_bar
from .choosing import HELD_OUT_SHARE
from .looking import ImageSurvey, square

# Of a split that there is not: this share of the training images, as far as they go.
FEWEST_HELD_OUT, MOST_HELD_OUT = 16, 5000


def prepare(spec: DatasetSpec, survey: ImageSurvey, side: int, num_images: int, folder: Path, seed: int = 0):
    """
    Writes the splits "train", "validation" and "test" for `save_to_disk`'s readers. Images that are broken, or were
    there before, are left out.

    Args:
        spec ([`DatasetSpec`]): the training split.
        survey ([`ImageSurvey`]): of it.
        side (`int`): of the images, in pixels.
        num_images (`int`): for training and what is held out of that.
        folder (`Path`): where to.
        seed (`int`): of the order.

    Raises:
        DataError: if nothing is left.
    """
    columns = Columns(survey.image_column, survey.label_column)
    train = load_split(spec)
    classes = Classes.of(train, columns.label) if columns.label else None
    train = train.select(np.random.default_rng(seed).permutation(len(train))[:num_images])
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        maker = _Squares(columns, classes, side, Path(scratch))
        whole = {"train": maker.make(train, "train")}
        for name in ("test", "validation"):
            made = _made_of(maker, spec, survey.splits[name], name, seed)
            # Published test sets often come without images that are new, or with labels of none of the classes.
            if made is None or len(made) < FEWEST_HELD_OUT:
                whole["train"], made = _held_out(whole["train"])
            whole[name] = made
        if not all(len(split) for split in whole.values()):
            raise DataError(f"{spec.name} holds too few whole images to train on some and to look at others.")
        splits = DatasetDict({name: whole[name] for name in ("train", "validation", "test")})
        with written_aside(folder) as aside:
            splits.save_to_disk(aside)


def _made_of(maker: "_Squares", spec: DatasetSpec, there: str | None, name: str, seed: int) -> Dataset | None:
    """A split of its own, where there is one with the same columns."""
    if there is None:
        return None
    split = load_split(spec.of_split(there))
    if not {maker.columns.image, maker.columns.label} - {None} <= set(split.column_names):
        return None
    chosen = np.random.default_rng(seed).permutation(len(split))[:MOST_HELD_OUT]
    return maker.make(split.select(chosen), name)


def _held_out(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """What is left, and what is taken from the end: their order is one of chance."""
    count = min(max(int(HELD_OUT_SHARE * len(dataset)), FEWEST_HELD_OUT), len(dataset) // 3, MOST_HELD_OUT)
    return dataset.select(range(len(dataset) - count)), dataset.select(range(len(dataset) - count, len(dataset)))


class _Squares:
    """
    Makes splits of squares, each image once in all of them.

    Args:
        columns ([`Columns`]): of what they are made of.
        classes ([`Classes`], *optional*): what the labels are.
        side (`int`): of the squares, in pixels.
        scratch (`Path`): a folder for what is not in memory.
    """

    def __init__(self, columns: Columns, classes: Classes | None, side: int, scratch: Path):
        self.columns = columns
        self.classes = classes
        self.side = side
        self.scratch = scratch
        self.known: set[bytes] = set()

    def make(self, dataset: Dataset, name: str) -> Dataset:
        kinds: dict[str, Any] = {"image": datasets.Image()}
        if self.classes is not None:
            kinds["label"] = ClassLabel(names=self.classes.names)
        return _written(self._rows(dataset, name), Features(kinds), self.scratch / f"{name}.arrow")

    def _rows(self, dataset: Dataset, name: str) -> Iterator[dict[str, Any]]:
        encoded = dataset.cast_column(self.columns.image, datasets.Image(decode=False))
        for row in progress_bar(encoded, desc=f"Preparing {name}", leave=False):
            label = {} if self.classes is None else {"label": self.classes.ids.get(row[str(self.columns.label)])}
            if None in label.values():
                continue
            with suppress(BrokenImageError):
                image = square(row[self.columns.image], self.side)
                if self._is_new(image):
                    yield {"image": image, **label}

    def _is_new(self, image: Image) -> bool:
        digest = hashlib.sha256(image.tobytes()).digest()
        is_new = digest not in self.known
        self.known.add(digest)
        return is_new


def _written(rows: Iterator[dict[str, Any]], features: Features, file: Path) -> Dataset:
    """Rows in a file of their own: they may not fit into memory, and the cache of `datasets` would keep them."""
    with ArrowWriter(path=str(file), features=features) as writer:
        for row in rows:
            writer.write(features.encode_example(row))
        writer.finalize()
    return Dataset.from_file(str(file))
