"""ImageNet as the Hub has it: gated, in parquet shards, streamed by its name."""

import copy
from collections import Counter
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from tests.data.test_streamed import first_epoch
from transformers_mage.data.batches import DataError, Loading, Share
from transformers_mage.data.loading import Columns, DatasetSpec, load_images
from transformers_mage.data.streamed import Retries, StreamedSource
from transformers_mage.data.views import Crops, ImageViews
from transformers_mage.training.conditional import class_settings

from .server import HubServer

NAMES = [f"tench {i}" for i in range(48)]
NUM_SHARDS = 6
NAME = "ILSVRC/imagenet-1k"


@pytest.fixture
def imagenet(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """Of the layout of `ILSVRC/imagenet-1k`: each label occurs once."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    images = [Image.fromarray(np.full((8, 8, 3), 5 * i, dtype=np.uint8)) for i in range(len(NAMES))]
    everything = datasets.Dataset.from_dict({"image": images, "label": range(len(NAMES))}, features)
    files = {"README.md": b"---\nlicense: other\n---\n"}
    for split, num_shards in (("train", NUM_SHARDS), ("validation", 1), ("test", 1)):
        for shard in range(num_shards):
            path = f"data/{split}-{shard:05}-of-{num_shards:05}.parquet"
            everything.shard(num_shards, shard).to_parquet(tmp_path / "shard.parquet")
            files[path] = (tmp_path / "shard.parquet").read_bytes()
    hub.hub.users["hf_imagenet"] = "ILSVRC"
    hub.hub.create(NAME, files, kind="dataset", gated=True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setenv("HF_TOKEN", "hf_imagenet")
    return hub


def load(split: str = "train") -> datasets.IterableDataset:
    return load_images(DatasetSpec(NAME, split=split, streaming=True))[0]


def sources(num_processes: int, num_workers: int) -> list[StreamedSource]:
    views = ImageViews((8, 8), channels=3, crops=Crops(scale_min=1, flip=False))
    shares = [Share(process, num_processes) for process in range(num_processes)]
    loadings = [Loading(2, seed=1, share=share, num_workers=num_workers, window_size=3) for share in shares]
    return [StreamedSource(load(), Columns(), views, loading, Retries(8, 0.01)) for loading in loadings]


def read(sources: list[StreamedSource], num_batches: int) -> list[list[list[int]]]:
    return [[batch.labels.tolist() for batch in islice(source.batches(0), num_batches)] for source in sources]


def test_shards_and_classes_are_found(imagenet: HubServer):
    stream = load()

    assert stream.num_shards == NUM_SHARDS
    assert class_settings(stream, "label")["id2label"] == dict(enumerate(NAMES))
    assert len(list(load(split="validation"))) == len(NAMES)


@pytest.mark.slow
def test_two_processes_with_workers_read_everything_once(imagenet: HubServer):
    seen = Counter()
    for source in sources(num_processes=2, num_workers=2):
        for state in source.states:
            seen.update(label for _, label in first_epoch(source, state))

    assert seen == Counter(range(len(NAMES)))
    batches = read(sources(2, 2), num_batches=4)
    assert batches == read(sources(2, 2), num_batches=4)
    assert len({label for process in batches for batch in process for label in batch}) == 2 * 4 * 2


@pytest.mark.slow
def test_resuming_inside_a_shard(imagenet: HubServer):
    undisturbed = read(sources(2, 1), num_batches=8)
    stopped = sources(2, 1)
    before = read(stopped, num_batches=3)
    states = copy.deepcopy([source.state_dict() for source in stopped])
    resumed = sources(2, 1)
    for source in resumed:
        source.load_state_dicts(states)

    after = read(resumed, num_batches=5)

    assert [first + second for first, second in zip(before, after, strict=True)] == undisturbed
    assert any(reading.position for lane in states[0]["lanes"] for reading in lane.queue)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_server_that_hangs_up(imagenet: HubServer, monkeypatch: pytest.MonkeyPatch, num_workers: int):
    undisturbed = read(sources(1, num_workers), num_batches=20)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    for after in (0, 100, 500):
        imagenet.cut(r"GET .*/data/train-.*parquet", after)

    assert read(sources(1, num_workers), num_batches=20) == undisturbed
    assert not imagenet.cuts


def test_a_server_that_pauses(imagenet: HubServer):
    undisturbed = read(sources(1, 0), num_batches=12)
    (source,) = sources(1, 0)
    batches = source.batches(0)
    first = next(batches).labels.tolist()
    imagenet.stall(seconds=0.5)

    assert [first, *(batch.labels.tolist() for batch in islice(batches, 11))] == undisturbed[0]


@pytest.mark.parametrize("token", [None, "hf_right"])
def test_no_access_is_told_in_a_line(imagenet: HubServer, monkeypatch: pytest.MonkeyPatch, token: str | None):
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)

    with pytest.raises(DataError) as caught:
        load()

    assert f"{NAME} is gated: ask for access at {imagenet.endpoint}/datasets/{NAME}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_such_dataset(imagenet: HubServer):
    imagenet.hub.repositories.clear()

    with pytest.raises(DataError, match="neither a folder here nor a dataset on the Hub") as caught:
        load()

    assert "\n" not in str(caught.value)
