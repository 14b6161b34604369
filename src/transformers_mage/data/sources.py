"""Chooses how training images get to the device: from memory, decoded when they are needed, or streamed."""

from datasets import Dataset, IterableDataset

from .batches import DataError, Loading, Source
from .indexed import EncodedImages, IndexedSource, InMemoryImages, decode_images, fits_in_memory
from .labels import read_labels
from .loading import Columns, DatasetSpec, load_images
from .streamed import StreamedSource
from .views import ImageViews


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
    All images, decoded, if they are equally large and fit into `loading.in_memory_limit`.

    Raises:
        DataError: if too many are broken.
    """
    if not fits_in_memory(dataset, columns.image, views.shape, loading.in_memory_limit):
        return None
    images, kept = decode_images(dataset, columns.image, views.shape)
    num_broken = len(dataset) - len(images)
    if num_broken > loading.max_skipped_share * len(dataset):
        raise DataError(
            f"{num_broken} of {len(dataset)} images are broken, more than `--max_skipped_share` "
            f"{loading.max_skipped_share}."
        )
    labels = read_labels(dataset, columns.label)
    return InMemoryImages(images, labels if labels is None else labels[kept])
