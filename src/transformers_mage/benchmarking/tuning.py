"""Ways of sampling a model, tried one after the other: what each costs an image, and how good the images are."""

import copy
import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..files import write_text
from ..pipeline_mage import MagePipeline
from ..pipeline_saving import PIPELINE_DEFAULTS
from ..scheduling_mage import MageScheduler

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row: TypeAlias = dict[str, Any]

PIPELINE_CHOICES = tuple(PIPELINE_DEFAULTS)
SCHEDULER_CHOICES = (
    *("num_inference_steps", "temperature", "masking_schedule", "temperature_schedule"),
    *("unmasking_order", "token_temperature", "top_k", "top_p"),
)
WORK = "gflops"
# In a picture.
_MOST_NUMBERS = 30


def combinations(choices: Mapping[str, Sequence[Any]]) -> list[Row]:
    """
    Every combination of the values of each choice. What is for nothing there is `None`: `temperature` in a fixed
    order, and how guidance goes over the steps without any.
    """
    found: list[Row] = []
    for values in itertools.product(*choices.values()):
        row = dict(zip(choices, values, strict=True))
        if row.get("unmasking_order", "confidence") != "confidence":
            row["temperature"] = None
        if not row.get("guidance_scale"):
            row |= {name: None for name in ("guidance_schedule", "guidance_interval") if name in row}
        if row not in found:
            found.append(row)
    return found


def pipe_with(pipe: MagePipeline, setting: Row) -> MagePipeline:
    """The pipeline, changed to the setting; what it does not name, or is `None` where that is no value, stays."""
    given = {name: setting[name] for name in SCHEDULER_CHOICES if setting.get(name) is not None}
    pipe.scheduler = MageScheduler.from_config(pipe.scheduler.config, **given)
    for name in PIPELINE_CHOICES:
        if name in setting and (setting[name] is not None or PIPELINE_DEFAULTS[name] is None):
            pipe.register_to_config(**{name: setting[name]})
    return pipe


def without_weights(pipe: MagePipeline) -> MagePipeline:
    """A copy that can only count its work: attention too, which is not counted where its kernel is fused."""
    with torch.device("meta"):
        model = type(pipe.model)(copy.deepcopy(pipe.model.config))
    # Made where its weights can be looked at, which say what of it is skipped.
    model.mage.vqvae = copy.deepcopy(pipe.vqvae)
    model.to("meta").set_attn_implementation("eager")
    counted = MagePipeline(model, pipe.scheduler, **{name: pipe.config[name] for name in PIPELINE_CHOICES})
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


def averaged(rows: Sequence[Row], settings: Sequence[Row], *scores: str) -> list[Row]:
    """
    One row for each of the settings without its seed: its work, each score's mean and its range over the seeds
    (`SCORE_spread`), and `seeds`, how many were tried.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        setting = {name: row[name] for name in (*settings[0], WORK) if name != "seed"}
        groups.setdefault(json.dumps(setting), []).append(row)
    return [
        json.loads(setting)
        | _means([[row[score] for row in group] for score in scores], scores)
        | {"seeds": len(group)}
        for setting, group in groups.items()
    ]


def _means(values: Sequence[Sequence[float]], names: Sequence[str]) -> Row:
    means = {name: statistics.fmean(each) for name, each in zip(names, values, strict=True)}
    return means | {f"{name}_spread": max(each) - min(each) for name, each in zip(names, values, strict=True)}


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
    begin, end = row.get("guidance_interval") or (0, 1)
    parts = [] if share is None else [f"keep {share:g}"]
    parts += [] if full_steps == 1 else [f"full steps {full_steps}"]
    parts += [] if (begin, end) == (0, 1) else [f"guided from {begin:g} to {end:g}"]
    return ", ".join(parts) or "plain"


def draw_frontier(rows: Sequence[Row], scores: Mapping[str, str], path: Path):
    """
    A picture of scores against work: every try as a dot, and for each way to save work its frontier as a line. Numbers
    are steps: of all tries, or where these are many of those on a frontier.

    Args:
        rows (`Sequence[dict]`): tries.
        scores (`Mapping[str, str]`): what each score of a panel is called there; lower ones are better.
        path (`Path`): of the picture.
    """
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(6.5 * len(scores), 4.5), layout="constrained")
    for axes, (score, label) in zip(figure.subplots(1, len(scores), squeeze=False)[0], scores.items(), strict=True):
        _draw_panel(axes, rows, score)
        axes.set(xlabel="GFLOP an image", ylabel=label)
        axes.legend()
    figure.savefig(path, dpi=120)


def _draw_panel(axes: "Axes", rows: Sequence[Row], score: str):
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    for number, method in enumerate(dict.fromkeys(map(method_of, rows))):
        tried = [row for row in rows if method_of(row) == method]
        best, color = frontier(tried, score), f"C{number}"
        axes.plot([row[WORK] for row in tried], [row[score] for row in tried], ".", color=color, alpha=0.6)
        axes.plot([row[WORK] for row in best], [row[score] for row in best], "o-", color=color, label=method)
        for row in tried if len(rows) <= _MOST_NUMBERS else best:
            steps = str(row["num_inference_steps"])
            axes.annotate(steps, (row[WORK], row[score]), (4, 4), textcoords="offset points", fontsize=8, color=color)
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 5 * low else MaxNLocator(6, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())


def save_setting(folder: Path, setting: Row):
    """Makes a setting the default of a saved model: its scheduler's configuration, and its pipeline's."""
    scheduler = MageScheduler.from_pretrained(folder, subfolder="scheduler")
    given = {name: setting[name] for name in SCHEDULER_CHOICES if setting.get(name) is not None}
    MageScheduler.from_config(scheduler.config, **given).save_pretrained(folder / "scheduler")
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    for name in PIPELINE_CHOICES:
        index.pop(name, None)
        if setting.get(name) not in (None, PIPELINE_DEFAULTS[name]):
            index[name] = setting[name]
    # As diffusers writes it.
    write_text(path, json.dumps(index, indent=2, sort_keys=True) + "\n")


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
