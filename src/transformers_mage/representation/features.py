"""Features of whole datasets, computed once: several layers and poolings in one pass, in shards."""

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Array2D, ClassLabel, Dataset, Features, List, Value
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.batches import Loading
from ..data.labelled_images import EvaluationImages
from ..data.labels import IGNORED_LABEL
from ..modeling_mage import MageModel

POOLINGS = ("mean", "cls", "tokens")


FORMATS = ("parquet", "safetensors")


class FeatureExtractor(nn.Module):
    """
    The features of several layers, pooled in several ways, from one pass of the encoder. All are taken before the
    final norm, as linear probing does (appendix B).

    Args:
        model ([`MageModel`]): the encoder, with its tokenizer.
        layers (`Sequence[int]`): 0 are the embeddings, `num_hidden_layers` or -1 is the last layer's output.
        poolings (`Sequence[str]`): `"mean"` over the image tokens, `"cls"`, the class token, or `"tokens"`, every
            image token.

    Raises:
        ValueError: for a layer or a pooling that does not exist.
    """

    def __init__(self, model: MageModel, layers: Sequence[int] = (-1,), poolings: Sequence[str] = ("mean",)):
        super().__init__()
        self.model = model.eval()
        depth = model.config.num_hidden_layers
        for layer in layers:
            if not -depth - 1 <= layer <= depth:
                raise ValueError(f"`layers` must lie between 0 (embeddings) and {depth}, got {layer}.")
        for pooling in poolings:
            if pooling not in POOLINGS:
                raise ValueError(f'`poolings` must be among {", ".join(POOLINGS)}, got "{pooling}".')
        self.layers = sorted({layer if layer >= 0 else depth + 1 + layer for layer in layers})
        self.poolings = list(dict.fromkeys(poolings))

    @property
    def names(self) -> list[str]:
        return [feature_name(layer, pooling) for layer in self.layers for pooling in self.poolings]

    @torch.no_grad()
    def forward(self, pixel_values: torch.FloatTensor) -> dict[str, torch.Tensor]:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): in [0, 1]; where
                they are larger or smaller than what was trained on, the positions are interpolated.

        Returns:
            By name, `torch.Tensor` of shape `(batch_size, hidden_size)`, or `(batch_size, sequence_length,
            hidden_size)` for `"tokens"`.
        """
        outputs = self.model(pixel_values, output_hidden_states=True, interpolate_pos_encoding=True)
        return {
            feature_name(layer, pooling): pool(outputs.hidden_states[layer], pooling)
            for layer in self.layers
            for pooling in self.poolings
        }


def feature_name(layer: int, pooling: str) -> str:
    return f"layer_{layer}_{pooling}"


def parse_feature_name(name: str) -> tuple[int, str]:
    """Layer and pooling."""
    _, layer, pooling = name.split("_")
    return int(layer), pooling


def pool(hidden_states: torch.Tensor, pooling: str) -> torch.Tensor:
    """Pools (batch_size, 1 + sequence_length, hidden_size); see [`FeatureExtractor`]."""
    if pooling == "cls":
        return hidden_states[:, 0]
    return hidden_states[:, 1:].mean(dim=1) if pooling == "mean" else hidden_states[:, 1:]


def fingerprint(model: nn.Module) -> str:
    """A hash of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


@dataclass
class FeatureStore:
    """
    The features of one split in a folder: shards `SPLIT-00000-of-00004.parquet`, which `datasets.load_dataset(folder)`
    reads, or `.safetensors`. Each holds the features by their names, "index", the row in the split, and "label". A
    shard is whole or not there.

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
        Says in the folder what is in it.

        Raises:
            SystemExit: naming what differs, if the folder holds other features.
        """
        sizes = {name: getattr(self, name) for name in ("num_images", "images_per_shard", "file_format")}
        now = json.loads(json.dumps(self.made_of | sizes))
        note = self.folder / f".{self.split}.json"
        if not note.exists():
            if is_main_process:
                self.folder.mkdir(parents=True, exist_ok=True)
                note.write_text(json.dumps(now, indent=1))
            return
        there = json.loads(note.read_text())
        different = [
            f"{name}: {there.get(name)} there, {now[name]} now" for name in now if there.get(name) != now[name]
        ]
        if different:
            raise SystemExit(
                f"{self.folder} holds other features ({'; '.join(different)}). Use the same values, or another folder."
            )

    def save(self, shard: int, columns: dict[str, torch.Tensor]):
        """Writes a shard aside, and puts it in its place when it is whole."""
        path = self.path(shard)
        aside = path.with_name(f".{path.name}.partial")
        if self.file_format == "safetensors":
            save_file({name: values.contiguous() for name, values in columns.items()}, aside)
        else:
            self._as_dataset(columns).to_parquet(str(aside))
        aside.rename(path)

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
            SystemExit: with a message, if some are missing.
        """
        missing = self.missing()
        if missing:
            raise SystemExit(f"{self.folder} has only {self.num_shards - len(missing)} of {self.num_shards} shards.")
        paths = [self.path(shard) for shard in range(self.num_shards)]
        if self.file_format == "safetensors":
            shards = [load_file(path) for path in paths]
        else:
            shards = [Dataset.from_parquet(str(path), keep_in_memory=True).with_format("torch")[:] for path in paths]
        return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}


def _array(values: torch.Tensor) -> List | Array2D:
    dtype = str(values.dtype).removeprefix("torch.")
    if values.ndim == 3:
        return Array2D(tuple(values.shape[1:]), dtype)
    return List(Value(dtype), length=values.shape[1])


@dataclass
class ExtractionReport:
    """
    Attributes:
        num_images (`int`): images whose features were computed now, over all processes.
        num_broken (`int`): images among them that could not be decoded; they are left out.
        seconds (`float`): the time that it took.
    """

    num_images: int
    num_broken: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        return self.num_images / max(self.seconds, 1e-9)


def extract_features(
    extractor: FeatureExtractor,
    images: EvaluationImages,
    store: FeatureStore,
    accelerator: Accelerator,
    batch_size: int = 64,
    num_workers: int = 0,
    dtype: torch.dtype = torch.float32,
) -> ExtractionReport:
    """
    Computes the shards that a store has not yet. Each process computes its share of them.

    Args:
        dtype (`torch.dtype`): of the features in the store.
    """
    store.open(accelerator.is_main_process)
    accelerator.wait_for_everyone()
    todo = store.missing()[accelerator.process_index :: accelerator.num_processes]
    accelerator.wait_for_everyone()
    batches = [_split(store.rows(shard), batch_size) for shard in todo]
    loading = Loading(batch_size, num_workers=num_workers, timeout=600, pin_memory=accelerator.device.type == "cuda")
    loader = iter(DataLoader(images, batch_sampler=list(chain.from_iterable(batches)), **loading.options()))
    counts, start = torch.zeros(2), time.perf_counter()
    num_images = sum(len(store.rows(shard)) for shard in todo)
    is_hidden = not todo or not accelerator.is_local_main_process
    with tqdm(total=num_images, desc=f"Features of {store.split}", leave=False, disable=is_hidden) as progress_bar:
        for shard, its_batches in zip(todo, batches, strict=True):
            columns = _compute(extractor, islice(loader, len(its_batches)), accelerator, dtype, progress_bar)
            columns["index"] = torch.tensor(store.rows(shard))
            is_whole = columns["label"] != IGNORED_LABEL
            if images.columns.label is None:
                del columns["label"]
            store.save(shard, {name: values[is_whole] for name, values in columns.items()})
            counts += torch.tensor([len(is_whole), (~is_whole).sum()])
    counts = accelerator.reduce(counts.to(accelerator.device), "sum").tolist()
    return ExtractionReport(int(counts[0]), int(counts[1]), time.perf_counter() - start)


def _split(rows: range, size: int) -> list[list[int]]:
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


def _compute(
    extractor: FeatureExtractor, batches: Iterable, accelerator: Accelerator, dtype: torch.dtype, progress_bar: tqdm
) -> dict[str, torch.Tensor]:
    """The columns of a shard. They stay on the device until it is full, so that the device never waits."""
    columns = defaultdict(list)
    for batch in batches:
        pixel_values = batch["pixel_values"].to(accelerator.device, non_blocking=True).float() / 255
        with accelerator.autocast():
            features = extractor(pixel_values)
        for name, values in features.items():
            columns[name].append(values.to(dtype))
        columns["label"].append(batch["labels"])
        progress_bar.update(len(pixel_values))
    return {name: torch.cat(values).cpu() for name, values in columns.items()}
