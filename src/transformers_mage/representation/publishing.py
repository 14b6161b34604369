"""What becomes of a trained classifier: its folder, and its card."""

from pathlib import Path

from huggingface_hub import EvalResult
from transformers import CLIPImageProcessorPil

from ..data.images import BrokenImageError, open_image
from ..data.labelled_images import LabelledImages
from ..hub.gallery import classifier_gallery
from ..hub.model_card import CardFacts, write_card
from ..hub.publishing import Publisher
from ..modeling_mage import MageForImageClassification
from .classifiers import save_classifier
from .results import Result

NUM_EXAMPLES = 4


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
