import pytest
import torch

from transformers_mage.training.vqgan import codebook
from transformers_mage.training.vqgan.codebook import (
    code_counts,
    code_perplexity,
    entropy_loss,
    repeats,
    revive_dead_codes,
)


@pytest.fixture
def no_repeats(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(codebook, "repeats", lambda codes, usage, error: torch.zeros(len(codes), dtype=torch.bool))


def test_dead_codes_become_latents(no_repeats):
    codes = 10 * torch.eye(8)[:, :2] + torch.arange(8)[:, None]
    before, latents = codes.clone(), torch.randn(20, 2) + 40

    dead = revive_dead_codes(codes, torch.tensor([5.0, 5, 5, 0, 5, 0, 5, 5]), latents, threshold=0.05)

    assert dead.tolist() == [3, 5]
    is_latent = (codes[:, None] == latents).all(dim=-1).any(dim=1)
    assert is_latent.nonzero().flatten().tolist() == [3, 5]
    assert torch.equal(codes[~is_latent], before[~is_latent])


def test_of_codes_that_repeat_each_other_the_most_used_stays():
    codes = torch.tensor([[0, 0], [0.1, 0], [0.2, 0], *[[9.0 * i, 9] for i in range(5)]])
    usage = torch.tensor([5, 9, 4, 5, 5, 5, 5, 5])

    assert repeats(codes, usage, torch.tensor(0.5)).tolist() == [True, False, True] + [False] * 5


def test_codes_are_revived_where_there_are_none(no_repeats):
    """Ten thousand latents at one place and one at another: the two dead codes take one each."""
    codes = 100 + 10 * torch.arange(16.0).reshape(8, 2)
    latents = torch.cat([torch.zeros(10_000, 2), torch.full((1, 2), 1000.0)])

    revive_dead_codes(codes, torch.tensor([5.0, 5, 5, 5, 5, 5, 0, 0]), latents, threshold=0.05)

    assert sorted(codes[6:].mean(dim=1).tolist()) == [0.0, 1000.0]


def test_perplexity_counts_the_codes_in_use():
    counts = code_counts(torch.tensor([[0, 1], [2, 2], [1, 0]]), 8)
    assert counts.tolist() == [2, 2, 2, 0, 0, 0, 0, 0]
    torch.testing.assert_close(code_perplexity(counts), torch.tensor(3.0))


def test_the_entropy_loss_is_least_where_sure_latents_spread_over_all_codes():
    codes = torch.eye(4)
    spread, crowded = codes.repeat(2, 1), codes[:1].repeat(8, 1)

    # Sure of their codes: the first term is zero. Evenly spread: the second is the logarithm of four.
    torch.testing.assert_close(entropy_loss(spread, codes), -torch.tensor(4.0).log())
    torch.testing.assert_close(entropy_loss(crowded, codes), torch.tensor(0.0))
    assert entropy_loss(torch.zeros(8, 4), codes).abs() < 1e-6


def test_the_entropy_of_codes_that_no_latent_is_near_has_a_gradient():
    latents, codes = torch.zeros(4, 2, requires_grad=True), torch.tensor([[0.0, 0.1], [100.0, 0.0]])
    entropy_loss(latents, codes).backward()
    assert latents.grad.isfinite().all()
