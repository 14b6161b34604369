import math
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from scipy import stats

from transformers_mage import MageScheduler
from transformers_mage.scheduling_mage import gumbel_noise, rand_tensor, sample_tokens

MASK = 1016


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def decode(scheduler: MageScheduler, tokens: torch.Tensor, codebook_size: int = 16) -> list[torch.Tensor]:
    """Runs the whole schedule on random logits; the tokens after each step."""
    steps = []
    for timestep in scheduler.timesteps:
        logits = torch.randn(*tokens.shape, codebook_size)
        tokens = scheduler.step(logits, timestep, tokens, seeded(int(timestep))).prev_sample
        steps.append(tokens)
    return steps


@pytest.mark.parametrize(
    ("schedule", "share"), [("cosine", lambda r: math.cos(math.pi / 2 * r)), ("linear", lambda r: 1 - r)]
)
def test_masked_tokens_fall_by_the_schedule(schedule, share):
    scheduler = MageScheduler(MASK, masking_schedule=schedule)
    scheduler.set_timesteps(8)

    masked = [(tokens == MASK).sum(dim=1).tolist() for tokens in decode(scheduler, torch.full((2, 256), MASK))]

    assert masked == [[math.floor(256 * share((step + 1) / 8))] * 2 for step in range(8)]


def test_known_tokens_stay_and_the_schedule_counts_the_unknown_ones_alone():
    tokens = torch.full((2, 64), MASK)
    tokens[0, :32] = 3
    tokens[1, :60] = 5
    scheduler = MageScheduler(MASK)
    scheduler.set_timesteps(4)

    steps = decode(scheduler, tokens)

    shares = [math.cos(math.pi / 2 * (step + 1) / 4) for step in range(3)]
    assert [(step == MASK).sum(dim=1).tolist() for step in steps[:-1]] == [
        [math.floor(32 * share), math.floor(4 * share)] for share in shares
    ]
    assert (steps[-1] != MASK).all()
    assert (steps[-1][0, :32] == 3).all()
    assert (steps[-1][1, :60] == 5).all()


@pytest.mark.parametrize("num_masked", [0, 1, 2])
def test_nearly_nothing_to_do(num_masked):
    tokens = torch.full((1, 16), 7)
    tokens[0, :num_masked] = MASK
    scheduler = MageScheduler(MASK)
    scheduler.set_timesteps(5)

    final = decode(scheduler, tokens)[-1]

    assert (final != MASK).all()
    assert (final[0, num_masked:] == 7).all()


def test_more_steps_than_tokens_end_without_masks():
    scheduler = MageScheduler(MASK)
    scheduler.set_timesteps(40)

    assert (decode(scheduler, torch.full((1, 9), MASK))[-1] != MASK).all()


def test_without_noise_the_likeliest_tokens_are_kept():
    scheduler = MageScheduler(MASK, temperature=0.0, num_inference_steps=2)
    log_probability = torch.tensor([[-0.1, -3.0, -0.2, -2.0]])
    sampled, is_masked = torch.arange(4)[None], torch.ones(1, 4, dtype=torch.bool)

    kept = scheduler.mask_least_confident(sampled, log_probability, torch.zeros(1, 4), is_masked, step_index=0)

    assert kept.tolist() == [[0, MASK, 2, MASK]]


def test_tokens_follow_their_distribution():
    logits = torch.tensor([0.0, 1.0, -torch.inf, 2.0]).expand(1, 40_000, 4)
    tokens, log_probability = sample_tokens(logits, rand_tensor((1, 40_000), seeded()))

    probabilities = logits[0, 0].softmax(dim=0)
    counts = tokens.flatten().bincount(minlength=4)
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    expected = probabilities[possible].double()
    assert stats.chisquare(counts[possible], 40_000 * expected / expected.sum()).pvalue > 0.01
    assert torch.allclose(log_probability[0], probabilities[tokens[0]].log())


def test_extreme_random_numbers_make_possible_tokens():
    logits = torch.tensor([[[-torch.inf, 0.0, 0.0, -torch.inf]] * 2])
    almost_one = 1 - torch.finfo(torch.float32).eps / 2

    tokens, _ = sample_tokens(logits, torch.tensor([[0.0, almost_one]]))

    assert set(tokens.flatten().tolist()) <= {1, 2}


def test_gumbel_noise_is_gumbel_distributed_and_finite():
    noise = gumbel_noise(rand_tensor((20_000,), seeded()))

    assert stats.kstest(noise.numpy(), stats.gumbel_r.cdf).pvalue > 0.01
    assert gumbel_noise(torch.tensor([0.0])).isfinite().all()


def test_add_noise_masks_what_the_schedule_leaves_masked():
    scheduler = MageScheduler(MASK)
    scheduler.set_timesteps(4)
    tokens = torch.zeros(2, 64, dtype=torch.long)

    masked = [(scheduler.add_noise(tokens, t, seeded()) == MASK).sum(dim=1).tolist() for t in scheduler.timesteps]

    assert masked == [[math.floor(64 * math.cos(math.pi / 2 * (step + 1) / 4))] * 2 for step in range(4)]


def test_one_generator_an_image_makes_noise_independent_of_the_batch():
    batch = rand_tensor((3, 5), [seeded(0), seeded(1), seeded(2)])

    assert torch.equal(batch[1:2], rand_tensor((1, 5), seeded(1)))


def test_accelerators_generator_is_refused_for_tokens_on_the_cpu():
    on_accelerator = Mock(spec=torch.Generator, device=torch.device("cuda:0"))

    with pytest.raises(ValueError, match=r"lives on cuda:0, the tokens on cpu. Make it on cpu"):
        rand_tensor((1, 4), on_accelerator, "cpu")


def test_saved_and_loaded_scheduler_is_the_same(tmp_path):
    MageScheduler(MASK, masking_schedule="linear", temperature=4.5, num_inference_steps=7).save_pretrained(tmp_path)
    loaded = MageScheduler.from_pretrained(tmp_path)

    loaded.set_timesteps()
    assert (loaded.num_inference_steps, loaded.temperature, loaded.config.masking_schedule) == (7, 4.5, "linear")


def test_numbers_of_numpy_and_torch_are_saved_as_plain_ones(tmp_path):
    scheduler = MageScheduler(
        np.int64(MASK), temperature=np.float32(4.5), num_inference_steps=torch.tensor(7), top_k=np.int32(3),
        top_p=np.float64(0.5), token_temperature=torch.tensor(2.0),
    )  # fmt: skip
    scheduler.save_pretrained(tmp_path)
    loaded = MageScheduler.from_pretrained(tmp_path).config
    assert (loaded.mask_token_id, loaded.temperature, loaded.num_inference_steps) == (MASK, 4.5, 7)
    assert (loaded.top_k, loaded.top_p, loaded.token_temperature) == (3, 0.5, 2.0)


@pytest.mark.parametrize("timestep", [99, 4, -1, 1.5, True, torch.tensor(99)])
def test_a_timestep_out_of_the_plan_is_refused(timestep):
    scheduler, tokens = MageScheduler(MASK, num_inference_steps=4), torch.full((1, 16), MASK)
    for call in (
        lambda: scheduler.step(torch.randn(1, 16, 8), timestep, tokens),
        lambda: scheduler.add_noise(tokens, timestep),
    ):
        with pytest.raises(ValueError, match="`timestep` must be one of `timesteps`, from 3 down to 0, got "):
            call()


@pytest.mark.parametrize("timestep", [3, np.int64(3), torch.tensor(3)])
def test_a_timestep_of_every_library(timestep):
    scheduler, tokens = MageScheduler(MASK, num_inference_steps=4), torch.full((1, 16), MASK)
    assert (scheduler.step(torch.randn(1, 16, 8), timestep, tokens).prev_sample == MASK).sum() == 14


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MageScheduler(MASK, masking_schedule="quadratic"), "must be one of .*'cosine'.* got 'quadratic'"),
        (lambda: MageScheduler(MASK).set_timesteps(0), "at least 1, got 0"),
        (lambda: MageScheduler(MASK).set_timesteps(2.5), "whole number of at least 1, got 2.5"),
        (lambda: MageScheduler(MASK).set_timesteps(2, temperature=-1.0), "0 or more and finite, got -1.0"),
        (lambda: rand_tensor((3, 4), [seeded()]), "one for each of the 3 images, got 1"),
        (lambda: rand_tensor((3, 4), 0), r"must be a torch.Generator .*manual_seed\(seed\)"),
    ],
)
def test_wrong_arguments_are_refused_with_what_would_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()
