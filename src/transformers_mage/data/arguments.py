"""What every script that reads images can be told about its data."""

from dataclasses import dataclass

from ..command_line import argument, check_numbers
from ..files import check_inside
from .loading import Columns, DatasetSpec
from .views import Crops


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

    def check(self):
        """Raises `ValueError` for values that would not do."""
        if not self.has_data():
            raise ValueError("Say what to train on: `--dataset_name NAME_OR_FOLDER`.")
        check_numbers(self, "crop_scale_min", more_than=0, at_most=1)
        check_numbers(self, "crop_ratio_max max_train_samples", at_least=1)
        check_numbers(self, "dataloader_num_workers", at_least=0)
        check_numbers(self, "max_skipped_share", at_least=0, at_most=1)
        # What numpy, Python and torch can all be seeded with.
        check_numbers(self, "seed", at_least=0, less_than=2**32)
        if not self.output_dir:
            raise ValueError("`--output_dir` must name a folder, got an empty name.")
        check_inside(self.output_dir, self.train_split, "--train_split")

    def has_data(self) -> bool:
        return bool(self.dataset_name)

    @property
    def crops(self) -> Crops:
        """How views of an image are drawn."""
        return Crops(self.crop_scale_min, self.crop_ratio_max, self.horizontal_flip)

    @property
    def train_data(self) -> DatasetSpec:
        """What to train on."""
        columns = Columns(self.image_column, self.label_column)
        split, limit = self.train_split, self.max_train_samples
        return DatasetSpec(self.dataset_name or "", self.dataset_config_name, split, columns, limit, self.streaming)


@dataclass
class TokenizerArguments:
    """What every script that takes a trained tokenizer can be told of it."""

    tokenizer_name_or_path: str | None = argument(
        None, "A stock `VQModel`'s folder or Hub name, or that of a MAGE model."
    )
    tokenizer_subfolder: str | None = argument(
        None, "The tokenizer's folder inside of it; pipelines of diffusers keep theirs in `vqvae`."
    )
    tokenizer_pixel_range: str = argument(
        "auto",
        "What black and white are to the tokenizer: [0, 1] (unit) or [-1, 1] (symmetric). By default what its "
        "configuration says; where that says nothing, symmetric if the first images are reconstructed clearly better "
        "that way, or else unit.",
        choices=["auto", "unit", "symmetric"],
    )
