"""
Tokens that were computed once: for each image, those of several random views, 16 bits a token, memory-mapped.

A cache is a folder with the tokenizer, and for each split a folder with `tokens.json` and its shards, which `datasets`
wrote and reads. A shard is whole or not there, so that an interrupted run is simply started again.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, IterableDataset, List, Value, concatenate_datasets, load_from_disk
from diffusers import VQModel

from ..image_tokens import vq_config_of
from .batches import Batch, stack_views
from .images import BrokenImageError
from .indexed import drawn_views
from .views import ImageViews

METADATA = "tokens.json"


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
        folder.mkdir(parents=True, exist_ok=True)
        aside = folder / f".{METADATA}"
        aside.write_text(json.dumps(asdict(self), indent=1))
        aside.rename(folder / METADATA)

    @classmethod
    def load(cls, folder: Path) -> "CacheMetadata":
        return cls(**json.loads((folder / METADATA).read_text()))

    def check_same(self, other: "CacheMetadata", folder: Path):
        """
        Raises:
            SystemExit: naming what differs.
        """
        there, now = asdict(self), json.loads(json.dumps(asdict(other)))
        different = [f"{name}: {there[name]} there, {now[name]} now" for name in there if there[name] != now[name]]
        if different:
            raise SystemExit(
                f"{folder} holds tokens that were made otherwise ({'; '.join(different)}). Use the same values, or "
                "another folder."
            )


def fingerprint(tokenizer: VQModel) -> str:
    """A hash of a tokenizer's configuration and weights."""
    digest = hashlib.sha256(json.dumps(vq_config_of(tokenizer), sort_keys=True, default=str).encode())
    for name, tensor in sorted(tokenizer.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def transform_values(views: ImageViews) -> dict[str, Any]:
    """What decides on the views, in terms of JSON."""
    return json.loads(json.dumps(vars(views)))


def shard_folder(folder: Path, index: int, num_shards: int) -> Path:
    return folder / f"shard-{index:05d}-of-{num_shards:05d}"


def missing_shards(folder: Path, num_shards: int) -> list[int]:
    return [index for index in range(num_shards) if not shard_folder(folder, index, num_shards).exists()]


def encode_shard(
    rows: Dataset | IterableDataset,
    tokenize: Tokenize,
    views: ImageViews,
    columns: tuple[str, str | None],
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
        columns (`tuple[str, str]`): names of the columns with the images and, if there is one, the labels.
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
    return _as_dataset(tokens, labels if columns[1] else None), num_skipped


def _decoded(
    rows: Iterable,
    views: ImageViews,
    columns: tuple[str, str | None],
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
        images = batch[columns[0]]
        pixels = list(pool.map(decode, images, range(start, start + len(images))))
        start += len(images)
        whole = [i for i, views_of_image in enumerate(pixels) if views_of_image is not None]
        labels = [batch[columns[1]][i] for i in whole] if columns[1] else []
        yield [pixels[i] for i in whole], labels, len(pixels) - len(whole)


def _as_dataset(tokens: list[np.ndarray], labels: list[int] | None) -> Dataset:
    rows = np.concatenate(tokens) if tokens else np.empty((0, 1), np.uint16)
    features = {"input_ids": List(Value("uint16"), length=rows.shape[1])}
    columns = {"input_ids": list(rows)}
    if labels is not None:
        features["label"], columns["label"] = Value("int64"), labels
    return Dataset.from_dict(columns, features=Features(features))


def save_shard(shard: Dataset, folder: Path):
    """Writes a shard aside and puts it in its place when it is whole."""
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    shard.save_to_disk(aside)
    aside.rename(folder)


class CachedTokens(torch.utils.data.Dataset):
    """
    The rows of a cached split, fetched a batch at a time. Another view is drawn in each epoch.

    Args:
        folder (`Path`): of the split.
        views_per_image (`int`): how many different views of an image a batch holds, 2 for contrastive training.

    Raises:
        SystemExit: with a message, if the cache is not whole or has too few views.
    """

    def __init__(self, folder: Path, views_per_image: int = 1):
        self.metadata = load_metadata(folder)
        num_shards, num_views = self.metadata.num_shards, self.metadata.transform["num_views"]
        missing = missing_shards(folder, num_shards)
        if missing:
            raise SystemExit(
                f"{folder} has only {num_shards - len(missing)} of {num_shards} shards: run scripts/cache_tokens.py "
                "again, it goes on where it was stopped."
            )
        if views_per_image > num_views:
            raise SystemExit(
                f"{folder} holds {num_views} views of each image, {views_per_image} different ones are needed: make "
                f"it again with `--views {views_per_image}` or more."
            )
        self.views_per_image = views_per_image
        shards = [load_from_disk(shard_folder(folder, index, num_shards)) for index in range(num_shards)]
        self._map_memory(concatenate_datasets([shard for shard in shards if len(shard)]), num_views)

    def _map_memory(self, dataset: Dataset, num_views: int):
        """Keeps views into the memory-mapped files: a row is then read without a copy of what is around it."""
        chunks = dataset.data.column("input_ids").chunks
        self.chunks = [chunk.flatten().to_numpy().reshape(len(chunk), num_views, -1) for chunk in chunks]
        self.ends = np.cumsum([len(chunk) for chunk in self.chunks])
        self.labels = torch.tensor(dataset["label"][:]) if "label" in dataset.column_names else None

    def check(self, tokenizer: VQModel, transform: dict[str, Any], grid_size: tuple[int, int]):
        """
        Raises:
            SystemExit: with a message, if the tokens were made with another tokenizer or otherwise than `transform`
                (values of [`ImageViews`]) says, or have another grid.
        """
        made = self.metadata
        there = {"tokenizer": made.tokenizer, "grid_size": list(made.grid_size), **made.transform}
        now = {"tokenizer": fingerprint(tokenizer), "grid_size": list(grid_size), **transform}
        different = [f"{name} is {there[name]} there and {now[name]} here" for name in now if there[name] != now[name]]
        if different:
            raise SystemExit(
                f"The token cache does not fit: {'; '.join(different)}. Train with its values, or make it again."
            )

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitems__(self, draws: list[int]) -> Batch:
        epochs, indices = np.divmod(np.asarray(draws), len(self))
        views = drawn_views(epochs, self.views_per_image, self.metadata.transform["num_views"])
        numbers = np.searchsorted(self.ends, indices, side="right")
        tokens = np.empty((*views.shape, self.chunks[0].shape[2]), np.int64)
        for i, (number, index) in enumerate(zip(numbers, indices - self.ends[numbers], strict=True)):
            tokens[:, i] = self.chunks[number][index, views[:, i]]
        batch = {"input_ids": torch.from_numpy(tokens).flatten(0, 1)}
        return batch if self.labels is None else batch | {"labels": self.labels[indices]}

    def first_views(self, limit: int) -> torch.Tensor:
        """(num_images, sequence_length) tokens of the first view of the first images, for evaluation."""
        rows = np.concatenate([chunk[:limit, 0] for chunk in self.chunks[: 1 + limit // len(self.chunks[0])]])
        return torch.from_numpy(rows[:limit].astype(np.int64))


def cached_class_settings(folder: Path) -> dict[str, Any]:
    """
    `num_classes` and `id2label` of [`MageConfig`] for the labels of a cached split.

    Raises:
        SystemExit: with a message, if it has none.
    """
    classes = load_metadata(folder).dataset.get("classes")
    if not classes:
        raise SystemExit(f"There are no classes to condition on: {folder} was made without `--label_column`.")
    return {"num_classes": len(classes), "id2label": dict(enumerate(classes))}


def load_metadata(folder: Path) -> CacheMetadata:
    try:
        return CacheMetadata.load(folder)
    except (OSError, ValueError, TypeError) as error:
        raise SystemExit(f"{folder} is no split of a token cache, as scripts/cache_tokens.py makes it.") from error
