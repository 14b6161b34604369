"""In which precision a device is fast: measured on it, since some processors emulate bfloat16, very slowly."""

import time

import torch


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32: on a processor by measuring it, elsewhere if it is not emulated."""
    # Of the extra `training`, which only those need who ask for this.
    from accelerate.utils import is_bf16_available

    if device.type == "cpu":
        return bfloat16_slowdown(device) < 1
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return is_bf16_available()


def chosen_precision(mixed_precision: str | None) -> str | None:
    """
    What Accelerate takes for a `--mixed_precision`: `"auto"` becomes `"bf16"` where that is fast, or else `"no"`, and
    the main process measures for all.
    """
    if mixed_precision != "auto":
        return mixed_precision
    return "bf16" if is_bfloat16_fast_for_all() else "no"


def is_bfloat16_fast_for_all() -> bool:
    """[`has_fast_bfloat16`] of the main process's device."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    state = PartialState()
    answer = [has_fast_bfloat16(state.device) if state.is_main_process else None]
    broadcast_object_list(answer)
    return bool(answer[0])


@torch.no_grad()
def bfloat16_slowdown(device: torch.device) -> float:
    """How many times as long as in float32 the device takes for a linear layer and a convolution in bfloat16."""
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        with torch.random.fork_rng():
            layer = torch.nn.Linear(256, 256, device=device, dtype=dtype)
            convolution = torch.nn.Conv2d(32, 32, 3, device=device, dtype=dtype)
        features, pixels = (torch.ones(shape, device=device, dtype=dtype) for shape in ((512, 256), (4, 32, 32, 32)))
        taken = []
        for _ in range(3):
            start = time.perf_counter()
            layer(features).sum().item()
            convolution(pixels).sum().item()
            taken.append(time.perf_counter() - start)
        seconds.append(min(taken))
    return seconds[1] / seconds[0]
