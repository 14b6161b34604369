"""The tables of the model cards, from the files of `evaluate.py`."""

import json
import shutil
from pathlib import Path

from transformers_mage.hub.cards import markdown_table, percent, replace_block, set_results

from .make_dataset import CLASSES

PICTURES = ("samples", "neighbours", "steps", "inpainting", "tokenizer")
DATASET = {"dataset_type": "fashion_mnist", "dataset_name": "Fashion-MNIST", "dataset_split": "test"}
RESULTS = {
    "fd": "Fréchet distance, features of the judge",
    "sure": "share that the judge is sure of",
    "asked_class": "share that is of the class asked for",
    "precision": "precision",
    "recall": "recall",
}
ROWS = {
    "real": "real: as many training images",
    "tokenizer": "test images through the tokenizer",
    "samples": "samples",
}


def write_card(card: Path, evaluation: Path):
    """Fills the figures into the card and puts the pictures beside it."""
    figures = {name: json.loads((evaluation / f"{name}.json").read_text()) for name in (*ROWS, "inpainting")}
    readme = card / "README.md"
    replace_block(readme, "generation", generation_table(figures))
    replace_block(readme, "kinds", kinds_table(figures))
    replace_block(readme, "inpainting", inpainting_table(figures["inpainting"]))
    samples = figures["samples"]
    task = "text-to-image" if "asked_class" in samples else "unconditional-image-generation"
    set_results(
        readme, task, DATASET, {key: (title, samples[key]) for key, title in RESULTS.items() if key in samples}
    )
    (card / "pictures").mkdir(exist_ok=True)
    for name in PICTURES:
        shutil.copy(evaluation / f"{name}.png", card / "pictures")


def generation_table(figures: dict[str, dict]) -> str:
    networks = [name.removeprefix("fd_") for name in figures["samples"] if name.startswith("fd_")]
    shares = {"sure": "sure, %", "junk": "junk, %", "precision": "precision, %", "recall": "recall, %"}
    if "asked_class" in figures["samples"]:
        shares["asked_class"] = "as asked for, %"
    header = ["", "FD", *(f"FD, {network}" for network in networks), *shares.values()]
    rows = []
    for name, title in ROWS.items():
        row = figures[name]
        distances = [f"{row['fd']:.3f}", *(f"{row[f'fd_{network}']:.2f}" for network in networks)]
        rows.append([title, *distances, *(percent(row[key]) if key in row else "" for key in shares)])
    return markdown_table(header, rows)


def kinds_table(figures: dict[str, dict]) -> str:
    rows = [[name, *(percent(share) for share in figures[name]["shares"])] for name in ("real", "samples")]
    return markdown_table(["share, %", *CLASSES], rows)


def inpainting_table(figures: dict) -> str:
    rows = [[side, percent(share)] for side, share in figures["kept"].items()]
    return markdown_table(["hidden half", "kind kept, %"], [*rows, ["mean", percent(figures["mean"])]])
