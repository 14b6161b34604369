"""Scores of reconstructed images against their originals, and of a tokenizer over a data set."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from datasets import Array3D, Features, List, Value
from diffusers import VQModel
from torch import Tensor

from ..image_tokens import decode_images, encode_images, set_pixel_range
from .feature_networks import FeatureBatch
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


class PerceptualDifference(_ReconstructionMetric):
    """The mean over images of how different they look to a network, 0 for equal images.

    Takes what [`PeakSignalNoiseRatio`] takes. `compute` returns `{"perceptual_distance": distance}`.

    Args:
        distance (callable): two `(N, C, H, W)` in [0, 1] to `(N,)`.
        kwargs: those of [`StreamingMetric`].
    """

    description = "Perceptual distance"
    key: ClassVar[str] = "perceptual_distance"

    def __init__(self, distance: Callable[[Tensor, Tensor], Tensor], **kwargs: Any):
        self.distance = distance
        super().__init__(**kwargs)

    def image_scores(self, predictions: Tensor, references: Tensor) -> Tensor:
        return self.distance(predictions, references)


class CodeUsage(StreamingMetric):
    """How many of a codebook's codes occur at all, and the perplexity of their distribution.

    Inputs of `add_batch` and `compute`:
        predictions: tokens of any shape.

    `compute` returns `{"codes_used": number, "code_perplexity": exp of the entropy}`.

    Args:
        codebook_size (`int`): how many codes there are.
        kwargs: those of [`StreamingMetric`].
    """

    description = "Use of a codebook"
    inputs: ClassVar[Features] = Features({"predictions": List(Value("int64"))})

    def __init__(self, codebook_size: int, **kwargs: Any):
        self.codebook_size = codebook_size
        super().__init__(**kwargs)

    def new_statistics(self) -> dict[str, SumStatistics]:
        return {"counts": SumStatistics()}

    def update(self, predictions: Any, references: Any) -> None:
        tokens = torch.as_tensor(predictions).flatten().cpu()
        self.statistics["counts"].add(counts=torch.bincount(tokens, minlength=self.codebook_size))

    def score(self, counts: SumStatistics) -> dict[str, float]:
        if not counts.sums:
            raise ValueError(f"{self.name} has seen no samples; call `add_batch` before `compute`.")
        occurrences = counts.sums["counts"].double()
        entropy = torch.special.entr(occurrences / occurrences.sum()).sum()
        return {"codes_used": int((occurrences > 0).sum()), "code_perplexity": float(entropy.exp())}


class TokenizerScores:
    """Reconstruction PSNR, SSIM and FID (rFID) of a tokenizer over a data set, and how it uses its codes.

    Args:
        tokenizer (`diffusers.VQModel`): what is scored.
        feature_network (`str` or callable, *optional*, defaults to `"inception"`): for rFID, see [`FeatureNetwork`];
            or a mapping from names to several, for each of which there is then an `rfid (NAME)`.
        pixel_range (`tuple[float, float]`, *optional*): what black and white are to the tokenizer, where that is not
            what its configuration says.
        perceptual (callable, *optional*): also gives the [`PerceptualDifference`] of this distance.
        kwargs: those of [`StreamingMetric`], for every metric.
    """

    def __init__(
        self,
        tokenizer: VQModel,
        feature_network: Any = "inception",
        pixel_range: tuple[float, float] | None = None,
        perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
        **kwargs: Any,
    ):
        self.tokenizer = tokenizer.eval()
        if pixel_range is not None:
            set_pixel_range(tokenizer, *pixel_range)
        self.paired: list[_ReconstructionMetric] = [PeakSignalNoiseRatio(**kwargs), StructuralSimilarity(**kwargs)]
        if perceptual is not None:
            self.paired.append(PerceptualDifference(perceptual, **kwargs))
        networks = feature_network if isinstance(feature_network, Mapping) else {"": feature_network}
        self.fids = {name: FrechetInceptionDistance(network, **kwargs) for name, network in networks.items()}
        self.usage = CodeUsage(tokenizer.config.num_vq_embeddings, **kwargs)

    def features(self, images: Tensor) -> dict[str, FeatureBatch]:
        """What each feature network makes of images `(N, C, H, W)`, uint8 or floats in [0, 1]."""
        return {name: fid.feature_network(_unit_range(images)) for name, fid in self.fids.items()}

    def add_batch(self, images: Tensor, features: Mapping[str, FeatureBatch] | None = None) -> None:
        """Add originals.

        Args:
            images (`torch.Tensor` of shape `(N, C, H, W)`): uint8, or floats in [0, 1].
            features (`Mapping[str, FeatureBatch]`, *optional*): the [`features`] of the same images, where they have
                been computed for another tokenizer.
        """
        images = _unit_range(images).to(self.tokenizer.device)
        tokens = self.encode(images)
        self.usage.add_batch(predictions=tokens)
        reconstructions = self.decode(tokens)
        for metric in self.paired:
            metric.add_batch(predictions=reconstructions, references=images)
        features = features or self.features(images)
        for name, fid in self.fids.items():
            fid.add_batch(predictions=reconstructions, references=features[name])

    def encode(self, images: Tensor) -> Tensor:
        """The tokens `(N, rows, columns)` of images in [0, 1]."""
        return encode_images(self.tokenizer, images)

    def decode(self, tokens: Tensor) -> Tensor:
        """The images `(N, C, H, W)` of tokens, clipped to [0, 1]."""
        return decode_images(self.tokenizer, tokens).float().clamp(0, 1)

    def compute(self) -> dict[str, float] | None:
        """
        `{"psnr", "ssim", "perceptual_distance", "rfid", "codes_used", "code_perplexity"}`, the perceptual distance
        where there is one, on process 0; `None` on the others.
        """
        paired = [metric.compute() for metric in self.paired]
        distances = {name: fid.compute() for name, fid in self.fids.items()}
        usage = self.usage.compute()
        if usage is None:
            return None
        scores = {name: value for result in [*paired, usage] for name, value in (result or {}).items()}
        for name, result in distances.items():
            scores[f"rfid ({name})" if name else "rfid"] = (result or {})["fid"]
        return scores
