"""Training data of known length, in an order that is known in advance and can be entered anywhere."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np
import torch
from datasets import Dataset, IterableDataset, load_dataset, load_from_disk
from PIL import Image
from torch.utils.data import DataLoader, Sampler
from tqdm.auto import tqdm

from .arguments import DataArguments, TrainingArguments
from .augmentation import BrokenImageError, ImageViews, center_view, open_image, size_of, to_array

# Tensors by name: "images" (whole, uint8), "views" (uint8), or "input_ids"; "labels"; and "num_skipped" on the host.
Batch = dict[str, Any]


class DataError(RuntimeError):
    """Data that cannot be read."""


class Source(Protocol):
    """Where a process's batches come from."""

    num_samples: int | None

    def batches(self, samples_seen: int) -> Iterator[Batch]:
        """This process's endless batches, after `samples_seen` samples of all processes."""

    def state_dict(self) -> Any:
        """This process's position, after the last batch, if `samples_seen` does not say it."""

    def load_state_dicts(self, states: list[Any]):
        """Takes the positions of all processes that there were."""


def load_images(arguments: TrainingArguments, split: str, streaming: bool = False) -> Dataset | IterableDataset:
    """
    Loads one split of `--dataset_name`: a folder of `save_to_disk`, of parquet files, of webdataset shards or of
    images, a list of parquet or tar files, local or remote, or else a name on the Hub. Images stay encoded.

    Raises:
        SystemExit: with a message, where there is no such dataset, split or column.
    """
    dataset, name = load_split(arguments, split, streaming), arguments.dataset_name
    columns = dataset.column_names or []
    if arguments.image_column not in columns:
        raise SystemExit(f'{name} has no column "{arguments.image_column}" but {columns}: say `--image_column NAME`.')
    kept = [name for name in (arguments.image_column, arguments.label_column) if name in columns]
    dataset = dataset.select_columns(kept).cast_column(arguments.image_column, datasets.Image(decode=False))
    if arguments.max_train_samples:
        dataset = dataset.take(arguments.max_train_samples)
    return dataset


def load_split(arguments: DataArguments, split: str, streaming: bool = False) -> Dataset | IterableDataset:
    """One split as [`load_images`] finds it, with all its columns."""
    name = arguments.dataset_name
    try:
        return _load_any(name, arguments.dataset_config_name, split, streaming)
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetGenerationError) as error:
        raise SystemExit(f'The split "{split}" of {name} cannot be loaded: {error}') from error


def _load_any(name: str, config_name: str | None, split: str, streaming: bool) -> Dataset | IterableDataset:
    folder = Path(name)
    if folder.is_dir() and ((folder / "dataset_dict.json").exists() or (folder / "state.json").exists()):
        dataset = load_from_disk(name)
        if isinstance(dataset, dict) and split not in dataset:
            raise ValueError(f"it has the splits {list(dataset)}")
        dataset = dataset[split] if isinstance(dataset, dict) else dataset
        return dataset.to_iterable_dataset(num_shards=min(len(dataset), 64)) if streaming else dataset
    for suffix, builder in ((".parquet", "parquet"), (".tar", "webdataset")):
        files = _files(name, suffix, split)
        if files:
            return load_dataset(builder, data_files={split: files}, split=split, streaming=streaming)
    if folder.is_dir():
        return load_dataset("imagefolder", data_dir=name, split=split, streaming=streaming)
    return load_dataset(name, config_name, split=split, streaming=streaming)


def _files(name: str, suffix: str, split: str) -> list[str]:
    """The files that a folder or a pattern names, those of the split if any has its name in it."""
    if not Path(name).is_dir():
        return [name] if name.endswith(suffix) else []
    files = [str(path) for path in sorted(Path(name).rglob(f"*{suffix}"))]
    return [file for file in files if split in file.removeprefix(name)] or files


class InMemoryImages(torch.utils.data.Dataset):
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
        batch = {"images": self.images[indices]}
        return batch if self.labels is None else batch | {"labels": self.labels[indices]}


class InMemoryTokens(torch.utils.data.Dataset):
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
        batch = {"input_ids": self.input_ids[indices, views].flatten(0, 1).long()}
        return batch if self.labels is None else batch | {"labels": self.labels[indices]}


def drawn_views(epochs: np.ndarray, views_per_image: int, num_views: int) -> np.ndarray:
    """(views_per_image, batch_size) of which views are due in the samples' epochs: all in turn."""
    return (np.arange(views_per_image)[:, None] + views_per_image * epochs) % num_views


class EncodedImages(torch.utils.data.Dataset):
    """
    Images that are decoded when they are fetched. In place of a broken one, the batch repeats another, and says so.

    Args:
        dataset (`datasets.Dataset`): with encoded images.
        views ([`ImageViews`]): what to make of them.
        image_column, label_column (`str`): names of the columns.
        seed (`int`): of the views.
    """

    def __init__(self, dataset: Dataset, views: ImageViews, image_column: str, label_column: str | None, seed: int):
        self.dataset = dataset
        self.views = views
        self.image_column = image_column
        self.label_column = class_column(dataset, label_column)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, draws: list[int]) -> Batch:
        rows = self.dataset[[draw % len(self) for draw in draws]]
        views = []
        for draw, image in zip(draws, rows[self.image_column], strict=True):
            try:
                views.append(self.views(image, (self.seed, draw)))
            except BrokenImageError:
                views.append(None)
        good = [i for i, view in enumerate(views) if view is not None]
        if not good:
            raise DataError(f"None of {len(draws)} images can be decoded.")
        chosen = [i if view is not None else good[i % len(good)] for i, view in enumerate(views)]
        batch = {"views": stack_views([views[i] for i in chosen]), "num_skipped": len(views) - len(good)}
        if self.label_column:
            batch["labels"] = torch.tensor([rows[self.label_column][i] for i in chosen])
        return batch


def stack_views(views: list[torch.Tensor]) -> torch.Tensor:
    """(num_views x batch_size, channels, height, width): the first views of all images, then the second ones."""
    return torch.stack(views, dim=1).flatten(0, 1)


class EndlessBatches(Sampler[list[int]]):
    """
    One process's part of an endless sequence of batches: all samples in a random order, then all in another one, and
    so on, so that each epoch sees every sample once. A draw is `epoch * num_samples + index`.

    The order depends on the seed alone. So a run can be continued from the number of samples it has seen, on any
    number of processes.

    Args:
        num_samples (`int`): size of the dataset.
        batch_size (`int`): samples in a batch of one process.
        seed (`int`): of the order.
        process_index, num_processes (`int`): which part of each global batch is this process's.
        samples_seen (`int`): where to start, over all processes.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int = 0,
        process_index: int = 0,
        num_processes: int = 1,
        samples_seen: int = 0,
    ):
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.process_index = process_index
        self.num_processes = num_processes
        self.samples_seen = samples_seen

    def epoch_order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(self.num_samples) + epoch * self.num_samples

    def __iter__(self) -> Iterator[list[int]]:
        start = self.samples_seen + self.process_index * self.batch_size
        epoch, order = -1, None
        while True:
            draws = []
            for position in range(start, start + self.batch_size):
                if position // self.num_samples != epoch:
                    epoch = position // self.num_samples
                    order = self.epoch_order(epoch)
                draws.append(int(order[position % self.num_samples]))
            yield draws
            start += self.batch_size * self.num_processes


class IndexedSource:
    """
    Batches of a dataset of known length, in the order of [`EndlessBatches`].

    Args:
        dataset (`torch.utils.data.Dataset`): it makes a batch of a list of draws.
        arguments ([`TrainingArguments`]): batch size, seed and workers.
        process_index, num_processes (`int`): which part is this process's.
        pin_memory (`bool`): whether batches go to a GPU.
    """

    def __init__(
        self,
        dataset: torch.utils.data.Dataset,
        arguments: TrainingArguments,
        process_index: int = 0,
        num_processes: int = 1,
        pin_memory: bool = False,
    ):
        self.dataset = dataset
        self.num_samples = len(dataset)
        self.order = {"batch_size": arguments.train_batch_size, "seed": arguments.seed}
        self.order |= {"process_index": process_index, "num_processes": num_processes}
        self.loading = loader_options(arguments.dataloader_num_workers, arguments.dataloader_timeout, pin_memory)

    def batches(self, samples_seen: int) -> Iterator[Batch]:
        order = EndlessBatches(self.num_samples, samples_seen=samples_seen, **self.order)
        return iter(DataLoader(self.dataset, batch_sampler=order, **self.loading))

    def state_dict(self) -> None:
        return None

    def load_state_dicts(self, states: list[None]):
        pass


def loader_options(num_workers: int, timeout: float, pin_memory: bool) -> dict[str, Any]:
    """A loader's options. It leaves torch's global generator alone, so making it again does not change the run."""
    return {
        "collate_fn": _as_it_is,
        "num_workers": num_workers,
        "pin_memory": pin_memory,
        "timeout": timeout if num_workers else 0,
        "generator": torch.Generator(),
    }


def _as_it_is(batch: Batch) -> Batch:
    return batch


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


def decode_images(
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
    images, kept = torch.empty(len(dataset), *shape, dtype=torch.uint8), []
    column = dataset.select_columns([image_column])
    for i, row in enumerate(tqdm(column, desc="Decoding images", leave=False)):
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
    images, (channels, *size) = [], shape
    for row in dataset:
        try:
            images.append(center_view(row[image_column], tuple(size), channels))
        except BrokenImageError:
            continue
        if len(images) == limit:
            break
    return torch.stack(images)


def read_labels(dataset: Dataset, label_column: str | None) -> torch.Tensor | None:
    """(num_images,) classes, where the dataset has them."""
    column = class_column(dataset, label_column)
    return torch.tensor(dataset[column][:]) if column else None


def class_column(dataset: Dataset | IterableDataset, name: str | None) -> str | None:
    """The column with the labels, if there is one and it holds numbers."""
    if name not in (dataset.column_names or []):
        return None
    feature = (dataset.features or {}).get(name)
    return name if feature is None or str(getattr(feature, "dtype", "")).startswith(("int", "uint")) else None
