"""Names of a classifier's classes."""

import json
from pathlib import Path

from .reading import CheckpointError


def read_class_names(path: Path, num_classes: int) -> dict[int, str]:
    """
    Reads `id2label` from a text file with a name a line, or a JSON list or object by number.

    Args:
        path (`Path`): the file.
        num_classes (`int`): how many names there must be.

    Raises:
        CheckpointError: for other files, or another number of names.
    """
    try:
        text = path.read_text(encoding="utf-8")
        labels = json.loads(text) if text.lstrip().startswith(("[", "{")) else text.strip().splitlines()
        pairs = labels.items() if isinstance(labels, dict) else enumerate(labels)
        names = {int(number): str(name).strip() for number, name in pairs}
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"Cannot read labels from {path}: {error}. It must hold a name a line, or a JSON list or object by number."
        ) from error
    if sorted(names) != list(range(num_classes)):
        raise CheckpointError(
            f"The classifier has {num_classes} classes, but {path} names {len(names)}: from {min(names, default=0)} "
            f"to {max(names, default=0)}."
        )
    return dict(sorted(names.items()))
