"""Command lines of the training scripts: a YAML file for a recipe, every value of which can be overridden."""

import dataclasses
import difflib
import sys
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from transformers import HfArgumentParser

Arguments = TypeVar("Arguments", bound="DataArguments")


def argument(default: Any, help: str, **kwargs) -> Any:
    return field(default=default, metadata={"help": help, **kwargs})


@dataclass
class DataArguments:
    """
    What every script that reads images can be told. Fields with `init=False` are groups of values: a mapping in the
    YAML file, `--name.key value` on the command line.
    """

    dataset_name: str | None = argument(
        None,
        "Where the images are: the name of a dataset on the Hub; a folder written by `save_to_disk`, or with images, "
        "parquet files or webdataset shards; or a pattern or address of .parquet or .tar files.",
    )
    dataset_config_name: str | None = argument(None, "The configuration of the dataset, if it has several.")
    streaming: bool = argument(False, "Read the dataset while training rather than before.")
    train_split: str = argument("train", "The split to train on.")
    image_column: str = argument("image", "The column with the images.")
    label_column: str | None = argument("label", "The column with the classes, where there is one.")
    max_train_samples: int | None = argument(None, "Train on the first images only.")
    dataloader_num_workers: int = argument(0, "Processes that load data, for each training process.")
    max_skipped_share: float = argument(0.01, "Broken images are skipped; stop when more than this share is broken.")

    crop_scale_min: float = argument(0.2, "Least share of an image's area that a random crop keeps; 1 does not crop.")
    crop_ratio_max: float = argument(4 / 3, "Largest ratio of a random crop's sides.")
    horizontal_flip: bool = argument(True, "Mirror half of the images.")

    output_dir: str = argument("outputs", "Where everything that is made goes.")
    seed: int = argument(0, "Seed of the initialisation, the order of the data, the crops and the masks.")

    def validate(self):
        """Raises `ValueError` for values that would not do."""
        if not self.has_data():
            raise ValueError("Say what to train on: `--dataset_name NAME_OR_FOLDER`.")
        if not 0 < self.crop_scale_min <= 1:
            raise ValueError(f"`--crop_scale_min` must lie in (0, 1], got {self.crop_scale_min}.")
        if self.crop_ratio_max < 1:
            raise ValueError(f"`--crop_ratio_max` must be at least 1, got {self.crop_ratio_max}.")

    def has_data(self) -> bool:
        return bool(self.dataset_name)

    def crops(self) -> dict[str, Any]:
        """What the views of an image are drawn with."""
        names = ("crop_scale_min", "crop_ratio_max", "horizontal_flip")
        return {name: getattr(self, name) for name in names}


@dataclass
class TrainingArguments(DataArguments):
    """What every training script can be told."""

    in_memory_limit: float = argument(2.0, "Decode a dataset of equally large images once, up to this many GB.")
    shuffle_window: int = argument(1000, "Images that a loading process shuffles together when streaming.")
    data_retries: int = argument(8, "Times that a failing read is tried again, after 1, 2, 4... seconds.")
    dataloader_timeout: float = argument(600.0, "Seconds that a loading process may take for a batch.")

    train_batch_size: int = argument(64, "Images in one forward pass of one process.")
    gradient_accumulation_steps: int = argument(1, "Forward passes for one update.")
    total_batch_size: int | None = argument(
        None, "Images for one update over all processes; sets `gradient_accumulation_steps`."
    )
    max_train_steps: int | None = argument(None, "Updates to make; overrides `num_train_epochs`.")
    num_train_epochs: float = argument(1.0, "Passes over the data.")
    num_train_samples: int | None = argument(None, "Images in the data, where streaming does not say.")

    learning_rate: float | None = argument(None, "Peak learning rate; overrides `base_learning_rate`.")
    base_learning_rate: float = argument(1.5e-4, "Peak learning rate for 256 images an update: it scales with them.")
    min_learning_rate: float = argument(0.0, "Learning rate at the end.")
    warmup_epochs: float = argument(0.0, "Passes over the data in which the learning rate rises.")
    warmup_steps: int | None = argument(None, "Updates in which the learning rate rises; overrides `warmup_epochs`.")
    adam_beta1: float = argument(0.9, "First moment's decay of AdamW.")
    adam_beta2: float = argument(0.95, "Second moment's decay of AdamW.")
    weight_decay: float = argument(0.05, "Weight decay, on parameters of more than one dimension.")
    max_grad_norm: float = argument(3.0, "Clip gradients to this norm; 0 does not clip.")
    use_ema: bool = argument(False, "Keep a moving average of the weights, and write that as the model.")
    ema_decay: float = argument(0.9999, "Decay of the moving average.")

    mixed_precision: str | None = argument(
        None, "The default is what `accelerate config` says.", choices=["no", "fp16", "bf16"]
    )
    torch_compile: bool = argument(False, "Compile the model.")

    checkpointing_steps: int = argument(1000, "Updates between checkpoints; 0 writes none.")
    checkpoints_total_limit: int = argument(3, "Checkpoints to keep.")
    resume_from_checkpoint: str | None = argument(None, 'A checkpoint\'s folder, or "latest" of `output_dir`.')
    logging_steps: int = argument(20, "Updates between logged figures.")
    report_to: str = argument("tensorboard", 'Trackers, with commas between them, or "none".')
    push_to_hub: bool = argument(False, "Push the trained model.")
    hub_model_id: str | None = argument(None, "Repository to push to; by default the name of `output_dir`.")

    def validate(self):
        super().validate()
        positive = ("train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "logging_steps")
        positive += ("checkpoints_total_limit", "shuffle_window")
        for name in positive:
            if getattr(self, name) <= 0:
                raise ValueError(f"`--{name}` must be more than 0, got {getattr(self, name)}.")


class HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Shows the defaults, and the description as it is written."""


def parse_arguments(arguments_class: type[Arguments], description: str, argv: list[str] | None = None) -> Arguments:
    """
    Reads a command line, with the values of `--config FILE.yaml` as the defaults.

    Args:
        arguments_class (`type`): a subclass of [`DataArguments`].
        description (`str`): what `--help` says about the script.
        argv (`list[str]`, *optional*): the command line's words; the process's by default.

    Raises:
        SystemExit: with a message, for values that do not exist or would not do.
    """
    parser = HfArgumentParser(
        arguments_class, description=description, allow_abbrev=False, formatter_class=HelpFormatter
    )
    parser.add_argument("--config", help="YAML file with a recipe; flags on the command line override its values")
    words = sys.argv[1:] if argv is None else argv
    config_file = parser.parse_known_args(words)[0].config
    mapping_names = [f.name for f in dataclasses.fields(arguments_class) if not f.init]
    recipe = _read_recipe(config_file, arguments_class) if config_file else {}
    mappings = {name: dict(recipe.pop(name, None) or {}) for name in mapping_names}
    parser.set_defaults(**recipe)
    arguments, *_, rest = parser.parse_args_into_dataclasses(words, return_remaining_strings=True)
    _override_mappings(mappings, rest, parser)
    for name, values in mappings.items():
        setattr(arguments, name, values)
    try:
        arguments.validate()
    except ValueError as error:
        parser.error(str(error))
    return arguments


def _read_recipe(path: str, arguments_class: type) -> dict[str, Any]:
    try:
        recipe = yaml.safe_load(Path(path).read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise SystemExit(f"The recipe {path} cannot be read: {error}") from error
    if not isinstance(recipe, dict):
        raise SystemExit(f"The recipe {path} must be a mapping from names to values, got a {type(recipe).__name__}.")
    names = [f.name for f in dataclasses.fields(arguments_class)]
    for name in recipe:
        if name not in names:
            raise SystemExit(f"The recipe {path} sets `{name}`, which does not exist.{_suggestion(name, names)}")
    return recipe


def _override_mappings(mappings: dict[str, dict[str, Any]], words: list[str], parser: HfArgumentParser):
    """Applies `--name.key value` and `--name.key=value`."""
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    while words:
        flag = words.pop(0)
        name, _, key = flag.removeprefix("--").partition(".")
        if not flag.startswith("--") or name not in mappings or not key:
            flags = [option for action in parser._actions for option in action.option_strings]
            parser.error(f"unrecognized argument {flag}.{_suggestion(flag, flags)}")
        if not words:
            parser.error(f"{flag} needs a value")
        mappings[name][key] = yaml.safe_load(words.pop(0))


def _suggestion(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f" Did you mean {close[0]}?" if close else ""


def as_flat_dict(arguments: DataArguments) -> dict[str, Any]:
    """All values under the names of the command line, mappings as `name.key`."""
    flat = {}
    for name, value in dataclasses.asdict(arguments).items():
        group = value if isinstance(value, dict) else None
        flat.update({name: value} if group is None else {f"{name}.{key}": item for key, item in group.items()})
    return flat


def save_recipe(arguments: DataArguments, path: str | Path):
    """Writes the resolved values as a YAML file that `--config` takes."""
    Path(path).write_text(yaml.safe_dump(dataclasses.asdict(arguments), sort_keys=False))
