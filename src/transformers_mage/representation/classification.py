"""What probing and fine-tuning share: their command line, the model they start from, and its scores on a split."""

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import CLIPImageProcessorPil

from ..command_line import argument
from ..configuration_mage import MageConfig
from ..data.batches import DataError
from ..data.images import evaluation_processor as make_evaluation_processor
from ..data.images import open_image
from ..data.labelled_images import EvaluationImages, LabelledImages
from ..data.labels import IGNORED_LABEL, Classes
from ..data.loading import find_columns, load_split
from ..metrics import Accuracy, MeanPerClassAccuracy, Top5Accuracy
from ..modeling_mage import MageForImageClassification, MageModel
from ..training.arguments import TrainingArguments


@dataclass
class ClassificationArguments(TrainingArguments):
    """What the scripts that learn from labels can be told."""

    model_name_or_path: str | None = argument(None, "A MAGE model's folder or Hub name.")
    validation_split: str = argument("validation", "The split to evaluate on.")
    max_eval_samples: int | None = argument(None, "Evaluate on the first images only.")
    eval_batch_size: int = argument(64, "Images in one forward pass of one evaluating process.")
    shots_per_class: list[int] = field(
        default_factory=list,
        metadata={"help": "Train on this many images of each class, 0 for all; one run for each number."},
    )
    label_fraction: float | None = argument(None, "Train on this share of each class's images, 0.01 for 1 %.")
    num_seeds: int = argument(1, "Runs with `seed`, `seed` + 1 and so on, which draw other subsets.")

    def runs(self) -> list["ClassificationArguments"]:
        """One for each dataset of `--dataset_name A,B`, number of shots and seed, with a folder of its own."""
        runs = []
        shots = [[number] for number in self.shots_per_class] or [[]]
        seeds = range(self.seed, self.seed + self.num_seeds)
        for name, number, seed in itertools.product(self.dataset_name.split(","), shots, seeds):
            values = {"dataset_name": name, "shots_per_class": number, "seed": seed, "num_seeds": 1}
            runs.append(dataclasses.replace(self, **values))
        if len(runs) > 1:
            for run in runs:
                parts = (Path(run.dataset_name).name, run.subset_name.replace(" ", "-"), f"seed-{run.seed}")
                run.output_dir = str(Path(self.output_dir, *parts))
        return runs

    @property
    def shots(self) -> int | None:
        """The only number of shots of a run; None takes all images."""
        return (self.shots_per_class[0] or None) if self.shots_per_class else None

    @property
    def subset_name(self) -> str:
        if self.shots is not None:
            return "1 shot" if self.shots == 1 else f"{self.shots} shots"
        return "all labels" if self.label_fraction is None else f"{100 * self.label_fraction:g} % of labels"

    def check(self):
        super().check()
        if not self.model_name_or_path:
            raise ValueError("Say which model to start from: `--model_name_or_path FOLDER_OR_NAME`.")
        if self.streaming:
            raise ValueError("Classes are counted and subsets drawn before training: leave `--streaming` out.")
        for name in ("eval_batch_size", "num_seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"`--{name}` must be at least 1, got {getattr(self, name)}.")


def load_labelled_images(arguments: ClassificationArguments) -> tuple[LabelledImages, LabelledImages]:
    """
    The training and the validation split of `--dataset_name`.

    Raises:
        DataError: where there are no images, no labels, or labels that would not do.
    """
    spec = arguments.train_data
    train = load_split(spec)
    validation = load_split(spec.of_split(arguments.validation_split, arguments.max_eval_samples))
    columns = find_columns(train, spec.columns)
    if columns.label is None:
        raise DataError(
            f'{arguments.dataset_name} has no column "{arguments.label_column}" with labels but '
            f"{train.column_names}: say `--label_column NAME`, or use a dataset with labels."
        )
    classes = Classes.of(train, columns.label)
    return LabelledImages.of(train, columns, classes), LabelledImages.of(validation, columns, classes)


def load_encoder(name_or_path: str) -> MageModel:
    """
    The encoder of any MAGE folder, with its tokenizer, for images.

    Raises:
        SystemExit: with a message, where there is none.
    """
    try:
        model = MageModel.from_pretrained(name_or_path)
    except (OSError, ValueError, RuntimeError) as error:
        raise SystemExit(f"There is no MAGE model in {name_or_path}: {error}") from error
    _require_tokenizer(model, name_or_path)
    return model.requires_grad_(False).eval()


def load_classifier(name_or_path: str, class_names: list[str], **values) -> MageForImageClassification:
    """
    A classifier on the encoder of any MAGE folder. Its linear layer is new unless the folder's fits the classes.

    Args:
        class_names (`list[str]`): of the classes.
        values: fields of [`MageConfig`] to change.

    Raises:
        SystemExit: with a message, where there is no model, or one of another size.
    """
    id2label = dict(enumerate(class_names))
    label2id = {name: number for number, name in id2label.items()}
    try:
        config = MageConfig.from_pretrained(name_or_path, id2label=id2label, label2id=label2id, **values)
        model, info = MageForImageClassification.from_pretrained(
            name_or_path, config=config, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise SystemExit(f"There is no MAGE model in {name_or_path}: {error}") from error
    _check_sizes(info, name_or_path)
    _require_tokenizer(model.mage, name_or_path)
    new = [*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])]
    if "classifier.weight" in new:
        torch.nn.init.trunc_normal_(model.classifier.weight, std=2e-5)
    return model


def _check_sizes(info: dict[str, list], name_or_path: str):
    """Only what belongs to other classes may be replaced."""
    wrong = [entry for entry in info["mismatched_keys"] if not entry[0].startswith("classifier.")]
    if wrong:
        name, there, here = wrong[0]
        raise SystemExit(
            f"The weights in {name_or_path} have another size than the configuration says: {name} is {tuple(there)} "
            f"in the file and {tuple(here)} in the model ({len(wrong)} such)."
        )
    lost = [name for name in info["missing_keys"] if name.startswith("mage.")]
    if lost:
        raise SystemExit(f"{name_or_path} has no weights for {len(lost)} of the encoder's parameters, as {lost[0]}.")


def _require_tokenizer(model: MageModel, name_or_path: str):
    if model.vqvae is None:
        raise SystemExit(f"{name_or_path} has no tokenizer, so it takes no images. Convert it together with one.")


def image_shape(config: MageConfig, image_size: int | None = None) -> tuple[int, int, int]:
    """
    Channels, height and width of a model's images, or of square ones of another size.

    Raises:
        SystemExit: with a message, for a size that makes no whole tokens.
    """
    rows, columns = config.grid_size
    height, width = rows * config.patch_size, columns * config.patch_size
    if image_size is not None:
        if image_size < 1 or image_size % config.patch_size:
            raise SystemExit(f"`--image_size` must be a multiple of {config.patch_size}, got {image_size}.")
        height = width = image_size
    return config.vq_config.get("in_channels", 3), height, width


def evaluation_loader(
    images: LabelledImages, shape: tuple[int, int, int], arguments: ClassificationArguments, accelerator: Accelerator
) -> DataLoader:
    """Batches that `accelerator.gather_for_metrics` counts once, whatever the number of processes."""
    options = arguments.loading(accelerator).options()
    loader = DataLoader(EvaluationImages.of(images, shape), batch_size=arguments.eval_batch_size, **options)
    return accelerator.prepare(loader)


class ClassificationScores:
    """Loss and accuracies of one classifier, summed over batches."""

    def __init__(self):
        self.metrics = (Accuracy(), Top5Accuracy(), MeanPerClassAccuracy())
        self.loss = self.num_images = 0

    def add(self, logits: torch.Tensor, labels: torch.LongTensor):
        """Scores of shape `(num_images, num_labels)`; classes, or -100 for what does not count."""
        logits = logits.float()
        self.loss = self.loss + F.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED_LABEL)
        self.num_images = self.num_images + (labels != IGNORED_LABEL).sum()
        for metric in self.metrics:
            metric.add_batch(predictions=logits, references=labels)

    def compute(self) -> dict[str, float]:
        """`accuracy`, `top_5_accuracy`, `mean_per_class_accuracy`, `loss` and `num_images`."""
        results = {"loss": float(self.loss / self.num_images), "num_images": int(self.num_images)}
        for metric in self.metrics:
            results |= metric.compute()
        return results


def score(logits: torch.Tensor, labels: torch.LongTensor) -> dict[str, float]:
    """[`ClassificationScores`] of a whole split at once."""
    scores = ClassificationScores()
    scores.add(logits, labels)
    return scores.compute()


@torch.no_grad()
def evaluate(
    predict: Callable[[torch.Tensor], dict[str, torch.Tensor]], loader: DataLoader, accelerator: Accelerator
) -> dict[str, dict[str, float]]:
    """
    Scores classifiers on a split. Every process gets the same results.

    Args:
        predict (`Callable`): from pixels (batch_size, channels, height, width) in [0, 1] to scores
            (batch_size, num_labels) of each classifier, by its name.
        loader (`DataLoader`): from [`evaluation_loader`].

    Returns:
        What [`ClassificationScores`] computes, by the classifiers' names.
    """
    scores: dict[str, ClassificationScores] = {}
    progress_bar = tqdm(loader, desc="Evaluating", leave=False, disable=not accelerator.is_local_main_process)
    for batch in progress_bar:
        with accelerator.autocast():
            logits = predict(batch["pixel_values"].float() / 255)
        logits, labels = accelerator.gather_for_metrics((logits, batch["labels"]))
        for name, values in logits.items():
            scores.setdefault(name, ClassificationScores()).add(values, labels)
    return {name: score.compute() for name, score in scores.items()}


def evaluation_processor(
    images: LabelledImages, config: MageConfig, do_normalize: bool = False
) -> CLIPImageProcessorPil:
    """
    What makes the crops that `images` were evaluated with, for users.

    Args:
        do_normalize (`bool`): whether ImageNet's mean and deviation are taken off, as the paper's fine-tuning does.
    """
    channels, height, width = image_shape(config)
    first = open_image(images.dataset[0][images.columns.image], channels)
    crop = first.size != (width, height)
    return make_evaluation_processor((height, width), channels, crop=crop, normalize=do_normalize)


def save_classifier(
    model: MageForImageClassification, processor: CLIPImageProcessorPil, arguments: ClassificationArguments
):
    """Writes the folder that `AutoModelForImageClassification` and `pipeline("image-classification")` load."""
    hub = {"push_to_hub": arguments.push_to_hub}
    if arguments.push_to_hub and arguments.hub_model_id:
        hub["repo_id"] = arguments.hub_model_id
    model.save_pretrained(arguments.output_dir, **hub)
    processor.save_pretrained(arguments.output_dir, **hub)
