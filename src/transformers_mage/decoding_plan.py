"""How much of an image each step of iterative decoding looks at, found without looking at its tokens."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .checks import share, whole_number
from .kept_context import KeyValues
from .scheduling_mage import MageScheduler, rand_tensor


@dataclass
class StepContext:
    """
    What a step keeps of known tokens for those after it, which then compute only the others. Empty until it is filled.

    Attributes:
        num_positions (`int`): tokens of each image, no more than are known.
        positions (`torch.LongTensor` of shape `(batch_size, num_positions)`, *optional*): which, in order.
        key_values (*optional*): of each layer, there.
    """

    num_positions: int
    positions: torch.LongTensor | None = None
    key_values: Sequence[KeyValues] | None = None

    def prepare(self, is_hidden: torch.BoolTensor):
        """Empties it, unless it is filled with what grids that hide these tokens can use."""
        if self.positions is None or len(self.positions) != len(is_hidden):
            self.positions = is_hidden.byte().argsort(dim=1, stable=True)[:, : self.num_positions]
            self.key_values = None


@dataclass(frozen=True)
class Look:
    """
    What of its canvases a step computes. As it is, everything.

    Attributes:
        num_read (`int`, *optional*): logits are wanted of hidden tokens only, and no image has more of them.
        num_kept (`int`, *optional*): the encoder sees so many tokens of an image: all known and some hidden ones.
        noise (`torch.FloatTensor` of shape `(batch_size, rows, columns)`, *optional*):
            decides which of the hidden tokens the encoder does not see: those where it is lowest.
        context ([`StepContext`], *optional*): to fill, or filled by an earlier step.
    """

    num_read: int | None = None
    num_kept: int | None = None
    noise: torch.FloatTensor | None = None
    context: StepContext | None = None

    def rearranged(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Look":
        """The same of canvases that `change` made of the given ones: other batches, or windows."""
        return self if self.noise is None else replace(self, noise=change(self.noise))

    def arguments(self, is_hidden: torch.BoolTensor) -> dict[str, Any]:
        """What the model is told, whose grids hide tokens at `(batch_size, sequence_length)`."""
        if self.context is not None:
            self.context.prepare(is_hidden)
        return {**self._dropping(is_hidden), **self._context_arguments(), **self._reading(is_hidden)}

    def remember(self, key_values: Sequence[KeyValues] | None):
        """Fills the context with what the model returned."""
        if self.context is not None and key_values is not None:
            self.context.key_values = key_values

    def _dropping(self, is_hidden: torch.BoolTensor) -> dict[str, Any]:
        if self.num_kept is None or self.noise is None:
            return {}
        num_dropped = is_hidden.shape[1] - self.num_kept
        rank = self.noise.flatten(1).masked_fill(~is_hidden, 2).argsort(dim=1).argsort(dim=1)
        return {"bool_dropped_pos": rank < num_dropped, "num_dropped": num_dropped}

    def _context_arguments(self) -> dict[str, Any]:
        if self.context is None:
            return {}
        return {"context_positions": self.context.positions, "context_key_values": self.context.key_values}

    def _reading(self, is_hidden: torch.BoolTensor) -> dict[str, Any]:
        """Hidden tokens first, then others that are computed, where an image hides fewer."""
        length, priority = is_hidden.shape[1], is_hidden.int()
        if self.context is not None and self.context.positions is not None and self.context.key_values is not None:
            priority = priority.scatter_reduce(1, self.context.positions, -torch.ones_like(priority), "sum")
            length -= self.context.num_positions
        num_read = length if self.num_read is None else min(self.num_read, length)
        if num_read == is_hidden.shape[1]:
            return {}
        return {"read_positions": priority.argsort(dim=1, descending=True, stable=True)[:, :num_read]}


WHOLE_LOOK = Look()


class DecodingPlan:
    """
    The looks of a run. How many tokens are hidden before each step follows from the schedule, so that no step waits
    for an accelerator and shapes are known beforehand.

    Args:
        scheduler ([`MageScheduler`]): with the timesteps of the run.
        length (`int`): tokens of a canvas.
        window_length (`int`): tokens that the model sees at once.
        hidden_at_start (`tuple[int, int]`): how many tokens are hidden in the image with fewest and with most of them.
        encoder_keep_share (`float`, *optional*): see [`MagePipeline`].
        full_steps (`int` or `Sequence[int]`): see [`MagePipeline`].
        reads_all (`bool`): whether logits are wanted of all tokens, whatever is hidden.
        looks_again (`bool`): whether somebody else may change tokens between the steps, so that they are counted.
    """

    def __init__(
        self,
        scheduler: MageScheduler,
        length: int,
        window_length: int,
        hidden_at_start: tuple[int, int],
        encoder_keep_share: float | None = None,
        full_steps: int | Sequence[int] = 1,
        reads_all: bool = False,
        looks_again: bool = False,
    ):
        self.scheduler, self.length, self.window_length = scheduler, length, window_length
        self.hidden_at_start = hidden_at_start
        self.keep_share = None if encoder_keep_share is None else share("encoder_keep_share", encoder_keep_share)
        self.full_steps = check_full_steps(full_steps)
        self.reads_all, self.looks_again = reads_all, looks_again
        self._context: StepContext | None = None

    def look(
        self,
        step: int,
        tokens: torch.LongTensor,
        generator: torch.Generator | Sequence[torch.Generator] | None,
    ) -> Look:
        """What step `step` computes of canvases of shape `(batch_size, rows, columns)`."""
        fewest, most = self._hidden_before(step, tokens)
        if self._is_full(step):
            self._context = self._new_context(step, most)
        # Where nothing is hidden, something is read all the same.
        num_read = None if self.reads_all else max(min(most, self.window_length), 1)
        look = Look(num_read, context=self._context)
        if self.keep_share is None:
            return look
        # Drawn in every step, so that what is drawn later does not depend on how many are dropped.
        noise = rand_tensor(tokens.shape, generator, tokens.device)
        num_kept = self._num_kept(fewest)
        # Of canvases without any known token one is looked at for all images, whatever their generators.
        sees_all = num_kept == self.window_length or (step == 0 and fewest == self.length)
        return look if sees_all else replace(look, num_kept=num_kept, noise=noise)

    def forget(self):
        """Tokens were changed, so that what was kept of them is of no use."""
        self._context = None

    def _is_full(self, step: int) -> bool:
        if isinstance(self.full_steps, int):
            return step % self.full_steps == 0
        return step == 0 or step in self.full_steps

    def _new_context(self, step: int, most_hidden: int) -> StepContext | None:
        """One to fill, where something is known and the next step is not full."""
        num_known = self.window_length - most_hidden
        is_used = step + 1 < self.scheduler.num_inference_steps and not self._is_full(step + 1)
        return StepContext(num_known) if num_known > 0 and is_used else None

    def _hidden_before(self, step: int, tokens: torch.LongTensor) -> tuple[int, int]:
        """The fewest and the most hidden tokens that an image can have."""
        if self.looks_again and step > 0:
            return count_hidden(tokens, self.scheduler.config.mask_token_id)
        fewest, most = self.hidden_at_start
        return self.scheduler.min_masked(step, fewest), self.scheduler.max_masked(step, most)

    def _num_kept(self, fewest_hidden: int) -> int:
        """Tokens of a window that the encoder sees, enough for all that are known."""
        assert self.keep_share is not None
        most_known = min(self.length - fewest_hidden, self.window_length)
        return max(math.ceil(self.keep_share * self.window_length), most_known)


def check_full_steps(full_steps: int | Sequence[int]) -> int | list[int]:
    """
    `full_steps` in Python's own numbers.

    Raises:
        ValueError: if it is neither a whole number of at least 1 nor a sequence of those of steps.
    """
    if isinstance(full_steps, Sequence) and not isinstance(full_steps, str):
        return [whole_number("full_steps", step, 0, "numbers of steps, each a whole number") for step in full_steps]
    return whole_number(
        "full_steps", full_steps, 1, "every how many steps one is full, or the numbers of these: a whole number"
    )


def count_hidden(tokens: torch.LongTensor, mask_token_id: int) -> tuple[int, int]:
    """How many tokens are hidden in the image with fewest and with most of them. The host waits for it."""
    fewest, most = (tokens == mask_token_id).flatten(1).sum(dim=1).aminmax()
    return int(fewest), int(most)


__all__ = ["WHOLE_LOOK", "DecodingPlan", "Look", "StepContext", "check_full_steps", "count_hidden"]
