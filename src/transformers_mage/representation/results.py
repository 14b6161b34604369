"""Results of classifiers over datasets, subsets and seeds: a file for programs and a table for people."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from ..hub.cards import markdown_table
from .classification import ClassificationArguments


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
        cls, arguments: ClassificationArguments, classifier: str, num_train: int, scores: dict[str, float]
    ) -> "Result":
        return cls(arguments.dataset_name, classifier, arguments.subset_name, arguments.seed, num_train, **scores)


def best(results: Sequence[Result]) -> Result:
    """The most accurate one; of equals, the one with the lowest loss."""
    return max(results, key=lambda result: (result.accuracy, -result.loss))


def save_results(results: Sequence[Result], folder: str | Path):
    """Writes `results.json` and `results.md`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [dataclasses.asdict(result) for result in results]
    (folder / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    (folder / "results.md").write_text(table(results))


def table(results: Sequence[Result]) -> str:
    """Top-1 accuracies as Markdown, a column a subset; with several seeds, mean and standard deviation."""
    subsets = list(dict.fromkeys(result.subset for result in results))
    cells: dict[tuple[str, str], dict[str, list[float]]] = {}
    for result in results:
        row = cells.setdefault((result.dataset, result.classifier), {})
        row.setdefault(result.subset, []).append(100 * result.accuracy)
    has_several = len({dataset for dataset, _ in cells}) > 1
    rows = []
    for (dataset, classifier), row in cells.items():
        names = [Path(dataset).name, classifier] if has_several else [classifier]
        rows.append([*names, *(_figure(row.get(subset, [])) for subset in subsets)])
    header = ["dataset", "top-1 accuracy, %"] if has_several else ["top-1 accuracy, %"]
    return markdown_table([*header, *subsets], rows) + "\n"


def _figure(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread}"
