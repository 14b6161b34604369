"""Times, memory and the device's own speed, measured so that they can be compared."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch.profiler import ProfilerActivity, profile

from ..progress import progress_bar


@dataclass
class Measurement:
    """
    What a workload took in one variant.

    Args:
        workload, variant (`str`): what ran; the variant is `"fast"`, `"plain"` or the flags that were others.
        batch_size (`int`): images in a call.
        seconds (`list[float]`): of each call after the warm-up.
        peak_memory (`int`, *optional*): bytes that a call takes at most, beyond what is there before it on the CPU.
        flops_per_image (`float`, *optional*): of the model, whatever the variant adds to it.
        product_rate (`float`, *optional*): operations a second of a large matrix product in the same run.
    """

    workload: str
    variant: str
    batch_size: int
    seconds: list[float] = field(default_factory=list)
    peak_memory: int | None = None
    flops_per_image: float | None = None
    product_rate: float | None = None

    @property
    def median(self) -> float:
        """Seconds a call."""
        return statistics.median(self.seconds)

    @property
    def images_per_second(self) -> float:
        return self.batch_size / self.median

    @property
    def achieved_flops(self) -> float | None:
        """Operations a second."""
        return self.flops_per_image and self.flops_per_image * self.images_per_second

    @property
    def share(self) -> float | None:
        """Achieved share of the device's rate for matrix products."""
        return self.achieved_flops and self.product_rate and self.achieved_flops / self.product_rate


def synchronize(device: torch.device):
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)


def time_call(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, the device's work included."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def interleave(
    runs: Mapping[str, Callable[[], object]], device: torch.device, warmup: int, repetitions: int
) -> dict[str, list[float]]:
    """
    Seconds of each repetition of each call. They take turns, and turns at being first, so that what else the machine
    does, and what one leaves behind, falls on all alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for i in progress_bar(range(-warmup, repetitions), desc=f"Timing {', '.join(runs)}", leave=False):
        for name, run in list(runs.items())[:: 1 if i % 2 else -1]:
            spent = time_call(run, device)
            if i >= 0:
                seconds[name].append(spent)
    return seconds


def measure_product_rate(device: torch.device, dtype: torch.dtype, repetitions: int = 10) -> float:
    """Floating point operations a second of a large square matrix product."""
    side = 8192 if device.type == "cuda" else 1536
    first, second = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times = interleave({"product": lambda: first @ second}, device, 2, repetitions)["product"]
    return 2 * side**3 / statistics.median(times)


def measure_peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """
    Bytes. On a GPU, all that is allocated at the peak of a call, weights included; on the CPU, what a call allocates
    at its peak beyond what was there before.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


def profile_table(run: Callable[[], object], device: torch.device, rows: int = 12) -> str:
    """Markdown: the operations that a call spends its time in."""
    with profile() as recorded:
        run()
        synchronize(device)
    name = "self_cpu_time_total" if device.type == "cpu" else "self_device_time_total"
    times = {event.key: (getattr(event, name), event.count) for event in recorded.key_averages()}
    total = sum(spent for spent, _ in times.values())
    slowest = sorted(times.items(), key=lambda item: -item[1][0])[:rows]
    lines = [f"| `{key}` | {count} | {spent / 1e3:.1f} | {spent / total:.1%} |" for key, (spent, count) in slowest]
    return "\n".join(["| operation | calls | ms | share |", "| --- | ---: | ---: | ---: |", *lines])
