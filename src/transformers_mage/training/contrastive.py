"""Contrastive co-training, MAGE-C (section 3.3)."""

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
