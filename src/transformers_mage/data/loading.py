"""Opens one split of any data set: a folder, files, shards or a name on the Hub."""

from pathlib import Path

import datasets
from datasets import Dataset, IterableDataset, load_dataset, load_from_disk

from ..training.arguments import TrainingArguments
from .arguments import DataArguments


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
