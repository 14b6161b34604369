"""
Where the examples compute: on an accelerator if there is one, and otherwise on the processor.

    python -m examples.device  # prints what tells a training script to compute in bfloat16, where that is fast
"""

from contextlib import AbstractContextManager

import torch
from accelerate import PartialState

from transformers_mage.training.tracking import bfloat16_slowdown


def device() -> torch.device:
    return PartialState().device


def bfloat16(enabled: bool = True) -> AbstractContextManager:
    """Computes in bfloat16 inside of a `with` statement."""
    return torch.autocast(device().type, torch.bfloat16, enabled=enabled)


def is_on_processor() -> bool:
    return device().type == "cpu"


def has_fast_bfloat16() -> bool:
    """
    Whether there is an accelerator, or this processor is faster in bfloat16 than in float32, as measured now: some
    emulate it, very slowly.
    """
    return not is_on_processor() or bfloat16_slowdown(device()) < 1


def precision() -> list[str]:
    """What tells a training script to compute in bfloat16, where that is fast."""
    return ["--mixed_precision", "bf16"] if has_fast_bfloat16() else []


if __name__ == "__main__":
    print(*precision())
