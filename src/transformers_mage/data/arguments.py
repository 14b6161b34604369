"""What every script that reads images can be told about its data."""

from dataclasses import dataclass

from ..command_line import argument
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
        if not 0 < self.crop_scale_min <= 1:
            raise ValueError(f"`--crop_scale_min` must lie in (0, 1], got {self.crop_scale_min}.")
        if self.crop_ratio_max < 1:
            raise ValueError(f"`--crop_ratio_max` must be at least 1, got {self.crop_ratio_max}.")

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
