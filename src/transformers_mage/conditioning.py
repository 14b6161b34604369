"""Classes and guidance: what class-conditional generation adds to the model."""

import difflib
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
import torch

from .checks import finite_number, is_whole_number, whole_number
from .configuration_mage import MageConfig

# The model's label of "no class": the unconditional token takes the place of the class embedding.
UNCONDITIONAL_LABEL = -1

# Share of `guidance_scale` once a share r of the steps is done: early steps decide what the image shows, and full
# guidance there would cost its diversity.
GUIDANCE_SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda r: r,  # Muse, arXiv 2301.00704
    "constant": lambda r: 1.0,  # arXiv 2207.12598
    "cosine": lambda r: (1 - math.cos(math.pi * r)) / 2,  # MDT, arXiv 2303.14389, with power 1
}

ClassLabels: TypeAlias = int | str | Sequence[int | str | None] | np.ndarray | torch.Tensor | None


@dataclass(frozen=True)
class Condition:
    """
    What the images of a batch are asked to be, a row each; `None` where the model is not told.

    Attributes:
        class_labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*): -1 is no class.
        representations (`torch.FloatTensor` of shape `(batch_size, representation_size)`, *optional*):
            rows of NaN are the learned empty representation.
    """

    class_labels: torch.LongTensor | None = None
    representations: torch.FloatTensor | None = None

    def __bool__(self) -> bool:
        return bool(self.as_kwargs())

    def as_kwargs(self) -> dict[str, Any]:
        """The model's arguments."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "Condition":
        mapped: dict[str, Any] = {name: function(value) for name, value in self.as_kwargs().items()}
        return Condition(**mapped)

    def with_unconditional(self) -> "Condition":
        """Twice as many rows: these, and then as many that ask for nothing."""
        nothing = {"class_labels": UNCONDITIONAL_LABEL, "representations": math.nan}
        doubled: dict[str, Any] = {
            name: torch.cat([value, torch.full_like(value, nothing[name])]) for name, value in self.as_kwargs().items()
        }
        return Condition(**doubled)


@dataclass(frozen=True)
class GuidancePlan:
    """
    How guidance goes over the steps.

    Attributes:
        schedule (`str`): one of `GUIDANCE_SCHEDULES`.
        interval (`tuple[float, float]`): shares of the steps from which and up to which there is guidance (arXiv
            2404.07724). Outside of it a step costs half.

    Raises:
        ValueError: for a schedule or an interval that does not exist.
    """

    schedule: str = "linear"
    interval: Sequence[float] = (0.0, 1.0)

    def __post_init__(self):
        if not isinstance(self.schedule, str) or self.schedule not in GUIDANCE_SCHEDULES:
            raise ValueError(f"`guidance_schedule` must be one of {list(GUIDANCE_SCHEDULES)}, got {self.schedule!r}.")
        interval = _as_interval(self.interval)
        if interval is None:
            raise ValueError(
                "`guidance_interval` must be two shares of the steps, (from, to) with 0 <= from < to <= 1, got "
                f"{self.interval!r}."
            )
        object.__setattr__(self, "interval", interval)

    def at(self, scale: float, step: int, num_steps: int) -> float:
        """Guidance g_s of step `step` (from 0) of `num_steps`."""
        begin, end = self.interval
        if not begin <= step / num_steps < end:
            return 0.0
        return guidance_at(scale, self.schedule, (step + 1) / num_steps)


def _as_interval(interval: Sequence[float]) -> tuple[float, float] | None:
    try:
        begin, end = (finite_number("guidance_interval", share) for share in interval)
    except (TypeError, ValueError):
        return None
    return (begin, end) if begin < end <= 1 else None


def guidance_at(scale: float, schedule: str, done: float) -> float:
    """Guidance g_s of a step, once a share `done` of the steps is done, this step included."""
    return scale * GUIDANCE_SCHEDULES[schedule](done)


def apply_guidance(logits: torch.FloatTensor, scale: float | torch.Tensor) -> torch.FloatTensor:
    """
    Classifier-free guidance (arXiv 2207.12598): cond + scale (cond - uncond).

    Args:
        logits (`torch.FloatTensor` of shape `(2 * batch_size, ...)`): those given the classes, then those without.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, ...)`, float32.
    """
    conditional, unconditional = logits.float().chunk(2)
    return conditional + scale * (conditional - unconditional)


def resolve_prompt(
    config: MageConfig, prompt: ClassLabels, class_labels: ClassLabels, num_images: int | None
) -> tuple[list[int] | None, int]:
    """
    The classes and the number of images (of each) that were asked for: a `prompt` that is a number is `num_images`,
    any other one is `class_labels`.

    Raises:
        ValueError: where `prompt` says again what another argument says, and as [`resolve_class_labels`].
    """
    is_number = is_whole_number(prompt)
    same = "num_images" if is_number else "class_labels"
    if prompt is not None and (num_images if is_number else class_labels) is not None:
        raise ValueError(f"The first argument, {prompt!r}, means `{same}`. Leave one of both out.")
    number = prompt if is_number else num_images
    count = 1 if number is None else whole_number("num_images", number, least=1)
    if is_number or prompt is None:
        return resolve_class_labels(config, class_labels), count
    return resolve_class_labels(config, prompt, "prompt"), count


def resolve_class_labels(
    config: MageConfig, class_labels: ClassLabels, name: str = "class_labels"
) -> list[int] | None:
    """
    Ids of classes that are given by id or by name (`config.id2label`); `None` among them is the unconditional token.
    Upper and lower case are the same where that leaves one class.

    Args:
        name (`str`): the argument that errors speak of.

    Raises:
        ValueError: for an unconditional model, an id out of range, or a name that is unknown or not the only one.
    """
    if class_labels is None:
        return None
    if not config.num_classes:
        raise ValueError(
            f"`{name}` asks an unconditional model (`config.num_classes` is 0) for {class_labels!r}. Leave it out, or "
            "load a class-conditional model."
        )
    if isinstance(class_labels, (np.ndarray, torch.Tensor)):
        class_labels = class_labels.tolist()
    if isinstance(class_labels, str) or not isinstance(class_labels, Sequence):
        class_labels = [class_labels]
    if not len(class_labels):
        raise ValueError(f"`{name}` must hold at least one class, got none.")
    return [_class_id(config, label, name) for label in class_labels]


def _class_id(config: MageConfig, label: int | str | None, name: str) -> int:
    if label is None:
        return UNCONDITIONAL_LABEL
    if isinstance(label, str):
        return _class_id_of_name(config, label)
    if not is_whole_number(label):
        raise ValueError(f"`{name}` must be ids, names or None, got {label!r}.")
    if not 0 <= operator.index(label) < config.num_classes:
        raise ValueError(f"`{name}` must lie between 0 and {config.num_classes - 1}, got {label}.")
    return operator.index(label)


def _class_id_of_name(config: MageConfig, name: str) -> int:
    known_names: dict[int, str] = {int(label): known for label, known in (config.id2label or {}).items()}
    if sorted(known_names) != list(range(config.num_classes)):
        raise ValueError(
            f"The model has {config.num_classes} classes but names {len(known_names)} (`config.id2label`), so "
            f"{name!r} means none of them. Pass ids from 0 to {config.num_classes - 1}."
        )
    names = [known_names[label] for label in range(config.num_classes)]
    found = [label for label, known in enumerate(names) if known == name]
    found = found or [label for label, known in enumerate(names) if known.casefold() == name.casefold()]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"Several classes are called {name!r}: {found}. Pass the id of one of them.")
    by_folded_name = {known.casefold(): known for known in names}
    alike = difflib.get_close_matches(name.casefold(), by_folded_name, n=5)
    some = [by_folded_name[folded] for folded in alike] or names[:5]
    raise ValueError(f"No class is called {name!r} (`config.id2label`). Some of the classes are: {some}.")


__all__ = [
    "GUIDANCE_SCHEDULES",
    "UNCONDITIONAL_LABEL",
    "ClassLabels",
    "Condition",
    "GuidancePlan",
    "apply_guidance",
    "guidance_at",
    "resolve_class_labels",
    "resolve_prompt",
]
