"""Ways of sampling a model, tried one after the other: what each costs an image, and how good the images are."""

import copy
import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..files import write_json, write_text
from ..pipeline_mage import MagePipeline
from ..scheduling_mage import MageScheduler

Row: TypeAlias = dict[str, Any]

PIPELINE_CHOICES = ("encoder_keep_share", "full_steps")
SCHEDULER_CHOICES = (
    *("num_inference_steps", "temperature", "masking_schedule", "temperature_schedule"),
    *("unmasking_order", "token_temperature", "top_k", "top_p"),
)
WORK = "gflops"


def combinations(choices: Mapping[str, Sequence[Any]]) -> list[Row]:
    """Every combination of the values of each choice; `temperature` only where it is for something, else `None`."""
    found: list[Row] = []
    for values in itertools.product(*choices.values()):
        row = dict(zip(choices, values, strict=True))
        if row.get("unmasking_order", "confidence") != "confidence":
            row["temperature"] = None
        if row not in found:
            found.append(row)
    return found


def pipe_with(pipe: MagePipeline, setting: Row) -> MagePipeline:
    """The pipeline, changed to the setting; what it does not name, or is `None` of the scheduler's, stays."""
    given = {name: setting[name] for name in SCHEDULER_CHOICES if setting.get(name) is not None}
    pipe.scheduler = MageScheduler.from_config(pipe.scheduler.config, **given)
    pipe.register_to_config(**{name: setting[name] for name in PIPELINE_CHOICES if name in setting})
    return pipe


def without_weights(pipe: MagePipeline) -> MagePipeline:
    """A copy that can only count its work: attention too, which is not counted where its kernel is fused."""
    with torch.device("meta"):
        model = type(pipe.model)(copy.deepcopy(pipe.model.config))
    # Made where its weights can be looked at, which say what of it is skipped.
    model.mage.vqvae = copy.deepcopy(pipe.vqvae)
    model.to("meta").set_attn_implementation("eager")
    counted = MagePipeline(model, pipe.scheduler)
    counted.set_progress_bar_config(disable=True)
    return counted


def count_gflops(pipe: MagePipeline, **call: Any) -> float:
    """10^9 floating point operations of one image, decoded, by a pipeline [`without_weights`]."""
    has_tokenizer = pipe.vqvae is not None
    with FlopCounterMode(display=False) as counter:
        pipe(output_type="pt" if has_tokenizer else "latent", **call)
    return counter.get_total_flops() / 1e9


class Tries:
    """
    What was tried, a line of JSON each, kept in a file from one run to the next.

    Args:
        path (`Path`): the file; it is there after the first try.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[Row] = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def untried(self, settings: Sequence[Row]) -> list[Row]:
        return [each for each in settings if not any(each.items() <= row.items() for row in self.rows)]

    def of(self, settings: Sequence[Row]) -> list[Row]:
        """The rows of these settings, in the order of the tries."""
        return [row for row in self.rows if any(each.items() <= row.items() for each in settings)]

    def add(self, row: Row):
        """Kept at once, so that a run that is stopped loses one try at most."""
        self.rows.append(row)
        write_text(self.path, "".join(json.dumps(each) + "\n" for each in self.rows))


def averaged(rows: Sequence[Row], settings: Sequence[Row], score: str) -> list[Row]:
    """One row for each of the settings without its seed: work, mean `score`, and `seeds`, how many were tried."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        setting = {name: row[name] for name in (*settings[0], WORK) if name != "seed"}
        groups.setdefault(json.dumps(setting), []).append(row)
    return [
        json.loads(setting) | {score: statistics.fmean(row[score] for row in group), "seeds": len(group)}
        for setting, group in groups.items()
    ]


def frontier(rows: Sequence[Row], score: str) -> list[Row]:
    """The rows that no cheaper one equals, the cheapest first. Lower scores are better."""
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (row[WORK], row[score])):
        if not best or row[score] < best[-1][score]:
            best.append(row)
    return best


def best_within(rows: Sequence[Row], score: str, budget: float) -> Row:
    """
    The row of lowest score that costs at most `budget` GFLOP an image.

    Raises:
        ValueError: if none does.
    """
    affordable = [row for row in rows if row[WORK] <= budget]
    if not affordable:
        least = min(row[WORK] for row in rows)
        raise ValueError(f"The budget is {budget:g} GFLOP an image, and the cheapest try takes {least:.4g}.")
    return min(affordable, key=lambda row: row[score])


def method_of(row: Row) -> str:
    """A word for how a setting saves work."""
    share, full_steps = row.get("encoder_keep_share"), row.get("full_steps", 1)
    parts = [] if share is None else [f"keep {share:g}"]
    parts += [] if full_steps == 1 else [f"full steps {full_steps}"]
    return ", ".join(parts) or "plain"


def draw_frontier(rows: Sequence[Row], score: str, path: Path, label: str | None = None):
    """A picture of `score` against work: every try as a dot, and for each way to save work its frontier as a line."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, method in enumerate(dict.fromkeys(map(method_of, rows))):
        tried = [row for row in rows if method_of(row) == method]
        best, color = frontier(tried, score), f"C{number}"
        axes.plot([row[WORK] for row in tried], [row[score] for row in tried], ".", color=color, alpha=0.4)
        axes.plot([row[WORK] for row in best], [row[score] for row in best], "o-", color=color, label=method)
    axes.set(xlabel="GFLOP an image", ylabel=label or score, xscale="log", yscale="log")
    axes.legend()
    figure.savefig(path, dpi=120)


def save_setting(folder: Path, setting: Row):
    """Makes a setting the default of a saved model: its scheduler's configuration, and its pipeline's."""
    scheduler = MageScheduler.from_pretrained(folder, subfolder="scheduler")
    given = {name: setting[name] for name in SCHEDULER_CHOICES if setting.get(name) is not None}
    MageScheduler.from_config(scheduler.config, **given).save_pretrained(folder / "scheduler")
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    for name, default in zip(PIPELINE_CHOICES, (None, 1), strict=True):
        index.pop(name, None)
        if setting.get(name, default) != default:
            index[name] = setting[name]
    write_json(path, index)


__all__ = [
    "PIPELINE_CHOICES",
    "SCHEDULER_CHOICES",
    "Tries",
    "averaged",
    "best_within",
    "combinations",
    "count_gflops",
    "draw_frontier",
    "frontier",
    "method_of",
    "pipe_with",
    "save_setting",
    "without_weights",
]
