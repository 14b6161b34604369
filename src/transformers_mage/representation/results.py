"""Results of classifiers over datasets, subsets and seeds: a file for programs and a table for people."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ..files import write_json, write_text
from ..hub.cards import markdown_table, percent
from .arguments import ClassificationArguments


@dataclasses.dataclass
class Result:
    """
    One classifier's scores.

    Attributes:
        dataset (`str`): the dataset's name.
        classifier (`str`): what was trained, and on what.
        subset (`str`): the labels that it saw: "all", "10 shots" or "1 %".
        seed (`int`): of the subset and of the training.
        num_train (`int`): images that it was trained on.
        accuracy, top_5_accuracy, mean_per_class_accuracy, loss (`float`): on the validation split.
        num_images (`int`): images of that split that count.
    """

    dataset: str
    classifier: str
    subset: str
    seed: int
    num_train: int
    accuracy: float
    top_5_accuracy: float
    mean_per_class_accuracy: float
    loss: float
    num_images: int

    @classmethod
    def of(
        cls, arguments: ClassificationArguments, classifier: str, num_train: int, scores: dict[str, Any]
    ) -> "Result":
        return cls(str(arguments.dataset_name), classifier, arguments.subset_name, arguments.seed, num_train, **scores)

    @property
    def rank(self) -> tuple[float, float]:
        """The larger, the better: by accuracy and, of equals, by a lower loss."""
        return self.accuracy, -self.loss


def save_results(results: Sequence[Result], folder: str | Path):
    """Writes `results.json` and `results.md`."""
    write_json(Path(folder, "results.json"), [dataclasses.asdict(result) for result in results])
    write_text(Path(folder, "results.md"), table(results))


def table(results: Sequence[Result]) -> str:
    """Top-1 accuracies as Markdown, a column a subset; with several seeds, mean and standard deviation."""
    subsets = list(dict.fromkeys(result.subset for result in results))
    cells: dict[tuple[str, str], dict[str, list[float]]] = {}
    for result in results:
        row = cells.setdefault((result.dataset, result.classifier), {})
        row.setdefault(result.subset, []).append(result.accuracy)
    has_several = len({dataset for dataset, _ in cells}) > 1
    rows = []
    for (dataset, classifier), row in cells.items():
        names = [Path(dataset).name, classifier] if has_several else [classifier]
        rows.append([*names, *(_mean_and_spread(row.get(subset, [])) for subset in subsets)])
    header = ["dataset", "top-1 accuracy, %"] if has_several else ["top-1 accuracy, %"]
    return markdown_table([*header, *subsets], rows) + "\n"


def _mean_and_spread(shares: Sequence[float]) -> str:
    return percent(mean(shares), stdev(shares) if len(shares) > 1 else None) if shares else ""
