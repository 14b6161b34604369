"""Dropout that is cheap on a processor, where drawing its random numbers takes longer than using them."""

import torch
import torch.nn.functional as F
from torch import nn

# Random integers hold this many draws of 16 bits each.
_DRAWS_PER_INTEGER = 4
_CHANCES = 1 << 16


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
    kept = round((1 - p) * _CHANCES)
    is_processor = states.device.type == "cpu" and not torch.compiler.is_compiling()
    if not (training and is_processor and 0 < kept < _CHANCES):
        return F.dropout(states, p, training)
    count = states.numel()
    integers = torch.empty(-(-count // _DRAWS_PER_INTEGER), dtype=torch.int64).random_(-(2**63), None)
    draws = integers.view(torch.int16)[:count].view(states.shape)
    return states * (draws < kept - _CHANCES // 2).to(states.dtype).mul_(_CHANCES / kept)


class MageDropout(nn.Dropout):
    """`torch.nn.Dropout`, by [`apply_dropout`]."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return apply_dropout(states, self.p, self.training)
