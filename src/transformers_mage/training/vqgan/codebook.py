"""A codebook that stays in use: how its codes are used, and what keeps them from dying."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...image_tokens import without_autocast


def code_counts(token_ids: Tensor, codebook_size: int) -> Tensor:
    """(codebook_size,) how often each code occurs, without waiting for the device."""
    flat = token_ids.flatten()
    counts = torch.zeros(codebook_size, device=flat.device)
    return counts.scatter_add_(0, flat, torch.ones_like(flat, dtype=counts.dtype))


def code_perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of how the tokens spread over the codes: `codebook_size` if evenly, 1 if all are the same."""
    return torch.special.entr(counts / counts.sum()).sum().exp()


def entropy_loss(latents: Tensor, codebook: Tensor, temperature: float = 0.01) -> Tensor:
    """
    Small where each latent is sure of its code and all codes are equally likely over the batch (MaskGIT, arXiv
    2202.04200): the mean entropy of softmax(-distance / temperature), less the entropy of its mean.

    Args:
        latents (`torch.Tensor` of shape `(num_tokens, dim)`), codebook (`torch.Tensor` of shape
            `(codebook_size, dim)`): both get gradients.
    """
    with without_autocast(latents.device):
        latents, codebook = latents.float(), codebook.float()
        squares = latents.square().sum(dim=1, keepdim=True) + codebook.square().sum(dim=1)
        logits = (2 * latents @ codebook.T - squares) / temperature
        log_shares = F.log_softmax(logits, dim=1)
        each = -(log_shares.exp() * log_shares).sum(dim=1).mean()
        mean = log_shares.exp().mean(dim=0)
        # Far codes' shares underflow, and the gradient of the logarithm of zero is infinite.
        return each + (mean * mean.clamp(min=torch.finfo(mean.dtype).tiny).log()).sum()


@torch.no_grad()
def revive_dead_codes(codebook: Tensor, usage: Tensor, latents: Tensor, threshold: float) -> Tensor:
    """
    Moves codes that are hardly used, or that only repeat another, to latents that no code is near.

    A code is dead if its share of the tokens is below `threshold` times the even share, or if a code that is used
    more lies closer to it than latents lie to their codes on average. Otherwise codes crowd where most latents
    are, say on a plain background, and which of them a patch gets is chance, which a model then has to predict.

    Args:
        codebook (`torch.Tensor` of shape `(codebook_size, dim)`): changed in place.
        usage (`torch.Tensor` of shape `(codebook_size,)`): how often each code occurs.
        latents (`torch.Tensor` of shape `(num_tokens, dim)`): the same on all processes.

    Returns:
        `torch.Tensor`: the indices of those that were dead.
    """
    even_share = usage.sum() / len(usage)
    distances = torch.cdist(latents.float(), codebook.float()).square()
    is_dead = usage <= threshold * even_share
    is_dead |= repeats(codebook, usage, distances.min(dim=1).values.mean())
    dead = is_dead.nonzero().squeeze(1)
    if len(dead) == len(codebook):
        distances = torch.ones_like(distances[:, 0])
    else:
        distances = distances[:, ~is_dead].min(dim=1).values
    for code in dead.tolist():
        # As k-means++ chooses its seeds: the likelier, the farther from every code that there is.
        chosen = latents[torch.multinomial(distances.clamp(min=1e-12), 1)]
        codebook[code] = chosen[0].to(codebook.dtype)
        distances = torch.minimum(distances, (latents - chosen).float().square().sum(dim=1))
    return dead


def repeats(codebook: Tensor, usage: Tensor, squared_error: Tensor) -> torch.BoolTensor:
    """(codebook_size,): whether a code that is used more lies closer than `squared_error`."""
    codebook = codebook.float()
    is_near = torch.cdist(codebook, codebook).square() < squared_error
    rank = usage.argsort(descending=True, stable=True).argsort()
    return (is_near & (rank[None, :] < rank[:, None])).any(dim=1)
