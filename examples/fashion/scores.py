"""Figures of generated clothes: by the judge, by a network of photographs, and by the nearest training image."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from examples.device import device
from transformers_mage.image_networks import load_image_network
from transformers_mage.metrics import FrechetInceptionDistance, PrecisionRecall

from .judge import FashionJudge, as_grey, judge_images


def fashion_scores(
    judge: FashionJudge, images: Tensor, references: Tensor, asked: Sequence[int] | None = None
) -> dict:
    """
    What the judge says of images, and how far they are from real ones by the features of its last hidden layer.

    Args:
        judge ([`FashionJudge`]).
        images (`torch.Tensor` of shape `(N, 1 or 3, 28, 28)`): uint8, or floats in [0, 1].
        references (`torch.Tensor` of shape `(M, 128)`): the judge's features of real images.
        asked (`Sequence[int]` of length N, *optional*): the kind that each image was to be of; `asked_class` is the
            share of those in which the judge sees it.
    """
    verdicts = judge_images(judge, images)
    distance = FrechetInceptionDistance(judge).compute(predictions=verdicts.features, references=references)
    is_asked = {} if asked is None else {"asked_class": float((verdicts.kinds == torch.tensor(asked)).float().mean())}
    return is_asked | {
        "fd": distance["fid"],
        "sure": verdicts.sure,
        "junk": verdicts.junk,
        "shares": verdicts.shares,
        **PrecisionRecall(judge).compute(predictions=verdicts.features, references=references),
    }


class NetworkDistance:
    """
    The Fréchet distance to real images by the features of a network of photographs.

    Args:
        name (`str`): of the network; see `transformers_mage.image_networks`.
        references (`torch.Tensor` of shape `(M, 1 or 3, 28, 28)`): the real images, uint8 or floats in [0, 1].
    """

    def __init__(self, name: str, references: Tensor):
        self.name, self.network = name, load_image_network(name).to(device())
        self.references = extract_features(self.network, references)

    def __call__(self, images: Tensor) -> dict[str, float]:
        features = extract_features(self.network, images)
        distance = FrechetInceptionDistance(self.network).compute(predictions=features, references=self.references)
        return {f"fd_{self.name}": distance["fid"]}


@torch.no_grad()
def extract_features(network: nn.Module, images: Tensor, batch_size: int = 250) -> Tensor:
    """(N, D) features, on the CPU, by a network that returns features and logits."""
    batches = tqdm(images.split(batch_size), desc="Extracting features", mininterval=5, leave=False)
    return torch.cat([network(as_grey(batch.to(device())))[0].cpu() for batch in batches])


def nearest_images(images: Tensor, training: Tensor, batch_size: int = 500) -> tuple[Tensor, Tensor]:
    """
    The training image that each image is nearest to, by the root mean square difference of their pixels.

    Returns:
        `torch.Tensor` of shape `(N,)`, the distances, in [0, 1], and of shape `(N,)`, the indices.
    """
    known = as_grey(training).flatten(1)
    found = [torch.cdist(batch, known).min(dim=1) for batch in as_grey(images).flatten(1).split(batch_size)]
    distances, indices = zip(*found, strict=True)
    return torch.cat(distances) / known.shape[1] ** 0.5, torch.cat(indices)
