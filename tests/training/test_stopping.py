import os
import signal
from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from transformers_mage.command_line import reports_errors
from transformers_mage.training.stopping import LostWorkers


@pytest.fixture
def dies() -> Iterator[None]:
    """PyTorch's handler, as it is once a loading process has died."""

    def handler(number: int, frame: object):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    before = signal.signal(signal.SIGCHLD, handler)
    yield
    signal.signal(signal.SIGCHLD, before)


def die():
    os.kill(os.getpid(), signal.SIGCHLD)


def test_a_death_while_waiting_is_raised_at_once(dies: None):
    with pytest.raises(RuntimeError, match="is killed by signal"), LostWorkers().raised():
        die()


def test_a_death_in_an_update_is_raised_at_the_next_wait(dies: None):
    workers = LostWorkers()
    with workers.raised():
        pass

    die()

    with pytest.raises(RuntimeError, match="is killed by signal"), workers.raised():
        pytest.fail("there is nothing to wait for")


def test_afterwards_it_is_pytorchs_business_again(dies: None):
    workers = LostWorkers()
    with workers.raised():
        pass
    workers.close()

    with pytest.raises(RuntimeError, match="is killed by signal"):
        die()


def test_no_worker_is_lost():
    workers, seen = LostWorkers(), []
    with workers.raised():
        loader = iter(DataLoader(TensorDataset(torch.arange(4)), batch_size=2, num_workers=1))
    for _ in range(2):
        with workers.raised():
            seen += next(loader)[0].tolist()
    workers.close()

    assert seen == [0, 1, 2, 3]


def test_scripts_say_it_in_a_line():
    @reports_errors
    def main(argv: list[str] | None = None):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. \nTraceback")

    with pytest.raises(SystemExit, match=r"is killed by signal: Killed\. .*try fewer `--dataloader_num_workers`"):
        main([])
