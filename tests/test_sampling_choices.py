"""What MageScheduler offers besides the paper's rule: schedules, orders, and cutting a distribution's tail off."""

import math

import pytest
import torch

from transformers_mage import MagePipeline, MageScheduler
from transformers_mage.scheduling_mage import MASKING_SCHEDULES, TEMPERATURE_SCHEDULES, halton_order, sample_tokens

MASK = 99


def run(scheduler: MageScheduler, logits: torch.Tensor, sample: torch.Tensor, seed: int = 0) -> list[torch.Tensor]:
    """The tokens after every step of a run where the model always says the same."""
    generator, steps = torch.Generator().manual_seed(seed), []
    for timestep in scheduler.timesteps:
        sample = scheduler.step(logits, timestep, sample, generator).prev_sample
        steps.append(sample)
    return steps


def warped(logits: torch.Tensor, **choice) -> torch.Tensor:
    """What tokens are sampled from."""
    return MageScheduler(MASK, **choice)._warp(logits)


# Schedules


@pytest.mark.parametrize("schedule", MASKING_SCHEDULES)
def test_schedules_fall_from_everything_to_nothing(schedule: str):
    shares = [MASKING_SCHEDULES[schedule](step / 10) for step in range(11)]
    assert shares[0] == pytest.approx(1)
    assert shares[-1] == pytest.approx(0)
    assert sorted(shares, reverse=True) == shares


def test_schedules_in_closed_form():
    halfway = {name: schedule(0.5) for name, schedule in MASKING_SCHEDULES.items()}
    expected = {
        "cosine": math.sqrt(0.5), "linear": 0.5, "square": 0.75, "cubic": 0.875, "square_root": 1 - math.sqrt(0.5),
        "arccos": 2 / 3, "exponential": (1 - math.exp(-2.5)) / (1 - math.exp(-5)),
    }  # fmt: skip
    assert halfway == pytest.approx(expected)


@pytest.mark.parametrize(
    ("schedule", "strengths"),
    [("linear", [3, 2, 1, 0]), ("square", [2.25, 1, 0.25, 0]), ("constant", [4] * 4),
     ("cosine", [4 * math.cos(math.pi / 8 * step) for step in (1, 2, 3, 4)])],
)  # fmt: skip
def test_the_noise_falls_by_its_schedule(schedule: str, strengths: list[float]):
    scheduler = MageScheduler(MASK, temperature=4.0, temperature_schedule=schedule, num_inference_steps=4)
    scheduler._num_masked_at_start = torch.tensor([16])
    sample = torch.full((1, 16), MASK)
    assert [scheduler.plan_step(step, sample).noise_strength.item() for step in range(4)] == pytest.approx(
        strengths, abs=1e-6
    )
    assert list(TEMPERATURE_SCHEDULES) == ["linear", "cosine", "square", "constant"]


@pytest.mark.parametrize("schedule", MASKING_SCHEDULES)
@pytest.mark.parametrize("order", ["confidence", "random", "halton"])
def test_as_many_tokens_stay_masked_as_the_schedule_says(schedule: str, order: str):
    scheduler = MageScheduler(MASK, masking_schedule=schedule, unmasking_order=order, num_inference_steps=4)
    steps = run(scheduler, torch.randn(2, 64, 16), torch.full((2, 64), MASK))
    masked = [(tokens == MASK).sum(dim=1).tolist() for tokens in steps]
    expected = [math.floor(64 * MASKING_SCHEDULES[schedule](step / 4)) for step in (1, 2, 3)]
    assert masked == [[count] * 2 for count in expected] + [[0, 0]]


# Orders


@pytest.mark.parametrize("order", ["confidence", "random", "halton"])
def test_known_tokens_stay_in_every_order(order: str):
    scheduler = MageScheduler(MASK, unmasking_order=order, num_inference_steps=3)
    sample = torch.randint(0, 16, (2, 64)).masked_fill(torch.rand(2, 64) < 0.6, MASK)
    known = sample != MASK
    for tokens in run(scheduler, torch.randn(2, 64, 16), sample):
        assert torch.equal(tokens[known], sample[known])
    assert (tokens != MASK).all()


def test_random_order_does_not_ask_the_model():
    """Positions that are certain come no sooner than others, and other noise gives another order."""
    logits = torch.zeros(1, 64, 16)
    logits[:, :32, 3] = 100.0
    scheduler = MageScheduler(MASK, masking_schedule="linear", unmasking_order="random", num_inference_steps=2)
    start = torch.full((1, 64), MASK)
    certain = [(run(scheduler, logits, start, seed)[0][:, :32] != MASK).sum().item() for seed in range(50)]
    assert 14 < sum(certain) / 50 < 18  # 16 of 32 by chance
    assert len(set(certain)) > 3


def test_confidence_order_takes_the_certain_first():
    logits = torch.zeros(1, 64, 16)
    logits[:, :32, 3] = 100.0
    scheduler = MageScheduler(MASK, masking_schedule="linear", temperature=0.0, num_inference_steps=2)
    after = run(scheduler, logits, torch.full((1, 64), MASK))[0]
    assert torch.equal(after != MASK, torch.arange(64)[None] < 32)


def test_halton_order_is_the_first_visits_of_the_sequence():
    # phi_2 and phi_3 of 1, 2, 3, 4: (1/2, 1/3), (1/4, 2/3), (3/4, 1/9), (1/8, 4/9)
    assert halton_order(8, 9)[:4].tolist() == [4 * 9 + 3, 2 * 9 + 6, 6 * 9 + 1, 1 * 9 + 4]


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (8, 9), (1, 5), (7, 3), (16, 32)])
def test_halton_order_visits_every_position_once(rows: int, columns: int):
    assert halton_order(rows, columns).sort().values.tolist() == list(range(rows * columns))


def test_halton_order_spreads_out():
    """Of any first 64 of 256 positions, each quarter of the grid has about a fourth."""
    first = halton_order(16, 16)[:64]
    quarter = (first // 16 // 8) * 2 + first % 16 // 8
    assert quarter.bincount(minlength=4).tolist() == pytest.approx([16] * 4, abs=2)


def test_halton_steps_follow_the_order():
    scheduler = MageScheduler(MASK, masking_schedule="linear", unmasking_order="halton")
    scheduler.set_timesteps(4, grid_size=(4, 8))
    steps = run(scheduler, torch.randn(2, 32, 16), torch.full((2, 32), MASK))
    for number, tokens in enumerate(steps, start=1):
        expected = halton_order(4, 8)[: 8 * number].sort().values.tolist()
        assert (tokens[0] != MASK).nonzero().flatten().tolist() == expected
        assert torch.equal(tokens[0] == MASK, tokens[1] == MASK)


def test_halton_order_needs_to_know_the_grid():
    scheduler = MageScheduler(MASK, unmasking_order="halton", num_inference_steps=2)
    with pytest.raises(ValueError, match="32 tokens make no square"):
        run(scheduler, torch.randn(1, 32, 16), torch.full((1, 32), MASK))
    scheduler.set_timesteps(2, grid_size=(4, 4))
    with pytest.raises(ValueError, match=r"`grid_size` \(4, 4\) has 16 tokens, the sample 32"):
        run(scheduler, torch.randn(1, 32, 16), torch.full((1, 32), MASK))


# Cutting the tail off


def test_the_token_temperature_divides_the_logits():
    logits = torch.randn(2, 5, 16)
    torch.testing.assert_close(warped(logits, token_temperature=0.5), 2 * logits)


def test_top_k_keeps_the_k_likeliest_and_their_equals():
    logits = torch.tensor([1.0, 3.0, 2.0, 0.0])
    assert warped(logits, top_k=2).isfinite().tolist() == [False, True, True, False]
    assert warped(torch.tensor([1.0, 3.0, 1.0, 0.0]), top_k=2).isfinite().tolist() == [True, True, True, False]
    assert torch.equal(warped(logits, top_k=9), logits)


def test_the_tail_is_cut_by_the_definitions():
    """The k likeliest, then of what is left the fewest that are together as likely as p."""
    logits = torch.randn(3, 50, 40).double().float()
    kept = warped(logits, token_temperature=0.7, top_k=20, top_p=0.8).isfinite().flatten(0, 1)
    for row, is_kept in zip(logits.flatten(0, 1) / 0.7, kept, strict=True):
        ordered, order = row.sort(descending=True)
        probabilities = ordered[:20].double().softmax(dim=0)
        count = int((probabilities.cumsum(dim=0) - probabilities < 0.8).sum())
        assert is_kept.nonzero().flatten().tolist() == sorted(order[:count].tolist())


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, 1), (0.5, 1), (0.51, 2), (0.8, 2), (0.95, 3), (1.0, 4)])
def test_top_p_keeps_the_fewest_that_are_this_likely_together(top_p: float, kept: int):
    logits = torch.tensor([0.05, 0.5, 0.15, 0.3]).log()
    likeliest_first = [1, 3, 2, 0]
    finite = warped(logits, top_p=top_p).isfinite().nonzero().flatten().tolist()
    assert finite == sorted(likeliest_first[:kept])


def test_a_token_temperature_of_0_takes_the_likeliest_code():
    scheduler = MageScheduler(MASK, token_temperature=0.0, num_inference_steps=2)
    logits = torch.randn(2, 64, 16)
    assert torch.equal(run(scheduler, logits, torch.full((2, 64), MASK))[-1], logits.argmax(dim=-1))


def test_what_is_registered_anew_counts_from_the_next_run_on():
    scheduler, logits = MageScheduler(MASK, num_inference_steps=2), torch.randn(2, 64, 16)
    scheduler.register_to_config(token_temperature=0.0)
    scheduler.set_timesteps()
    assert torch.equal(run(scheduler, logits, torch.full((2, 64), MASK))[-1], logits.argmax(dim=-1))


def test_sampling_stays_within_what_is_left():
    logits = torch.randn(1, 1, 16).expand(1, 4096, 16)
    scheduler = MageScheduler(MASK, top_k=3, num_inference_steps=1)
    tokens = run(scheduler, logits, torch.full((1, 4096), MASK))[-1]
    assert set(tokens.unique().tolist()) == set(logits[0, 0].topk(3).indices.tolist())


def test_confidence_stays_that_of_the_whole_distribution():
    logits, uniform = torch.randn(2, 64, 16), torch.rand(2, 64)
    tokens, log_probability = MageScheduler(MASK, top_k=2)._sample_tokens(logits, uniform)
    expected = logits.log_softmax(dim=-1).gather(-1, tokens[..., None]).squeeze(-1)
    torch.testing.assert_close(log_probability, expected)


def test_choices_that_cut_nothing_off_sample_as_the_paper():
    logits, uniform = torch.randn(2, 64, 16), torch.rand(2, 64)
    tokens, _ = MageScheduler(MASK, top_k=16, top_p=1.0)._sample_tokens(logits, uniform)
    assert torch.equal(tokens, sample_tokens(logits, uniform)[0])


# The configuration


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            {"masking_schedule": "exp"},
            r"`masking_schedule` must be one of \['cosine', 'linear', 'square', 'cubic', .* got 'exp'",
        ),
        ({"unmasking_order": "raster"}, r"one of \['confidence', 'random', 'halton'\], got 'raster'"),
        ({"token_temperature": -1.0}, "0 or more and finite, got -1.0"),
        ({"temperature_schedule": "exp"}, r"`temperature_schedule` must be one of \['linear', .* got 'exp'"),
        ({"temperature": math.nan}, "`temperature` must be 0 or more and finite, got nan"),
        ({"temperature": math.inf}, "`temperature` must be 0 or more and finite, got inf"),
        ({"token_temperature": math.nan}, "`token_temperature` must be 0 or more and finite, got nan"),
        ({"num_inference_steps": 2.5}, "`num_inference_steps` must be a whole number of at least 1, got 2.5"),
        ({"top_p": math.nan}, "`top_p` must lie above 0 and be at most 1, got nan"),
        ({"top_k": True}, "`top_k` must be a whole number of at least 1, got True"),
        ({"top_k": 0}, "`top_k` must be a whole number of at least 1, got 0"),
        ({"top_k": 2.5}, "got 2.5"),
        ({"top_p": 0.0}, "`top_p` must lie above 0 and be at most 1, got 0.0"),
        ({"top_p": 1.1}, "got 1.1"),
    ],
)
def test_wrong_choices_are_refused(choice: dict, message: str):
    with pytest.raises(ValueError, match=message):
        MageScheduler(MASK, **choice)


def test_another_scheduler_from_the_first_one_s_configuration(tmp_path):
    first = MageScheduler(MASK, "linear", 4.5)
    second = MageScheduler.from_config(first.config, unmasking_order="halton", top_p=0.9)
    second.save_pretrained(tmp_path)
    loaded = MageScheduler.from_pretrained(tmp_path).config
    assert (loaded.mask_token_id, loaded.masking_schedule, loaded.temperature) == (MASK, "linear", 4.5)
    assert (loaded.unmasking_order, loaded.top_p, loaded.top_k) == ("halton", 0.9, None)


@pytest.mark.parametrize("order", ["random", "halton"])
def test_the_pipeline_takes_other_orders_on_any_canvas(small_pipeline: MagePipeline, order: str):
    small_pipeline.scheduler = MageScheduler.from_config(
        small_pipeline.scheduler.config, unmasking_order=order, top_k=8
    )
    tokens = small_pipeline(height=32, width=48, output_type="latent").images
    assert tokens.shape == (1, 8, 12)
    assert tokens.max() < 16
