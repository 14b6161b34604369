"""Features of whole data sets, computed once: several layers and poolings in one pass, in shards."""

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain, islice

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.batches import Loading
from ..data.labelled_images import EvaluationImages
from ..data.labels import IGNORED_LABEL
from ..files import locked
from ..modeling_mage import MageModel
from .feature_store import FeatureStore

POOLINGS = ("mean", "cls", "tokens")


@dataclass(frozen=True)
class Feature:
    """
    What an image is described by. As a string it is the name of its column, as `layer_12_mean`.

    Attributes:
        layer (`int`): 0 are the embeddings.
        pooling (`str`): `"mean"` over the image tokens, `"cls"`, the class token, or `"tokens"`, every image token.
    """

    layer: int
    pooling: str

    def __str__(self) -> str:
        return f"layer_{self.layer}_{self.pooling}"

    def of(self, hidden_states: Sequence[torch.Tensor]) -> torch.Tensor:
        """
        (batch_size, hidden_size), or all tokens, of the outputs of all layers, each (batch_size, 1 + sequence_length,
        hidden_size).
        """
        output = hidden_states[self.layer]
        if self.pooling == "cls":
            return output[:, 0]
        return output[:, 1:].mean(dim=1) if self.pooling == "mean" else output[:, 1:]


class FeatureExtractor(nn.Module):
    """
    The features of several layers, pooled in several ways, from one pass of the encoder. All are taken before the
    final norm, as linear probing does (appendix B).

    Args:
        model ([`MageModel`]): the encoder, with its tokenizer.
        layers (`Sequence[int]`): 0 are the embeddings, `num_hidden_layers` or -1 is the last layer's output.
        poolings (`Sequence[str]`): see [`Feature`].

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
        layers = sorted({layer if layer >= 0 else depth + 1 + layer for layer in layers})
        self.features = [Feature(layer, pooling) for layer in layers for pooling in dict.fromkeys(poolings)]

    @property
    def names(self) -> list[str]:
        return [str(feature) for feature in self.features]

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
        return {str(feature): feature.of(outputs.hidden_states) for feature in self.features}


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
    loading: Loading,
    dtype: torch.dtype = torch.float32,
) -> ExtractionReport:
    """
    Computes the shards that a store does not have yet. Each process computes its share of them.

    Args:
        dtype (`torch.dtype`): of the features in the store.

    Raises:
        FolderError: if the store holds other features, or another run is at it.
        ValueError: for features that are not finite.
    """
    start = time.perf_counter()
    # One run at a time makes a split; others of the folder may be made meanwhile.
    with locked(store.folder / f".{store.split}") if accelerator.is_main_process else nullcontext():
        store.open(accelerator.is_main_process)
        accelerator.wait_for_everyone()
        todo = store.missing()[accelerator.process_index :: accelerator.num_processes]
        accelerator.wait_for_everyone()
        counts = _compute_shards(extractor, images, store, todo, accelerator, loading, dtype)
        counts = accelerator.reduce(counts.to(accelerator.device), "sum").tolist()
    return ExtractionReport(int(counts[0]), int(counts[1]), time.perf_counter() - start)


def _compute_shards(
    extractor: FeatureExtractor,
    images: EvaluationImages,
    store: FeatureStore,
    shards: list[int],
    accelerator: Accelerator,
    loading: Loading,
    dtype: torch.dtype,
) -> torch.Tensor:
    """How many images there were, and how many of them were broken."""
    batches = [_split(store.rows(shard), loading.batch_size) for shard in shards]
    loader = iter(DataLoader(images, batch_sampler=list(chain.from_iterable(batches)), **loading.options()))
    counts, num_images = torch.zeros(2), sum(len(store.rows(shard)) for shard in shards)
    is_hidden = not shards or not accelerator.is_local_main_process
    with tqdm(total=num_images, desc=f"Features of {store.split}", leave=False, disable=is_hidden) as progress_bar:
        for shard, its_batches in zip(shards, batches, strict=True):
            columns = _compute(extractor, islice(loader, len(its_batches)), accelerator, dtype, progress_bar)
            columns["index"] = torch.tensor(store.rows(shard))
            is_decoded = columns["label"] != IGNORED_LABEL
            if images.columns.label is None:
                del columns["label"]
            store.save(shard, {name: values[is_decoded] for name, values in columns.items()})
            counts += torch.tensor([len(is_decoded), (~is_decoded).sum()])
    return counts


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
    shard = {name: torch.cat(values).cpu() for name, values in columns.items()}
    wrong = [name for name, values in shard.items() if not values.isfinite().all()]
    if wrong:
        raise ValueError(
            f"{wrong[0]} holds NaN or infinity: either the model's weights do, or the numbers are too large for the "
            "precision that was asked for."
        )
    return shard
