"""
Makes a `datasets` folder of Fashion-MNIST: 70,000 grey images of 28 x 28 pixels, ten classes of clothes (MIT licence).

From Debian's package, without root:
    apt-get download dataset-fashion-mnist
    python -m examples.fashion.make_dataset --package dataset-fashion-mnist_*.deb --output_dir outputs/fashion/data
From a folder with the four idx files, compressed or not:
    python -m examples.fashion.make_dataset --idx_dir FOLDER --output_dir outputs/fashion/data

The splits are "train" (55,000), "validation" (5,000 of the published training images, 500 a class, on which everything
is chosen) and "test" (10,000). They are always the same.
"""

import argparse
import gzip
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PilImage

from transformers_mage.data.labels import hold_out

CLASSES = ("t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
VALIDATION_SHARE = 1 / 12
# Where Debian's package has its files, installed or unpacked.
PACKAGE_FOLDER = Path("usr/share/datasets/fashion-mnist")
IDX_MAGIC = {1: 0x00000801, 3: 0x00000803}


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idx_dir", type=Path, default=Path("/", PACKAGE_FOLDER), help="folder with the idx files")
    parser.add_argument("--package", type=Path, help="Debian's package, read instead of `--idx_dir`")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs", "fashion", "data"))
    arguments = parser.parse_args(argv)
    try:
        with idx_folder(arguments.package, arguments.idx_dir) as folder:
            dataset = make_dataset(folder)
    except (OSError, ValueError) as error:
        raise SystemExit(
            f"{error}\nDownload the package with `apt-get download dataset-fashion-mnist` and pass it as `--package`, "
            "or say where the idx files are with `--idx_dir`."
        ) from error
    dataset.save_to_disk(arguments.output_dir)
    counts = ", ".join(f"{len(split)} {name}" for name, split in dataset.items())
    print(f"{arguments.output_dir}: {counts} images.")


@contextmanager
def idx_folder(package: Path | None, idx_dir: Path) -> Iterator[Path]:
    """The folder with the idx files: `idx_dir`, or where a Debian package is unpacked for the time being."""
    if package is None:
        yield idx_dir
        return
    with tempfile.TemporaryDirectory() as folder:
        unpacked = subprocess.run(["dpkg", "-x", package, folder], capture_output=True, text=True)
        if unpacked.returncode:
            raise ValueError(f"{package} cannot be unpacked: {unpacked.stderr.strip()}")
        yield Path(folder, PACKAGE_FOLDER)


def read_idx(folder: Path, name: str, dimensions: int) -> np.ndarray:
    """
    One idx file of bytes, compressed or not.

    Raises:
        FileNotFoundError: if `folder` has none of this name.
        ValueError: if it is not an idx file of this many dimensions, or is incomplete.
    """
    candidates = [folder / f"{name}.gz", folder / name]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder} has neither {candidates[0].name} nor {candidates[1].name}.")
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    header = np.frombuffer(content, dtype=">u4", count=min(1 + dimensions, len(content) // 4))
    if len(header) <= dimensions or header[0] != IDX_MAGIC[dimensions]:
        raise ValueError(f"{path} is not an idx file of {dimensions} dimensions.")
    shape, values = header[1:].astype(int), np.frombuffer(content, dtype=np.uint8, offset=header.nbytes)
    if len(values) != shape.prod():
        raise ValueError(f"{path} is incomplete: it has {len(values)} of {shape.prod()} values.")
    return values.reshape(shape)


def make_dataset(folder: Path) -> DatasetDict:
    """The splits of the four idx files in `folder`."""
    images, labels = read_idx(folder, "train-images-idx3-ubyte", 3), read_idx(folder, "train-labels-idx1-ubyte", 1)
    train, validation = hold_out(labels, share=VALIDATION_SHARE, seed=0)
    test = read_idx(folder, "t10k-images-idx3-ubyte", 3), read_idx(folder, "t10k-labels-idx1-ubyte", 1)
    return DatasetDict(
        {
            "train": as_dataset(images[train], labels[train]),
            "validation": as_dataset(images[validation], labels[validation]),
            "test": as_dataset(*test),
        }
    )


def as_dataset(images: np.ndarray, labels: np.ndarray) -> Dataset:
    features = Features({"image": Image(), "label": ClassLabel(names=list(CLASSES))})
    columns = {"image": [PilImage.fromarray(image) for image in images], "label": labels.tolist()}
    return Dataset.from_dict(columns, features=features)


if __name__ == "__main__":
    main()
