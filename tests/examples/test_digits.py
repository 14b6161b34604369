import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from examples.digits import make_conditional
from examples.digits import tasks as digits
from transformers_mage import MageScheduler


@pytest.fixture(scope="module")
def dataset():
    return digits.load_digits_dataset()


def test_split_is_fixed_and_balanced(dataset):
    again = digits.load_digits_dataset()

    assert {name: len(split) for name, split in dataset.items()} == {"train": 1437, "test": 360}
    assert dataset["test"]["label"][:] == again["test"]["label"][:]
    assert np.bincount(dataset["test"]["label"][:]).tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    image = dataset["train"][0]["image"]
    assert (image.size, image.mode) == ((32, 32), "RGB")


@pytest.mark.slow
def test_the_judge_knows_real_digits(dataset):
    judge = digits.DigitJudge(dataset["train"])
    images = dataset["test"]["image"][:]

    kinds, labels = judge(images)[0], np.array(dataset["test"]["label"][:])
    assert (kinds[kinds != digits.JUNK] == labels[kinds != digits.JUNK]).mean() > 0.98
    assert digits.score_samples(judge, images)["sure"] > 0.9
    assert digits.score_inpainting(judge, images, images) == 1.0


@pytest.mark.slow
def test_the_judge_is_hardly_ever_sure_of_junk(dataset):
    judge = digits.DigitJudge(dataset["train"])
    images = dataset["test"]["image"][:]

    assert digits.score_samples(judge, digits.junk_images(dataset["test"]))["sure"] < 0.05
    assert digits.score_samples(judge, images)["junk"] < 0.1


def test_probe_of_raw_pixels(dataset):
    pixels = {split: digits.raw_pixels(dataset[split]["image"][:]) for split in dataset}
    labels = {split: dataset[split]["label"][:] for split in dataset}

    assert digits.probe_accuracy(pixels, labels, shots_per_class=None) > 0.95
    assert digits.probe_accuracy(pixels, labels, shots_per_class=10) > 0.8


def test_the_conditional_card_takes_the_figures_as_they_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(make_conditional, "sample", lambda pipe, count, **_: ([], []))
    measured = {"accuracy": 0.875, "precision": 0.5, "recall": 0.25, "distance": 0.125}
    pipe = SimpleNamespace(scheduler=MageScheduler(1))
    guidance = make_conditional.measure_guidance(pipe, lambda *_: measured, 10)
    steps = make_conditional.measure_steps(pipe, lambda *_: measured, 10)
    shutil.copy(make_conditional.CARD / "README.md", tmp_path)
    make_conditional.write_card(guidance, steps, tmp_path)

    card = (tmp_path / "README.md").read_text()
    assert "| 1.0 | 87.5 | 50.0 | 25.0 | 0.125 |" in card
    assert "| halton | 8 | 87.5 | 50.0 | 25.0 | 0.125 |" in card
    assert "value: 0.875" in card
