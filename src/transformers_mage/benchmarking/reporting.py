"""Measurements as JSON and as Markdown."""

import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .measuring import Measurement

PACKAGES = ("torch", "transformers", "diffusers")
COLUMNS = (
    "workload",
    "variant",
    "batch",
    "images/s",
    "ms an image",
    "peak memory, MB",
    "GFLOP/s",
    "share of a product",
)


def describe_machine(device: torch.device) -> dict[str, Any]:
    """When, where and with what."""
    on_gpu = device.type == "cuda"
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name(device) if on_gpu else f"CPU, {_processor()}",
        "threads": torch.get_num_threads(),
        **{name: version(name) for name in PACKAGES},
        **({"cuda": torch.version.cuda} if on_gpu else {}),
    }


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in _lines(file) if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def ratios(fast: Measurement, plain: Measurement) -> list[float]:
    """How many times as fast as the plain path, pair by pair."""
    return [slow / quick for quick, slow in zip(fast.seconds, plain.seconds, strict=True)]


def markdown_table(measurements: Sequence[Measurement]) -> str:
    lines = [" | ".join(COLUMNS), " | ".join(["---", "---"] + ["---:"] * (len(COLUMNS) - 2))]
    lines += [" | ".join(_cells(measurement)) for measurement in measurements]
    return "\n".join(f"| {line} |" for line in lines)


def _cells(measured: Measurement) -> list[str]:
    return [
        measured.workload,
        measured.variant,
        str(measured.batch_size),
        f"{measured.images_per_second:.3g}",
        f"{1e3 * measured.median / measured.batch_size:.4g}",
        "-" if measured.peak_memory is None else f"{measured.peak_memory / 1e6:.0f}",
        "-" if measured.achieved_flops is None else f"{measured.achieved_flops / 1e9:.0f}",
        "-" if measured.share is None else f"{measured.share:.0%}",
    ]


def ratio_table(measurements: Sequence[Measurement]) -> str:
    """The pairs of fast and plain measurements of each workload; empty where there are none."""
    by_name = {(measured.workload, measured.variant): measured for measured in measurements}
    lines = []
    for (workload, variant), fast in by_name.items():
        plain = by_name.get((workload, "plain"))
        if variant == "fast" and plain is not None:
            pairs = ratios(fast, plain)
            memory = _memory_ratio(fast, plain)
            shown = ", ".join(f"{ratio:.2f}" for ratio in pairs)
            lines.append(f"| {workload} | {statistics.median(pairs):.2f} | {shown} | {memory} |")
    if not lines:
        return ""
    head = [
        "| workload | times as fast | pair by pair | peak memory, of the plain path's |",
        "| --- | ---: | --- | ---: |",
    ]
    return "\n".join(head + lines)


def _memory_ratio(fast: Measurement, plain: Measurement) -> str:
    if not fast.peak_memory or not plain.peak_memory:
        return "-"
    return f"{fast.peak_memory / plain.peak_memory:.0%}"


def as_json(measurements: Sequence[Measurement], machine: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    derived = ("median", "images_per_second", "achieved_flops", "share")
    results = [asdict(m) | {name: getattr(m, name) for name in derived} for m in measurements]
    return {"machine": machine, "arguments": arguments, "results": results}
