"""Summaries of a stream of samples that can be merged, sent to another process and kept in a file."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import written_aside


class Statistics(ABC):
    """What a metric remembers of the samples that it has seen.

    Merging the statistics of two streams gives, up to rounding, those of their concatenation, so that a metric over
    several processes is the metric of the merged statistics.
    """

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Add what `other` has seen."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """The statistics as named tensors; empty when no sample has been seen."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Become the statistics that `state_dict` described."""


class SumStatistics(Statistics):
    """Named sums over samples."""

    def __init__(self):
        self.sums: dict[str, Tensor] = {}

    def add(self, **sums: Tensor) -> None:
        """Add to each named sum; the shapes must stay the same."""
        for name, value in sums.items():
            self.sums[name] = self._sum(self.sums[name], value, name) if name in self.sums else value

    def _sum(self, total: Tensor, value: Tensor, name: str) -> Tensor:
        if total.shape != value.shape:
            raise ValueError(f"`{name}` had the shape {tuple(total.shape)} so far; got {tuple(value.shape)}.")
        return total + value.to(total.device)

    def merge(self, other: "SumStatistics") -> None:
        self.add(**other.sums)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.sums)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.sums = dict(state)


class GaussianStatistics(Statistics):
    """Count, mean and covariance of features, in float64 and in one pass.

    The pairwise formula of Chan, Golub and LeVeque (1983): unlike plain sums of squares it does not cancel where the
    mean is large.

    Attributes:
        count (`int`): samples seen; 0 for statistics that came from a file without a count.
        mean (`torch.Tensor` of shape `(D,)`): float64; D is 0 at first.
        scatter (`torch.Tensor` of shape `(D, D)`): the covariance times `count - 1`; float64.
    """

    def __init__(self):
        self.count, self.mean = 0, torch.empty(0, dtype=torch.float64)
        self.scatter = torch.empty(0, 0, dtype=torch.float64)

    @property
    def is_empty(self) -> bool:
        return not len(self.mean)

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance `(D, D)`."""
        return self.scatter / max(self.count - 1, 1)

    def update(self, features: Tensor) -> None:
        """Add `features` of shape `(N, D)`."""
        if not len(features):
            return
        features = as_double(features)
        mean = features.mean(dim=0)
        correction = self._shift(mean, len(features))
        rows = torch.cat([features - mean, correction[None]])
        self.scatter.addmm_(rows.T, rows)

    def merge(self, other: "GaussianStatistics") -> None:
        if not other.is_empty:
            correction = self._shift(other.mean, other.count)
            self.scatter += other.scatter.to(self.mean.device)
            self.scatter.addr_(correction, correction)

    def _shift(self, mean: Tensor, count: int) -> Tensor:
        """Count `count` samples of mean `mean`; returns the vector whose square their means' distance adds."""
        if self.is_empty:
            self.mean, self.scatter = torch.zeros_like(mean), mean.new_zeros(len(mean), len(mean))
        if self.mean.shape != mean.shape:
            raise ValueError(f"Features had {len(self.mean)} numbers so far; got some of {len(mean)}.")
        total, shift = self.count + count, mean.to(self.mean.device) - self.mean
        correction = shift * (self.count * count / total) ** 0.5
        self.mean += shift * (count / total)
        self.count = total
        return correction

    def state_dict(self) -> dict[str, Tensor]:
        if self.is_empty:
            return {}
        return {"count": torch.tensor(self.count), "mean": self.mean, "scatter": self.scatter}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if state:
            self.count, self.mean, self.scatter = int(state.get("count", 0)), state["mean"], state["scatter"]


class FeatureReservoir(Statistics):
    """The features themselves: all of them, or a uniform choice of `max_samples` that does not depend on their order.

    Every sample has a pseudorandom priority, and those of the smallest priorities stay (bottom-k sampling), so that
    any batching and any split over processes keeps the same samples.

    Args:
        max_samples (`int`, *optional*): how many features to keep; `None` keeps all.
    """

    def __init__(self, max_samples: int | None = None):
        self.max_samples = max_samples
        self._features: list[Tensor] = []
        self._priorities: list[Tensor] = []

    def update(self, features: Tensor, priorities: Tensor) -> None:
        """Offer `features` of shape `(N, D)` with `priorities` of shape `(N,)`, int64."""
        if not len(features):
            return
        if self._features and self._features[0].shape[1] != features.shape[1]:
            known = self._features[0].shape[1]
            raise ValueError(f"Features had {known} numbers so far; got some of {features.shape[1]}.")
        self._features.append(features.float().clone())
        self._priorities.append(priorities)
        if self.max_samples is not None and sum(map(len, self._features)) > 2 * self.max_samples:
            self._prune()

    def _prune(self) -> None:
        """Sort by priority and forget what exceeds `max_samples`."""
        device = self._features[0].device
        order = torch.cat([priorities.to(device) for priorities in self._priorities]).sort()
        keep = order.indices[: self.max_samples]
        self._priorities = [order.values[: self.max_samples].clone()]
        self._features = [torch.cat([features.to(device) for features in self._features])[keep]]

    @property
    def features(self) -> Tensor:
        """The kept features in order of priority: `(N, D)`, float32."""
        if not self._features:
            return torch.empty(0, 0)
        self._prune()
        return self._features[0]

    def merge(self, other: "FeatureReservoir") -> None:
        for features, priorities in zip(other._features, other._priorities, strict=True):
            self.update(features, priorities)

    def state_dict(self) -> dict[str, Tensor]:
        if not self._features:
            return {}
        self._prune()
        return {"features": self._features[0], "priorities": self._priorities[0]}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._features = [state["features"]] if "features" in state else []
        self._priorities = [state["priorities"]] if "features" in state else []


def as_double(values: Tensor) -> Tensor:
    """`values` in float64, on their device where it knows float64 (Apple's does not)."""
    return (values.cpu() if values.device.type == "mps" else values).double()


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def content_hash(samples: Tensor) -> Tensor:
    """One 64-bit number a sample that depends on the sample's own bits only: `(N, ...)` -> `(N,)`, int64.

    Multilinear hashing (Carter and Wegman, 1979): the sum of the sample's words times fixed random ones, modulo 2^64.
    Integer sums are exact in any order, so that the hash is the same in every batch, process and device.
    """
    words = samples.detach().contiguous().flatten(1)
    words = words.view(_INTEGERS[words.element_size()])
    return (words.long() * _random_words(words.shape[1], samples.device)).sum(dim=1)


@lru_cache(maxsize=8)
def _random_words(size: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-(2**63), 2**63 - 1, (size,), generator=generator).to(device)


def scramble(hashes: Tensor, seed: int) -> Tensor:
    """Hashes for another purpose, practically independent for each `seed`: `(N,)` -> `(N,)`, int64."""
    hashes = hashes ^ (seed * 0x632BE59BD9B4E019 + 1) % 2**63
    for multiplier in (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15):  # splitmix64's constants as signed numbers
        hashes = (hashes ^ (hashes >> 31)) * multiplier
    return hashes ^ (hashes >> 32)


def save_statistics(path: str | Path, statistics: Mapping[str, Statistics], **metadata: str) -> None:
    """Write named statistics to a safetensors file, from which `load_statistics` reads them.

    Args:
        path (`str` or `Path`): the file to write, conventionally `*.safetensors`.
        statistics (mapping of `str` to [`Statistics`]): by the name of the metric that they belong to.
        metadata (`str`): kept in the file's header, for instance `feature_network="inception"`.
    """
    tensors = {
        f"{name}.{key}": tensor.contiguous().cpu()
        for name, item in statistics.items()
        for key, tensor in item.state_dict().items()
    }
    with written_aside(path) as aside:
        save_file(tensors, aside, {"format": "pt", "statistics": json.dumps(metadata)})


def load_statistics(path: str | Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """Read a statistics file: the state of each named statistics, and the file's metadata.

    Args:
        path (`str` or `Path`): a file of [`save_statistics`], or the widely used `.npz` with the mean `mu` of shape
            `(D,)` and the covariance `sigma` of shape `(D, D)`, which is enough for FID only.

    Raises:
        ValueError: when the file is neither.
    """
    path = Path(path)
    if path.suffix == ".npz":
        return {"fid": _load_moments(path)}, {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("statistics", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a statistics file: {error}") from error
    if metadata is None:
        raise ValueError(
            f"{path} holds no statistics, but {sorted(tensors)[:4]}; `save_statistics` writes such files."
        )
    states: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        owner, _, key = name.partition(".")
        states.setdefault(owner, {})[key] = tensor
    return states, metadata


def is_statistics_file(path: str | Path) -> bool:
    """Whether `load_statistics` is meant for `path`: an existing `*.safetensors`, or an `.npz` with `mu`."""
    path = Path(path)
    if path.suffix == ".npz" and path.is_file():
        with np.load(path, allow_pickle=False) as arrays:
            return "mu" in arrays.files
    return path.suffix == ".safetensors" and path.is_file()


def _load_moments(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as arrays:
        if not {"mu", "sigma"} <= set(arrays.files):
            raise ValueError(f"{path} should hold `mu` and `sigma`; it holds {arrays.files}.")
        mean, covariance = (torch.from_numpy(np.asarray(arrays[name], dtype=np.float64)) for name in ("mu", "sigma"))
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        shapes = f"{tuple(mean.shape)} and {tuple(covariance.shape)}"
        raise ValueError(f"`mu` and `sigma` in {path} should have the shapes (D,) and (D, D); got {shapes}.")
    return {"mean": mean, "scatter": covariance}
