"""Scores of reconstructed images against their originals, and of a tokenizer over a data set."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from datasets import Array3D, Features
from torch import Tensor, nn

from .generation import FrechetInceptionDistance
from .statistics import SumStatistics
from .streaming_metric import StreamingMetric

_IMAGES = Array3D((None, None, None), "float32")


class _ReconstructionMetric(StreamingMetric):
    inputs: ClassVar[Features] = Features({"predictions": _IMAGES, "references": _IMAGES})
    key: ClassVar[str]

    def new_statistics(self) -> dict[str, SumStatistics]:
        return {"scores": SumStatistics()}

    @torch.no_grad()
    def update(self, predictions: Any, references: Any) -> None:
        if predictions is None or references is None:
            raise ValueError(f"{self.name} needs `predictions` and `references` together.")
        predictions, references = _unit_range(predictions), _unit_range(references)
        references = references.to(predictions.device)
        if predictions.ndim != 4 or predictions.shape != references.shape:
            shapes = f"{tuple(predictions.shape)} and {tuple(references.shape)}"
            raise ValueError(f"Predictions and references should have one shape (N, C, H, W); got {shapes}.")
        scores = self.image_scores(predictions, references)
        self.statistics["scores"].add(total=scores.cpu().double().sum(), count=torch.tensor(len(scores)))

    def image_scores(self, predictions: Tensor, references: Tensor) -> Tensor:
        """The score of each image: two `(N, C, H, W)` in [0, 1] -> `(N,)`."""
        raise NotImplementedError

    def score(self, scores: SumStatistics) -> dict[str, float]:
        if not scores.sums:
            raise ValueError(f"{self.name} has seen no samples; call `add_batch` before `compute`.")
        return {self.key: float(scores.sums["total"] / scores.sums["count"])}


def _unit_range(images: Any) -> Tensor:
    images = torch.as_tensor(images)
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


class PeakSignalNoiseRatio(_ReconstructionMetric):
    """PSNR in decibels, the mean over images of each image's own.

    Inputs of `add_batch` and `compute`, together:
        predictions: reconstructed images `(N, C, H, W)`, uint8 or floats in [0, 1].
        references: the originals.

    `compute` returns `{"psnr": decibels}`; an image without error makes it infinite.
    """

    description = "Peak signal-to-noise ratio"
    key: ClassVar[str] = "psnr"

    def image_scores(self, predictions: Tensor, references: Tensor) -> Tensor:
        return -10 * F.mse_loss(predictions, references, reduction="none").flatten(1).mean(dim=1).log10()


class StructuralSimilarity(_ReconstructionMetric):
    """SSIM: the mean over images of the structural similarity index (Wang et al., 2004), 1 for equal images.

    A Gaussian window of 11 pixels and sigma 1.5 moves over each channel where it fits inside the image; images smaller
    than 11 pixels get the largest odd window that fits. Takes what [`PeakSignalNoiseRatio`] takes. `compute` returns
    `{"ssim": index}`.
    """

    description = "Structural similarity index"
    key: ClassVar[str] = "ssim"

    def image_scores(self, predictions: Tensor, references: Tensor) -> Tensor:
        from kornia.metrics import ssim

        smallest = min(predictions.shape[-2:])
        window = min(11, smallest - 1 + smallest % 2)
        return ssim(predictions, references, window, padding="valid").flatten(1).mean(dim=1)


class TokenizerScores:
    """Reconstruction PSNR, SSIM and FID (rFID) of a tokenizer over a data set.

    Args:
        tokenizer (`diffusers.VQModel`): called on pixel values, gives the reconstruction as `sample`.
        feature_network (`str` or callable, *optional*, defaults to `"inception"`): for rFID, see [`FeatureNetwork`].
        pixel_range (`tuple[float, float]`, *optional*, defaults to `(0, 1)`): what black and white are to the
            tokenizer.
        kwargs: those of [`StreamingMetric`], for every metric.
    """

    def __init__(
        self,
        tokenizer: nn.Module,
        feature_network: Any = "inception",
        pixel_range: tuple[float, float] = (0.0, 1.0),
        **kwargs: Any,
    ):
        self.tokenizer, self.pixel_range = tokenizer.eval(), pixel_range
        self.paired = [PeakSignalNoiseRatio(**kwargs), StructuralSimilarity(**kwargs)]
        self.fid = FrechetInceptionDistance(feature_network, **kwargs)

    def add_batch(self, images: Tensor) -> None:
        """Add originals `(N, C, H, W)`, uint8 or floats in [0, 1]."""
        images = _unit_range(images).to(self.tokenizer.device)
        reconstructions = self.reconstruct(images)
        for metric in (*self.paired, self.fid):
            metric.add_batch(predictions=reconstructions, references=images)

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Images in [0, 1] through the tokenizer and back, clipped to [0, 1]: `(N, C, H, W)`."""
        low, high = self.pixel_range
        pixel_values = (images * (high - low) + low).to(self.tokenizer.dtype)
        return ((self.tokenizer(pixel_values).sample.float() - low) / (high - low)).clamp(0, 1)

    def compute(self) -> dict[str, float] | None:
        """`{"psnr": ..., "ssim": ..., "rfid": ...}` on process 0, `None` on the others."""
        results = [metric.compute() for metric in (*self.paired, self.fid)]
        if results[0] is None:
            return None
        return results[0] | results[1] | {"rfid": results[2]["fid"]}
