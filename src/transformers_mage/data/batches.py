"""What a source of training data gives, how it is loaded, and the order of its batches."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import Sampler

from ..processes import be_a_loading_process

if TYPE_CHECKING:
    from accelerate import Accelerator

Collated = TypeVar("Collated")


class DataError(RuntimeError):
    """Data that cannot be read, or that is not what was asked for."""


@dataclass
class Batch:
    """
    One process's part of a batch: pixels, tokens or features.

    Attributes:
        pixels (`torch.Tensor` of shape `(batch_size, channels, height, width)`, *optional*):
            uint8. Whole images, or views of them, the first views of all images and then the second ones.
        input_ids (`torch.Tensor` of shape `(num_views x batch_size, sequence_length)`, *optional*): tokens.
        labels (`torch.Tensor` of shape `(batch_size,)`, *optional*): classes.
        features (`torch.Tensor` of shape `(batch_size, size)`, *optional*): what a model says of the images.
        are_views (`bool`): whether the pixels are views already; see [`RandomViews.of`].
        num_skipped (`int`): broken images that were left out.
    """

    pixels: torch.Tensor | None = None
    input_ids: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    features: torch.Tensor | None = None
    are_views: bool = False
    num_skipped: int = 0

    def tensors(self) -> dict[str, torch.Tensor]:
        """What it holds, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}

    def to(self, device: torch.device | str) -> "Batch":
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """What a loader calls, so that a GPU can fetch the batch while it computes."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        mapped: dict[str, Any] = {name: function(tensor) for name, tensor in self.tensors().items()}
        return replace(self, **mapped)


@dataclass(frozen=True)
class Share:
    """Which part of the work is this process's."""

    process_index: int = 0
    num_processes: int = 1

    @classmethod
    def of(cls, accelerator: "Accelerator") -> "Share":
        return cls(accelerator.process_index, accelerator.num_processes)


@dataclass(frozen=True)
class Loading:
    """
    How a process loads its batches.

    Attributes:
        batch_size (`int`): images in a batch of one process.
        seed (`int`): of the order and the views.
        share ([`Share`]): this process's.
        num_workers (`int`): loading processes for each training process.
        timeout (`float`): seconds that a worker may take for a batch; 0 waits for ever.
        pin_memory (`bool`): whether batches go to a GPU.
        in_memory_limit (`float`): decode equally large images once, up to this many GB.
        max_skipped_share (`float`): share of broken images that is put up with then.
        window_size (`int`): images that are shuffled together when streaming.
        num_retries (`int`): times that a failing read of a stream is tried again.
    """

    batch_size: int
    seed: int = 0
    share: Share = Share()
    num_workers: int = 0
    timeout: float = 0.0
    pin_memory: bool = False
    in_memory_limit: float = 2.0
    max_skipped_share: float = 0.01
    window_size: int = 1000
    num_retries: int = 8

    def options(self) -> dict[str, Any]:
        """
        A `DataLoader`'s options. It leaves torch's global generator alone, so making it again does not change a run.
        """
        return {
            "collate_fn": identity_collate,
            "num_workers": self.num_workers,
            "pin_memory": self.pin_memory,
            "timeout": self.timeout if self.num_workers else 0,
            "generator": torch.Generator(),
            "worker_init_fn": be_a_loading_process if self.num_workers else None,
        }


def identity_collate(batch: Collated) -> Collated:
    return batch


class Source(Protocol):
    """Where a process's batches come from."""

    num_samples: int | None

    def batches(self, samples_seen: int) -> Iterator[Batch]:
        """This process's endless batches, after `samples_seen` samples of all processes."""

    def state_dict(self) -> Any:
        """This process's position, after the last batch, if `samples_seen` does not say it."""

    def load_state_dicts(self, states: list[Any]) -> None:
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
        loading ([`Loading`]): batch size, seed, and which part of each global batch is this process's.
        samples_seen (`int`): where to start, over all processes.
    """

    def __init__(self, num_samples: int, loading: Loading, samples_seen: int = 0):
        self.num_samples = num_samples
        self.loading = loading
        self.samples_seen = samples_seen

    def epoch_order(self, epoch: int) -> np.ndarray:
        order = np.random.default_rng((self.loading.seed, epoch)).permutation(self.num_samples)
        return order + epoch * self.num_samples

    def __iter__(self) -> Iterator[list[int]]:
        batch_size, share = self.loading.batch_size, self.loading.share
        start = self.samples_seen + share.process_index * batch_size
        epoch, order = -1, np.empty(0, np.int64)
        while True:
            draws = []
            for position in range(start, start + batch_size):
                if position // self.num_samples != epoch:
                    epoch = position // self.num_samples
                    order = self.epoch_order(epoch)
                draws.append(int(order[position % self.num_samples]))
            yield draws
            start += batch_size * share.num_processes
