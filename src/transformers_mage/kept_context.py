"""
Keys and values that decoding steps take over from an earlier one (ReCAP, arXiv 2505.19089): those of tokens that were
known there. Attention looks both ways, so what is taken over is a little out of date.
"""

from collections.abc import Sequence
from typing import TypeAlias

import torch

KeyValues: TypeAlias = tuple[torch.Tensor, torch.Tensor]


class RecordedContext:
    """
    Keeps the keys and values of some positions while layers compute all of them.

    Args:
        positions (`torch.LongTensor` of shape `(batch_size, num_positions)`): which, in order.
    """

    def __init__(self, positions: torch.LongTensor):
        self.positions, self._slots = positions, positions + 1
        self._recorded: list[KeyValues] = []

    @property
    def recorded(self) -> tuple[KeyValues, ...]:
        """Keys and values of each layer so far, of shape `(batch_size, num_heads, num_positions, head_dim)`."""
        return tuple(self._recorded)

    def __call__(self, key: torch.Tensor, value: torch.Tensor) -> KeyValues:
        """What a layer attends to, given what it computed."""
        index = self._slots[:, None, :, None].expand(-1, key.shape[1], -1, key.shape[3])
        self._recorded.append((key.gather(2, index), value.gather(2, index)))
        return key, value

    def exclude(
        self, bool_dropped_pos: torch.Tensor | None, num_dropped: int | None, length: int
    ) -> tuple[torch.Tensor | None, int | None]:
        """What the encoder does not compute, given what is dropped."""
        return bool_dropped_pos, num_dropped

    def follow(self, kept_positions: torch.LongTensor | None):
        """Says that the layers to come compute the class token and these positions, in order."""
        if kept_positions is not None:
            self._slots = _find(kept_positions, self.positions) + 1

    def select(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """What the decoder computes of `(batch_size, 1 + sequence_length, width)`."""
        return hidden_states

    def slots_of(self, positions: torch.LongTensor, length: int) -> torch.LongTensor:
        """Where positions are in what [`select`] gives."""
        return positions + 1


class ReusedContext:
    """
    Adds kept keys and values to those of the other positions, which are all that layers compute.

    Args:
        positions (`torch.LongTensor` of shape `(batch_size, num_positions)`): whose they are, in order.
        key_values: of each layer, as [`RecordedContext`] kept them.
    """

    recorded = None

    def __init__(self, positions: torch.LongTensor, key_values: Sequence[KeyValues]):
        self.positions, self.key_values = positions, key_values
        self._num_used = 0

    def __call__(self, key: torch.Tensor, value: torch.Tensor) -> KeyValues:
        kept_key, kept_value = self.key_values[self._num_used]
        self._num_used += 1
        return torch.cat([kept_key, key], dim=2), torch.cat([kept_value, value], dim=2)

    def exclude(
        self, bool_dropped_pos: torch.Tensor | None, num_dropped: int | None, length: int
    ) -> tuple[torch.Tensor | None, int | None]:
        num_kept = self.positions.shape[1]
        if bool_dropped_pos is None:
            return self._covers(length), num_kept
        return bool_dropped_pos | self._covers(length), None if num_dropped is None else num_dropped + num_kept

    def follow(self, kept_positions: torch.LongTensor | None):
        """Nothing depends on them."""

    def select(self, hidden_states: torch.Tensor) -> torch.Tensor:
        slots = torch.nn.functional.pad(self._computed(hidden_states.shape[1] - 1) + 1, (1, 0))
        return hidden_states.gather(1, slots[..., None].expand(-1, -1, hidden_states.shape[-1]))

    def slots_of(self, positions: torch.LongTensor, length: int) -> torch.LongTensor:
        return _find(self._computed(length), positions) + 1

    def _covers(self, length: int) -> torch.BoolTensor:
        nowhere = torch.zeros(self.positions.shape[0], length, dtype=torch.bool, device=self.positions.device)
        return nowhere.scatter(1, self.positions, True)

    def _computed(self, length: int) -> torch.LongTensor:
        """(batch_size, length - num_positions): the positions that are not kept, in order."""
        return self._covers(length).byte().argsort(dim=1, stable=True)[:, : length - self.positions.shape[1]]


def _find(ordered: torch.LongTensor, positions: torch.LongTensor) -> torch.LongTensor:
    """Where in each row of `ordered` the positions are."""
    return torch.searchsorted(ordered.contiguous(), positions.contiguous())


KeptContext: TypeAlias = RecordedContext | ReusedContext


def keep_context(
    positions: torch.LongTensor | None, key_values: Sequence[KeyValues] | None = None
) -> KeptContext | None:
    """
    What layers are given: a context to record where there are `positions`, one to reuse with `key_values` too.

    Raises:
        ValueError: for `key_values` without the positions that they belong to.
    """
    if positions is None and key_values is not None:
        raise ValueError("`context_key_values` were given without the `context_positions` that they belong to.")
    if positions is None:
        return None
    return RecordedContext(positions) if key_values is None else ReusedContext(positions, key_values)


__all__ = ["KeptContext", "KeyValues", "RecordedContext", "ReusedContext", "keep_context"]
