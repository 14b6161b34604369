"""Judging what came out: reconstructions, samples next to real images, and the best way to sample."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, load_from_disk
from PIL import Image
from torch import Tensor

from ..image_tokens import decode_images, encode_images
from ..metrics import FrechetInceptionDistance, TokenizerScores
from ..metrics.feature_networks import FeatureNetwork, load_feature_network
from ..pipeline_mage import MagePipeline
from ..progress import progress_bar
from ..sampling.plan import ClassPlan
from ..sampling.sampler import Sampler
from ..scheduling_mage import MageScheduler
from ..visualization import draw_grid
from .judge import Judge

BATCH_SIZE = 64
# At 16 distances still fall, but what is drawn is torn to the eye.
TEMPERATURES = (1.0, 2.0, 4.0, 6.0, 10.0)
# Where the search begins, and how many of them it tries.
FIRST_TEMPERATURES, MOST_TEMPERATURES = (4.0, 6.0), 4
FEWER_STEPS = (8, 12)
# Samples of a way, so that it is not chance that takes fewer steps for better ones.
FEWEST_FOR_STEPS = 256
STEPS = 20
# Large enough for the network of photographs to know what it sees.
PHOTOGRAPH_SIDE = 64
SHOWN = 8
MOST_BYTES = 500_000_000
# For the distances of pixels, larger images are averaged down to this.
COMPARED_SIDE = 64


def load_images(folder: Path, split: str, limit: int) -> Tensor:
    """(num_images, 3, height, width) uint8: the first images of a split of prepared ones, as far as memory goes."""
    rows: Dataset = load_from_disk(str(folder))[split]
    width, height = rows[0]["image"].size
    chosen = rows.select(range(min(limit, len(rows), MOST_BYTES // (3 * width * height))))
    pixels = [np.asarray(image) for image in progress_bar(chosen["image"], desc="Reading images", leave=False)]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()


def load_labels(folder: Path, split: str, limit: int) -> Tensor:
    """(num_images,) classes of the first images."""
    return torch.tensor(load_from_disk(str(folder))[split]["label"][:limit])


def photograph_network(is_grey: bool, image_size: int) -> torch.nn.Module | None:
    """The network that published distances are by, where it is installed and the images are such as it knows."""
    if is_grey or image_size < PHOTOGRAPH_SIDE:
        return None
    try:
        return load_feature_network("inception")
    except (ImportError, FileNotFoundError):
        return None


@dataclass
class Jury:
    """
    What compares images with real ones.

    Attributes:
        network (`nn.Module`): whose features are compared.
        name (`str`): what it is, as tables have it.
    """

    network: torch.nn.Module
    name: str

    @classmethod
    def of(cls, judge: Judge, is_grey: bool, image_size: int) -> "Jury":
        known = photograph_network(is_grey, image_size)
        return cls(known, "Inception") if known is not None else cls(judge, judge.kind)

    def features(self, images: Tensor) -> Tensor:
        """(num_images, D) of uint8 images."""
        network = FeatureNetwork(self.network)
        return torch.cat([network(batch).features for batch in images.split(BATCH_SIZE)])

    def distance(self, features: Tensor, references: Tensor) -> float:
        """The Fréchet distance of two sets of features."""
        result = FrechetInceptionDistance(self.network).compute(predictions=features, references=references)
        return float((result or {})["fid"])


def generate(
    pipe: MagePipeline, num_images: int, seed: int = 0, labels: Sequence[int] | None = None, **options: Any
) -> Tensor:
    """
    (num_images, 3, height, width) uint8 samples; where the model has classes, of those of `labels` or of all in turn.
    """
    config = pipe.model.config
    classes = ClassPlan(config, None, num_images) if labels is None else ClassPlan.of(config, labels)
    sampler = Sampler(pipe, classes, seed, options)
    batches = [range(start, min(start + BATCH_SIZE, num_images)) for start in range(0, num_images, BATCH_SIZE)]
    made = [sampler(batch) for batch in progress_bar(batches, desc="Generating", leave=False)]
    return torch.from_numpy(np.concatenate(made)).permute(0, 3, 1, 2).contiguous()


def sweep(pipe: MagePipeline, jury: Jury, references: Tensor, num_images: int) -> list[dict[str, float]]:
    """
    Distances of ways of sampling: temperatures first, from two in the middle on as long as they get better, and of the
    best one fewer steps, where there are samples enough.

    Args:
        references (`torch.Tensor` of shape `(N, D)`): features of real images that nothing was trained on.
        num_images (`int`): samples of each way.

    Returns:
        "temperature", "num_inference_steps" and "distance" of each way.
    """
    rows: list[dict[str, float]] = []

    def score(temperature: float, steps: int):
        images = generate(pipe, num_images, temperature=temperature, num_inference_steps=steps)
        distance = jury.distance(jury.features(images), references)
        rows.append({"temperature": temperature, "num_inference_steps": steps, "distance": distance})

    for temperature in FIRST_TEMPERATURES:
        score(temperature, STEPS)
    while len(rows) < MOST_TEMPERATURES and (beside := untried_beside(best_of(rows)["temperature"], rows)):
        score(beside[0], STEPS)
    best = best_of(rows)["temperature"]
    for steps in FEWER_STEPS if num_images >= FEWEST_FOR_STEPS else ():
        score(best, steps)
    return rows


def untried_beside(temperature: float, rows: Sequence[dict[str, float]]) -> list[float]:
    """The temperatures next to one that are not among the ways that were tried."""
    place, tried = TEMPERATURES.index(temperature), {row["temperature"] for row in rows}
    return [value for value in TEMPERATURES[max(place - 1, 0) : place + 2] if value not in tried]


def best_of(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The way of sampling with the least distance."""
    return min(rows, key=lambda row: row["distance"])


def with_sampling(pipe: MagePipeline, row: dict[str, float]) -> MagePipeline:
    """The pipeline with a scheduler that samples in this way by default."""
    values = {"temperature": row["temperature"], "num_inference_steps": int(row["num_inference_steps"])}
    pipe.scheduler = MageScheduler.from_config(pipe.scheduler.config, **values)
    return pipe


def reconstruction_scores(pipe: MagePipeline, jury: Jury, images: Tensor, perceptual: Any = None) -> dict[str, float]:
    """PSNR, SSIM, the distance of reconstructions, codes used and, where there is a network for it, how they look."""
    scores = TokenizerScores(pipe.vqvae, jury.network, perceptual=perceptual)
    for batch in progress_bar(images.split(BATCH_SIZE), desc="Reconstructing", leave=False):
        scores.add_batch(batch)
    return scores.compute() or {}


def nearest_images(images: Tensor, training: Tensor, batch_size: int = 250) -> tuple[Tensor, Tensor]:
    """
    The training image that each image is nearest to, by the root mean square difference of their pixels.

    Args:
        images, training (`torch.Tensor` of shape `(N, 3, height, width)`): uint8.

    Returns:
        `torch.Tensor` of shape `(N,)`, the distances, in [0, 1], and of shape `(N,)`, the indices.
    """
    known, asked = _as_rows(training), _as_rows(images)
    found = [torch.cdist(batch, known).min(dim=1) for batch in asked.split(batch_size)]
    distances, indices = zip(*found, strict=True)
    return torch.cat(distances) / known.shape[1] ** 0.5, torch.cat(indices)


def _as_rows(images: Tensor) -> Tensor:
    if max(images.shape[2:]) > COMPARED_SIDE:
        small = [F.adaptive_avg_pool2d(batch.float(), COMPARED_SIDE) for batch in images.split(BATCH_SIZE)]
        return torch.cat(small).flatten(1) / 255
    return images.flatten(1).float() / 255


@torch.no_grad()
def draw_reconstructions(pipe: MagePipeline, images: Tensor) -> Image.Image:
    """Images, and below them what the tokenizer makes of them."""
    pixels = images[: 2 * SHOWN].float() / 255
    made = decode_images(pipe.vqvae, encode_images(pipe.vqvae, pixels)).clamp(0, 1)
    return draw_rows([images[: 2 * SHOWN], (made * 255).round().byte()])


def draw_inpaintings(pipe: MagePipeline, images: Tensor) -> Image.Image:
    """Images, then for each half the images without it and what the model paints there."""
    shown = images[: 2 * SHOWN]
    height, width = shown.shape[2:]
    rows = [shown]
    for box in ((0, 0, width, height // 2), (width // 2, 0, width, height)):
        mask = Image.new("L", (width, height))
        mask.paste(255, box)
        hidden = shown.clone()
        hidden[:, :, box[1] : box[3], box[0] : box[2]] = 128
        generator = torch.Generator().manual_seed(0)
        options: dict[str, Any] = {"generator": generator, "feather": 0, "output_type": "pt", "return_dict": False}
        painted = torch.as_tensor(pipe(image=as_pictures(shown), mask_image=mask, **options)[0])
        rows += [hidden, (painted.clamp(0, 1) * 255).round().byte()]
    return draw_rows(rows)


def draw_rows(rows: Sequence[Tensor]) -> Image.Image:
    """Rows of equally many images each."""
    return draw_grid(as_pictures(torch.cat(list(rows))), num_columns=len(rows[0]))


def as_pictures(images: Tensor) -> list[Image.Image]:
    """Pictures of uint8 images `(N, 3, height, width)`."""
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
