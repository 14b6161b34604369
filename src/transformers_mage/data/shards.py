"""Webdataset shards, the samples of which may hold their images in files of different kinds."""

from collections.abc import Iterator
from typing import Any

from datasets import Image
from datasets.packaged_modules.webdataset.webdataset import WebDataset


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
        columns = [name for name, feature in self.info.features.items() if isinstance(feature, Image)]
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


__all__ = ["ImageShards"]
