"""Masking is a random process, so it is tested as one: against the distribution that it claims."""

import math

import pytest
import torch
from scipy import stats

from transformers_mage import MageConfig, sample_mask_ratio, sample_masks


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_ratios_follow_the_truncated_normal_distribution():
    config = MageConfig()
    ratios = sample_mask_ratio(config, 20_000, seeded())

    truncated = stats.truncnorm((0.5 - 0.55) / 0.25, (1 - 0.55) / 0.25, loc=0.55, scale=0.25)
    assert stats.kstest(ratios.numpy(), truncated.cdf).pvalue > 0.01


def test_ratio_without_spread_is_fixed():
    config = MageConfig(mask_ratio_mean=0.75, mask_ratio_std=0.0)

    assert sample_mask_ratio(config, 3, seeded()).tolist() == [0.75] * 3


def test_a_step_draws_one_ratio_and_drops_half():
    masks = sample_masks(MageConfig(), batch_size=8, generator=seeded())

    assert masks.bool_masked_pos.shape == (8, 256)
    assert masks.bool_masked_pos.sum(dim=1).unique().numel() == 1
    assert (masks.bool_dropped_pos.sum(dim=1) == masks.num_dropped).all()
    assert masks.num_dropped == 128
    assert masks.num_masked == masks.bool_masked_pos.sum()
    assert not (masks.bool_dropped_pos & ~masks.bool_masked_pos).any()


def test_counts_are_rounded_up():
    config = MageConfig(mask_ratio_mean=0.7, mask_ratio_std=0.0, image_size=(80, 80))
    masks = sample_masks(config, batch_size=1, generator=seeded())

    assert (masks.num_dropped, masks.num_masked) == (math.ceil(12.5), math.ceil(17.5))


def test_per_image_ratios_differ():
    masks = sample_masks(MageConfig(), batch_size=32, generator=seeded(), per_image=True)

    assert masks.bool_masked_pos.sum(dim=1).unique().numel() > 16
    assert masks.num_masked == masks.bool_masked_pos.sum()


def test_every_position_is_as_likely():
    config = MageConfig(image_size=64, mask_ratio_mean=0.5, mask_ratio_std=0.0, drop_ratio=0.25)
    masks = sample_masks(config, batch_size=20_000, generator=seeded())

    for mask in (masks.bool_masked_pos, masks.bool_dropped_pos):
        counts = mask.sum(dim=0).numpy()
        # Positions of an image exclude each other, which makes the counts less spread than chi-squared allows for.
        assert stats.chisquare(counts).pvalue > 0.01


def test_same_generator_state_same_masks():
    first, second = (sample_masks(MageConfig(), batch_size=2, generator=seeded(3)) for _ in range(2))

    assert torch.equal(first.bool_masked_pos, second.bool_masked_pos)
    assert torch.equal(first.bool_dropped_pos, second.bool_dropped_pos)


@pytest.mark.parametrize("per_image", [False, True])
def test_masks_can_be_drawn_on_a_device_that_nobody_may_wait_for(per_image):
    """On the meta device, reading a value would be an error."""
    masks = sample_masks(MageConfig(), batch_size=2, generator=seeded(), device="meta", per_image=per_image)

    assert masks.bool_masked_pos.is_meta
    assert masks.bool_dropped_pos.is_meta
