import copy
import os
import shutil
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from diffusers import VQModel

from transformers_mage.data.batches import Loading, Share
from transformers_mage.data.indexed import IndexedSource
from transformers_mage.data.loading import Columns
from transformers_mage.data.token_cache import (
    CachedTokens,
    CacheMetadata,
    damaged_shards,
    encode_shard,
    save_shard,
    shard_folder,
    transform_values,
)
from transformers_mage.data.views import Crops, ImageViews
from transformers_mage.files import FolderError, fingerprint

VIEWS = ImageViews((4, 4), channels=1, num_views=3, crops=Crops(scale_min=1))


def number_and_view(pixels: torch.Tensor) -> torch.Tensor:
    """In place of a tokenizer: two tokens that tell which image and which view it was."""
    images = pixels[:, 0, 0, 0].long()
    views = torch.arange(len(pixels)) // (len(pixels) // VIEWS.num_views)
    return torch.stack([1000 * views + images] * 2, dim=1)


@pytest.fixture(scope="module")
def folder(numbered_images: Dataset, tokenizer: VQModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens") / "train"
    metadata = CacheMetadata(fingerprint(tokenizer), transform_values(VIEWS), [1, 2], {}, seed=0, num_shards=3)
    metadata.save(folder)
    for index in range(3):
        rows = numbered_images.shard(3, index)
        shard, num_skipped = encode_shard(rows, number_and_view, VIEWS, Columns(), (0, index), batch_size=8)
        assert num_skipped == 0
        save_shard(shard, shard_folder(folder, index, 3))
    return folder


def test_rows_hold_their_images_views_and_labels(folder: Path):
    tokens = CachedTokens(folder)
    assert len(tokens) == 50
    draws = [50 * epoch + image for epoch, image in [(0, 0), (1, 17), (2, 49), (3, 33)]]
    batch = tokens.__getitems__(draws)
    assert batch.labels.tolist() == [0, 17, 49, 33]
    assert batch.input_ids.tolist() == [[0, 0], [1017, 1017], [2049, 2049], [33, 33]]
    assert batch.input_ids.dtype == torch.long
    assert tokens.first_views(20)[:, 0].tolist() == list(range(20))


def test_contrastive_training_gets_two_views_of_each_image(folder: Path):
    batch = CachedTokens(folder, views_per_image=2).__getitems__([3, 53])
    assert batch.input_ids[:, 0].tolist() == [3, 2003, 1003, 3]
    with pytest.raises(FolderError, match="holds 3 views of each image, 4 different ones"):
        CachedTokens(folder, views_per_image=4)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("num_processes", [1, 2])
def test_every_epoch_sees_every_row_once(folder: Path, num_processes: int, num_workers: int):
    rows = []
    for process in range(num_processes):
        loading = Loading(5, share=Share(process, num_processes), num_workers=num_workers, timeout=60)
        source = IndexedSource(CachedTokens(folder), loading)
        batches = islice(source.batches(samples_seen=0), 20 // num_processes)
        rows.append([batch.input_ids[:, 0] for batch in batches])
    # Global batches, one process's part after the other's.
    seen = torch.cat([part for batch in zip(*rows, strict=True) for part in batch]).tolist()
    for epoch in range(2):
        assert Counter(seen[50 * epoch : 50 * (epoch + 1)]) == Counter(1000 * epoch + i for i in range(50))


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "train"))


def test_an_interrupted_cache_says_what_is_missing(copied: Path):
    shutil.rmtree(shard_folder(copied, 1, 3))
    (copied / ".shard-00001-of-00003.partial").mkdir()
    assert damaged_shards(copied, 3, read=True) == {1: "is missing"}
    with pytest.raises(FolderError, match=r"1 of 3 shards .* shard-00001-of-00003: it is missing. Run"):
        CachedTokens(copied)


def cut(file: Path):
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path):
    os.truncate(file, 0)


def flip(file: Path):
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, empty, Path.unlink, flip])
@pytest.mark.parametrize("knows_its_files", [True, False])
def test_a_damaged_shard_is_named(copied: Path, damage: Callable[[Path], None], knows_its_files: bool):
    """Shards that are older than their lists of files cannot tell that a byte was flipped."""
    shard = shard_folder(copied, 1, 3)
    damage(shard / "data-00000-of-00001.arrow")
    if not knows_its_files:
        (shard / "files.json").unlink()
    found = damaged_shards(copied, 3, read=True)
    assert found.keys() == ({1} if knows_its_files or damage is not flip else set())
    if damage is not flip:
        with pytest.raises(FolderError, match=r"the first being shard-00001-of-00003: it .*Run scripts/cache_tokens"):
            CachedTokens(copied)


def test_a_cache_of_broken_images_alone_is_refused(folder: Path, tmp_path: Path):
    metadata = CacheMetadata.load(folder)
    metadata.num_shards = 1
    metadata.save(tmp_path)
    nothing, _ = encode_shard(Dataset.from_dict({"image": [], "label": []}), None, VIEWS, Columns(), (0,), 1)
    save_shard(nothing, shard_folder(tmp_path, 0, 1))
    with pytest.raises(FolderError, match="holds no tokens"):
        CachedTokens(tmp_path)


def test_another_tokenizer_or_transform_is_refused(folder: Path, tokenizer: VQModel):
    tokens = CachedTokens(folder)
    tokens.check(tokenizer, VIEWS.crops, (1, 2))
    other = copy.deepcopy(tokenizer)
    other.quantize.embedding.weight[0, 0] += 1
    with pytest.raises(FolderError, match="tokenizer was"):
        tokens.check(other, VIEWS.crops, (1, 2))
    with pytest.raises(FolderError, match=r"crop_scale_min was 1 there and is 0\.2 now"):
        tokens.check(tokenizer, Crops(), (1, 2))


def test_broken_images_are_left_out(numbered_images: Dataset):
    rows = numbered_images.select(range(4)).to_list()
    rows[2]["image"]["bytes"] = b"no image"
    shard, num_skipped = encode_shard(Dataset.from_list(rows), number_and_view, VIEWS, Columns(), (0, 0), batch_size=2)
    assert num_skipped == 1
    assert shard["label"][:] == [0, 1, 3]
