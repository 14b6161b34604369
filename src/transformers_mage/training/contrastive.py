"""Contrastive co-training, MAGE-C (section 3.3)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
    What one pass needs to know of the contrastive loss of all the passes of its update.

    Attributes:
        loss (`torch.Tensor` of shape `()`): the loss of all of them, without a gradient.
        gradients (`torch.Tensor` of shape `(2 x batch_size, projection_size)`):
            of that loss by the projections of this pass, times the number of passes, over which an update averages.
    """

    loss: torch.Tensor
    gradients: torch.Tensor

    def loss_of(self, projections: torch.Tensor) -> torch.Tensor:
        """The loss as a function of this pass's projections: its value, and its gradient by them."""
        return self.loss + ((projections - projections.detach()) * self.gradients).sum()


def contrast_passes(
    model: nn.Module, passes: Sequence[dict[str, Any]], temperature: float = 0.2
) -> Iterator[dict[str, Any]]:
    """
    Lets the passes that are accumulated into one update see each other's images, so that the update is that of one
    large pass (Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited setup").

    All passes are projected without a graph, at the price of another forward pass of the encoder; the gradients of
    the loss by the projections then lead each pass on its own. A pass begins with the same random state both times,
    so that its dropout is the same.

    Args:
        model ([`MageForPreTraining`]): or what wraps it.
        passes (`Sequence[dict]`): arguments of the model, for each pass.
        temperature (`float`): of the loss.

    Yields:
        The arguments, with a [`Contrast`], when it is their turn to be passed.
    """
    seeds = torch.randint(2**62, (len(passes),)).tolist()
    projections = []
    for kwargs, seed in zip(passes, seeds, strict=True):
        torch.manual_seed(seed)
        with torch.no_grad():
            projections.append(model(**kwargs, only_project=True))
    loss, gradients = _loss_and_gradients(projections, temperature)
    for kwargs, seed, gradient in zip(passes, seeds, gradients, strict=True):
        torch.manual_seed(seed)
        yield kwargs | {"contrast": Contrast(loss, gradient * len(passes))}


def _loss_and_gradients(
    projections: Sequence[torch.Tensor], temperature: float
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    leaves = [projection.detach().requires_grad_() for projection in projections]
    first, second = (torch.cat(views) for views in zip(*(leaf.chunk(2) for leaf in leaves), strict=True))
    loss = info_nce(first, second, temperature)
    return loss.detach(), torch.autograd.grad(loss, leaves)
