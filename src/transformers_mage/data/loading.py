"""Opens one split of any data set, a folder, files, shards or a name on the Hub, and finds its columns."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tarfile import TarError
from typing import Any

import datasets
from datasets import ClassLabel, Dataset, DatasetDict, IterableDataset, load_dataset, load_from_disk
from datasets.data_files import DataFilesDict, get_data_patterns
from datasets.packaged_modules.webdataset.webdataset import WebDataset
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError

from ..hub_folders import explained
from .batches import DataError

IMAGE_COLUMNS = ("image", "img", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target", "cls")


@dataclass(frozen=True)
class Columns:
    """The names of the columns with the images and, where there is one, the classes."""

    image: str = "image"
    label: str | None = "label"


USUAL_COLUMNS = Columns()


@dataclass(frozen=True)
class DatasetSpec:
    """
    What to load.

    Attributes:
        name (`str`): a folder of `save_to_disk`, of parquet files, of webdataset shards or of images; a pattern or
            address of parquet or tar files; or a name on the Hub.
        config_name (`str`, *optional*): the configuration, if there are several.
        split (`str`, *optional*): one of its splits; None is the only one.
        columns ([`Columns`]): what the columns are called.
        limit (`int`, *optional*): take the first rows only.
        streaming (`bool`): read while training rather than before.
    """

    name: str
    config_name: str | None = None
    split: str | None = "train"
    columns: Columns = USUAL_COLUMNS
    limit: int | None = None
    streaming: bool = False

    def of_split(self, split: str, limit: int | None = None) -> "DatasetSpec":
        """Another split of the same data set, without a limit or with another one."""
        return dataclasses.replace(self, split=split, limit=limit)


def load_split(spec: DatasetSpec) -> Dataset | IterableDataset:
    """
    One split, with all its columns.

    Raises:
        DataError: where there is no such data set or split.
    """
    try:
        dataset = _load_any(spec)
    except (OSError, ValueError, KeyError, TarError, datasets.exceptions.DatasetGenerationError) as error:
        is_vague = isinstance(error, datasets.exceptions.DatasetGenerationError)
        reason = (error.__cause__ if is_vague else None) or error
        what = f'The split "{spec.split}" of {spec.name}' if spec.split else spec.name
        raise DataError(f"{what} cannot be loaded: {reason}") from error
    if spec.limit is None:
        return dataset
    return dataset.take(spec.limit if spec.streaming else min(spec.limit, len(dataset)))


def split_names(spec: DatasetSpec) -> list[str]:
    """
    The splits of a data set, whichever of them `spec` names.

    Raises:
        DataError: where there is no such data set.
    """
    try:
        return _names_of_splits(spec)
    except (OSError, ValueError, TarError) as error:
        raise DataError(f"{spec.name} cannot be loaded: {error}") from error


def _names_of_splits(spec: DatasetSpec) -> list[str]:
    folder = Path(spec.name)
    if (folder / "dataset_dict.json").exists():
        return list(DatasetDict.load_from_disk(spec.name))
    if (folder / "state.json").exists():
        return [str(load_from_disk(spec.name).split or datasets.Split.TRAIN)]
    for suffix in (".parquet", ".tar"):
        files = _files_by_split(spec.name, suffix)
        if files:
            return list(files)
    if folder.is_dir():
        return datasets.get_dataset_split_names("imagefolder", data_dir=spec.name)
    return datasets.get_dataset_split_names(spec.name, spec.config_name)


def load_images(spec: DatasetSpec) -> tuple[Dataset | IterableDataset, Columns]:
    """
    One split, with nothing but the images, which stay encoded, and their classes, where there are any.

    Returns:
        The split, and the names of its columns.

    Raises:
        DataError: where there is no such data set, split or column.
    """
    dataset = load_split(spec)
    columns = find_columns(dataset, spec.columns)
    kept = [name for name in (columns.image, columns.label) if name is not None]
    return dataset.select_columns(kept).cast_column(columns.image, datasets.Image(decode=False)), columns


def find_columns(dataset: Dataset | IterableDataset, columns: Columns = USUAL_COLUMNS) -> Columns:
    """
    The columns with the images and the classes: those that are named, and where they have their usual names and are
    not there, the only ones that it can be. A data set need not have classes.

    Raises:
        DataError: naming the columns that there are, where one is missing.
    """
    names, features = dataset.column_names or [], dataset.features or {}
    image, label = columns.image, columns.label
    if image == USUAL_COLUMNS.image:
        image = _only_column(IMAGE_COLUMNS, names, features, datasets.Image) or image
    if label == USUAL_COLUMNS.label:
        label = _only_column(LABEL_COLUMNS, names, features, ClassLabel)
    for kind, name in (("image", image), ("label", label)):
        if name is not None and name not in names:
            raise DataError(f'The data set has no column "{name}" but {names}: say `--{kind}_column NAME`.')
    return Columns(image, label)


def _only_column(usual: tuple[str, ...], names: list[str], features: Mapping[str, Any], kind: type) -> str | None:
    """The column with the first of the usual names, or else the only one of a kind, or else one with a usual name."""
    if usual[0] in names:
        return usual[0]
    of_kind = [name for name, feature in features.items() if isinstance(feature, kind)]
    found = of_kind if len(of_kind) == 1 else [name for name in usual if name in names]
    return found[0] if found else None


def _load_any(spec: DatasetSpec) -> Dataset | IterableDataset:
    name, split, streaming = spec.name, spec.split, spec.streaming
    folder = Path(name)
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        dataset = _split_of(load_from_disk(name), split)
        return dataset.to_iterable_dataset(num_shards=min(len(dataset), 64)) if streaming else dataset
    for suffix, load in ((".parquet", _load_parquet), (".tar", _load_shards)):
        files = _files_by_split(name, suffix)
        if files:
            found = _found_split(split, files)
            return load({found: files[found]}, found, streaming)
    if folder.is_dir():
        splits = load_dataset("imagefolder", data_dir=name, split=split, streaming=streaming)
    else:
        splits = _load_by_name(spec)
    return splits if split else splits[_found_split(split, splits)]


def _load_parquet(files: dict[str, list[str]], split: str, streaming: bool) -> Dataset | IterableDataset:
    return load_dataset("parquet", data_files=files, split=split, streaming=streaming)


class ImageShards(WebDataset):
    """
    What `datasets` reads of tar files, but for samples that hold a `.png` where the first one holds a `.jpg`, or the
    like: their image is in the same column, where `datasets` refuses or leaves them out.
    """

    def _split_generators(self, dl_manager: Any) -> list:
        try:
            return super()._split_generators(dl_manager)
        except ValueError:
            # Samples that are not all alike say nothing about each other, but the first one does.
            self.NUM_EXAMPLES_FOR_FEATURES_INFERENCE = 1
            return super()._split_generators(dl_manager)

    def _generate_examples(self, tar_paths: list, tar_iterators: list) -> Iterator[tuple[Any, dict[str, Any]]]:
        columns = [name for name, feature in self.info.features.items() if isinstance(feature, datasets.Image)]
        for key, example in super()._generate_examples(tar_paths, tar_iterators):
            others = [name for name in example if name not in self.info.features]
            if len(columns) == 1 and example[columns[0]] is None:
                example[columns[0]] = self._image_in(example, others)
            for name in others:
                del example[name]
            yield key, example

    def _image_in(self, example: dict[str, Any], names: list[str]) -> dict[str, Any] | None:
        found = next((name for name in names if name.rpartition(".")[2].lower() in self.IMAGE_EXTENSIONS), None)
        return None if found is None else {"path": f"{example['__key__']}.{found}", "bytes": example[found]}


def _load_shards(files: dict[str, list[str]], split: str, streaming: bool) -> Dataset | IterableDataset:
    builder = ImageShards(dataset_name="shards", data_files=files)
    if streaming:
        return builder.as_streaming_dataset(split)
    builder.download_and_prepare()
    return builder.as_dataset(split)


def _split_of(dataset: Dataset | DatasetDict, split: str | None) -> Dataset:
    """What was saved alone is one split: that which it was taken from, or "train"."""
    splits = dataset if isinstance(dataset, DatasetDict) else {str(dataset.split or datasets.Split.TRAIN): dataset}
    return splits[_found_split(split, splits)]


def _found_split(split: str | None, splits: Collection[str]) -> str:
    """The one that is named, or else the only one."""
    if split is None and len(splits) == 1:
        return next(iter(splits))
    if split is None or split not in splits:
        raise ValueError(f"it has the splits {list(splits)}")
    return split


def _load_by_name(spec: DatasetSpec) -> Dataset | IterableDataset:
    with explained(spec.name, kind="dataset"):
        try:
            return load_dataset(spec.name, spec.config_name, split=spec.split, streaming=spec.streaming)
        except datasets.exceptions.DatasetNotFoundError:
            # Which does not say where to ask for access: what it stumbled over does.
            with suppress(RemoteEntryNotFoundError):
                hf_hub_download(spec.name, "README.md", repo_type="dataset")
            raise


def _files_by_split(name: str, suffix: str) -> dict[str, list[str]]:
    """
    The files of each split in a folder, told apart by their names and folders as `datasets` does it; where names tell
    nothing, and for a pattern or an address, all of them are "train".
    """
    if not Path(name).is_dir():
        return {"train": [name]} if name.endswith(suffix) else {}
    everything = [str(path) for path in sorted(Path(name).rglob(f"*{suffix}"))]
    if not everything:
        return {}
    by_split = DataFilesDict.from_patterns(get_data_patterns(name), base_path=name).filter(extensions=[suffix])
    return {split: list(files) for split, files in by_split.items() if files} or {"train": everything}
