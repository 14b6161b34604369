"""The models in model_cards/ do what their cards say."""

from pathlib import Path

import pytest

from transformers_mage import MagePipeline
from transformers_mage.training import digits

CARDS = Path(__file__).parents[1] / "model_cards"


@pytest.fixture(scope="module")
def pipe() -> MagePipeline:
    pipe = MagePipeline.from_pretrained(CARDS / "mage-digits")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def dataset():
    return digits.load_digits_dataset()


def test_samples_look_like_digits(pipe, dataset):
    score = digits.score_samples(digits.DigitJudge(dataset["train"]), digits.generate(pipe, 64))

    assert score["sure"] > 0.6
    assert score["digits"] >= 9


def test_painted_halves_keep_the_digit(pipe, dataset):
    originals = dataset["test"]["image"][:64]

    kept = digits.score_inpainting(digits.DigitJudge(dataset["train"]), originals, digits.inpaint(pipe, originals))

    assert kept > 0.5
