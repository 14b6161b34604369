"""
Tokens that were computed once: for each image, those of several random views, 16 bits a token, memory-mapped.

A cache is a folder with the tokenizer, and for each split a folder with `tokens.json` and its shards, which `datasets`
wrote and reads. A shard is whole or not there, so that an interrupted run is simply started again.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, IterableDataset, List, Value, concatenate_datasets, load_from_disk
from diffusers import VQModel

from ..files import (
    FolderError,
    check_same,
    damaged_files,
    describe_files,
    fingerprint,
    read_json,
    write_json,
    written_aside,
)
from .batches import Batch, DataError, stack_views
from .images import BrokenImageError
from .indexed import BatchedDataset, drawn_views
from .loading import Columns
from .views import Crops, ImageViews

METADATA = "tokens.json"
FILES = "files.json"

Tokenize = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class CacheMetadata:
    """
    What a cached split was made of.

    Attributes:
        tokenizer (`str`): the tokenizer's fingerprint.
        transform (`dict`): values of [`ImageViews`].
        grid_size (`list[int]`): rows and columns of tokens.
        dataset (`dict`): name, configuration, split, number of images and names of the classes, where known.
        seed (`int`): of the views.
        num_shards (`int`): shards of the whole split.
    """

    tokenizer: str
    transform: dict[str, Any]
    grid_size: list[int]
    dataset: dict[str, Any]
    seed: int
    num_shards: int

    def save(self, folder: Path):
        write_json(folder / METADATA, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "CacheMetadata":
        """
        Raises:
            FolderError: if the folder is not a cached split.
        """
        try:
            return cls(**read_json(folder / METADATA))
        except (OSError, TypeError) as error:
            raise FolderError(
                f"{folder} is not a split of a token cache, as scripts/cache_tokens.py makes it."
            ) from error

    def check_same(self, other: "CacheMetadata", folder: Path):
        """
        Raises:
            FolderError: naming what differs.
        """
        check_same(folder, "tokens", asdict(self), asdict(other))


def transform_values(views: ImageViews) -> dict[str, Any]:
    """What decides on the views, in terms of JSON."""
    size = {"image_size": list(views.image_size), "channels": views.channels, "num_views": views.num_views}
    return size | _crop_values(views.crops)


def _crop_values(crops: Crops) -> dict[str, Any]:
    return {
        "crop_scale_min": crops.scale_min,
        "crop_ratio_max": crops.ratio_max,
        "horizontal_flip": crops.flip,
    }


def shard_folder(folder: Path, index: int, num_shards: int) -> Path:
    return folder / f"shard-{index:05d}-of-{num_shards:05d}"


def damaged_shards(folder: Path, num_shards: int, *, read: bool) -> dict[int, str]:
    """
    What is wrong with the shards of a split, by their numbers.

    Args:
        read (`bool`): compare hashes too, for which all shards are read.
    """
    damage = {}
    for index in range(num_shards):
        wrong = _damage(shard_folder(folder, index, num_shards), read)
        if wrong:
            damage[index] = wrong
    return damage


def _damage(shard: Path, read: bool) -> str:
    if not shard.is_dir():
        return "is missing"
    if not (shard / FILES).exists():
        return _damage_of_unlisted(shard)
    try:
        wrong = damaged_files(shard, read_json(shard / FILES), read=read)
    except FolderError as error:
        return f"cannot be read: {error}"
    return "; ".join(f"{name} {what}" for name, what in wrong.items())


def _damage_of_unlisted(shard: Path) -> str:
    """Of a shard that is older than its list of files."""
    try:
        load_from_disk(shard)
    # What reads Arrow files has many errors.
    except Exception as error:
        return f"cannot be read: {error}"
    return ""


def _load_shard(shard: Path) -> Dataset | None:
    """A shard's rows, if it has any: `datasets` writes no file for none, and cannot read that."""
    return load_from_disk(shard) if any(shard.glob("*.arrow")) else None


def encode_shard(
    rows: Dataset | IterableDataset,
    tokenize: Tokenize,
    views: ImageViews,
    columns: Columns,
    seed: tuple[int, ...],
    batch_size: int,
    num_threads: int = 1,
) -> tuple[Dataset, int]:
    """
    Encodes the images of a shard.

    Args:
        rows (`datasets.Dataset` or `datasets.IterableDataset`): with encoded images.
        tokenize (`Callable`): from uint8 images (batch_size, channels, height, width) to codes
            (batch_size, sequence_length).
        views ([`ImageViews`]): `num_views` of each image.
        columns ([`Columns`]): names of the columns with the images and, if there is one, the labels.
        seed (`tuple[int, ...]`): the shard's. The views of its i-th row depend on it and i alone.
        batch_size, num_threads (`int`): images at once, and threads that decode them.

    Returns:
        `datasets.Dataset` with the columns `input_ids`, (num_views x sequence_length,) uint16 a row, and `label`;
        and the number of images that were skipped because they are broken.
    """
    tokens, labels, num_skipped = [], [], 0
    with ThreadPoolExecutor(num_threads) as pool:
        for pixels, batch_labels, skipped in _decoded(rows, views, columns, seed, batch_size, pool):
            num_skipped += skipped
            if pixels:
                codes = tokenize(stack_views(pixels)).unflatten(0, (views.num_views, len(pixels)))
                tokens.append(codes.transpose(0, 1).flatten(1).cpu().numpy().astype(np.uint16))
                labels += batch_labels
    return _as_dataset(tokens, labels if columns.label else None), num_skipped


def _decoded(
    rows: Dataset | IterableDataset,
    views: ImageViews,
    columns: Columns,
    seed: tuple[int, ...],
    batch_size: int,
    pool: ThreadPoolExecutor,
) -> Iterator[tuple[list[torch.Tensor], list[int], int]]:
    def decode(image: Any, index: int) -> torch.Tensor | None:
        try:
            return views(image, (*seed, index))
        except BrokenImageError:
            return None

    start = 0
    for batch in rows.iter(batch_size=batch_size):
        images = batch[columns.image]
        pixels = list(pool.map(decode, images, range(start, start + len(images))))
        start += len(images)
        whole = {i: views_of_image for i, views_of_image in enumerate(pixels) if views_of_image is not None}
        labels = [batch[columns.label][i] for i in whole] if columns.label else []
        yield list(whole.values()), labels, len(pixels) - len(whole)


def _as_dataset(tokens: list[np.ndarray], labels: list[int] | None) -> Dataset:
    rows = np.concatenate(tokens) if tokens else np.empty((0, 1), np.uint16)
    features = {"input_ids": List(Value("uint16"), length=rows.shape[1])}
    columns = {"input_ids": list(rows)}
    if labels is not None:
        features["label"], columns["label"] = Value("int64"), labels
    return Dataset.from_dict(columns, features=Features(features))


def save_shard(shard: Dataset, folder: Path):
    """Writes a shard aside and puts it in its place when it is whole."""
    with written_aside(folder) as aside:
        shard.save_to_disk(aside)
        write_json(aside / FILES, describe_files(aside))


class CachedTokens(BatchedDataset):
    """
    The rows of a cached split, fetched a batch at a time. Another view is drawn in each epoch.

    Args:
        folder (`Path`): of the split.
        views_per_image (`int`): how many different views of an image a batch holds, 2 for contrastive training.

    Raises:
        FolderError: if the cache is incomplete or has too few views.
    """

    def __init__(self, folder: Path, views_per_image: int = 1):
        self.folder = folder
        self.metadata = CacheMetadata.load(folder)
        num_shards, num_views = self.metadata.num_shards, self.metadata.transform["num_views"]
        damage = damaged_shards(folder, num_shards, read=False)
        if damage:
            index, what = next(iter(damage.items()))
            raise FolderError(
                f"{len(damage)} of {num_shards} shards of {folder} are missing or damaged, the first being "
                f"{shard_folder(folder, index, num_shards).name}: it {what}. Run scripts/cache_tokens.py again, which "
                "makes them."
            )
        if views_per_image > num_views:
            raise FolderError(
                f"{folder} holds {num_views} views of each image, {views_per_image} different ones are needed: make "
                f"it again with `--views {views_per_image}` or more."
            )
        self.views_per_image = views_per_image
        shards = [_load_shard(shard_folder(folder, index, num_shards)) for index in range(num_shards)]
        filled = [shard for shard in shards if shard is not None]
        if not filled:
            raise FolderError(f"{folder} holds no tokens: every image was broken.")
        self._map_memory(concatenate_datasets(filled), num_views)

    def _map_memory(self, dataset: Dataset, num_views: int):
        """Keeps views into the memory-mapped files: a row is then read without a copy of what is around it."""
        chunks = dataset.data.column("input_ids").chunks
        self.chunks = [chunk.flatten().to_numpy().reshape(len(chunk), num_views, -1) for chunk in chunks]
        self.ends = np.cumsum([len(chunk) for chunk in self.chunks])
        self.labels = torch.tensor(dataset["label"][:]) if "label" in dataset.column_names else None

    def check(self, tokenizer: VQModel, crops: Crops, grid_size: tuple[int, int]):
        """
        Raises:
            FolderError: if the tokens were made with another tokenizer or other crops, or have another grid.
        """
        now = {"tokenizer": fingerprint(tokenizer), "grid_size": list(grid_size), **_crop_values(crops)}
        there = {**asdict(self.metadata), **self.metadata.transform}
        check_same(self.folder, "tokens", {name: there[name] for name in now}, now)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitems__(self, draws: list[int]) -> Batch:
        epochs, indices = np.divmod(np.asarray(draws), len(self))
        views = drawn_views(epochs, self.views_per_image, self.metadata.transform["num_views"])
        numbers = np.searchsorted(self.ends, indices, side="right")
        tokens = np.empty((*views.shape, self.chunks[0].shape[2]), np.int64)
        for i, (number, index) in enumerate(zip(numbers, indices - self.ends[numbers], strict=True)):
            tokens[:, i] = self.chunks[number][index, views[:, i]]
        labels = None if self.labels is None else self.labels[indices]
        return Batch(input_ids=torch.from_numpy(tokens).flatten(0, 1), labels=labels)

    def all_views(self, indices: Sequence[int]) -> np.ndarray:
        """(num_images, num_views, sequence_length) tokens of these images, int64."""
        numbers = np.searchsorted(self.ends, indices, side="right")
        ends = [0, *self.ends]
        rows = [self.chunks[n][index - ends[n]] for n, index in zip(numbers, indices, strict=True)]
        return np.stack(rows).astype(np.int64)

    def first_views(self, limit: int) -> torch.Tensor:
        """(num_images, sequence_length) tokens of the first view of the first images, for validation."""
        rows = np.concatenate([chunk[:limit, 0] for chunk in self.chunks[: 1 + limit // len(self.chunks[0])]])
        return torch.from_numpy(rows[:limit].astype(np.int64))


def cached_class_settings(folder: Path) -> dict[str, Any]:
    """
    `num_classes` and `id2label` of [`MageConfig`] for the labels of a cached split.

    Raises:
        DataError: if it has none.
    """
    classes = CacheMetadata.load(folder).dataset.get("classes")
    if not classes:
        raise DataError(f"There are no classes to condition on: {folder} was made without `--label_column`.")
    return {"num_classes": len(classes), "id2label": dict(enumerate(classes))}
