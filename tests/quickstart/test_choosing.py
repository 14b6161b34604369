"""The rule of choosing: what time, images and machine make of each other."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.quickstart.conftest import MACHINE, RATES
from transformers_mage.quickstart.choosing import (
    FEWEST_JUDGED,
    Plan,
    as_dict,
    choose,
    fitted,
    num_codes,
    plan_of,
    shares_of,
    sides_of,
)
from transformers_mage.quickstart.looking import ImageSurvey
from transformers_mage.quickstart.measuring import tokenizer_training_flops
from transformers_mage.quickstart.sizes import TokenizerSize, training_flops_of
from transformers_mage.training.vqgan.objective import LossWeights, VQGANForTraining

CLOTHES = ImageSurvey(
    num_images=55_000,
    num_seen=5000,
    num_broken=0,
    num_duplicates=0,
    sizes={"smallest": [28, 28], "median": [28, 28], "largest": [28, 28]},
    num_sizes=1,
    modes={"L": 5000},
    is_grey=True,
    is_centred=True,
    mirror_score=0.8,
    has_handedness=True,
    classes=[str(number) for number in range(10)],
    smallest_class=5500,
    splits={"train": "train", "validation": "validation", "test": "test"},
    split_sizes={"train": 55_000, "validation": 5000, "test": 10_000},
    image_column="image",
    label_column="label",
    seconds_per_image=1e-4,
)
PHOTOGRAPHS = dataclasses.replace(
    CLOTHES,
    num_images=200,
    num_seen=200,
    sizes={"smallest": [3000, 2000], "median": [3000, 2000], "largest": [3000, 2000]},
    modes={"RGB": 200},
    is_grey=False,
    is_centred=False,
    mirror_score=0.5,
    has_handedness=False,
    classes=[],
    smallest_class=0,
    label_column=None,
    seconds_per_image=0.05,
)
FAST = dataclasses.replace(MACHINE, device="cuda", tokenizer_flops=2e13, model_flops=2e13)
FAST_RATES = dataclasses.replace(RATES, tokenizer=5000.0, model=20_000.0, encoding=20_000.0, sampling=10_000.0)


def plan_for(survey: ImageSurvey, hours: float, machine=MACHINE, rates=RATES, **kwargs) -> Plan:
    return choose(survey, machine, hours, lambda _: rates, can_sharpen=False, **kwargs)


@pytest.mark.slow
def test_clothes_get_what_served_them_well():
    plan = plan_for(CLOTHES, 2.0)

    tokenizer = plan.sizes.tokenizer
    assert (tokenizer.image_size, tokenizer.patch_size, plan.sizes.num_codes) == (28, 4, 64)
    assert tokenizer.values()["block_out_channels"] == [16, 32, 48]
    assert (plan.crop_scale_min, plan.horizontal_flip, plan.num_views) == (1.0, False, 1)


@pytest.mark.parametrize("hours", [0.5, 2.0, 8.0])
def test_the_plan_takes_the_hours_there_are(hours: float):
    assert plan_for(CLOTHES, hours).total_seconds == pytest.approx(3600 * hours, rel=0.1)


def test_more_time_makes_more_updates_or_a_larger_model():
    plans = [plan_for(CLOTHES, hours) for hours in (0.5, 2.0, 8.0)]
    costs = [plan.updates["mage"] * training_flops_of(plan.sizes.model, plan.sizes.tokenizer) for plan in plans]

    assert costs == sorted(costs)
    assert costs[0] < costs[-1]


@pytest.mark.slow
def test_photographs_are_as_large_as_the_machine_allows():
    slow, fast = plan_for(PHOTOGRAPHS, 0.5), plan_for(PHOTOGRAPHS, 4.0, FAST, FAST_RATES)

    assert slow.sizes.tokenizer.image_size < fast.sizes.tokenizer.image_size == 256
    assert fast.horizontal_flip
    assert fast.crop_scale_min < 1
    assert fast.num_views > 1
    assert not fast.updates["conditional"]
    assert not fast.num_probed
    assert any("no labels" in reason for reason in fast.reasons)


def test_few_images_are_not_learned_by_heart():
    plan = plan_for(PHOTOGRAPHS, 10.0, FAST, FAST_RATES)

    assert plan.updates["mage"] <= 400 * 200 / plan.sizes.model_batch
    assert plan.sizes.model.width <= 128


def test_a_class_needs_images_to_be_made():
    many = dataclasses.replace(CLOTHES, num_images=50_000, classes=[str(number) for number in range(10_000)])
    plan = plan_for(many, 2.0)

    assert not plan.updates["conditional"]
    assert not plan.num_probed
    assert any("fewer than 10 images of a class" in reason for reason in plan.reasons)


@pytest.mark.slow
def test_what_takes_too_long_to_prepare_is_drawn():
    survey = dataclasses.replace(CLOTHES, num_images=10_000_000, seconds_per_image=0.01)
    plan = plan_for(survey, 1.0)

    assert plan.num_images < 100_000
    assert any("drawn at random" in reason for reason in plan.reasons)
    assert plan.total_seconds == pytest.approx(3600, rel=0.1)


def test_too_little_time_is_said():
    plan = plan_for(CLOTHES, 0.01)

    assert any("more than there are" in reason for reason in plan.reasons)
    assert any("no search" in reason for reason in plan.reasons)


@pytest.mark.parametrize(
    ("side", "first"), [(8, (16, 2)), (28, (28, 4)), (30, (32, 4)), (64, (64, 8)), (200, (192, 16)), (2000, (256, 16))]
)
def test_sides_are_whole_numbers_of_tokens(side: int, first: tuple[int, int]):
    sides = list(sides_of(side))

    assert sides[0] == first
    assert all(image_size % patch == 0 and image_size // patch >= 6 for image_size, patch in sides)


def test_each_code_has_tokens_to_be_learned_from():
    few = dataclasses.replace(CLOTHES, num_images=1000)

    assert num_codes(CLOTHES, 28, 4) == 64
    assert num_codes(few, 28, 4) == 32
    assert num_codes(dataclasses.replace(few, num_images=20), 28, 4) == 16


def test_a_plan_is_kept():
    plan = plan_for(CLOTHES, 1.0)

    assert plan_of(as_dict(plan)) == plan


@pytest.mark.slow
def test_operations_grow_with_the_area():
    small, large = (TokenizerSize(side, 4, 16, 64) for side in (8, 24))
    assert tokenizer_training_flops(large) == 9 * tokenizer_training_flops(small)

    with torch.device("meta"):
        model, pixels = VQGANForTraining(large.build(), LossWeights()), torch.zeros(1, 3, 24, 24)
    with FlopCounterMode(display=False) as counter:
        model(pixels).loss.backward()
    assert tokenizer_training_flops(large) == counter.get_total_flops()


def test_what_is_left_is_shared_among_what_is_left():
    plan = plan_for(CLOTHES, 2.0)
    todo = ("mage", "conditional", "judge", "sweep", "scores", "probe", "comparison", "card")
    shares = shares_of(CLOTHES, can_sharpen=False)
    for seconds in (1800.0, 3600.0):
        left = fitted(plan, CLOTHES, seconds, shares, todo)
        assert sum(left.seconds[name] for name in todo) == pytest.approx(seconds, rel=0.1)
        assert left.updates["tokenizer"] == plan.updates["tokenizer"]
    assert fitted(plan, CLOTHES, 0.0, shares, ("scores", "card")).num_judged == FEWEST_JUDGED
