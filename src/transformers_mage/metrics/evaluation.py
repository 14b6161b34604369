"""Scores of whole sources of images, on any number of processes."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from diffusers import VQModel
from torch import Tensor, nn
from tqdm.auto import tqdm

from .feature_networks import FeatureNetwork
from .generation import FrechetInceptionDistance, InceptionScore, KernelInceptionDistance, PrecisionRecall
from .images import ImageCollection
from .reconstruction import TokenizerScores
from .statistics import load_statistics, save_statistics
from .streaming_metric import StreamingMetric

METRICS = {
    metric_class.key: metric_class
    for metric_class in (FrechetInceptionDistance, InceptionScore, KernelInceptionDistance, PrecisionRecall)
}


@dataclass(frozen=True)
class SavedStatistics:
    """
    One side of a comparison as a file of [`save_statistics`], or an `.npz` with `mu` and `sigma`.

    Args:
        path (`str`): the file.
        metrics (`frozenset[str]`): names of the metrics that it has statistics for.
    """

    path: str
    metrics: frozenset[str]

    @classmethod
    def open(cls, path: str, feature_network: str) -> "SavedStatistics":
        """
        Raises:
            ValueError: for another file, or for features of another network than `feature_network`.
        """
        states, metadata = load_statistics(path)
        network = metadata.get("feature_network", feature_network)
        if network != feature_network:
            raise ValueError(
                f'{path} holds statistics of "{network}" features; compare them with --feature_network {network}'
            )
        return cls(path, frozenset(states))


Side = ImageCollection | SavedStatistics | None


@dataclass
class Evaluator:
    """
    Scores whole sources. Each process reads its share of the images, and the first one gets the scores.

    Args:
        network (`Callable`): makes the feature network, if there are images to pass through it.
        cache_dir (`Path`): where the processes exchange what they saw; all must see it.
        batch_size, num_workers (`int`): images in a forward pass, and processes that load them.
        seed (`int`): of the metrics that draw subsets.
    """

    network: Callable[[], nn.Module]
    cache_dir: Path
    batch_size: int = 64
    num_workers: int = 0
    seed: int = 0

    def __post_init__(self):
        self.state = PartialState()
        self.metric_options = {
            "num_process": self.state.num_processes,
            "process_id": self.state.process_index,
            "cache_dir": str(self.cache_dir),
            "seed": self.seed,
            "timeout": 3600,
        }
        self.inputs: dict[str, Any] = {}

    def score_samples(self, names: list[str], samples: Side, references: Side) -> dict[str, StreamingMetric]:
        """The metrics `names`, fed with both sides; each image passes through the network once."""
        metrics = {name: METRICS[name](**self.metric_options) for name in names}
        sides = {"predictions": ("samples", samples), "references": ("references", references)}
        network = None
        for side, (name, source) in sides.items():
            takers = [metric for metric in metrics.values() if side in metric.features]
            if takers and isinstance(source, ImageCollection):
                network = network or FeatureNetwork(self.network())
                self.read(source, name, partial(_add_images, network, takers, side))
            elif takers and source is not None:
                self.inputs[name] = {"path": source.path}
                for metric in takers:
                    metric.load_statistics(source.path, side)
        return metrics

    def read(self, source: ImageCollection, name: str, add: Callable[[Tensor], None]):
        """Gives this process's share of the images to `add`; notes how many all processes saw and had to skip."""
        state, seen, skipped = self.state, 0, 0
        batches = source.batches(self.batch_size, self.num_workers, state.process_index, state.num_processes)
        with tqdm(total=len(source), desc=name, unit="image", disable=not state.is_main_process) as progress:
            for images, undecodable in batches:
                skipped += undecodable
                if images is not None:
                    add(images.to(state.device))
                    seen += len(images)
                progress.update(min(self.batch_size * state.num_processes, len(source) - progress.n))
        seen, skipped = reduce(torch.tensor([seen, skipped], device=state.device), "sum").tolist()
        if not seen:
            raise ValueError(f"None of the {skipped} images in {source.path} can be decoded.")
        if skipped and state.is_main_process:
            warnings.warn(f"{skipped} of the {seen + skipped} images in {source.path} cannot be decoded", stacklevel=2)
        self.inputs[name] = {"path": source.path, "count": seen, "skipped": skipped}

    def score_tokenizer(
        self, tokenizer: VQModel, references: ImageCollection, pixel_range: tuple[float, float] | None = None
    ) -> dict[str, float]:
        """Scores of what a tokenizer makes of the references; see [`TokenizerScores`]."""
        scores = TokenizerScores(tokenizer, self.network(), pixel_range, **self.metric_options)
        self.read(references, "references", scores.add_batch)
        return scores.compute() or {}


def possible_metrics(samples: Side, references: Side, has_classes: bool) -> list[str]:
    """
    The metrics that both sides allow.

    Args:
        has_classes (`bool`): whether the feature network is a classifier, as Inception.

    Raises:
        ValueError: where there is none.
    """
    sides = {"predictions": samples, "references": references}
    possible = []
    for name, metric_class in METRICS.items():
        given = [sides[side] for side in metric_class.inputs]
        is_given = all(
            isinstance(side, ImageCollection) or (side is not None and name in side.metrics) for side in given
        )
        if is_given and (has_classes or metric_class is not InceptionScore):
            possible.append(name)
    if not possible:
        raise ValueError("The two sides have no statistics in common.")
    return possible


def compute(
    metrics: dict[str, StreamingMetric], references_file: str | None = None, feature_network: str = "inception"
) -> dict[str, float]:
    """
    The scores, on the first process; nothing on the others, which must call it too.

    Args:
        references_file (`str`, *optional*): where to keep the references' statistics.
        feature_network (`str`): the name that they are kept under.
    """
    gathered = {name: metric.gather() for name, metric in metrics.items()}
    statistics = {name: sides for name, sides in gathered.items() if sides is not None}
    if references_file and statistics:
        references = {name: sides["references"] for name, sides in statistics.items() if "references" in sides}
        save_statistics(references_file, references, feature_network=feature_network)
    results = [metrics[name].score(**sides) for name, sides in statistics.items()]
    return {name: value for result in results for name, value in result.items()}


def _add_images(network: FeatureNetwork, metrics: list[StreamingMetric], side: str, images: Tensor):
    batch = network(images)
    for metric in metrics:
        metric.add_batch(**{side: batch})
