"""Models that differ in one thing, a few seeds each: those that are missing are made, and a table compares them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transformers_mage.files import write_json
from transformers_mage.hub.cards import markdown_table

Figures = dict[str, float]


@dataclass(frozen=True)
class Column:
    """
    A column of the table.

    Attributes:
        title (`str`): its heading.
        scale (`float`): what figures are multiplied with, 100 for shares in per cent.
        decimals (`int`): digits behind the point.
    """

    title: str
    scale: float = 1.0
    decimals: int = 1

    def cell(self, values: Sequence[float]) -> str:
        """Mean and standard deviation over the seeds; a dash for what none of them has."""
        return spread([self.scale * value for value in values], self.decimals) if values else "-"


def spread(values: Sequence[float], decimals: int = 1) -> str:
    return f"{np.mean(values):.{decimals}f} ± {np.std(values):.{decimals}f}"


@dataclass(frozen=True)
class Comparison:
    """
    Runs of some variants, each in a folder of its own. What is there is not made again, so that several commands can
    share the work, each with its own variants or seeds.

    Attributes:
        output_dir (`Path`): of all runs.
        columns (`dict[str, Column]`): of the table, by the names of the figures.
    """

    output_dir: Path
    columns: dict[str, Column]

    def folder(self, variant: str, seed: int) -> Path:
        return self.output_dir / f"{variant.replace(' ', '-')}-{seed}"

    def complete(self, variant: str, seed: int, make: Callable[[str, int, Path], Figures]):
        """Has `make(variant, seed, folder)` train and score a run, unless its figures are there."""
        folder = self.folder(variant, seed)
        if not (folder / "figures.json").exists():
            write_json(folder / "figures.json", make(variant, seed, folder))

    def figures(self, variant: str) -> list[Figures]:
        """Those of all seeds so far."""
        return [json.loads(file.read_text()) for file in self.files(variant, "figures.json")]

    def files(self, variant: str, name: str) -> list[Path]:
        """The files of this name in the folders of all seeds that have one, the first seed first."""
        return sorted(self.output_dir.glob(f"{variant.replace(' ', '-')}-[0-9]*/{name}"))

    def table(self, variants: Sequence[str], heading: str = "training") -> str:
        """A row for each variant of which there is a run."""
        rows = []
        for variant in variants:
            runs = self.figures(variant)
            if runs:
                values = {name: [run[name] for run in runs if name in run] for name in self.columns}
                cells = [column.cell(values[name]) for name, column in self.columns.items()]
                rows.append([variant, len(runs), *cells])
        return markdown_table([heading, "seeds", *(column.title for column in self.columns.values())], rows)
