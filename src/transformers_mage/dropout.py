"""Dropout that is cheap on a processor, where drawing its random numbers takes longer than using them."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

# Random integers hold this many draws of 16 bits each.
_DRAWS_PER_INTEGER = 4
_CHANCES = 1 << 16
_SEEDS = 2**63 - 1
# By the bytes of what they stand for.
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def apply_dropout(states: torch.Tensor, p: float, training: bool = True) -> torch.Tensor:
    """
    `torch.nn.functional.dropout`. On a processor PyTorch draws a random number for each element, one after the other;
    here four elements share one of 64 bits, which takes less than half of the time. The probability is rounded to a
    multiple of 1 / 65536 there, and what is kept is scaled by exactly what it takes for the mean to stay.

    Args:
        states (`torch.Tensor`): of any shape.
        p (`float`): probability of an element to become 0.
        training (`bool`): without it, nothing happens.
    """
    if not training or states.device.type != "cpu" or not 0 < round((1 - p) * _CHANCES) < _CHANCES:
        return F.dropout(states, p, training)
    draw_factors = torch.ops.transformers_mage.draw_factors.default
    return states * draw_factors(torch.randint(_SEEDS, ()), states.shape, p, states.dtype)


def _draw_factors(seed: torch.Tensor, shape: Sequence[int], p: float, dtype: torch.dtype) -> torch.Tensor:
    """0 for what is dropped, and what is kept is scaled by."""
    count, kept = math.prod(shape), round((1 - p) * _CHANCES)
    integers = torch.empty(-(-count // _DRAWS_PER_INTEGER), dtype=torch.int64, device=seed.device)
    integers.random_(-(2**63), None, generator=torch.Generator().manual_seed(int(seed)))
    is_kept = integers.view(torch.int16)[:count].view(shape).lt_(kept - _CHANCES // 2)
    # 0 or 1, times the bits of the scale: booleans are cast one by one, which takes a processor thirty times as long.
    as_integer = _INTEGERS[dtype.itemsize]
    bits = torch.full((), _CHANCES / kept, dtype=dtype).view(as_integer).item()
    return is_kept.to(as_integer).mul_(bits).view(dtype)


def _allocate_factors(seed: torch.Tensor, shape: Sequence[int], p: float, dtype: torch.dtype) -> torch.Tensor:
    return seed.new_empty(shape, dtype=dtype)


# A function of its seed, so that compilers may neither share nor repeat a draw; and one operation to them, whose own
# code would draw the numbers one after the other again. Defined once in a process: models whose folders carry their
# code bring copies of this file, and PyTorch frees an operation that is defined again under those who call it. What
# computes something else needs another name.
if not hasattr(torch.ops.transformers_mage, "draw_factors"):
    _operation = torch.library.custom_op("transformers_mage::draw_factors", _draw_factors, mutates_args=())
    _operation.register_fake(_allocate_factors)


class MageDropout(nn.Dropout):
    """`torch.nn.Dropout`, by [`apply_dropout`]."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return apply_dropout(states, self.p, self.training)
