"""Training data from any `datasets` source, in an order that is known in advance and can be entered anywhere."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, load_dataset, load_from_disk
from PIL import Image
from torch.utils.data import DataLoader, Sampler
from tqdm.auto import tqdm

from .arguments import TrainingArguments

Batch = dict[str, torch.Tensor]


def load_images(arguments: TrainingArguments, split: str) -> Dataset:
    """
    Loads one split of `--dataset_name`: a folder of `save_to_disk`, of parquet files, of webdataset shards or of
    images, or else a name on the Hub.

    Raises:
        SystemExit: with a message, where there is no such dataset, split or column.
    """
    name = arguments.dataset_name
    try:
        if Path(name).is_dir():
            dataset = _load_folder(Path(name), split)
        else:
            dataset = load_dataset(name, arguments.dataset_config_name, split=split)
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(f'The split "{split}" of {name} cannot be loaded: {error}') from error
    if arguments.image_column not in dataset.column_names:
        raise SystemExit(
            f'{name} has no column "{arguments.image_column}" but {dataset.column_names}: say `--image_column NAME`.'
        )
    return dataset


def _load_folder(folder: Path, split: str) -> Dataset:
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        dataset = load_from_disk(str(folder))
        return _select_split(dataset, split)
    for suffix, builder in (("parquet", "parquet"), ("tar", "webdataset")):
        files = sorted(folder.rglob(f"*.{suffix}"))
        chosen = [str(file) for file in files if split in file.name or split in file.parent.name] or list(
            map(str, files)
        )
        if files:
            return load_dataset(builder, data_files={split: chosen}, split=split)
    return load_dataset("imagefolder", data_dir=str(folder), split=split)


def _select_split(dataset: Dataset | DatasetDict | IterableDatasetDict, split: str) -> Dataset | IterableDataset:
    if not isinstance(dataset, dict):
        return dataset
    if split not in dataset:
        raise ValueError(f"it has the splits {list(dataset)}")
    return dataset[split]


def to_pixels(image: Image.Image, channels: int) -> np.ndarray:
    """(channels, height, width) uint8 of an image of any mode."""
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def decode_images(dataset: Dataset, image_column: str, channels: int, image_size: tuple[int, int]) -> torch.Tensor:
    """
    Decodes a whole dataset, resizing what has another size.

    Returns:
        `torch.Tensor` of shape `(num_images, channels, height, width)`, uint8.
    """
    height, width = image_size
    images = torch.empty(len(dataset), channels, height, width, dtype=torch.uint8)
    column = dataset.select_columns([image_column])
    for i, row in enumerate(tqdm(column, desc="Decoding images", leave=False)):
        image = row[image_column]
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        images[i] = torch.from_numpy(to_pixels(image, channels).copy())
    return images


def read_labels(dataset: Dataset, label_column: str | None) -> torch.Tensor | None:
    """(num_images,) classes, where the dataset has them."""
    if label_column not in dataset.column_names:
        return None
    return torch.tensor(dataset[label_column][:])


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
        batch = {"pixel_values": self.images[indices]}
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
        views = np.arange(self.views_per_image)[:, None] + self.views_per_image * epochs
        tokens = self.input_ids[indices, views % self.input_ids.shape[1]]
        batch = {"input_ids": tokens.flatten(0, 1).long()}
        return batch if self.labels is None else batch | {"labels": self.labels[indices]}


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

    def epoch_order(self, epoch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.num_samples, generator=generator) + epoch * self.num_samples

    def __iter__(self) -> Iterator[list[int]]:
        start = self.samples_seen + self.process_index * self.batch_size
        epoch, order = -1, None
        while True:
            draws = []
            for position in range(start, start + self.batch_size):
                if position // self.num_samples != epoch:
                    epoch = position // self.num_samples
                    order = self.epoch_order(epoch).tolist()
                draws.append(order[position % self.num_samples])
            yield draws
            start += self.batch_size * self.num_processes


def _as_it_is(batch: Batch) -> Batch:
    return batch


def create_loader(
    dataset: torch.utils.data.Dataset, batches: EndlessBatches, num_workers: int = 0, pin_memory: bool = False
) -> DataLoader:
    """A loader that leaves torch's global generator alone, so that it can be made again without changing the run."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        generator=torch.Generator(),
    )
