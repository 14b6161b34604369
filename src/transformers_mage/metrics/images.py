"""Images to score, from wherever they are: a folder of files, a dataset, an `.npz` of samples."""

import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from ..data.images import BrokenImageError, open_image, to_array
from ..data.labelled_images import encoded_images
from ..data.loading import USUAL_COLUMNS, Columns, DatasetSpec, find_columns, load_split

EXTENSIONS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


class ImageCollection(Dataset):
    """The images of `path`, decoded one by one: item i is uint8 `(C, H, W)`, or `None` where it does not decode.

    Args:
        path (`str` or `Path`): a folder of image files, at any depth; a folder of webdataset shards (`*.tar`); an
            `.npz` with an array of uint8 `(N, H, W, C)`, which is read at once; a dataset saved with `save_to_disk`;
            or anything else that [`DatasetSpec`] names.
        split (`str`, *optional*): the split of a dataset with several.
        image_column (`str`, *optional*): the column with images; by default the only one of that type.
        resolution (`int`, *optional*): resize the shorter side to this (bicubic) and crop the centre.
        channels (`int`, *optional*, defaults to 3): 3 for RGB, or 1 for grey.

    Raises:
        DataError, FileNotFoundError, ValueError: when there are no images; the message says what was looked for.
    """

    def __init__(
        self,
        path: str | Path,
        split: str | None = None,
        image_column: str | None = None,
        resolution: int | None = None,
        channels: int = 3,
    ):
        self.path, self.resolution, self.channels = str(path), resolution, channels
        self.length, self._read = _reader(Path(path), split, image_column)
        if not self.length:
            raise ValueError(
                f"{path} holds no images (file names ending in {', '.join(sorted(EXTENSIONS))}, or rows)."
            )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor | None:
        try:
            image = open_image(self._read(index), self.channels)
        except (BrokenImageError, OSError):
            return None
        if self.resolution is not None:
            image = ImageOps.fit(image, (self.resolution, self.resolution), Image.Resampling.BICUBIC)
        return torch.from_numpy(to_array(image).copy())

    def batches(
        self, batch_size: int, num_workers: int = 0, process_index: int = 0, num_processes: int = 1
    ) -> Iterator[tuple[Tensor | None, int]]:
        """This process's share of the images, each once and none as padding.

        Returns:
            iterator of `(images, skipped)`: uint8 `(N, C, H, W)` (`None` when none was left), and how many of the
            batch did not decode.
        """
        share = Subset(self, range(process_index, len(self), num_processes))
        return iter(DataLoader(share, batch_size, num_workers=num_workers, collate_fn=self._collate))

    def _collate(self, images: list[Tensor | None]) -> tuple[Tensor | None, int]:
        decoded = [image for image in images if image is not None]
        shapes = {tuple(image.shape) for image in decoded}
        if len(shapes) > 1:
            raise ValueError(f"{self.path} holds images of several sizes, {sorted(shapes)[:3]}; give a `resolution`.")
        return torch.stack(decoded) if decoded else None, len(images) - len(decoded)


def _reader(path: Path, split: str | None, image_column: str | None) -> tuple[int, Callable[[int], Any]]:
    """The number of images, and what reads one of them for [`open_image`]."""
    if path.suffix == ".npz" and path.is_file():
        array = _npz_images(path)
        return len(array), lambda index: Image.fromarray(array[index])
    if path.is_dir() and any(path.glob("*.tar")):
        members = list(_tar_members(path))
        return len(members), lambda index: _read_member(*members[index])
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS)
        if files or not any(path.iterdir()):
            return len(files), lambda index: {"path": str(files[index])}
    if path.is_absolute() and not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    columns = Columns(image_column or USUAL_COLUMNS.image, label=None)
    rows = load_split(DatasetSpec(str(path), split=split))
    column = find_columns(rows, columns).image
    images = encoded_images(rows, column)
    return len(images), lambda index: images[index][column]


def _npz_images(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            array = arrays[name]
            if array.dtype == np.uint8 and array.ndim == 4 and array.shape[-1] in (1, 3):
                return array[..., 0] if array.shape[-1] == 1 else array
        raise ValueError(f"{path} holds {arrays.files}, of which none is uint8 of shape (N, H, W, 3).")


def _tar_members(folder: Path) -> Iterator[tuple[Path, int, int]]:
    """Shard, offset and size of each image: nothing is unpacked."""
    for shard in sorted(folder.glob("*.tar")):
        try:
            with tarfile.open(shard, "r:") as members:
                for member in members:
                    if Path(member.name).suffix.lower() in EXTENSIONS:
                        yield shard, member.offset_data, member.size
        except tarfile.ReadError as error:
            raise ValueError(f"{shard} is not an uncompressed tar file: {error}") from error


def _read_member(shard: Path, offset: int, size: int) -> dict[str, bytes]:
    with shard.open("rb") as file:
        file.seek(offset)
        return {"bytes": file.read(size)}
