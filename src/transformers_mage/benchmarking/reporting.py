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


def ratios(measured: Measurement, base: Measurement) -> list[float]:
    """How many times as fast as `base`, pair by pair."""
    return [slow / quick for quick, slow in zip(measured.seconds, base.seconds, strict=True)]


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
    """
    How each variant of a workload compares with the plain path or, where that took no part, with the fast one, pair
    by pair; empty where there is nothing to compare with.
    """
    by_name = {(measured.workload, measured.variant): measured for measured in measurements}
    lines = []
    for (workload, variant), measured in by_name.items():
        base = by_name.get((workload, "plain")) or by_name[workload, "fast"]
        if measured is not base:
            pairs = ratios(measured, base)
            shown = ", ".join(f"{ratio:.2f}" for ratio in pairs)
            memory = _memory_ratio(measured, base)
            median = f"{statistics.median(pairs):.2f}"
            lines.append(f"| {workload} | {variant} | {base.variant} | {median} | {shown} | {memory} |")
    if not lines:
        return ""
    head = [
        "| workload | variant | beside | times as fast | pair by pair | peak memory, of what is beside |",
        "| --- | --- | --- | ---: | --- | ---: |",
    ]
    return "\n".join(head + lines)


def _memory_ratio(measured: Measurement, base: Measurement) -> str:
    if not measured.peak_memory or not base.peak_memory:
        return "-"
    return f"{measured.peak_memory / base.peak_memory:.0%}"


def as_json(measurements: Sequence[Measurement], machine: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    derived = ("median", "images_per_second", "achieved_flops", "share")
    results = [asdict(m) | {name: getattr(m, name) for name in derived} for m in measurements]
    return {"machine": machine, "arguments": arguments, "results": results}
