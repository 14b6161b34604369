"""What the scripts that learn from labels can be told, and the images that they are told of."""

import dataclasses
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from accelerate import Accelerator

from ..command_line import argument, check_numbers
from ..data.arguments import DataArguments
from ..data.batches import DataError, Loading
from ..data.labelled_images import LabelledImages
from ..data.labels import Classes
from ..data.loading import find_columns, load_split


@dataclass
class ClassificationArguments(DataArguments):
    """What the scripts that learn from labels can be told."""

    model_name_or_path: str | None = argument(None, "A MAGE model's folder or Hub name.")
    validation_split: str = argument("validation", "The split to evaluate on.")
    max_eval_samples: int | None = argument(None, "Evaluate on the first images only.")
    eval_batch_size: int = argument(64, "Images in one forward pass of one evaluating process.")
    shots_per_class: list[int] = field(
        default_factory=list,
        metadata={"help": "Train on this many images of each class, 0 for all; one run for each number."},
    )
    label_fraction: float | None = argument(None, "Train on this share of each class's images, as 0.01.")
    num_seeds: int = argument(1, "Runs with `seed`, `seed` + 1 and so on, which draw other subsets.")

    def runs(self) -> list[Self]:
        """One for each dataset of `--dataset_name A,B`, number of shots and seed, with a folder of its own."""
        runs = []
        names = (self.dataset_name or "").split(",")
        shots = [[number] for number in self.shots_per_class] or [[]]
        seeds = range(self.seed, self.seed + self.num_seeds)
        for name, number, seed in itertools.product(names, shots, seeds):
            run = dataclasses.replace(self, dataset_name=name, shots_per_class=number, seed=seed, num_seeds=1)
            runs.append(run)
        if len(runs) > 1:
            for run in runs:
                parts = (Path(str(run.dataset_name)).name, run.subset_name.replace(" ", "-"), f"seed-{run.seed}")
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

    def eval_loading(self, accelerator: Accelerator) -> Loading:
        """How a process loads what it evaluates."""
        on_gpu = accelerator.device.type == "cuda"
        return Loading(self.eval_batch_size, num_workers=self.dataloader_num_workers, timeout=600, pin_memory=on_gpu)

    def check(self):
        super().check()
        if not self.model_name_or_path:
            raise ValueError("Say which model to start from: `--model_name_or_path FOLDER_OR_NAME`.")
        if self.streaming:
            raise ValueError("Classes are counted and subsets drawn before training: leave `--streaming` out.")
        check_numbers(self, "eval_batch_size num_seeds max_eval_samples", at_least=1)
        check_numbers(self, "label_fraction", more_than=0, at_most=1)
        if any(shots < 0 for shots in self.shots_per_class):
            raise ValueError(f"`--shots_per_class` must be 0 or more, got {self.shots_per_class}.")
        if self.label_fraction is not None and any(self.shots_per_class):
            raise ValueError("Say either `--shots_per_class` or `--label_fraction`.")

    def load_images(self) -> tuple[LabelledImages, LabelledImages]:
        """
        The training split, of which the run's subset, and the validation split of `--dataset_name`.

        Raises:
            DataError: where there are no images, no labels, or labels that would not do.
        """
        train = load_split(self.train_data)
        validation = load_split(self.train_data.of_split(self.validation_split, self.max_eval_samples))
        columns = find_columns(train, self.train_data.columns)
        if columns.label is None:
            raise DataError(
                f'{self.dataset_name} has no column "{self.label_column}" with labels but {train.column_names}: say '
                "`--label_column NAME`, or use a dataset with labels."
            )
        classes = Classes.of(train, columns.label)
        return LabelledImages.of(train, columns, classes), LabelledImages.of(validation, columns, classes)
