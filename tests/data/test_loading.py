"""Every split is the one that is named, however the data set lies there."""

import shutil
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from transformers_mage.data.batches import DataError
from transformers_mage.data.loading import Columns, DatasetSpec, load_images, load_split


def labels(folder: Path, split: str, **kwargs) -> list[int]:
    dataset, columns = load_images(DatasetSpec(str(folder), split=split, **kwargs))
    assert columns == Columns()
    return [row["label"] for row in dataset]


@pytest.fixture
def parquet(numbered_images: Dataset, tmp_path: Path) -> Path:
    numbered_images.select(range(3)).to_parquet(tmp_path / "images.parquet")
    return tmp_path / "images.parquet"


@pytest.fixture
def folder(parquet: Path, tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train-00000.parquet"], ["train"]),
        (["a.parquet", "b.parquet"], ["train"]),
        (["train-0.parquet", "constrained-test-0.parquet"], ["train", "test"]),
        (["train/0.parquet", "val/0.parquet"], ["train", "validation"]),
        (["data/held-00000-of-00001.parquet", "data/train-00000-of-00001.parquet"], ["held", "train"]),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_files_belong_to_a_split_as_datasets_says(
    parquet: Path, folder: Path, names: list[str], splits: list[str], streaming: bool
):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(parquet, folder / name)
    per_split = 3 * len(names) // len(splits)
    for split in splits:
        assert len(labels(folder, split, streaming=streaming)) == per_split
    with pytest.raises(DataError, match=r'The split "nope" of .* it has the splits \[') as error:
        labels(folder, "nope", streaming=streaming)
    assert all(f"'{split}'" in str(error.value) for split in splits)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_pattern_is_train(parquet: Path, tmp_path: Path, streaming: bool):
    pattern = tmp_path / "*.parquet"
    assert labels(pattern, "train", streaming=streaming) == [0, 1, 2]
    with pytest.raises(DataError, match=r"it has the splits \['train'\]"):
        labels(pattern, "validation", streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_what_was_saved_alone_is_one_split(numbered_images: Dataset, folder: Path, streaming: bool):
    numbered_images.select(range(3)).save_to_disk(folder)
    assert labels(folder, "train", streaming=streaming) == [0, 1, 2]
    with pytest.raises(DataError, match=r"it has the splits \['train'\]"):
        labels(folder, "validation", streaming=streaming)


def test_a_split_that_was_saved_alone_keeps_its_name(numbered_images: Dataset, parquet: Path, tmp_path: Path):
    held_out = Dataset.from_parquet(str(parquet), split="test")
    held_out.save_to_disk(tmp_path / "alone")
    assert len(labels(tmp_path / "alone", "test")) == 3
    with pytest.raises(DataError, match=r"it has the splits \['test'\]"):
        labels(tmp_path / "alone", "train")


def test_saved_splits(numbered_images: Dataset, folder: Path):
    DatasetDict(train=numbered_images.select(range(4)), test=numbered_images.select(range(2))).save_to_disk(folder)
    assert (len(labels(folder, "train")), len(labels(folder, "test"))) == (4, 2)
    with pytest.raises(DataError, match=r"it has the splits \['train', 'test'\]"):
        labels(folder, "validation")


def test_a_folder_of_images_has_the_splits_of_its_folders(numbered_images: Dataset, folder: Path):
    for split in ("train", "test"):
        for kind in ("cat", "dog"):
            (folder / split / kind).mkdir(parents=True)
            (folder / split / kind / "0.png").write_bytes(numbered_images[0]["image"]["bytes"])
    assert labels(folder, "test") == [0, 1]
    with pytest.raises(DataError, match="nope"):
        labels(folder, "nope")


def test_a_limit_takes_the_first_rows(parquet: Path, tmp_path: Path):
    for streaming in (False, True):
        spec = DatasetSpec(str(tmp_path / "*.parquet"), limit=2, streaming=streaming)
        assert [row["label"] for row in load_split(spec)] == [0, 1]
        assert len(labels(tmp_path / "*.parquet", "train", limit=9)) == 3


def test_the_only_split_need_not_be_named(tmp_path):
    images = Dataset.from_dict({"image": [1, 2]})
    DatasetDict({"test": images}).save_to_disk(tmp_path / "one")
    assert len(load_split(DatasetSpec(str(tmp_path / "one"), split=None))) == 2
    DatasetDict({"test": images, "train": images}).save_to_disk(tmp_path / "two")
    with pytest.raises(DataError, match=r"two cannot be loaded: it has the splits \['test', 'train'\]"):
        load_split(DatasetSpec(str(tmp_path / "two"), split=None))
