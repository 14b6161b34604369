"""Training data of known length, in memory or decoded when it is fetched."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from PIL import Image
from torch.utils.data import DataLoader

from ..progress import progress_bar
from .batches import Batch, DataError, EndlessBatches, Loading, stack_views
from .images import BrokenImageError, center_view, open_image, size_of, to_array
from .labels import class_column
from .loading import Columns
from .views import ImageViews


class BatchedDataset(torch.utils.data.Dataset, ABC):
    """Data of known length, fetched a batch of draws at a time; see [`EndlessBatches`]."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitems__(self, draws: list[int]) -> Batch: ...


class InMemoryImages(BatchedDataset):
    """
    Decoded images, fetched a batch at a time.

    Args:
        images (`torch.Tensor` of shape `(num_images, channels, height, width)`): uint8.
        labels (`torch.Tensor` of shape `(num_images,)`, *optional*): classes.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor | None = None):
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, draws: list[int]) -> Batch:
        indices = torch.tensor(draws) % len(self)
        return Batch(self.images[indices], labels=None if self.labels is None else self.labels[indices])


class InMemoryTokens(BatchedDataset):
    """
    Tokens of several random views of each image. Another view is drawn in each epoch.

    Args:
        input_ids (`torch.Tensor` of shape `(num_images, num_views, sequence_length)`): codes.
        labels (`torch.Tensor` of shape `(num_images,)`, *optional*): classes.
        views_per_image (`int`): how many different views of an image a batch holds, 2 for contrastive training.
    """

    def __init__(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None, views_per_image: int = 1):
        if views_per_image > input_ids.shape[1]:
            raise ValueError(f"{views_per_image} different views of an image are needed, got {input_ids.shape[1]}.")
        self.input_ids = input_ids
        self.labels = labels
        self.views_per_image = views_per_image

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitems__(self, draws: list[int]) -> Batch:
        epochs, indices = np.divmod(np.asarray(draws), len(self))
        views = drawn_views(epochs, self.views_per_image, self.input_ids.shape[1])
        tokens = self.input_ids[indices, views].flatten(0, 1).long()
        return Batch(input_ids=tokens, labels=None if self.labels is None else self.labels[indices])


class InMemoryFeatures(BatchedDataset):
    """
    Features of one or several views of each image. Another view is drawn in each epoch.

    Args:
        features (`torch.Tensor` of shape `(num_images, num_views, size)`): what a model says of them.
        labels (`torch.Tensor` of shape `(num_images,)`, *optional*): classes.
    """

    def __init__(self, features: torch.Tensor, labels: torch.Tensor | None = None):
        self.features = features
        self.labels = labels

    def __len__(self) -> int:
        return len(self.features)

    def __getitems__(self, draws: list[int]) -> Batch:
        epochs, indices = np.divmod(np.asarray(draws), len(self))
        views = drawn_views(epochs, 1, self.features.shape[1])[0]
        labels = None if self.labels is None else self.labels[indices]
        return Batch(features=self.features[indices, views], labels=labels)


def drawn_views(epochs: np.ndarray, views_per_image: int, num_views: int) -> np.ndarray:
    """(views_per_image, batch_size) of which views are due in the samples' epochs: all in turn."""
    return (np.arange(views_per_image)[:, None] + views_per_image * epochs) % num_views


class EncodedImages(BatchedDataset):
    """
    Images that are decoded when they are fetched. In place of a broken one, the batch repeats another, and says so.

    Args:
        dataset (`datasets.Dataset`): with encoded images.
        views ([`ImageViews`]): what to make of them.
        columns ([`Columns`]): names of its columns.
        seed (`int`): of the views.
    """

    def __init__(self, dataset: Dataset, views: ImageViews, columns: Columns, seed: int):
        self.dataset = dataset
        self.views = views
        self.image_column = columns.image
        self.label_column = class_column(dataset, columns.label)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, draws: list[int]) -> Batch:
        rows = self.dataset[[draw % len(self) for draw in draws]]
        views: list[torch.Tensor | None] = []
        for draw, image in zip(draws, rows[self.image_column], strict=True):
            try:
                views.append(self.views(image, (self.seed, draw)))
            except BrokenImageError:
                views.append(None)
        good = {i: view for i, view in enumerate(views) if view is not None}
        if not good:
            raise DataError(f"None of {len(draws)} images can be decoded.")
        spare = list(good)
        chosen = [i if i in good else spare[i % len(spare)] for i in range(len(views))]
        pixels, num_skipped = stack_views([good[i] for i in chosen]), len(views) - len(good)
        labels = torch.tensor([rows[self.label_column][i] for i in chosen]) if self.label_column else None
        return Batch(pixels, labels=labels, are_views=True, num_skipped=num_skipped)


class IndexedSource:
    """
    Batches of data of known length, in the order of [`EndlessBatches`].

    Args:
        dataset ([`BatchedDataset`]): it makes a batch of a list of draws.
        loading ([`Loading`]): how.
    """

    def __init__(self, dataset: BatchedDataset, loading: Loading):
        if not len(dataset):
            raise DataError("There are no images to train on: the split is empty, or all of them are broken.")
        self.dataset = dataset
        self.loading = loading
        self.num_samples: int | None = len(dataset)

    def batches(self, samples_seen: int) -> Iterator[Batch]:
        order = EndlessBatches(len(self.dataset), self.loading, samples_seen)
        return iter(DataLoader(self.dataset, batch_sampler=order, **self.loading.options()))

    def state_dict(self) -> None:
        return None

    def load_state_dicts(self, states: list[None]):
        pass


def fits_in_memory(dataset: Dataset, image_column: str, shape: tuple[int, int, int], limit: float) -> bool:
    """
    Whether a dataset can be decoded once: its images are equally large, not larger than the model's, and `limit` GB
    hold them.
    """
    channels, height, width = shape
    if len(dataset) * channels * height * width > limit * 1e9:
        return False
    sizes = set()
    for value in dataset.select_columns([image_column])[image_column]:
        try:
            sizes.add(size_of(value))
        except BrokenImageError:
            continue
    return len(sizes) == 1 and all(w <= width and h <= height for w, h in sizes)


def decode_dataset(
    dataset: Dataset, image_column: str, shape: tuple[int, int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Decodes a whole dataset, resizing what is smaller, and leaving out what is broken.

    Args:
        shape (`tuple[int, int, int]`): channels, height and width.

    Returns:
        `torch.Tensor` of shape `(num_images, channels, height, width)`, uint8, and the indices of these images.
    """
    channels, height, width = shape
    images = torch.empty(len(dataset), *shape, dtype=torch.uint8)
    kept: list[int] = []
    column = dataset.select_columns([image_column])
    for i, row in enumerate(progress_bar(column, desc="Decoding images", leave=False)):
        try:
            image = open_image(row[image_column], channels)
        except BrokenImageError:
            continue
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        images[len(kept)] = torch.from_numpy(to_array(image).copy())
        kept.append(i)
    return images[: len(kept)], torch.tensor(kept, dtype=torch.long)


def validation_images(
    dataset: Dataset | IterableDataset, image_column: str, shape: tuple[int, int, int], limit: int
) -> torch.Tensor:
    """(num_images, channels, height, width) uint8 evaluation crops of the first `limit` images that are whole."""
    images, (channels, height, width) = [], shape
    for row in dataset:
        try:
            images.append(center_view(row[image_column], (height, width), channels))
        except BrokenImageError:
            continue
        if len(images) == limit:
            break
    if not images:
        raise DataError("There are no images to validate on: the split is empty, or all of them are broken.")
    return torch.stack(images)
