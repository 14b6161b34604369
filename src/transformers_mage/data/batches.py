"""What a source of training data is, and the order of its batches, known in advance and entered anywhere."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Sampler

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


def loader_options(num_workers: int, timeout: float, pin_memory: bool) -> dict[str, Any]:
    """A loader's options. It leaves torch's global generator alone, so making it again does not change the run."""
    return {
        "collate_fn": identity_collate,
        "num_workers": num_workers,
        "pin_memory": pin_memory,
        "timeout": timeout if num_workers else 0,
        "generator": torch.Generator(),
    }


def identity_collate(batch: Batch) -> Batch:
    return batch
