"""Files, shards and arrays of samples, and resuming them after a kill."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset

from transformers_mage import MageConfig
from transformers_mage.sampling import ClassPlan
from transformers_mage.sampling.writers import FORMATS, ImageFolderWriter, NpzWriter, SampleWriter, TarWriter

NUM_IMAGES = 11
IMAGES = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 6, 8, 3), dtype=np.uint8)
CLASSES = ClassPlan(MageConfig(num_classes=4), "balanced", NUM_IMAGES)


def create(output_format: str, folder: Path) -> SampleWriter:
    if output_format == "tar":
        return TarWriter(folder, 4, NUM_IMAGES)
    if output_format == "npz":
        return NpzWriter(folder, 4, NUM_IMAGES, (6, 8))
    return ImageFolderWriter(folder, 4, NUM_IMAGES, output_format)


def write(writer: SampleWriter, *batches: range, images: np.ndarray = IMAGES):
    for batch in batches:
        writer.write(list(batch), images[list(batch)], CLASSES[batch])


def write_all(writer: SampleWriter, images: np.ndarray = IMAGES):
    writer.prepare()
    for first in range(0, NUM_IMAGES, 4):
        batch = range(first, min(first + 4, NUM_IMAGES))
        if not all(map(writer.is_written, batch)):
            write(writer, batch, images=images)
    writer.close()
    writer.finish(CLASSES)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("output_format", FORMATS)
def test_what_is_written_is_read(tmp_path: Path, output_format: str):
    writer = create(output_format, tmp_path)
    write_all(writer)
    for index, image in enumerate(IMAGES):
        assert writer.is_written(index)
        assert np.array_equal(np.asarray(writer.read(index)), image)
    assert not list(tmp_path.glob("*.part*"))


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_run_goes_on_with_the_same_bytes(tmp_path: Path, output_format: str):
    write_all(create(output_format, tmp_path / "whole"))
    first = create(output_format, tmp_path / "resumed")
    first.prepare()
    write(first, range(4), range(4, 6))  # and is killed: neither closed nor finished
    second = create(output_format, tmp_path / "resumed")
    assert [second.is_written(index) for index in range(NUM_IMAGES)] == [True] * 6 + [False] * 5
    write_all(second)
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")


@pytest.mark.parametrize("output_format", FORMATS)
def test_what_is_there_is_not_written_again(tmp_path: Path, output_format: str):
    write_all(create(output_format, tmp_path))
    before = contents(tmp_path)
    write_all(create(output_format, tmp_path), images=255 - IMAGES)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("lost", [1, 600, 1536, 2000, 3000, 5000, 6144])
def test_a_shard_cut_off_anywhere_goes_on_after_its_last_whole_sample(tmp_path: Path, lost: int):
    write_all(create("tar", tmp_path / "whole"))
    cut = create("tar", tmp_path / "cut")
    cut.prepare()
    write(cut, range(3))
    part = tmp_path / "cut" / "000000.tar.part"
    part.write_bytes(part.read_bytes()[:-lost])
    write_all(create("tar", tmp_path / "cut"))
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_whole_shard_that_was_not_renamed_yet_is_finished(tmp_path: Path):
    write_all(create("tar", tmp_path))
    before = contents(tmp_path)
    (tmp_path / "000001.tar").rename(tmp_path / "000001.tar.part")
    write_all(create("tar", tmp_path))
    assert contents(tmp_path) == before


def test_shards_are_webdataset(tmp_path: Path):
    write_all(create("tar", tmp_path))
    with tarfile.open(tmp_path / "000002.tar") as shard:
        assert shard.getnames() == [f"{index:09d}.{kind}" for index in (8, 9, 10) for kind in ("cls", "png")]
    dataset = load_dataset("webdataset", data_files=str(tmp_path / "*.tar"), split="train", streaming=True)
    rows = list(dataset)
    assert [row["cls"] for row in rows] == CLASSES[range(NUM_IMAGES)]
    assert np.array_equal(np.asarray(rows[5]["png"]), IMAGES[5])


def test_files_with_classes_are_an_image_folder(tmp_path: Path):
    write_all(create("png", tmp_path))
    dataset = load_dataset("imagefolder", data_dir=str(tmp_path), split="train", streaming=True)
    assert [row["label"] for row in dataset] == CLASSES[range(NUM_IMAGES)]


def test_an_array_has_images_and_classes(tmp_path: Path):
    write_all(create("npz", tmp_path))
    with np.load(tmp_path / "samples.npz") as arrays:
        assert np.array_equal(arrays["arr_0"], IMAGES)
        assert arrays["arr_1"].tolist() == CLASSES[range(NUM_IMAGES)]


def test_grey_images(tmp_path: Path):
    for output_format in FORMATS:
        writer = create(output_format, tmp_path / output_format)
        write_all(writer, images=IMAGES[..., :1])
        assert np.array_equal(np.asarray(writer.read(3).convert("L")), IMAGES[3, ..., 0])


def test_a_disk_too_small_for_an_array_is_noticed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", refuse)
    with pytest.raises(OSError, match="No space left"):
        create("npz", tmp_path).prepare()
    assert not list(tmp_path.iterdir())
