"""Figures in model cards: each table stands in a named block that the command which measured it fills."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path


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


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def percent(mean: float, spread: float | None = None) -> str:
    """A share as a percentage, with its spread if it has one."""
    return f"{100 * mean:.1f}" if spread is None else f"{100 * mean:.1f} ± {100 * spread:.1f}"
