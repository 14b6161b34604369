"""The models in model_cards/ do what their cards say."""

from pathlib import Path

import pytest
import torch

from examples.digits import tasks as digits
from examples.fashion.judge import FashionJudge, judge_images
from examples.fashion.sampling import generate
from transformers_mage import MagePipeline

CARDS = Path(__file__).parents[1] / "model_cards"


@pytest.fixture(scope="module")
def pipe() -> MagePipeline:
    pipe = MagePipeline.from_pretrained(CARDS / "mage-digits")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def dataset():
    return digits.load_digits_dataset()


@pytest.mark.slow
def test_samples_look_like_digits(pipe, dataset):
    judge = digits.DigitJudge(dataset["train"])

    score = digits.score_samples(judge, digits.generate(pipe, 64))

    assert score["sure"] > 0.45
    assert digits.score_samples(judge, digits.junk_images(dataset["test"]))["sure"] < 0.05
    assert score["digits"] >= 9


@pytest.mark.slow
def test_painted_halves_keep_the_digit(pipe, dataset):
    originals = dataset["test"]["image"][:64]

    kept = digits.score_inpainting(digits.DigitJudge(dataset["train"]), originals, digits.inpaint(pipe, originals))

    assert kept > 0.5


@pytest.mark.slow
def test_asked_digits_are_generated(dataset):
    pipe = MagePipeline.from_pretrained(CARDS / "mage-digits-conditional")
    pipe.set_progress_bar_config(disable=True)
    labels = list(range(10)) * 8

    images = pipe(class_labels=labels, guidance_scale=1.0, generator=[digits.seeded(i) for i in range(80)]).images

    assert (digits.DigitJudge(dataset["train"])(images)[0] == labels).mean() > 0.7


def clothes(name: str) -> MagePipeline:
    pipe = MagePipeline.from_pretrained(CARDS / name)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.slow
def test_samples_look_like_clothes():
    pipe = clothes("mage-fashion")

    verdicts = judge_images(FashionJudge.load(), generate(pipe, 64, batch_size=64))

    assert verdicts.sure > 0.5
    assert verdicts.junk < 0.1
    assert sum(share > 0 for share in verdicts.shares) >= 8


@pytest.mark.slow
def test_asked_clothes_are_generated():
    labels = list(range(10)) * 4

    images = generate(clothes("mage-fashion-conditional"), 40, class_labels=labels, guidance_scale=2.0)

    assert (judge_images(FashionJudge.load(), images).kinds == torch.tensor(labels)).float().mean() > 0.7


@pytest.mark.parametrize("card", sorted(path.name for path in CARDS.iterdir()))
def test_cards_are_small(card: str):
    assert sum(path.stat().st_size for path in (CARDS / card).rglob("*")) < 10e6
