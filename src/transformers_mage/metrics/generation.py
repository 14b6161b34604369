"""Scores of generated images against real ones, over any feature network."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Array3D, Features
from torch import Tensor
from tqdm import tqdm

from .feature_networks import FeatureBatch, FeatureNetwork
from .statistics import (
    FeatureReservoir,
    GaussianStatistics,
    Statistics,
    SumStatistics,
    as_double,
    load_statistics,
    save_statistics,
    scramble,
)
from .streaming_metric import StreamingMetric

_IMAGES = Array3D((None, None, None), "uint8")
_ROWS_PER_BLOCK = 256  # of matrices of pairs: 100 MB in float64 against 50,000 samples


class _GenerationMetric(StreamingMetric):
    key: ClassVar[str]
    inputs: ClassVar[Features] = Features({"predictions": _IMAGES, "references": _IMAGES})

    def __init__(self, feature_network: Any = "inception", **kwargs: Any):
        self.feature_network = FeatureNetwork(feature_network)
        self._fixed: dict[str, Statistics] = {}
        super().__init__(**kwargs)

    def new_statistics(self) -> dict[str, Statistics]:
        return {side: self.new_side() for side in self._feature_names()}

    def new_side(self) -> Statistics:
        """Empty statistics of one of the two sides."""
        raise NotImplementedError

    def update(self, predictions: Any, references: Any) -> None:
        for side, inputs in (("predictions", predictions), ("references", references)):
            if inputs is None:
                continue
            if side in self._fixed:
                raise ValueError(f"The `{side}` of {self.name} were loaded from a file; it takes no more of them.")
            self.update_side(side, self.feature_network(inputs))

    def update_side(self, side: str, batch: FeatureBatch) -> None:
        """Add a batch to one side's statistics."""
        self.statistics[side].update(batch.features)

    def gather(self) -> dict[str, Any] | None:
        statistics = super().gather()
        return None if statistics is None else statistics | self._fixed

    def load_statistics(self, path: str | Path, side: str = "references") -> None:
        """Take one side from a file instead of samples; it stays for all following `compute`s.

        Over several processes every process loads the same file.

        Args:
            path (`str` or `Path`): what [`save_statistics`] of this metric wrote, or for FID an `.npz` with `mu` and
                `sigma`.
            side (`str`, *optional*, defaults to `"references"`): `"references"` or `"predictions"`.

        Raises:
            ValueError: when the file holds no statistics for this metric.
        """
        states, _ = load_statistics(path)
        if self.key not in states:
            raise ValueError(f"{path} holds statistics for {sorted(states)}, not for {self.key}.")
        self._fixed[side] = self.new_side()
        self._fixed[side].load_state_dict(states[self.key])

    def save_statistics(self, path: str | Path, side: str = "references") -> None:
        """Write one side's statistics, merged over all processes, to a safetensors file (on process 0)."""
        statistics = self.gather()
        if statistics is not None:
            save_statistics(path, {self.key: statistics[side]})


class FrechetInceptionDistance(_GenerationMetric):
    r"""FID: the Fréchet distance between Gaussians fitted to generated and to real features (arXiv 1706.08500).

    .. math:: \|\mu_1 - \mu_2\|^2 + \mathrm{tr}(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1 \Sigma_2)^{1/2})

    Means and covariances (unbiased, N - 1) are accumulated in float64: memory is constant, and the result over several
    processes is that of one up to rounding.

    Inputs of `add_batch` and `compute`, together or one at a time:
        predictions: generated images `(N, C, H, W)`, uint8 or floats in [0, 1], their features `(N, D)`, or a
            [`FeatureBatch`].
        references: the same of real images.

    `compute` returns `{"fid": distance}`, and warns when there are fewer samples than numbers in a feature: the
    covariance is then singular, and FID is biased upwards by far more than methods differ.

    Args:
        feature_network (`str` or callable, *optional*, defaults to `"inception"`): see [`FeatureNetwork`].
        kwargs: those of [`StreamingMetric`].
    """

    description = "Fréchet Inception distance"
    key: ClassVar[str] = "fid"

    def new_side(self) -> GaussianStatistics:
        return GaussianStatistics()

    def score(self, predictions: GaussianStatistics, references: GaussianStatistics) -> dict[str, float]:
        for side, statistics in (("predictions", predictions), ("references", references)):
            _check_moments(side, statistics)
        if len(predictions.mean) != len(references.mean):
            sizes = f"{len(predictions.mean)} and {len(references.mean)}"
            raise ValueError(f"FID compares features of one network; predictions and references have sizes {sizes}.")
        return {"fid": frechet_distance(predictions, references)}


def _check_moments(side: str, statistics: GaussianStatistics) -> None:
    if statistics.is_empty or statistics.count == 1:
        raise ValueError(f"FID needs at least two samples on each side; got {statistics.count} {side}.")
    if not (statistics.mean.isfinite().all() and statistics.scatter.isfinite().all()):
        raise ValueError(f"The features of the {side} hold NaN or infinity.")
    if 0 < statistics.count <= len(statistics.mean):
        warnings.warn(
            f"{statistics.count} {side} are too few for features of {len(statistics.mean)} numbers: the covariance is "
            "rank deficient, and FID is biased upwards. Use more samples (50,000 is usual) or KID, which is unbiased.",
            stacklevel=4,
        )


def frechet_distance(first: GaussianStatistics, second: GaussianStatistics) -> float:
    """The squared 2-Wasserstein distance between two Gaussians.

    The trace of (S1 S2)^(1/2) is the sum of the roots of the eigenvalues of S1^(1/2) S2 S1^(1/2), which is symmetric:
    no complex roots appear, and singular covariances need no offset.
    """
    covariance, other = first.covariance, second.covariance.to(first.mean.device)
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    root = (vectors * eigenvalues.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ other @ root).clamp_min(0).sqrt().sum()
    shift = first.mean - second.mean.to(first.mean.device)
    return float(shift @ shift + covariance.trace() + other.trace() - 2 * cross)


class InceptionScore(_GenerationMetric):
    r"""IS: how sure a classifier is of each generated image, and how varied they are together (arXiv 1606.03498).

    :math:`\exp(E_x\,\mathrm{KL}(p(y|x) \| p(y)))`, as mean and standard deviation over `num_splits` parts of the
    samples. An image's part follows from its content, so that it is the same in any order, batching and split over
    processes; parts differ a little in size.

    Inputs of `add_batch` and `compute`:
        predictions: generated images `(N, C, H, W)`, the logits `(N, classes)` of a classifier on them, or a
            [`FeatureBatch`] with logits.

    `compute` returns `{"inception_score": mean, "inception_score_std": standard deviation}`.

    Args:
        feature_network (`str` or callable, *optional*, defaults to `"inception"`): see [`FeatureNetwork`].
        num_splits (`int`, *optional*, defaults to 10): the usual number of parts.
        kwargs: those of [`StreamingMetric`].
    """

    description = "Inception Score"
    key: ClassVar[str] = "inception_score"
    inputs: ClassVar[Features] = Features({"predictions": _IMAGES})

    def __init__(self, feature_network: Any = "inception", num_splits: int = 10, **kwargs: Any):
        self.num_splits = num_splits
        super().__init__(feature_network, **kwargs)

    def new_side(self) -> SumStatistics:
        return SumStatistics()

    def update_side(self, side: str, batch: FeatureBatch) -> None:
        if batch.logits is None:
            raise ValueError(f"{self.name} needs class scores, and the feature network gives none.")
        log_p = as_double(batch.logits).log_softmax(dim=1)
        p = log_p.exp()
        # The high bits of a hash are the well mixed ones.
        split = (scramble(batch.hashes.to(p.device), seed=self.seed) >> 33) % self.num_splits
        zeros = p.new_zeros(self.num_splits)
        self.statistics[side].add(
            count=zeros.index_add(0, split, torch.ones_like(p[:, 0])),
            negative_entropy=zeros.index_add(0, split, torch.xlogy(p, p).sum(dim=1)),
            probabilities=p.new_zeros(self.num_splits, p.shape[1]).index_add(0, split, p),
        )

    def score(self, predictions: SumStatistics) -> dict[str, float]:
        if not predictions.sums:
            raise ValueError(f"{self.name} has seen no samples; call `add_batch` before `compute`.")
        filled = predictions.sums["count"] > 0
        count = predictions.sums["count"][filled]
        marginal = predictions.sums["probabilities"][filled] / count[:, None]
        divergence = predictions.sums["negative_entropy"][filled] / count - torch.xlogy(marginal, marginal).sum(dim=1)
        scores = divergence.exp()
        return {"inception_score": float(scores.mean()), "inception_score_std": float(scores.std(correction=0))}


class _ReservoirMetric(_GenerationMetric):
    """Keeps features: all, or `max_samples` a side."""

    max_samples: int | None = None

    def new_side(self) -> FeatureReservoir:
        return FeatureReservoir(self.max_samples)

    def update_side(self, side: str, batch: FeatureBatch) -> None:
        # Another seed a side: an image that is on both sides should not be kept on both or on neither.
        seed = 2 * self.seed + (side == "references")
        self.statistics[side].update(batch.features, scramble(batch.hashes, seed))

    def _features(self, predictions: FeatureReservoir, references: FeatureReservoir, minimum: int) -> list[Tensor]:
        sides = [as_double(predictions.features), as_double(references.features)]
        for side, features in zip(("predictions", "references"), sides, strict=True):
            if len(features) < minimum:
                raise ValueError(f"{self.name} needs at least {minimum} {side}; got {len(features)}.")
            if not features.isfinite().all():
                raise ValueError(f"The features of the {side} hold NaN or infinity.")
        if sides[0].shape[1] != sides[1].shape[1]:
            sizes = f"{sides[0].shape[1]} and {sides[1].shape[1]}"
            raise ValueError(f"{self.name} compares features of one network; the two sides have sizes {sizes}.")
        return [sides[0], sides[1].to(sides[0].device)]


class KernelInceptionDistance(_ReservoirMetric):
    r"""KID: the squared maximum mean discrepancy under the kernel :math:`(x^\top y / D + 1)^3` (arXiv 1801.01401).

    Unlike FID it is unbiased at any number of samples. The usual estimate is a mean over random subsets,
    which approximates the one over all pairs of samples; this is the latter, over up to `max_samples` samples a side,
    with the spread over subsets. Which samples are kept follows from their content, so that memory is constant and any
    order, batching and split over processes give the same result; equal images are kept or left out together. (The
    third moments with which the kernel could be summed over all samples would take D^3 / 6 numbers, 11 GB for
    Inception.)

    Takes what [`FrechetInceptionDistance`] takes. `compute` returns `{"kid": estimate, "kid_std": spread}`. Slightly
    negative estimates are in the nature of an unbiased one.

    Args:
        feature_network (`str` or callable, *optional*, defaults to `"inception"`): see [`FeatureNetwork`].
        max_samples (`int`, *optional*, defaults to 10000): samples kept a side; `None` keeps all.
        num_subsets (`int`, *optional*, defaults to 100), subset_size (`int`, *optional*, defaults to 1000): for the
            spread; subsets hold half of the samples at most.
        kwargs: those of [`StreamingMetric`], of which `seed` chooses samples and subsets.
    """

    description = "Kernel Inception distance"
    key: ClassVar[str] = "kid"

    def __init__(
        self,
        feature_network: Any = "inception",
        max_samples: int | None = 10_000,
        num_subsets: int = 100,
        subset_size: int = 1000,
        **kwargs: Any,
    ):
        self.max_samples, self.num_subsets, self.subset_size = max_samples, num_subsets, subset_size
        super().__init__(feature_network, **kwargs)

    def score(self, predictions: FeatureReservoir, references: FeatureReservoir) -> dict[str, float]:
        x, y = self._features(predictions, references, minimum=2)
        size = max(2, min(self.subset_size, len(x) // 2, len(y) // 2))
        generator = torch.Generator().manual_seed(self.seed)
        spread = []
        for _ in tqdm(range(self.num_subsets), "KID of subsets", leave=False, disable=None):
            rows, columns = (torch.randperm(len(side), generator=generator)[:size].to(side.device) for side in (x, y))
            spread.append(polynomial_mmd(x[rows], y[columns]))
        estimate = float(polynomial_mmd(x, y, "KID"))
        return {"kid": estimate, "kid_std": float(torch.stack(spread).std(correction=0))}


def polynomial_mmd(x: Tensor, y: Tensor, description: str | None = None) -> Tensor:
    """The unbiased squared MMD between `x` `(N, D)` and `y` `(M, D)` under (x.y / D + 1)^3: a scalar.

    With a `description` it shows its progress.
    """
    between = _kernel_sum(x, y, description) / (len(x) * len(y))
    within = torch.zeros_like(between)
    for z in (x, y):
        diagonal = (z.square().mean(dim=1) + 1).pow(3).sum()
        within += (_kernel_sum(z, z, description) - diagonal) / (len(z) * (len(z) - 1))
    return within - 2 * between


def _kernel_sum(x: Tensor, y: Tensor, description: str | None) -> Tensor:
    total, block = x.new_zeros(()), _block(y)
    for rows in _row_blocks(x, description):
        pairs = torch.mm(x[rows], y.T, out=block[: rows.stop - rows.start])
        total += pairs.div_(y.shape[1]).add_(1).pow_(3).sum()
    return total


def _row_blocks(features: Tensor, description: str | None) -> Iterator[slice]:
    starts = range(0, len(features), _ROWS_PER_BLOCK)
    progress = tqdm(starts, description, leave=False, disable=None if description else True)
    return (slice(start, min(start + _ROWS_PER_BLOCK, len(features))) for start in progress)


def _block(columns: Tensor) -> Tensor:
    """Room for some rows of a matrix of pairs: one for all rows, because to get it anew splinters the memory."""
    return columns.new_empty(_ROWS_PER_BLOCK, len(columns))


class PrecisionRecall(_ReservoirMetric):
    """Improved precision and recall (Kynkäänniemi et al., arXiv 1904.06991, section 3).

    A side's manifold is the union of the balls around its features that reach to their k-th nearest neighbour on the
    same side. Precision is the share of generated samples inside the real manifold (how many look real), recall the
    share of real samples inside the generated one (how much of the data is covered).

    Takes what [`FrechetInceptionDistance`] takes. `compute` returns `{"precision": share, "recall": share}`. Features
    of all samples are kept (float32), and time grows with the square of their number.

    Args:
        feature_network (`str` or callable, *optional*, defaults to `"inception"`): see [`FeatureNetwork`]. The
            paper uses VGG-16; scores by different networks do not compare.
        num_neighbors (`int`, *optional*, defaults to 3): k.
        max_samples (`int`, *optional*): keep only so many samples a side, to bound memory and time.
        kwargs: those of [`StreamingMetric`].
    """

    description = "Improved precision and recall"
    key: ClassVar[str] = "precision_recall"

    def __init__(
        self,
        feature_network: Any = "inception",
        num_neighbors: int = 3,
        max_samples: int | None = None,
        **kwargs: Any,
    ):
        self.num_neighbors, self.max_samples = num_neighbors, max_samples
        super().__init__(feature_network, **kwargs)

    def score(self, predictions: FeatureReservoir, references: FeatureReservoir) -> dict[str, float]:
        generated, real = self._features(predictions, references, minimum=self.num_neighbors + 1)
        generated_radii = _neighbor_distances(generated, self.num_neighbors)
        real_radii = _neighbor_distances(real, self.num_neighbors)
        in_real, in_generated = _coverage(generated, real, generated_radii, real_radii)
        return {"precision": float(in_real.double().mean()), "recall": float(in_generated.double().mean())}


def _neighbor_distances(features: Tensor, k: int) -> Tensor:
    """The squared distance from each feature to its k-th nearest other one: (N, D) -> (N,)."""
    distances, block = features.new_empty(len(features)), _block(features)
    for rows in _row_blocks(features, "Nearest neighbors"):
        pairs = _squared_distances(features[rows], features, block)
        pairs[:, rows].fill_diagonal_(torch.inf)
        distances[rows] = pairs.kthvalue(k, dim=1).values
    return distances


def _coverage(x: Tensor, y: Tensor, x_radii: Tensor, y_radii: Tensor) -> tuple[Tensor, Tensor]:
    """Which of `x` lie in a ball around one of `y`, and which of `y` around one of `x`; the radii are squared."""
    in_y, in_x = (torch.zeros_like(radii, dtype=torch.bool) for radii in (x_radii, y_radii))
    block = _block(y)
    for rows in _row_blocks(x, "Precision and recall"):
        pairs = _squared_distances(x[rows], y, block)
        in_y[rows] = (pairs <= y_radii).any(dim=1)
        in_x |= (pairs <= x_radii[rows, None]).any(dim=0)
    return in_y, in_x


def _squared_distances(x: Tensor, y: Tensor, block: Tensor) -> Tensor:
    """(N, D) and (M, D) -> (N, M), in `block`. (`torch.cdist` would copy all of `y` for every block of `x`.)"""
    pairs = torch.addmm(y.square().sum(dim=1), x, y.T, alpha=-2, out=block[: len(x)])
    return pairs.add_(x.square().sum(dim=1, keepdim=True)).clamp_min_(0)
