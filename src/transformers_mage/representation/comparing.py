"""What an encoder has learned, next to raw pixels and to the same encoder with random weights."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate import Accelerator, PartialState
from torch.utils.data import DataLoader

from ..data.batches import Loading
from ..data.labelled_images import EvaluationImages, LabelledImages
from ..data.labels import IGNORED_LABEL, draw_subset
from ..modeling_mage import MageModel
from ..progress import progress_bar
from .arguments import ClassificationArguments
from .classifiers import image_shape
from .extraction import FeatureExtractor
from .probing import fit_best_probe, nearest_neighbour_scores, normalize
from .results import Result
from .scoring import score

# Larger images are averaged down to this: a probe of more values than images tells nothing.
PIXELS_SIDE = 32


@dataclass
class DescribedImages:
    """
    Images as numbers.

    Attributes:
        features (`dict[str, torch.Tensor]`): (num_images, num_values) each, by what they are.
        labels (`torch.LongTensor` of shape `(num_images,)`): classes.
    """

    features: dict[str, torch.Tensor]
    labels: torch.LongTensor


def random_encoder(encoder: MageModel, seed: int = 1) -> MageModel:
    """An encoder of the same size that has learned nothing; the tokenizer is the trained one."""
    with torch.random.fork_rng(), encoder.device:
        torch.manual_seed(seed)
        random = MageModel(encoder.config)
    random.vqvae = encoder.vqvae
    return random.requires_grad_(False).eval()


@torch.no_grad()
def describe(
    encoders: Mapping[str, FeatureExtractor], images: LabelledImages, accelerator: Accelerator, loading: Loading
) -> DescribedImages:
    """
    Raw pixels, and the features of encoders of images of one size. Broken images are left out.

    Args:
        encoders (`Mapping[str, FeatureExtractor]`): by the names that they get; at least one.
    """
    shape = image_shape(next(iter(encoders.values())).model.config)
    loader = DataLoader(EvaluationImages.of(images, shape), batch_size=loading.batch_size, **loading.options())
    columns: dict[str, list[torch.Tensor]] = {}
    for batch in progress_bar(loader, desc="Describing images", leave=False):
        pixel_values = batch["pixel_values"].to(accelerator.device).float() / 255
        columns.setdefault("label", []).append(batch["labels"])
        columns.setdefault("raw pixels", []).append(_as_row(pixel_values).cpu())
        for name, extractor in encoders.items():
            with accelerator.autocast():
                features = extractor(pixel_values)
            for feature, values in features.items():
                columns.setdefault(f"{name}, {feature}", []).append(normalize(values).cpu())
    joined = {name: torch.cat(values) for name, values in columns.items()}
    labels = joined.pop("label")
    is_whole = labels != IGNORED_LABEL
    return DescribedImages({name: values[is_whole] for name, values in joined.items()}, labels[is_whole])


def _as_row(pixel_values: torch.Tensor) -> torch.Tensor:
    if max(pixel_values.shape[2:]) > PIXELS_SIDE:
        pixel_values = F.adaptive_avg_pool2d(pixel_values, PIXELS_SIDE)
    return pixel_values.flatten(1)


def probe_features(
    known: DescribedImages, unknown: DescribedImages, num_labels: int, arguments: ClassificationArguments
) -> list[Result]:
    """
    Linear probes and nearest neighbours on each of the features, for one subset of the labels, computed on the
    accelerator if there is one.

    Args:
        known, unknown ([`DescribedImages`]): what to learn from, and what to be scored on.
        num_labels (`int`): number of classes.
        arguments ([`ClassificationArguments`]): one of [`ClassificationArguments.runs`], which says which subset.
    """
    rows = torch.from_numpy(draw_subset(known.labels, arguments.shots, arguments.label_fraction, arguments.seed))
    device = PartialState().device
    labels, results = known.labels[rows].to(device), []
    for name, values in known.features.items():
        chosen, to_classify = values[rows].to(device), unknown.features[name].to(device)
        scores = {
            "linear probe": fit_best_probe(chosen, labels, num_labels, seed=arguments.seed)(to_classify),
            "k-NN": nearest_neighbour_scores(chosen, labels, to_classify, num_labels),
        }
        for method, logits in scores.items():
            results.append(Result.of(arguments, f"{name}: {method}", len(rows), score(logits.cpu(), unknown.labels)))
    return results
