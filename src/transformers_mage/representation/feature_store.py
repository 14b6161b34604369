"""Features of a split in a folder of shards."""

import glob
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Array2D, ClassLabel, Dataset, Features, List, Value
from safetensors.torch import load_file, save_file

from ..files import FolderError, check_inside, check_note, read_json, write_json, written_aside

FORMATS = ("parquet", "safetensors")


@dataclass
class FeatureStore:
    """
    The features of one split in a folder: shards `SPLIT-00000-of-00004.parquet`, which `datasets.load_dataset(folder)`
    reads, or `.safetensors`. Each holds the features by their names, "index", the row in the split, and "label". A
    shard is complete or not there.

    Args:
        folder (`Path`): where it is.
        split (`str`): of which split.
        num_images (`int`): images in the split.
        made_of (`dict`): what the features depend on, in terms of JSON.
        images_per_shard (`int`): images in a shard.
        file_format (`str`): `"parquet"` or `"safetensors"`.
        class_names (`list[str]`, *optional*): what the labels mean.
    """

    folder: Path
    split: str
    num_images: int
    made_of: dict[str, Any]
    images_per_shard: int = 2000
    file_format: str = "parquet"
    class_names: list[str] = field(default_factory=list)

    def __post_init__(self):
        check_inside(self.folder, self.split, "split")

    @property
    def num_shards(self) -> int:
        return -(-self.num_images // self.images_per_shard)

    def rows(self, shard: int) -> range:
        """The images of a shard."""
        start = shard * self.images_per_shard
        return range(start, min(start + self.images_per_shard, self.num_images))

    def path(self, shard: int) -> Path:
        return self.folder / f"{self.split}-{shard:05d}-of-{self.num_shards:05d}.{self.file_format}"

    def missing(self) -> list[int]:
        return [shard for shard in range(self.num_shards) if not self.path(shard).exists()]

    def open(self, is_main_process: bool = True):
        """
        Notes in the folder what is in it.

        Raises:
            FolderError: naming what differs, if the folder holds other features.
        """
        sizes = {name: getattr(self, name) for name in ("num_images", "images_per_shard", "file_format")}
        note = self.folder / f".{self.split}.json"
        is_first = not any(self.folder.glob(f"{glob.escape(self.split)}-*"))
        if not check_note(note, "features", self.made_of | sizes, is_first) and is_main_process:
            write_json(note, self.made_of | sizes)

    def save(self, shard: int, columns: dict[str, torch.Tensor]):
        """Writes a shard."""
        with written_aside(self.path(shard)) as aside:
            if self.file_format == "safetensors":
                save_file({name: values.contiguous() for name, values in columns.items()}, aside)
            else:
                self._as_dataset(columns).to_parquet(str(aside))

    def _as_dataset(self, columns: dict[str, torch.Tensor]) -> Dataset:
        label = ClassLabel(names=self.class_names) if self.class_names else Value("int64")
        features = {
            name: label if name == "label" else Value("int64") if values.ndim == 1 else _array(values)
            for name, values in columns.items()
        }
        return Dataset.from_dict({k: v.numpy() for k, v in columns.items()}, features=Features(features))

    def load(self) -> dict[str, torch.Tensor]:
        """
        All shards as tensors, image after image.

        Raises:
            FolderError: if some are missing.
        """
        missing = self.missing()
        if missing:
            raise FolderError(f"{self.folder} has only {self.num_shards - len(missing)} of {self.num_shards} shards.")
        paths = [self.path(shard) for shard in range(self.num_shards)]
        if self.file_format == "safetensors":
            shards = [load_file(path) for path in paths]
        else:
            shards = [Dataset.from_parquet(str(path), keep_in_memory=True).with_format("torch")[:] for path in paths]
        return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}


def load_features(folder: Path, split: str, name: str | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    The features of a split that scripts/extract_features.py wrote, and the labels of its images where it has them.

    Args:
        folder (`Path`): where they are.
        split (`str`): of which split.
        name (`str`, *optional*): which of them, as "layer_12_mean"; not needed where there is one.

    Returns:
        `torch.Tensor` of shape `(num_images, size)`, and of shape `(num_images,)`.

    Raises:
        FolderError: where there are no such features.
    """
    note = folder / f".{split}.json"
    if not note.exists():
        raise FolderError(f'{folder} holds no features of the split "{split}" that extract_features.py wrote.')
    made_of = read_json(note)
    sizes = {key: made_of.pop(key) for key in ("num_images", "images_per_shard", "file_format")}
    columns = FeatureStore(folder, split, made_of=made_of, **sizes).load()
    pooled = [key for key, values in columns.items() if values.ndim == 2]
    if name is None and len(pooled) == 1:
        [name] = pooled
    if name not in pooled:
        asked = "holds several features" if name is None else f"holds no {name!r}"
        raise FolderError(f"{folder} {asked}: say which of {pooled} to take with `--feature_name`.")
    return columns[name], columns.get("label")


def _array(values: torch.Tensor) -> List | Array2D:
    dtype = str(values.dtype).removeprefix("torch.")
    if values.ndim == 3:
        return Array2D(tuple(values.shape[1:]), dtype)
    return List(Value(dtype), length=values.shape[1])
