"""Classifiers on MAGE's encoder: loaded from any folder, made of a probe, and written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import VQModel
from huggingface_hub import EvalResult
from transformers import CLIPImageProcessorPil

from ..configuration_mage import MageConfig
from ..data.images import BrokenImageError, evaluation_processor, open_image
from ..data.labelled_images import LabelledImages
from ..files import FolderError
from ..hub.gallery import classifier_gallery
from ..hub.model_card import CardFacts, write_card
from ..hub.publishing import Publisher
from ..hub_folders import UNREADABLE, model_folder
from ..modeling_mage import MageForImageClassification, MageModel, MagePreTrainedModel, check_weights
from ..progress import load_report_hidden
from .extraction import Feature
from .probing import ProbeHead
from .results import Result

NUM_EXAMPLES = 4


def load_encoder(name_or_path: str) -> MageModel:
    """
    The encoder of any MAGE folder, with its tokenizer, for images.

    Raises:
        FolderError: where there is none, or not all of it, or its weights are not finite.
    """
    return _load(MageModel, name_or_path)[0].requires_grad_(False).eval()


def load_classifier(name_or_path: str, class_names: Sequence[str], **values: Any) -> MageForImageClassification:
    """
    A classifier on the encoder of any MAGE folder. Its linear layer is new unless the folder's fits the classes.

    Args:
        class_names (`Sequence[str]`): of the classes.
        values: fields of [`MageConfig`] to change.

    Raises:
        FolderError: where there is no model, not all of its encoder, or one of another size.
    """
    model, new = _load(MageForImageClassification, name_or_path, **_labels(class_names), **values)
    if "classifier.weight" in new:
        torch.nn.init.trunc_normal_(model.classifier.weight, std=2e-5)
    return model


def _load(model_class: type[MagePreTrainedModel], name_or_path: str, **options: Any) -> tuple[Any, list[str]]:
    """A model with its tokenizer, and the names of its new parameters, which may be a classifier's only."""
    try:
        with load_report_hidden():
            model, info = model_class.from_pretrained(
                model_folder(name_or_path), output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
        check_weights(model)
    except UNREADABLE as error:
        raise FolderError(f"No model can be loaded from {name_or_path}: {error}") from error
    wrong = [entry for entry in info["mismatched_keys"] if not entry[0].startswith("classifier.")]
    if wrong:
        name, there, here = wrong[0]
        raise FolderError(
            f"The weights in {name_or_path} have another size than the configuration says: {name} is {tuple(there)} "
            f"in the file and {tuple(here)} in the model ({len(wrong)} such)."
        )
    if model.base_model.vqvae is None:
        raise FolderError(f"{name_or_path} has no tokenizer, so it takes no images. Convert it together with one.")
    return model, [*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])]


def _labels(class_names: Sequence[str]) -> dict[str, dict]:
    id2label = dict(enumerate(class_names))
    return {"id2label": id2label, "label2id": {name: number for number, name in id2label.items()}}


def image_shape(config: MageConfig, image_size: int | None = None) -> tuple[int, int, int]:
    """
    Channels, height and width of a model's images, or of square ones of another size.

    Raises:
        ValueError: for a size that is not a number of whole tokens.
    """
    height, width = config.image_height_width
    if image_size is not None:
        if image_size < 1 or image_size % config.patch_size:
            raise ValueError(f"`--image_size` must be a multiple of {config.patch_size}, got {image_size}.")
        height = width = image_size
    return config.num_channels, height, width


def processor_of(images: LabelledImages, config: MageConfig, normalize: bool = False) -> CLIPImageProcessorPil:
    """What makes the crops that `images` were evaluated with, for users; see [`evaluation_processor`]."""
    channels, height, width = image_shape(config)
    first = open_image(images.dataset[0][images.columns.image], channels)
    return evaluation_processor((height, width), channels, crop=first.size != (width, height), normalize=normalize)


def probe_as_classifier(
    encoder: MageModel, feature: Feature, probe: ProbeHead, class_names: Sequence[str]
) -> MageForImageClassification:
    """
    A probe and what it probes as one model: the encoder up to the layer of the feature, and the head.

    Args:
        encoder ([`MageModel`]): the encoder; its tokenizer is shared.
        feature ([`Feature`]): of a layer from 1 on.
        probe ([`ProbeHead`]): trained on that feature.
        class_names (`Sequence[str]`): of the classes.
    """
    values = {"num_hidden_layers": feature.layer, "classifier_pooling": feature.pooling, "classifier_batch_norm": True}
    config = MageConfig(**{**encoder.config.to_dict(), **values, **_labels(class_names)})
    with encoder.device:
        model = _without_tokenizer(config)
    kept = {name for name, _ in model.mage.named_parameters() if not name.startswith("layernorm.")}
    weights = {name: tensor for name, tensor in encoder.state_dict().items() if name in kept}
    model.mage.load_state_dict(weights, strict=False)
    model.batch_norm.load_state_dict(probe.batch_norm.state_dict())
    model.classifier.load_state_dict(probe.classifier.state_dict())
    return _with_tokenizer(model, encoder.vqvae, config).eval()


def classifier_of(
    state: dict[str, torch.Tensor], config: MageConfig, tokenizer: VQModel
) -> MageForImageClassification:
    """A trained classifier with the tokenizer that it was trained without, where that is; `state` are its weights."""
    model = _without_tokenizer(config)
    model.load_state_dict(state)
    return _with_tokenizer(model, tokenizer, config).to(tokenizer.device)


def _without_tokenizer(config: MageConfig) -> MageForImageClassification:
    return MageForImageClassification(MageConfig(**{**config.to_dict(), "vq_config": None}))


def _with_tokenizer(
    model: MageForImageClassification, tokenizer: VQModel | None, config: MageConfig
) -> MageForImageClassification:
    model.mage.vqvae, model.config.vq_config = tokenizer, config.vq_config
    return model


def save_classifier(model: MageForImageClassification, processor: CLIPImageProcessorPil, folder: str | Path):
    """Writes the folder that `AutoModelForImageClassification` and `pipeline("image-classification")` load."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def write_classifier(
    model: MageForImageClassification,
    processor: CLIPImageProcessorPil,
    result: Result,
    validation: LabelledImages,
    publisher: Publisher,
    facts: CardFacts,
):
    """
    Writes the folder of a classifier, with a card that shows what it takes some validation images for.

    Args:
        result ([`Result`]): how good it is.
        facts ([`CardFacts`]): what else the card tells.
    """

    def write(folder: Path):
        model.eval()
        save_classifier(model, processor, folder)
        facts.samples = classifier_gallery(model, processor, _examples(validation, len(processor.image_mean)))
        facts.results = [_measured(result)]
        write_card(folder, facts)

    publisher.write(write)


def _examples(images: LabelledImages, channels: int) -> list:
    found = []
    for row in images.dataset.take(min(len(images), 4 * NUM_EXAMPLES)):
        try:
            found.append(open_image(row[images.columns.image], channels))
        except BrokenImageError:
            continue
    return found[:NUM_EXAMPLES]


def _measured(result: Result) -> EvalResult:
    name = Path(result.dataset).name
    return EvalResult(
        task_type="image-classification",
        dataset_type=result.dataset,
        dataset_name=name,
        dataset_split="validation",
        metric_type="accuracy",
        metric_name=f"Top-1 accuracy, {result.subset} labels",
        metric_value=round(100 * result.accuracy, 2),
    )
