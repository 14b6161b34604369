"""Numbers that people pass, as Python's own: NumPy's and PyTorch's integers are whole numbers too."""

import math
import operator
from typing import Any

import numpy as np
import torch


def is_whole_number(value: Any) -> bool:
    """Whether `value` is an integer of Python, NumPy or PyTorch; truth values are not."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.ndim == 0 and is_whole_number(value.item())
    return hasattr(value, "__index__") and not isinstance(value, bool)


def whole_number(name: str, value: Any, least: int, meaning: str = "a whole number") -> int:
    """
    `value` as an `int`.

    Raises:
        ValueError: if it is not a whole number of at least `least`; `meaning` says what it stands for.
    """
    if not is_whole_number(value) or operator.index(value) < least:
        raise ValueError(f"`{name}` must be {meaning} of at least {least}, got {value!r}.")
    return operator.index(value)


def finite_number(name: str, value: Any, meaning: str = "0 or more and finite") -> float:
    """
    `value` as a `float` of 0 or more.

    Raises:
        ValueError: if it is negative, infinite, NaN or not a number.
    """
    number = _as_float(value)
    if not 0 <= number < math.inf:
        raise ValueError(f"`{name}` must be {meaning}, got {value!r}.")
    return number


def share(name: str, value: Any) -> float:
    """
    `value` as a `float` above 0 and of at most 1.

    Raises:
        ValueError: if it is anything else.
    """
    number = _as_float(value)
    if not 0 < number <= 1:
        raise ValueError(f"`{name}` must lie above 0 and be at most 1, got {value!r}.")
    return number


def _as_float(value: Any) -> float:
    """NaN, which no range contains, where `value` is not one number."""
    if isinstance(value, (str, bytes, bool, np.bool_)):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return math.nan


__all__ = ["finite_number", "is_whole_number", "share", "whole_number"]
