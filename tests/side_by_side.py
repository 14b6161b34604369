"""Functions in several processes that talk to each other."""

import os
from collections.abc import Callable
from typing import Any

import torch.multiprocessing


def run_side_by_side(function: Callable[..., None], *arguments: Any, processes: int = 2):
    """Calls `function(rank, *arguments)` in new processes, and raises what any of them raises."""
    torch.multiprocessing.spawn(_run_and_leave, (function, arguments), nprocs=processes)


def _run_and_leave(rank: int, function: Callable[..., None], arguments: tuple[Any, ...]):
    function(rank, *arguments)
    # At once, without Python's way out: gloo's threads outlive `destroy_process_group`, and one of them that lets go
    # of a tensor while Python ends takes the process down with it (https://github.com/pytorch/pytorch/issues/190489).
    os._exit(0)
