"""Classes and guidance: what class-conditional generation needs beside the model."""

import difflib
import math
from collections.abc import Callable, Sequence

import torch

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

ClassLabels = int | str | None | Sequence[int | str | None] | torch.Tensor


def guidance_at(scale: float, schedule: str, done: float) -> float:
    """Guidance g_s of a step, once a share `done` of the steps is done, this step included."""
    return scale * GUIDANCE_SCHEDULES[schedule](done)


def apply_guidance(logits: torch.FloatTensor, scale: float) -> torch.FloatTensor:
    """
    Classifier-free guidance (arXiv 2207.12598): cond + scale (cond - uncond).

    Args:
        logits (`torch.FloatTensor` of shape `(2 * batch_size, ...)`): those given the classes, then those without.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, ...)`, float32.
    """
    conditional, unconditional = logits.float().chunk(2)
    return conditional + scale * (conditional - unconditional)


def resolve_class_labels(config: MageConfig, class_labels: ClassLabels) -> list[int] | None:
    """
    Ids of classes that are given by id or by name (`config.id2label`); `None` among them is the unconditional token.

    Raises:
        ValueError: for an unconditional model, an id out of range, or a name that is unknown or not the only one.
    """
    if class_labels is None:
        return None
    if isinstance(class_labels, torch.Tensor):
        class_labels = class_labels.tolist()
    if isinstance(class_labels, (int, str)):
        class_labels = [class_labels]
    if not config.num_classes:
        raise ValueError(
            "`class_labels` were given to an unconditional model (`config.num_classes` is 0). Leave them out, or load "
            "a class-conditional model."
        )
    if not len(class_labels):
        raise ValueError("`class_labels` must hold at least one class, got none.")
    return [_class_id(config, label) for label in class_labels]


def _class_id(config: MageConfig, label: int | str | None) -> int:
    if label is None:
        return UNCONDITIONAL_LABEL
    if isinstance(label, str):
        return _class_id_of_name(config, label)
    if isinstance(label, bool) or not hasattr(label, "__index__"):
        raise ValueError(f"`class_labels` must be ids, names or None, got {label!r}.")
    if not 0 <= label < config.num_classes:
        raise ValueError(f"`class_labels` must lie between 0 and {config.num_classes - 1}, got {label}.")
    return int(label)


def _class_id_of_name(config: MageConfig, name: str) -> int:
    names = [config.id2label.get(label) for label in range(config.num_classes)]
    if None in names or len(config.id2label) != config.num_classes:
        raise ValueError(
            f"The model has {config.num_classes} classes but names {len(config.id2label)} (`config.id2label`), so "
            f"{name!r} means none of them. Pass ids from 0 to {config.num_classes - 1}."
        )
    found = [label for label, known in enumerate(names) if known == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"Several classes are called {name!r}: {found}. Pass the id of one of them.")
    alike = difflib.get_close_matches(name, names, n=5) or names[:5]
    raise ValueError(f"No class is called {name!r} (`config.id2label`). Some that there are: {alike}.")


__all__ = ["GUIDANCE_SCHEDULES", "UNCONDITIONAL_LABEL", "apply_guidance", "guidance_at", "resolve_class_labels"]
