"""What is seen of a set of images, and what is said of one that nothing can be learned from."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transformers_mage.data.batches import DataError
from transformers_mage.data.loading import DatasetSpec
from transformers_mage.quickstart.looking import handedness, look


def noise(seed: int, height: int = 20, width: int = 20, mode: str = "RGB") -> Image.Image:
    random = np.random.default_rng(seed)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    return Image.fromarray(random.integers(0, 256, (height, width, *channels), dtype=np.uint8))


def save_all(folder: Path, images: list[Image.Image]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        image.save(folder / f"{number:03d}.png")
    return folder


def survey_of(folder: Path):
    return look(DatasetSpec(str(folder))).survey


def test_what_is_seen(tmp_path: Path):
    images = [noise(seed) for seed in range(30)] + [noise(0), noise(100, 40, 30, "RGBA"), noise(101, mode="L")]
    folder = save_all(tmp_path / "images", images)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    survey = survey_of(folder)

    assert (survey.num_images, survey.num_broken, survey.num_duplicates) == (34, 1, 1)
    assert survey.modes == {"RGB": 31, "RGBA": 1, "L": 1}
    assert survey.sizes == {"smallest": [20, 20], "median": [20, 20], "largest": [30, 40]}
    assert not survey.is_grey
    assert survey.splits == {"train": "train", "validation": None, "test": None}
    assert ("broken", "1") in survey.rows()


def test_folders_of_classes_are_labels(tmp_path: Path):
    for number, name in enumerate(("cats", "dogs", "owls")):
        save_all(tmp_path / name, [noise(10 * number + seed, mode="L") for seed in range(8 + number)])
    survey = survey_of(tmp_path)

    assert survey.classes == ["cats", "dogs", "owls"]
    assert survey.smallest_class == 8
    assert survey.is_grey


def wedge(random: np.random.Generator) -> np.ndarray:
    pixels = np.zeros((32, 32, 3), np.uint8)
    row, column = random.integers(8, 20, 2)
    for width in range(10):
        pixels[row - 5 + width // 2 : row + 5 - width // 2, column + width - 5] = 255 - 10 * width
    return pixels


def test_left_and_right_are_told_apart():
    random = np.random.default_rng(0)
    pointing = np.stack([wedge(random) for _ in range(400)])
    either_way = np.where(random.random((400, 1, 1, 1)) < 0.5, pointing, pointing[:, :, ::-1])

    assert handedness(pointing)[1]
    assert not handedness(either_way)[1]
    assert handedness(either_way)[0] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder.mkdir(), "cannot be loaded"),
        (lambda folder: save_all(folder, [noise(0)]), "holds 1 image; 16 are the least"),
        (lambda folder: save_all(folder, [noise(0)] * 20), "20 images of which only 1 differ"),
        (lambda folder: write_broken(folder, 20), "None of the 20 images"),
        (lambda folder: write_table(folder), 'no column "image"'),
    ],
    ids=["empty", "one image", "all the same", "only broken ones", "labels without images"],
)
def test_a_folder_to_learn_nothing_from_is_named(make: Callable[[Path], None], message: str, tmp_path: Path):
    make(tmp_path / "images")

    with pytest.raises(DataError, match=message) as error:
        survey_of(tmp_path / "images")
    assert "\n" not in str(error.value)


def write_broken(folder: Path, count: int):
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")


def write_table(folder: Path):
    from datasets import Dataset

    folder.mkdir()
    Dataset.from_dict({"label": list(range(20))}).to_parquet(folder / "train.parquet")
