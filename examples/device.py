"""Where the examples compute: on an accelerator if there is one, and otherwise on the processor."""

from contextlib import AbstractContextManager

import torch
from accelerate import PartialState


def device() -> torch.device:
    return PartialState().device


def bfloat16(enabled: bool = True) -> AbstractContextManager:
    """Computes in bfloat16 inside of a `with` statement."""
    return torch.autocast(device().type, torch.bfloat16, enabled=enabled)


def is_on_processor() -> bool:
    return device().type == "cpu"
