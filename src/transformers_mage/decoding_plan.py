"""How much of an image each step of iterative decoding looks at, found without looking at its tokens."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .checks import share
from .scheduling_mage import MageScheduler, rand_tensor


@dataclass(frozen=True)
class Look:
    """
    What of its canvases a step computes. As it is, everything.

    Attributes:
        num_read (`int`, *optional*): logits are wanted of hidden tokens only, and no image has more of them.
        num_kept (`int`, *optional*): the encoder sees so many tokens of an image: all known and some hidden ones.
        noise (`torch.FloatTensor` of shape `(batch_size, rows, columns)`, *optional*):
            decides which of the hidden tokens the encoder does not see: those where it is lowest.
    """

    num_read: int | None = None
    num_kept: int | None = None
    noise: torch.FloatTensor | None = None

    def rearranged(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Look":
        """The same of canvases that `change` made of the given ones: other batches, or windows."""
        return self if self.noise is None else replace(self, noise=change(self.noise))

    def dropping(self, is_hidden: torch.BoolTensor) -> dict[str, Any]:
        """Arguments that tell the model, whose grids hide these tokens, which of them the encoder does not see."""
        if self.num_kept is None or self.noise is None:
            return {}
        num_dropped = is_hidden.shape[1] - self.num_kept
        rank = self.noise.flatten(1).masked_fill(~is_hidden, 2).argsort(dim=1).argsort(dim=1)
        return {"bool_dropped_pos": rank < num_dropped, "num_dropped": num_dropped}


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
        reads_all: bool = False,
        looks_again: bool = False,
    ):
        self.scheduler, self.length, self.window_length = scheduler, length, window_length
        self.hidden_at_start = hidden_at_start
        self.keep_share = None if encoder_keep_share is None else share("encoder_keep_share", encoder_keep_share)
        self.reads_all, self.looks_again = reads_all, looks_again

    def look(
        self,
        step: int,
        tokens: torch.LongTensor,
        generator: torch.Generator | Sequence[torch.Generator] | None,
    ) -> Look:
        """What step `step` computes of canvases of shape `(batch_size, rows, columns)`."""
        fewest, most = self._hidden_before(step, tokens)
        # Where nothing is hidden, something is read all the same.
        num_read = None if self.reads_all else max(min(most, self.window_length), 1)
        if self.keep_share is None:
            return Look(num_read)
        # Drawn in every step, so that what is drawn later does not depend on how many are dropped.
        noise = rand_tensor(tokens.shape, generator, tokens.device)
        num_kept = self._num_kept(fewest)
        # Of canvases without any known token one is looked at for all images, whatever their generators.
        sees_all = num_kept == self.window_length or (step == 0 and fewest == self.length)
        return Look(num_read) if sees_all else Look(num_read, num_kept, noise)

    def _hidden_before(self, step: int, tokens: torch.LongTensor) -> tuple[int, int]:
        """The fewest and the most hidden tokens that an image can have."""
        if self.looks_again and step > 0:
            return count_hidden(tokens, self.scheduler.config.mask_token_id)
        fewest, most = self.hidden_at_start
        return self.scheduler.min_masked(step, fewest), min(self.scheduler.max_masked(step, self.length), most)

    def _num_kept(self, fewest_hidden: int) -> int:
        """Tokens of a window that the encoder sees, enough for all that are known."""
        assert self.keep_share is not None
        most_known = min(self.length - fewest_hidden, self.window_length)
        return max(math.ceil(self.keep_share * self.window_length), most_known)


def count_hidden(tokens: torch.LongTensor, mask_token_id: int) -> tuple[int, int]:
    """How many tokens are hidden in the image with fewest and with most of them. The host waits for it."""
    fewest, most = (tokens == mask_token_id).flatten(1).sum(dim=1).aminmax()
    return int(fewest), int(most)


__all__ = ["WHOLE_LOOK", "DecodingPlan", "Look", "count_hidden"]
