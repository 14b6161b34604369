"""
Where samples go: one file an image, webdataset shards, or one array. Each writer knows what is already there, so that
a run resumes where an earlier one was killed, and holds no more than a batch in memory.
"""

import io
import json
import os
import tarfile
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, cast

import numpy as np
import PIL.Image

from ..files import replace, write_text, written_aside
from .plan import ClassPlan

FORMATS = ("png", "webp", "tar", "npz")


class SampleWriter:
    """
    Base class of writers. Images are uint8 arrays of shape (height, width, channels), with 1 or 3 channels.

    Args:
        folder (`Path`): where the samples go.
        unit_size (`int`): images that only one process may write, in order.
        num_images (`int`): images of the whole run.
    """

    def __init__(self, folder: Path, unit_size: int, num_images: int):
        self.folder = folder
        self.unit_size = unit_size
        self.num_images = num_images
        self.pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1))

    def prepare(self):
        """Makes what all processes share; one of them calls it, before any writes."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def is_written(self, index: int) -> bool:
        """Whether image `index` is there, from this run or an earlier one."""
        raise NotImplementedError

    def write(self, indices: Sequence[int], images: np.ndarray, labels: Sequence[int] | None):
        """Adds those images that are not there yet, all of one unit."""
        raise NotImplementedError

    def close(self):
        """Ends this process's writing."""
        self.pool.shutdown()

    def finish(self, classes: ClassPlan):
        """Makes what is left to be made once all images are there; one process calls it, after all have closed."""

    def read(self, index: int) -> PIL.Image.Image:
        """Image `index`, after `finish`."""
        raise NotImplementedError


def encode_image(image: np.ndarray, image_format: str = "png") -> bytes:
    """A PNG file, or a lossless WebP file."""
    buffer = io.BytesIO()
    picture = PIL.Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    picture.save(buffer, format=image_format, **({"lossless": True} if image_format == "webp" else {}))
    return buffer.getvalue()


class ImageFolderWriter(SampleWriter):
    """
    One PNG or WebP file an image, `000000123.png`, each complete or not there, and the classes, where there are
    any, in a `metadata.jsonl` as `datasets` reads it.
    """

    def __init__(self, folder: Path, unit_size: int, num_images: int, image_format: str = "png"):
        super().__init__(folder, unit_size, num_images)
        self.image_format = image_format

    def path_of(self, index: int) -> Path:
        return self.folder / f"{index:09d}.{self.image_format}"

    def is_written(self, index: int) -> bool:
        return self.path_of(index).exists()

    def write(self, indices: Sequence[int], images: np.ndarray, labels: Sequence[int] | None):
        list(self.pool.map(self._write_one, indices, images))

    def _write_one(self, index: int, image: np.ndarray):
        if not self.is_written(index):
            with written_aside(self.path_of(index)) as aside:
                aside.write_bytes(encode_image(image, self.image_format))

    def finish(self, classes: ClassPlan):
        labels = classes[range(self.num_images)]
        if labels is not None:
            rows = [{"file_name": self.path_of(index).name, "label": label} for index, label in enumerate(labels)]
            write_text(self.folder / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def read(self, index: int) -> PIL.Image.Image:
        return PIL.Image.open(self.path_of(index))


class TarWriter(SampleWriter):
    """
    Webdataset shards of PNG files, and of their classes as `.cls` where there are any: `000002.tar` has the images
    `2 * unit_size` to `3 * unit_size - 1`. A shard is called `.part` until it is complete.
    """

    def __init__(self, folder: Path, unit_size: int, num_images: int):
        super().__init__(folder, unit_size, num_images)
        self.found: tuple[int | None, int] = (None, 0)
        self.shard: _PartialShard | None = None

    def path_of(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}.tar"

    def part_of(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}.tar.part"

    def is_written(self, index: int) -> bool:
        shard = index // self.unit_size
        if self.found[0] != shard:  # looked at before this run adds to it
            self.found = (shard, self._count_of(shard))
        return index % self.unit_size < self.found[1]

    def _size_of(self, shard: int) -> int:
        return min(self.unit_size, self.num_images - shard * self.unit_size)

    def _count_of(self, shard: int) -> int:
        if self.path_of(shard).exists():
            return self._size_of(shard)
        if not self.part_of(shard).exists():
            return 0
        with open(self.part_of(shard), "rb") as file:
            count, _ = _complete_samples(file)
        # The last sample of a complete one is written again, and gives it its end and its name.
        return min(count, self._size_of(shard) - 1)

    def write(self, indices: Sequence[int], images: np.ndarray, labels: Sequence[int] | None):
        number = indices[0] // self.unit_size
        shard = self._open(number)
        new = [k for k, index in enumerate(indices) if index % self.unit_size >= shard.count]
        data = b""
        for k, encoded in zip(new, self.pool.map(encode_image, [images[k] for k in new]), strict=True):
            if labels is not None:
                data += _tar_member(f"{indices[k]:09d}.cls", str(labels[k]).encode())
            # Last, so that a sample is complete where its image is.
            data += _tar_member(f"{indices[k]:09d}.png", encoded)
        shard.append(data)
        shard.count += len(new)
        if shard.count == self._size_of(number):
            shard.append(bytes(2 * tarfile.BLOCKSIZE))
            self._close_shard()
            replace(self.part_of(number), self.path_of(number))

    def _open(self, number: int) -> "_PartialShard":
        if self.shard is None or self.shard.path != self.part_of(number):
            self._close_shard()
            self.shard = _PartialShard(self.part_of(number))
        return self.shard

    def _close_shard(self):
        if self.shard is not None:
            self.shard.file.close()
            self.shard = None

    def close(self):
        self._close_shard()
        super().close()

    def read(self, index: int) -> PIL.Image.Image:
        with tarfile.open(self.path_of(index // self.unit_size)) as shard:
            data = cast(IO[bytes], shard.extractfile(f"{index:09d}.png")).read()
        return PIL.Image.open(io.BytesIO(data))


class _PartialShard:
    """A shard that is being written, cut after the last complete sample in it."""

    def __init__(self, path: Path):
        self.path, self.count, end = path, 0, 0
        if path.exists():
            with path.open("rb") as file:
                self.count, end = _complete_samples(file)
        # Without a buffer, so that what a full disk refuses is not tried again when the file is closed.
        self.file = open(path, "ab", buffering=0)  # noqa: SIM115
        self.file.truncate(end)

    def append(self, data: bytes):
        rest = memoryview(data)
        while rest:
            rest = rest[self.file.write(rest) :]


def _tar_member(name: str, data: bytes) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    return member.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def _complete_samples(file: IO[bytes]) -> tuple[int, int]:
    """How many samples a shard has, which may be cut off anywhere, and where the last complete one ends."""
    count, last_end = 0, 0
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    while header := file.read(tarfile.BLOCKSIZE):
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        except tarfile.HeaderError:
            break
        end = file.tell() + member.size + -member.size % tarfile.BLOCKSIZE
        if end > size:
            break
        if member.name.endswith(".png"):
            count, last_end = count + 1, end
        file.seek(end)
    return count, last_end


class NpzWriter(SampleWriter):
    """
    One file `samples.npz`, as the guided-diffusion evaluation suite takes it: `arr_0`, uint8 RGB images of shape
    (num_images, height, width, 3), and `arr_1`, their classes where there are any. Until it is complete, the images
    lie in `samples.npy` and what is there is marked in `written.npy`.

    Args:
        image_size (`tuple[int, int]`): their height and width.
    """

    def __init__(self, folder: Path, unit_size: int, num_images: int, image_size: tuple[int, int]):
        super().__init__(folder, unit_size, num_images)
        self.shapes = {"samples": (num_images, *image_size, 3), "written": (num_images,)}
        self.arrays: dict[str, np.memmap] = {}

    @property
    def path(self) -> Path:
        return self.folder / "samples.npz"

    def _path_of(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def prepare(self):
        super().prepare()
        if self.path.exists():
            return
        for name, shape in self.shapes.items():
            if not self._path_of(name).exists():
                with written_aside(self._path_of(name)) as aside:
                    np.lib.format.open_memmap(aside, "w+", np.uint8, shape).flush()
                    _reserve(aside)

    def _array(self, name: str) -> np.memmap:
        if name not in self.arrays:
            self.arrays[name] = np.load(self._path_of(name), mmap_mode="r+")
        return self.arrays[name]

    def is_written(self, index: int) -> bool:
        return self.path.exists() or bool(self._array("written")[index])

    def write(self, indices: Sequence[int], images: np.ndarray, labels: Sequence[int] | None):
        self._array("samples")[indices] = images  # one grey channel becomes three
        self._array("written")[indices] = 1

    def close(self):
        for array in self.arrays.values():
            array.flush()
        self.arrays = {}
        super().close()

    def finish(self, classes: ClassPlan):
        if not self.path.exists():
            labels = classes[range(self.num_images)]
            with written_aside(self.path) as aside, aside.open("wb") as file:
                np.savez(file, self._array("samples"), *([] if labels is None else [np.array(labels)]))
        self.arrays = {}
        for name in self.shapes:
            self._path_of(name).unlink(missing_ok=True)

    def read(self, index: int) -> PIL.Image.Image:
        _, height, width, channels = self.shapes["samples"]
        with zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as array:
            np.lib.format.read_magic(array)
            np.lib.format.read_array_header_1_0(array)
            array.seek(index * height * width * channels, os.SEEK_CUR)
            pixels = np.frombuffer(array.read(height * width * channels), np.uint8)
        return PIL.Image.fromarray(pixels.reshape(height, width, channels))


def _reserve(path: Path):
    """Takes the room that a file will need: a full disk is an error now, but would kill whoever writes to a map."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
