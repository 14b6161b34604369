"""Chooses how a script's images get to the device."""

import datasets
import torch
from accelerate import Accelerator

from ..training.arguments import TrainingArguments
from .indexed import EncodedImages, IndexedSource, InMemoryImages, decode_images, fits_in_memory
from .labels import read_labels
from .loading import load_images
from .streamed import Retries, StreamedSource
from .views import ImageViews

Shape = tuple[int, int, int]


def create_source(
    arguments: TrainingArguments, accelerator: Accelerator, shape: Shape, num_views: int = 1
) -> IndexedSource | StreamedSource:
    """
    The training images of the command line: decoded once where that fits in memory, otherwise when they are needed;
    or streamed.

    Args:
        shape (`tuple[int, int, int]`): channels, height and width of the views.
        num_views (`int`): views of each image.
    """
    dataset = load_images(arguments, arguments.train_split, arguments.streaming)
    if arguments.streaming:
        views = ImageViews(shape[1:], shape[0], num_views, **arguments.crops())
        return _streamed(dataset, views, arguments, accelerator)
    return source_of(dataset, arguments, accelerator, shape, num_views)


def source_of(
    dataset: datasets.Dataset, arguments: TrainingArguments, accelerator: Accelerator, shape: Shape, num_views: int = 1
) -> IndexedSource:
    """The same for a dataset that is there already, with encoded images."""
    if fits_in_memory(dataset, arguments.image_column, shape, arguments.in_memory_limit):
        data = in_memory_images(dataset, arguments, shape)
    else:
        views = ImageViews(shape[1:], shape[0], num_views, **arguments.crops())
        data = EncodedImages(dataset, views, arguments.image_column, arguments.label_column, arguments.seed)
    return indexed_source(data, arguments, accelerator)


def in_memory_images(dataset: datasets.Dataset, arguments: TrainingArguments, shape: Shape) -> InMemoryImages:
    """
    Decodes all images.

    Raises:
        SystemExit: with a message, if too many are broken.
    """
    images, kept = decode_images(dataset, arguments.image_column, shape)
    num_broken = len(dataset) - len(images)
    if num_broken > arguments.max_skipped_share * len(dataset):
        raise SystemExit(
            f"{num_broken} of {len(dataset)} images are broken, more than `--max_skipped_share` "
            f"{arguments.max_skipped_share}."
        )
    labels = read_labels(dataset, arguments.label_column)
    return InMemoryImages(images, labels if labels is None else labels[kept])


def indexed_source(
    data: torch.utils.data.Dataset, arguments: TrainingArguments, accelerator: Accelerator
) -> IndexedSource:
    on_gpu = accelerator.device.type == "cuda"
    return IndexedSource(data, arguments, accelerator.process_index, accelerator.num_processes, pin_memory=on_gpu)


def _streamed(
    dataset: datasets.IterableDataset, views: ImageViews, arguments: TrainingArguments, accelerator: Accelerator
) -> StreamedSource:
    return StreamedSource(
        dataset,
        views,
        arguments.image_column,
        arguments.label_column,
        arguments.train_batch_size,
        arguments.seed,
        accelerator.process_index,
        accelerator.num_processes,
        arguments.dataloader_num_workers,
        arguments.shuffle_window,
        Retries(arguments.data_retries),
        arguments.dataloader_timeout,
        pin_memory=accelerator.device.type == "cuda",
    )
