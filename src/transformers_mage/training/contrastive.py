"""Contrastive co-training, MAGE-C (section 3.3)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.distributed
import torch.distributed.nn.functional
import torch.nn.functional as F
from torch import nn


class ProjectionHead(nn.Module):
    """Two-layer MLP from features (batch_size, hidden_size) to unit vectors (batch_size, projection_size)."""

    def __init__(self, hidden_size: int, projection_size: int = 256):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, hidden_size)
        self.fc2 = nn.Linear(hidden_size, projection_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.fc2(F.relu(self.fc1(features))).float(), dim=-1)


def info_nce(first: torch.Tensor, second: torch.Tensor, temperature: float = 0.2) -> torch.Tensor:
    """
    InfoNCE of two views of the same images: each view's positive is the other view, and all other views of all
    processes are its negatives. Gradients flow through the gathered projections too.

    Args:
        first, second (`torch.Tensor` of shape `(batch_size, projection_size)`):
            normalised projections, equally many in each process.
        temperature (`float`): divides the similarities.

    Returns:
        `torch.Tensor`: mean over this process's 2 x batch_size views.
    """
    rank, everything = 0, torch.stack([first, second])
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        rank = torch.distributed.get_rank()
        everything = torch.cat(torch.distributed.nn.functional.all_gather(everything.contiguous()), dim=1)
    batch_size, total = len(first), everything.shape[1]
    candidates = everything.flatten(0, 1)
    own = torch.arange(batch_size, device=first.device) + rank * batch_size
    own = torch.cat([own, own + total])
    similarities = torch.cat([first, second]) @ candidates.T / temperature
    is_itself = own[:, None] == torch.arange(2 * total, device=first.device)
    return F.cross_entropy(similarities.masked_fill(is_itself, float("-inf")), (own + total) % (2 * total))


@dataclass
class Contrast:
    """
    What one micro-batch needs to know of the contrastive loss of all micro-batches of its update.

    Attributes:
        loss (`torch.Tensor` of shape `()`): the loss of all of them, without a gradient.
        gradients (`torch.Tensor` of shape `(2 x batch_size, projection_size)`):
            of that loss by this micro-batch's projections, times the number of micro-batches, over which an update
            averages.
    """

    loss: torch.Tensor
    gradients: torch.Tensor

    def loss_of(self, projections: torch.Tensor) -> torch.Tensor:
        """The loss as a function of this micro-batch's projections: its value, and its gradient by them."""
        return self.loss + ((projections - projections.detach()) * self.gradients).sum()


def contrast_updates(
    model: nn.Module, micro_batches: Iterable[dict[str, Any]], per_update: int, temperature: float = 0.2
) -> Iterator[dict[str, Any]]:
    """
    [`contrast_micro_batches`] of one update after another. One micro-batch alone compares its own images, which takes
    no second pass.
    """
    if per_update == 1:
        yield from micro_batches
        return
    remaining = iter(micro_batches)
    while update := list(islice(remaining, per_update)):
        yield from contrast_micro_batches(model, update, temperature)


def contrast_micro_batches(
    model: nn.Module, micro_batches: Sequence[dict[str, Any]], temperature: float = 0.2
) -> Iterator[dict[str, Any]]:
    """
    Lets the micro-batches that are accumulated into one update see each other's images, so that the update is that of
    one large batch (Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited setup").

    Args:
        model ([`MageForPreTraining`]): or what wraps it.
        micro_batches (`Sequence[dict]`): arguments of the model, for each of them.
        temperature (`float`): of the loss.

    Yields:
        The arguments, with a [`Contrast`], when it is their turn to be passed.
    """
    # The loss needs all projections at once, and memory holds the graph of one micro-batch only. So all are projected
    # first without a graph, at the price of another forward pass of the encoder. The gradients of the loss by the
    # projections are then all that a micro-batch has to know of the others: the chain rule does the rest.
    # Both passes begin with the same random state, so that dropout is the same in them.
    seeds = torch.randint(2**62, (len(micro_batches),)).tolist()
    projections = []
    for kwargs, seed in zip(micro_batches, seeds, strict=True):
        torch.manual_seed(seed)
        with torch.no_grad():
            projections.append(model(**kwargs, only_project=True))
    loss, gradients = _loss_and_gradients(projections, temperature)
    for kwargs, seed, gradient in zip(micro_batches, seeds, gradients, strict=True):
        torch.manual_seed(seed)
        yield kwargs | {"contrast": Contrast(loss, gradient * len(micro_batches))}


def _loss_and_gradients(
    projections: Sequence[torch.Tensor], temperature: float
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    leaves = [projection.detach().requires_grad_() for projection in projections]
    first, second = (torch.cat(views) for views in zip(*(leaf.chunk(2) for leaf in leaves), strict=True))
    loss = info_nce(first, second, temperature)
    return loss.detach(), torch.autograd.grad(loss, leaves)
