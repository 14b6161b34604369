"""Tar files of samples whose images are files of several kinds."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transformers_mage.data.images import open_image
from transformers_mage.data.loading import DatasetSpec, load_images

FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}


def write_shard(path: Path, extensions: list[str], first: int = 0):
    """Sample i is an image of value 10 i, and its class."""
    with tarfile.open(path, "w") as tar:
        for number, extension in enumerate(extensions, first):
            file = io.BytesIO()
            Image.fromarray(np.full((8, 8), 10 * number, np.uint8)).save(file, format=FORMATS[extension])
            for suffix, content in ((extension, file.getvalue()), ("cls", str(number).encode())):
                member = tarfile.TarInfo(f"{number:03}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def read(folder: Path, streaming: bool) -> list[tuple[int, int]]:
    """Value and class of all images."""
    dataset, columns = load_images(DatasetSpec(str(folder), streaming=streaming))
    rows = [(open_image(row[columns.image], channels=1), row[columns.label]) for row in dataset]
    return [(round(float(np.asarray(image).mean())), label) for image, label in rows]


@pytest.mark.parametrize("streaming", [False, True], ids=["at once", "streamed"])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["jpg", "png", "webp"], ["png", "jpeg"]),
        (["png", "png"], ["jpg", "jpg"]),
        (["jpg"] * 6 + ["png"], ["jpg"]),
    ],
    ids=["from the start", "another shard", "later on"],
)
def test_images_of_all_kinds_are_read(tmp_path: Path, streaming: bool, first: list[str], second: list[str]):
    write_shard(tmp_path / "train-0.tar", first)
    write_shard(tmp_path / "train-1.tar", second, first=len(first))
    count = len(first) + len(second)
    assert read(tmp_path, streaming) == [(10 * number, number) for number in range(count)]


def test_a_shard_that_was_written_anew_is_read_anew(tmp_path: Path):
    write_shard(tmp_path / "train-0.tar", ["png"])
    assert read(tmp_path, streaming=False) == [(0, 0)]
    write_shard(tmp_path / "train-0.tar", ["jpg"], first=5)
    assert read(tmp_path, streaming=False) == [(50, 5)]
