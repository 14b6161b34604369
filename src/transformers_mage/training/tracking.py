"""What a run measures: means without waiting for the device, and how well the hardware is used."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from torch.utils.flop_counter import FlopCounterMode

from ..configuration_mage import MageConfig
from ..files import write_text
from ..masking import MageMasks
from ..modeling_mage import MageForMaskedImageModeling

logger = get_logger(__name__)

# A mean over the micro-batches of all processes, or the sum and the weight of one.
Metric = torch.Tensor | tuple[torch.Tensor, torch.Tensor | float]

# Dense bfloat16 operations a second, as the vendors state them.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}


class Averages:
    """Means of what is measured in each micro-batch. The names must be the same in all processes."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.sums: dict[str, torch.Tensor] = {}

    def add(self, metrics: Mapping[str, Metric]):
        """Takes a micro-batch's values, or (sum, weight) of values that count for more or less than one."""
        device = self.accelerator.device
        for name, value in metrics.items():
            total, weight = value if isinstance(value, tuple) else (value, 1.0)
            pair = torch.stack([_scalar(total, device), _scalar(weight, device)])
            self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    def pop(self) -> dict[str, float]:
        """The means since the last time, of what there was any of."""
        names = sorted(self.sums)
        if not names:
            return {}
        sums = self.accelerator.reduce(torch.stack([self.sums[name] for name in names]), "sum").tolist()
        self.sums = {}
        return {name: total / weight for name, (total, weight) in zip(names, sums, strict=True) if weight}


def _scalar(value: torch.Tensor | float, device: torch.device) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach().to(device, torch.float32)
    # Written on the device: `torch.tensor` would copy it there and wait.
    return torch.full((), value, dtype=torch.float32, device=device)


class MetricsFile:
    """A file of metrics, a line of JSON each time."""

    def __init__(self, path: Path):
        self.path = path
        self._is_full = False

    def truncate(self, step: int):
        """Drops what a killed run logged after the update it is resumed from, and lines that a full disk cut."""
        lines = self.path.read_text(errors="replace").split("\n") if self.path.exists() else []
        kept = [line for line in lines if _step_of(line) <= step]
        write_text(self.path, "".join(f"{line}\n" for line in kept))

    def append(self, values: dict[str, float]):
        """Adds a line. A full disk is reported once, and does not end a run: its checkpoints matter more."""
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(values) + "\n")
            self._is_full = False
        except OSError as error:
            if not self._is_full:
                logger.error(f"Metrics cannot be written to {self.path}: {error}. Training continues without them.")
            self._is_full = True

    def values(self, name: str) -> list[float]:
        """All values of a metric, in order."""
        lines = self.path.read_text(errors="replace").splitlines() if self.path.exists() else []
        rows = [json.loads(line) for line in lines if math.isfinite(_step_of(line))]
        return [row[name] for row in rows if name in row]


def _step_of(line: str) -> float:
    """The update that a line of metrics is of; infinite for what is not such a line."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf


def loss_by_mask_ratio(loss: torch.Tensor, masks: MageMasks, num_buckets: int = 5) -> dict[str, Metric]:
    """
    The loss, sorted into buckets of the masking ratio between 0.5 and 1, by the micro-batch's mean ratio. Every bucket
    is there; all but one have no weight.
    """
    ratio = (masks.num_masked or 0) / masks.bool_masked_pos.numel()
    bucket = min(max(int((ratio - 0.5) * 2 * num_buckets), 0), num_buckets - 1)
    metrics: dict[str, Metric] = {}
    for i in range(num_buckets):
        low, high = 50 + 50 * i // num_buckets, 50 + 50 * (i + 1) // num_buckets
        weight = float(i == bucket)
        metrics[f"loss_masked_{low}_{high}"] = (loss.detach() * weight, weight)
    return metrics


def training_flops(config: MageConfig, batch_size: int = 1) -> float:
    """
    Floating point operations an image of a training step from tokens, forward and backward, as PyTorch counts them.
    Nothing is computed.
    """
    with torch.device("meta"):
        model = MageForMaskedImageModeling(without_tokenizer(config)).train()
        input_ids = torch.zeros(batch_size, config.sequence_length, dtype=torch.long)
        masks = expected_masks(config, batch_size)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=input_ids, **masks.as_kwargs()).loss.backward()
    return counter.get_total_flops() / batch_size


def without_tokenizer(config: MageConfig) -> MageConfig:
    return MageConfig(**{**config.to_dict(), "vq_config": None})


def expected_masks(config: MageConfig, batch_size: int) -> MageMasks:
    """Masks of the mean ratio, on the default device."""
    length = config.sequence_length
    ratio = min(max(config.mask_ratio_mean, config.mask_ratio_min), config.mask_ratio_max)
    num_masked, num_dropped = math.ceil(length * ratio), math.ceil(length * (config.drop_ratio or 0))
    positions = torch.arange(length).expand(batch_size, length)
    return MageMasks(positions < num_masked, positions < num_dropped, num_dropped, num_masked * batch_size, num_masked)


def peak_flops(device: torch.device) -> float | None:
    """Operations a second that the device could do at best, where that is known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for model, flops in PEAK_FLOPS.items() if model in name), None)
