"""Chooses how training images get to the device: from memory, decoded when they are needed, or streamed."""

import hashlib
import logging
from pathlib import Path

import datasets
import numpy as np
import torch
from datasets import Dataset, IterableDataset

from ..files import written_aside
from .batches import DataError, Loading, Source
from .indexed import EncodedImages, IndexedSource, InMemoryImages, decode_dataset, fits_in_memory
from .labels import read_labels
from .loading import Columns, DatasetSpec, load_images
from .streamed import StreamedSource
from .views import ImageViews

logger = logging.getLogger(__name__)

# Fewer are decoded faster than anybody would miss it.
FEWEST_KEPT = 5000


def create_source(spec: DatasetSpec, views: ImageViews, loading: Loading) -> Source:
    """
    Training images: decoded once where that fits in memory, otherwise when they are needed; or streamed.

    Args:
        spec ([`DatasetSpec`]): where they are.
        views ([`ImageViews`]): what to make of them.
        loading ([`Loading`]): how to load them.

    Raises:
        DataError: where the images cannot be read.
    """
    dataset, columns = load_images(spec)
    return source_of(dataset, columns, views, loading)


def source_of(dataset: Dataset | IterableDataset, columns: Columns, views: ImageViews, loading: Loading) -> Source:
    """The same for a data set that is open already, with encoded images."""
    if isinstance(dataset, IterableDataset):
        return StreamedSource(dataset, columns, views, loading)
    images = load_into_memory(dataset, columns, views, loading)
    if images is None:
        return IndexedSource(EncodedImages(dataset, views, columns, loading.seed), loading)
    return IndexedSource(images, loading)


def load_into_memory(dataset: Dataset, columns: Columns, views: ImageViews, loading: Loading) -> InMemoryImages | None:
    """
    All images, decoded, if they are equally large and fit into `loading.in_memory_limit`. Where they are many, the
    cache of `datasets` keeps them, unless that is disabled, so that they are decoded once and not at each start.

    Raises:
        DataError: if too many are broken.
    """
    cache = _cache_of(dataset, columns.image, views.shape)
    if cache is not None and cache.is_dir() and _size_of(cache) <= loading.in_memory_limit * 1e9:
        images, kept = _read(cache)
    elif fits_in_memory(dataset, columns.image, views.shape, loading.in_memory_limit):
        images, kept = decode_dataset(dataset, columns.image, views.shape)
        if cache is not None and loading.share.process_index == 0:
            _keep(cache, images, kept)
    else:
        return None
    num_broken = len(dataset) - len(images)
    if num_broken > loading.max_skipped_share * len(dataset):
        raise DataError(
            f"{num_broken} of {len(dataset)} images are broken, more than `--max_skipped_share` "
            f"{loading.max_skipped_share}."
        )
    labels = read_labels(dataset, columns.label)
    return InMemoryImages(images, labels if labels is None else labels[kept])


def _cache_of(dataset: Dataset, image_column: str, shape: tuple[int, int, int]) -> Path | None:
    """Where the decoded images of a dataset are kept, if they are."""
    if len(dataset) < FEWEST_KEPT or not datasets.is_caching_enabled():
        return None
    # It changes with the files and with whatever was done to the rows.
    known_by = f"{dataset._fingerprint} {image_column} {shape}"
    name = hashlib.sha256(known_by.encode()).hexdigest()[:32]
    return Path(datasets.config.HF_DATASETS_CACHE, "decoded_images", name)


def _size_of(cache: Path) -> int:
    """Bytes of the images."""
    return (cache / "images.npy").stat().st_size


def _read(cache: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and their indices, as [`decode_dataset`] gives them; the images are read when they are needed."""
    images = np.load(cache / "images.npy", mmap_mode="c", allow_pickle=False)
    return torch.from_numpy(images), torch.from_numpy(np.load(cache / "kept.npy", allow_pickle=False))


def _keep(cache: Path, images: torch.Tensor, kept: torch.Tensor):
    try:
        with written_aside(cache) as aside:
            aside.mkdir()
            np.save(aside / "images.npy", images.numpy())
            np.save(aside / "kept.npy", kept.numpy())
    except OSError as error:
        logger.warning(f"Decoded images cannot be kept in {cache}, and are decoded anew at the next start: {error}.")
