"""Every sample of an epoch is read exactly once, whatever stops and resumes the reading."""

import copy
import io
import itertools
import os
import tarfile
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from transformers_mage.data.batches import DataError, Loading, Share
from transformers_mage.data.loading import Columns, DatasetSpec, load_images
from transformers_mage.data.streamed import LaneState, Retries, StreamedSource
from transformers_mage.data.views import Crops, ImageViews

VIEWS = ImageViews((4, 4), channels=1, crops=Crops(scale_min=1, flip=False))


def sources(images: Dataset, num_processes: int, num_workers: int, num_shards: int = 5, **kwargs) -> list:
    """What each of the processes would read from."""
    stream = images.to_iterable_dataset(num_shards=num_shards)
    shares = [Share(process, num_processes) for process in range(num_processes)]
    loadings = [Loading(3, seed=1, share=share, num_workers=num_workers, window_size=4) for share in shares]
    return [StreamedSource(stream, Columns(), VIEWS, loading, **kwargs) for loading in loadings]


def read(sources: list[StreamedSource], num_batches: int) -> list[list[list[int]]]:
    """The labels of the batches of each process."""
    return [
        [batch.labels.tolist() for batch in islice(source.batches(samples_seen=0), num_batches)] for source in sources
    ]


def counts(*everything: list[list[list[int]]]) -> Counter:
    return Counter(label for batches in everything for process in batches for batch in process for label in batch)


def saved(sources: list[StreamedSource]) -> list[Any]:
    return copy.deepcopy([source.state_dict() for source in sources])


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("num_shards", [1, 5])
def test_an_epoch_sees_every_image_once(
    numbered_images: Dataset, num_processes: int, num_workers: int, num_shards: int
):
    images = numbered_images.select(range(48))
    batches = read(sources(images, num_processes, num_workers, num_shards), num_batches=3 * 16 // num_processes)
    # Lanes enter the next epoch at their own time, so look at the images of each epoch rather than at the batches.
    seen = counts(batches)
    assert set(seen) == set(range(48))
    assert sum(seen.values()) == 3 * 48
    if num_processes * max(num_workers, 1) == 1:
        flat = [label for batch in batches[0] for label in batch]
        assert all(Counter(flat[48 * i : 48 * i + 48]) == Counter(range(48)) for i in range(3))
        assert flat[:48] != flat[48:96]


@pytest.mark.parametrize(("num_processes", "num_workers"), [(1, 0), (2, 0), (1, 2), (2, 2)])
def test_lanes_together_read_an_epoch_once(numbered_images: Dataset, num_processes: int, num_workers: int):
    epochs = Counter()
    for source in sources(numbered_images, num_processes, num_workers):
        for state in source.states:
            for epoch, label in first_epoch(source, state):
                epochs[epoch, label] += 1
    assert epochs == Counter({(0, label): 1 for label in range(50)})


def first_epoch(source: StreamedSource, state: LaneState) -> list[tuple[int, int]]:
    """The (epoch, label) of what a lane has to read before it enters the second epoch."""
    examples = source.lane(state).examples()
    read = ((identity[1], example["label"]) for identity, example in examples)
    return list(itertools.takewhile(lambda epoch_and_label: epoch_and_label[0] == 0, read))


@pytest.mark.slow
@pytest.mark.parametrize(("num_processes", "num_workers"), [(1, 0), (2, 0), (1, 2), (2, 2)])
@pytest.mark.parametrize("num_batches", [1, 3, 8])
def test_resuming_goes_on_as_if_nothing_had_happened(
    numbered_images: Dataset, num_processes: int, num_workers: int, num_batches: int
):
    undisturbed = read(sources(numbered_images, num_processes, num_workers), num_batches + 7)
    stopped = sources(numbered_images, num_processes, num_workers)
    before = read(stopped, num_batches)
    resumed = sources(numbered_images, num_processes, num_workers)
    for source in resumed:
        source.load_state_dicts(saved(stopped))
    after = read(resumed, 7)
    assert [first + second for first, second in zip(before, after, strict=True)] == undisturbed


@pytest.mark.parametrize(("before", "after"), [((1, 0), (2, 0)), ((2, 2), (1, 0)), ((1, 2), (3, 1))])
def test_another_number_of_processes_reads_what_is_left(
    numbered_images: Dataset, before: tuple[int, int], after: tuple[int, int]
):
    stopped = sources(numbered_images, *before)
    seen = counts(read(stopped, 8 // before[0]))
    resumed = sources(numbered_images, *after)
    for source in resumed:
        source.load_state_dicts(saved(stopped))
    for source in resumed:
        for state in source.states:
            seen.update(label for _, label in first_epoch(source, state))
    assert seen == Counter(range(50))


class Failing:
    """A streamed dataset whose reads fail the first times, in a certain window."""

    def __init__(self, stream: Any, failures: list[Exception], window: int = 1):
        self.stream = stream
        self.failures = failures
        self.window = window
        self.num_shards, self.column_names = stream.num_shards, stream.column_names

    def shard(self, **kwargs) -> "Failing":
        return Failing(self.stream.shard(**kwargs), self.failures, self.window)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def iter(self, batch_size: int):
        for number, batch in enumerate(self.stream.iter(batch_size)):
            if self.failures and number == self.window:
                raise self.failures.pop()
            yield batch


def test_a_failing_read_is_tried_again_from_where_it_was(numbered_images: Dataset, caplog: pytest.LogCaptureFixture):
    undisturbed = read(sources(numbered_images, 1, 0), 20)
    (source,) = sources(numbered_images, 1, 0, retries=Retries(limit=3, first_pause=0.001))
    source.dataset = Failing(source.dataset, [OSError("connection reset"), TimeoutError("stalled")])
    assert read([source], 20) == undisturbed
    assert "connection reset" in caplog.text
    assert "stalled" in caplog.text


def test_a_read_that_goes_on_failing_is_an_error_that_names_the_shard(numbered_images: Dataset):
    (source,) = sources(numbered_images, 1, 0, retries=Retries(limit=2, first_pause=0.001))
    source.dataset = Failing(source.dataset, [OSError("unreachable")] * 100, window=0)
    with pytest.raises(DataError, match=r"Shard \d of 5 could not be read in 3 attempts.*unreachable"):
        read([source], 20)


def test_broken_images_are_skipped_and_counted(numbered_images: Dataset):
    def damage(row: dict) -> dict:
        broken = row["label"] % 10 == 3
        return {"image": {"bytes": row["image"]["bytes"][:30] if broken else row["image"]["bytes"], "path": None}}

    (source,) = sources(numbered_images.map(damage, features=numbered_images.features), 1, 0)
    batches = list(islice(source.batches(0), 15))
    assert sum(batch.num_skipped for batch in batches) == 5
    assert sorted(label for batch in batches for label in batch.labels.tolist()) == [
        label for label in range(50) if label % 10 != 3
    ]


def write_tars(images: Dataset, folder: Path) -> list[Path]:
    """Five tar files of ten images each."""
    files = []
    for number in range(5):
        files.append(folder / f"train-{number}.tar")
        with tarfile.open(files[-1], "w") as tar:
            for row in images.select(range(10 * number, 10 * number + 10)):
                for suffix, content in (("png", row["image"]["bytes"]), ("cls", str(row["label"]).encode())):
                    member = tarfile.TarInfo(f"{row['label']:02}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return files


def from_tars(folder: Path, window_size: int) -> StreamedSource:
    dataset, columns = load_images(DatasetSpec(str(folder), streaming=True))
    assert columns == Columns("png", "cls")
    loading = Loading(3, seed=1, window_size=window_size)
    return StreamedSource(dataset, columns, VIEWS, loading, Retries(limit=9, first_pause=0.001))


@pytest.mark.parametrize("window_size", [4, 1000])
def test_the_whole_images_of_a_cut_tar_are_read(numbered_images: Dataset, tmp_path: Path, window_size: int, caplog):
    files = write_tars(numbered_images, tmp_path)
    with tarfile.open(files[2]) as tar:
        (seventh,) = (member for member in tar.getmembers() if member.name == "27.png")
    os.truncate(files[2], seventh.offset_data + 20)
    source = from_tars(tmp_path, window_size)
    epochs = Counter()
    for identity, example in islice(source.lane(source.states[0]).examples(), 2 * 48):
        epochs[identity[1], example["cls"]] += 1
    whole = [label for label in range(50) if label not in (27, 28, 29)]
    assert epochs == Counter((epoch, label) for epoch in range(2) for label in [*whole, None])
    assert "Shard 2 of 5 is cut" in caplog.text
    assert sum(batch.num_skipped for batch in islice(from_tars(tmp_path, window_size).batches(0), 15)) == 1


def test_a_cut_tar_is_entered_anywhere(numbered_images: Dataset, tmp_path: Path):
    os.truncate(write_tars(numbered_images, tmp_path)[2], 5000)
    undisturbed = read([from_tars(tmp_path, 1000)], 20)
    for num_batches in (5, 9, 14):
        stopped = [from_tars(tmp_path, 1000)]
        before = read(stopped, num_batches)
        resumed = from_tars(tmp_path, 1000)
        resumed.load_state_dicts(saved(stopped))
        (after,) = read([resumed], 20 - num_batches)
        assert before[0] + after == undisturbed[0]


def test_other_shards_than_at_the_checkpoint_are_said_at_once(numbered_images: Dataset):
    (before,), (fewer,) = sources(numbered_images, 1, 0, num_shards=5), sources(numbered_images, 1, 0, num_shards=2)
    read([before], 2)
    state = before.state_dict()
    with pytest.raises(DataError, match="had at least 5 shards when the checkpoint was written and has 2 now"):
        fewer.load_state_dicts([state])
    del state["num_units"]  # as it was written earlier
    with pytest.raises(DataError, match=r"had at least \d shards"):
        fewer.load_state_dicts([state])
