"""
From a folder of images, or a name on the Hub, to a model, in one command: looks at the images and the machine, says
its plan, and ends with a folder that is a repository.

    python scripts/quickstart.py --dataset_name FOLDER_OR_HUB_NAME --hours 2 --output_dir my-mage

Started again after whatever ended it, it continues. With `--plan_only` it stops at the plan: the recipes in
`my-mage/recipes` can then be edited, and are what the same command without it follows.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from transformers_mage.command_line import argument, check_numbers, parse_arguments, reports_errors
from transformers_mage.data.loading import Columns, DatasetSpec
from transformers_mage.hub.publishing import Publication


@dataclass
class QuickstartArguments:
    dataset_name: str | None = argument(
        None,
        "Where the images are: a folder with images, parquet files or webdataset shards; a folder written by "
        "`save_to_disk`; or the name of a dataset on the Hub.",
    )
    hours: float = argument(2.0, "How long it may take, from looking to the card.")
    output_dir: str = argument("my-mage", "Where everything goes.")
    dataset_config_name: str | None = argument(None, "The configuration of the dataset, if it has several.")
    train_split: str = argument("train", "The split to train on.")
    image_column: str = argument("image", "The column with the images.")
    label_column: str | None = argument("label", "The column with the classes, where there is one.")
    image_size: int | None = argument(None, "Side of the images, in pixels; chosen by default.")
    plan_only: bool = argument(False, "Look, measure, choose, and write the recipes; train nothing.")
    push_to_hub: str | None = argument(None, "Repository to push the folder to when it is complete.")
    hub_private_repo: bool | None = argument(None, "Whether a repository that is created is private.")
    seed: int = argument(0, "Seed of everything that is drawn.")

    def check(self):
        if not self.dataset_name:
            raise ValueError("Say where the images are: `--dataset_name FOLDER_OR_HUB_NAME`.")
        check_numbers(self, "hours", more_than=0)
        check_numbers(self, "image_size", at_least=16)
        if self.image_size is not None and self.image_size % 16 and self.image_size > 48:
            raise ValueError(f"`--image_size` above 48 must be a multiple of 16, got {self.image_size}.")
        if self.image_size is not None and self.image_size % 4:
            raise ValueError(f"`--image_size` must be a multiple of 4, got {self.image_size}.")
        check_numbers(self, "seed", at_least=0, less_than=2**32)

    @property
    def spec(self) -> DatasetSpec:
        columns = Columns(self.image_column, self.label_column)
        return DatasetSpec(str(self.dataset_name), self.dataset_config_name, self.train_split, columns)


@reports_errors
def main(argv: list[str] | None = None):
    arguments = parse_arguments(QuickstartArguments, __doc__, argv)
    # Not to let `--help` wait for it.
    from transformers_mage.quickstart import Quickstart

    publication = Publication(arguments.push_to_hub, private=arguments.hub_private_repo).check()
    quickstart = Quickstart(
        arguments.spec,
        arguments.hours,
        arguments.output_dir,
        seed=arguments.seed,
        image_size=arguments.image_size,
        command=command,
        publication=publication,
    )
    quickstart.plan()
    if not arguments.plan_only:
        quickstart.run()


def command(name: str) -> Callable[[list[str]], None]:
    """What scripts/NAME.py does with a command line, its errors left to this script."""
    return importlib.import_module(name).main.__wrapped__


if __name__ == "__main__":
    main()
