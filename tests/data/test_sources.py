"""Decoded images are kept, so that a second start need not decode them."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, Image
from PIL import Image as PilImage

from transformers_mage.data import sources
from transformers_mage.data.batches import Loading
from transformers_mage.data.indexed import InMemoryImages
from transformers_mage.data.loading import DatasetSpec, load_images
from transformers_mage.data.views import ImageViews

VIEWS = ImageViews((4, 4), channels=1)


@pytest.fixture
def datasets_cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setattr(sources, "FEWEST_KEPT", 10)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def folder(numbered_images: Dataset, tmp_path: Path) -> Path:
    numbered_images.save_to_disk(tmp_path / "numbers")
    return tmp_path / "numbers"


def load(folder: Path, limit: float = 1.0) -> InMemoryImages | None:
    dataset, columns = load_images(DatasetSpec(str(folder)))
    return sources.load_into_memory(dataset, columns, VIEWS, Loading(8, in_memory_limit=limit))


def test_a_second_start_decodes_nothing(datasets_cache: Path, folder: Path, monkeypatch):
    first = load(folder)
    monkeypatch.setattr(sources, "decode_dataset", lambda *_: pytest.fail("decoded again"))
    second = load(folder)

    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, second.labels)
    assert torch.equal(second.images[:, 0, 0, 0], torch.arange(50, dtype=torch.uint8))


def test_other_images_are_decoded(datasets_cache: Path, folder: Path, numbered_images: Dataset, tmp_path: Path):
    load(folder)
    numbered_images.select(range(20, 40)).save_to_disk(tmp_path / "others")

    assert load(tmp_path / "others").images[0].max() == 20


def test_a_limit_holds_for_what_is_kept_too(datasets_cache: Path, folder: Path):
    load(folder)

    assert load(folder, limit=1e-8) is None


def test_without_room_they_are_decoded_each_time(datasets_cache: Path, folder: Path, caplog):
    datasets_cache.parent.mkdir(exist_ok=True)
    datasets_cache.write_text("a file where the folder should be")

    assert len(load(folder)) == 50
    assert "decoded anew at the next start" in caplog.text


def test_a_disabled_cache_keeps_nothing(datasets_cache: Path, folder: Path):
    datasets.disable_caching()
    try:
        load(folder)
    finally:
        datasets.enable_caching()

    assert not datasets_cache.exists()


def test_few_images_are_not_kept(datasets_cache: Path, tmp_path: Path):
    image = PilImage.fromarray(np.zeros((4, 4), np.uint8))
    Dataset.from_dict({"image": [image] * 3}).cast_column("image", Image()).save_to_disk(tmp_path / "few")
    load(tmp_path / "few")

    assert not datasets_cache.exists()
