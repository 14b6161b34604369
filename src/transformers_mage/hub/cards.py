"""Figures in model cards: each table stands in a named block that the command which measured it fills."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard


def replace_block(card: Path, name: str, content: str):
    """
    Replaces what stands between `<!-- name -->` and `<!-- /name -->` in a Markdown file.

    Raises:
        ValueError: if the file has no such block.
    """
    text = card.read_text()
    block = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.DOTALL)
    if not block.search(text):
        raise ValueError(f"{card} has no block `<!-- {name} -->` ... `<!-- /{name} -->` to fill.")
    card.write_text(block.sub(lambda match: match[1] + content.rstrip("\n") + "\n" + match[2], text))


def set_results(card: Path, task: str, dataset: Mapping[str, Any], scores: Mapping[str, tuple[str, float]]):
    """
    Puts results into the header of a card, where the Hub looks for them.

    Args:
        card (`Path`): a `README.md` in the model's folder.
        task (`str`): as the Hub calls it.
        dataset (`Mapping[str, Any]`): what they were measured on: `dataset_type`, `dataset_name`, `dataset_split`.
        scores (`Mapping[str, tuple[str, float]]`): what each metric is, and its value, by its short name.
    """
    loaded = ModelCard.load(card)
    loaded.data.model_name = card.resolve().parent.name
    loaded.data.eval_results = [
        EvalResult(task, metric_type=name, metric_name=title, metric_value=float(f"{value:.4g}"), **dataset)
        for name, (title, value) in scores.items()
    ]
    loaded.save(card)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def percent(mean: float, spread: float | None = None) -> str:
    """A share as a percentage, with its spread if it has one."""
    return f"{100 * mean:.1f}" if spread is None else f"{100 * mean:.1f} ± {100 * spread:.1f}"
