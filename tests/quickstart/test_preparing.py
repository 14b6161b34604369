"""Whatever the images are, what is trained on are whole squares of one size, each once."""

from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, load_from_disk
from PIL import Image as PilImage

from tests.quickstart.test_looking import noise, save_all
from transformers_mage.data.loading import DatasetSpec
from transformers_mage.quickstart.looking import look
from transformers_mage.quickstart.preparing import prepare


def prepared(source: Path, target: Path, side: int = 16, num_images: int = 1000) -> DatasetDict:
    spec = DatasetSpec(str(source))
    prepare(spec, look(spec).survey, side, num_images, target)
    return load_from_disk(target)


def test_mixed_sizes_and_modes_become_squares(tmp_path: Path):
    images = [noise(seed, 20 + seed, 30, mode) for seed, mode in enumerate(["L", "RGB", "RGBA"] * 8)]
    folder = save_all(tmp_path / "images", [*images, images[0], PilImage.fromarray(np.zeros((9, 9), np.uint16))])
    noise(99, 2000, 3000).save(folder / "photograph.jpg")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    splits = prepared(folder, tmp_path / "data")

    every = [image for split in splits.values() for image in split["image"]]
    assert {(image.size, image.mode) for image in every} == {((16, 16), "RGB")}
    assert len(every) == 26
    assert len({image.tobytes() for image in every}) == 26
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [12, 6, 8]


def test_few_enough_are_drawn(tmp_path: Path):
    folder = save_all(tmp_path / "images", [noise(seed) for seed in range(60)])

    assert sum(len(split) for split in prepared(folder, tmp_path / "data", num_images=40).values()) == 40


def test_splits_that_there_are_keep_their_role_and_labels(tmp_path: Path):
    features = Features({"image": Image(), "label": ClassLabel(names=["old", "new"])})
    whole = {"train": range(40), "validation": range(40, 60), "test": range(60, 80)}
    columns = {
        name: {"image": [noise(seed) for seed in seeds], "label": [seed % 2 for seed in seeds]}
        for name, seeds in whole.items()
    }
    # As published test sets have it: nobody is told their labels.
    columns["test"]["label"] = [-1] * 20
    saved = {name: Dataset.from_dict(values, features=features) for name, values in columns.items()}
    DatasetDict(saved).save_to_disk(tmp_path / "images")
    splits = prepared(tmp_path / "images", tmp_path / "data")

    assert splits["train"].features["label"].names == ["old", "new"]
    assert len(splits["validation"]) == 20
    assert len(splits["train"]) + len(splits["test"]) == 40
    assert set(splits["test"]["label"]) <= {0, 1}
