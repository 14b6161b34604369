import numpy as np
import pytest

from examples.digits import tasks as digits


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
