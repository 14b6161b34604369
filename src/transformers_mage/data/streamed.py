"""
Streamed data that is read exactly once an epoch, whatever stops and resumes it, on any number of processes.

A streamed dataset is cut into units (its shards, or groups of them). Each epoch deals the units in a random order to
lanes, one for every loading worker of every process. A lane reads its units one after the other, a window of examples
at a time, and shuffles within the window. So a lane's position is small: its remaining units, where in the first of
them the current window starts, and how many of its examples were given. Nothing that waits in a shuffle buffer is lost
when a run is resumed, and the lanes' positions together say what is left to read, for any other number of lanes.
"""

import contextlib
import logging
import lzma
import tarfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset
from torch.utils.data import DataLoader, get_worker_info

from .batches import Batch, DataError, Loading, stack_views
from .images import BrokenImageError
from .labels import class_column
from .loading import Columns
from .views import ImageViews

logger = logging.getLogger(__name__)

# Units a data set is cut into at most: a checkpoint holds those that are left.
MAX_UNITS = 1024
# What reading a cut archive raises. A broken connection may look the same, so it is read again a few times.
CUT = (tarfile.ReadError, EOFError, zlib.error, lzma.LZMAError)
PATIENCE_WITH_CUTS = 2
# An example, with numbers that no other example has.
Example = tuple[tuple[int, ...], dict[str, Any]]


@dataclass
class Reading:
    """
    A unit of an epoch, and how far it has been read.

    Attributes:
        epoch, unit (`int`): which.
        part, num_parts (`int`): where there are more lanes than units, each reads a part of the examples.
        start (`dict`, *optional*): the `datasets` state where the current window starts.
        window (`int`): the current window's number.
        position (`int`): examples of it that were given.
    """

    epoch: int
    unit: int
    part: int = 0
    num_parts: int = 1
    start: dict[str, Any] | None = None
    window: int = 0
    position: int = 0


@dataclass
class LaneState:
    """A lane's position: what it still has to read of the epochs before `next_epoch`, the current unit first."""

    lane: int
    queue: list[Reading] = field(default_factory=list)
    next_epoch: int = 0


# What a checkpoint may hold besides plain values: its files are read with `weights_only`.
torch.serialization.add_safe_globals([Reading, LaneState])
# Checkpoints of earlier versions know them by the place where they were.
for _class in (Reading, LaneState):
    torch.serialization.add_safe_globals([(_class, f"transformers_mage.training.streaming.{_class.__name__}")])


def deal_units(epoch: int, lane: int, num_lanes: int, num_units: int, seed: int) -> list[Reading]:
    """The units of an epoch that a lane reads, in its order."""
    order = np.random.default_rng((seed, epoch)).permutation(num_units).tolist()
    if num_units >= num_lanes:
        return [Reading(epoch, unit) for unit in order[lane::num_lanes]]
    sharing = range(lane % num_units, num_lanes, num_units)
    return [Reading(epoch, order[lane % num_units], sharing.index(lane), len(sharing))]


def deal_again(states: list[LaneState], num_lanes: int, num_units: int, seed: int) -> list[LaneState]:
    """Positions for another number of lanes, which together read exactly what the old lanes still had to read."""
    if len(states) == num_lanes:
        return sorted(states, key=lambda state: state.lane)
    next_epoch, remaining = max(state.next_epoch for state in states), []
    for state in states:
        remaining += state.queue
        for epoch in range(state.next_epoch, next_epoch):
            remaining += deal_units(epoch, state.lane, len(states), num_units, seed)
    remaining.sort(key=lambda reading: reading.epoch)
    return [LaneState(lane, remaining[lane::num_lanes], next_epoch) for lane in range(num_lanes)]


@dataclass
class Retries:
    """Failed reads are tried again after 1, 2, 4... seconds, and at most `limit` times in a row."""

    limit: int = 8
    first_pause: float = 1.0

    def pause(self, attempt: int, what: str, error: Exception):
        if attempt > self.limit:
            raise DataError(
                f"{what} could not be read in {self.limit + 1} attempts, the last error being "
                f"{type(error).__name__}: {error}"
            ) from error
        seconds = self.first_pause * 2 ** (attempt - 1)
        logger.warning(
            "%s could not be read (%s: %s); trying again in %g s.", what, type(error).__name__, error, seconds
        )
        time.sleep(seconds)


class Lane:
    """
    Reads a lane's examples, endlessly.

    Args:
        dataset (`datasets.IterableDataset`): the whole dataset.
        num_units, num_lanes, seed (`int`): see [`deal_units`].
        state ([`LaneState`]): where to start; it is not changed.
        window_size (`int`): examples that are shuffled together.
        retries ([`Retries`]): what to do about failing reads.
    """

    def __init__(
        self,
        dataset: IterableDataset,
        num_units: int,
        num_lanes: int,
        seed: int,
        state: LaneState,
        window_size: int,
        retries: Retries,
    ):
        self.dataset = dataset
        self.num_units = num_units
        self.num_lanes = num_lanes
        self.seed = seed
        self.state = replace(state, queue=[replace(reading) for reading in state.queue])
        self.window_size = window_size
        self.retries = retries

    def snapshot(self) -> LaneState:
        """The position after the last example. Only the first reading ever changes, so only that is copied."""
        queue = self.state.queue
        return replace(self.state, queue=[*(replace(reading) for reading in queue[:1]), *queue[1:]])

    def examples(self) -> Iterator[Example]:
        """All examples of the epochs, one after another."""
        while True:
            if not self.state.queue:
                dealt = (self.state.next_epoch, self.state.lane, self.num_lanes, self.num_units, self.seed)
                self.state.queue = deal_units(*dealt)
                self.state.next_epoch += 1
            # A copy, since snapshots share the readings after the first, and a loader may not have sent them off yet.
            self.state.queue[0] = replace(self.state.queue[0])
            yield from self._read(self.state.queue[0])
            self.state.queue.pop(0)

    def _read(self, reading: Reading) -> Iterator[Example]:
        for window, after in self._windows(reading):
            identity = (self.seed, reading.epoch, reading.unit, reading.window)
            indices = np.arange(reading.part, len(next(iter(window.values()))), reading.num_parts)
            order = np.random.default_rng(identity).permutation(indices).tolist()
            while reading.position < len(order):
                index = order[reading.position]
                reading.position += 1
                yield (*identity, index), {name: values[index] for name, values in window.items()}
            reading.start, reading.window, reading.position = after, reading.window + 1, 0

    def _windows(self, reading: Reading) -> Iterator[tuple[dict[str, list], dict[str, Any]]]:
        """
        The windows from the current one on, each with the `datasets` state after it.

        Only where a window starts is ever remembered. A failing read, as a resumed run, opens the unit anew there, so
        that nothing before it is read again and nothing after it is lost.
        """
        attempt, windows = 0, None
        while True:
            try:
                if windows is None:
                    unit = self._open(reading)
                    windows = unit.iter(batch_size=self.window_size)
                window = next(windows, None)
                after = unit.state_dict()
            # Every protocol and file format has its own errors.
            except Exception as error:
                attempt, windows = attempt + 1, None
                name = f"Shard {reading.unit} of {self.num_units}"
                if attempt > PATIENCE_WITH_CUTS and isinstance(error, CUT):
                    yield self._remainder(reading, name, error), reading.start or {}
                    return
                self.retries.pause(attempt, name, error)
                continue
            if window is None:
                return
            attempt = 0
            yield window, after

    def _open(self, reading: Reading) -> IterableDataset:
        """A unit, where its current window starts."""
        unit = self.dataset.shard(num_shards=self.num_units, index=reading.unit)
        if reading.start is not None:
            unit.load_state_dict(reading.start)
        return unit

    def _remainder(self, reading: Reading, name: str, error: Exception) -> dict[str, list]:
        """The last window of an archive that was cut: its whole examples, and one that stands for the broken one."""
        examples = []
        with contextlib.suppress(*CUT):
            for example in self._open(reading).iter(batch_size=1):
                examples.append(example)
        logger.warning("%s is cut (%s): the %d whole examples before are read.", name, error, len(examples))
        names = self.dataset.column_names or []
        return {column: [*(example[column][0] for example in examples), None] for column in names}


class StreamedBatches(torch.utils.data.IterableDataset):
    """
    The batches of one process, each with its lane's position after it. Each loading worker runs one lane, so positions
    travel with the batches: what a worker has read ahead counts only when the training has taken it.
    """

    def __init__(self, source: "StreamedSource"):
        self.source = source

    def __iter__(self) -> Iterator[tuple[Batch, LaneState]]:
        worker, source = get_worker_info(), self.source
        lane = source.lane(source.states_in_turn()[worker.id if worker else 0])
        examples = lane.examples()
        while True:
            yield source.collect(examples), lane.snapshot()


class StreamedSource:
    """
    Batches of a streamed dataset.

    Args:
        dataset (`datasets.IterableDataset`): with encoded images.
        columns ([`Columns`]): names of its columns.
        views ([`ImageViews`]): what to make of the images.
        loading ([`Loading`]): how to load them.
        retries ([`Retries`], *optional*): what to do about failing reads; by default `loading` says how often.
    """

    def __init__(
        self,
        dataset: IterableDataset,
        columns: Columns,
        views: ImageViews,
        loading: Loading,
        retries: Retries | None = None,
    ):
        self.dataset = dataset
        self.image_column = columns.image
        self.label_column = class_column(dataset, columns.label)
        self.views = views
        self.loading = loading
        self.retries = retries or Retries(loading.num_retries)
        self.num_samples: int | None = None
        self.num_units = min(dataset.num_shards, MAX_UNITS)
        self.lanes_here = max(loading.num_workers, 1)
        self.num_lanes = self.lanes_here * loading.share.num_processes
        self.first_lane = self.lanes_here * loading.share.process_index
        self.next_lane = 0
        self.load_state_dicts([{"lanes": [LaneState(lane) for lane in range(self.num_lanes)], "next": 0}])

    def states_in_turn(self) -> list[LaneState]:
        """This process's lanes, the one whose turn it is first, which is the order in which a loader asks them."""
        return self.states[self.next_lane :] + self.states[: self.next_lane]

    def lane(self, state: LaneState) -> Lane:
        split = (self.num_units, self.num_lanes, self.loading.seed)
        return Lane(self.dataset, *split, state, self.loading.window_size, self.retries)

    def collect(self, examples: Iterator[Example]) -> Batch:
        """A batch of whole images."""
        views: list[torch.Tensor] = []
        labels, num_skipped = [], 0
        while len(views) < self.loading.batch_size:
            identity, example = next(examples)
            try:
                views.append(self._views_of(example, identity))
                labels.append(example[self.label_column] if self.label_column else -1)
            except BrokenImageError:
                num_skipped += 1
                if num_skipped > 100 * self.loading.batch_size:
                    raise DataError(f"{num_skipped} images in a row cannot be decoded.") from None
        classes = torch.tensor(labels) if self.label_column else None
        return Batch(stack_views(views), labels=classes, are_views=True, num_skipped=num_skipped)

    def _views_of(self, example: dict[str, Any], identity: tuple[int, ...]) -> torch.Tensor:
        if self.label_column and example[self.label_column] is None:
            raise BrokenImageError("it has no label")
        return self.views(example[self.image_column], identity)

    def batches(self, samples_seen: int) -> Iterator[Batch]:
        for batch, state in DataLoader(StreamedBatches(self), batch_size=None, **self.loading.options()):
            self.states[state.lane - self.first_lane] = state
            self.next_lane = (self.next_lane + 1) % self.lanes_here
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"lanes": list(self.states), "next": self.next_lane, "num_units": self.num_units}

    def load_state_dicts(self, states: list[dict[str, Any]]):
        """
        Raises:
            DataError: if the data set had another number of shards then, so that positions mean something else.
        """
        lanes = [lane for state in states for lane in state["lanes"]]
        units = [reading.unit + 1 for lane in lanes for reading in lane.queue]
        then = states[0].get("num_units") or max([self.num_units, *units])
        if then != self.num_units:
            raise DataError(
                f"The data set had at least {then} shards when the checkpoint was written and has {self.num_units} "
                "now. Resume with the same shards, or train anew."
            )
        same = len(lanes) == self.num_lanes
        dealt = deal_again(lanes, self.num_lanes, self.num_units, self.loading.seed)
        self.states = dealt[self.first_lane : self.first_lane + self.lanes_here]
        self.next_lane = states[0]["next"] % self.lanes_here if same else 0
