"""The work of every workload, counted without doing it, and kept in a file so that a test sees when it grows."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..modeling_mage import MageForMaskedImageModeling, MageLayer
from ..progress import progress_bar
from .models import SIZES, build_model
from .workloads import DRAWING_STEPS, ON_HOST, WORKLOADS, Setting

# Of `generate`.
COUNTED_STEPS = (4, 20)
COUNTED_SAVINGS: tuple[dict[str, Any], ...] = (
    {},
    {"encoder_keep_share": 0.5},
    {"encoder_keep_share": 0.5, "full_steps": 2},
    {"encoder_keep_share": 0.5, "full_steps": 3},
)


@dataclass(frozen=True)
class CountedWork:
    """
    What a workload takes of one image.

    Attributes:
        size (`str`): one of `SIZES`.
        workload (`str`): one of `WORKLOADS`.
        num_inference_steps (`int`): of `generate`; the others do not depend on it.
        gflops (`float`): 10^9 floating point operations.
        encoder_keep_share (`float`, *optional*), full_steps (`int`): of `generate`; see [`MagePipeline`].
    """

    size: str
    workload: str
    num_inference_steps: int
    gflops: float = 0.0
    encoder_keep_share: float | None = None
    full_steps: int = 1

    def count(self) -> "CountedWork":
        """The same workload with the work that it takes now."""
        model, savings = _model(self.size), (self.encoder_keep_share, self.full_steps)
        flops = count_flops(self.workload, model, self.num_inference_steps, *savings)
        return replace(self, gflops=flops / 1e9)


def count_all() -> list[CountedWork]:
    """The work of every workload of every size."""
    return [work.count() for work in progress_bar(list(_counted()), desc="Counting")]


def _counted() -> Iterator[CountedWork]:
    for size in SIZES:
        for workload in WORKLOADS:
            if workload == "generate":
                for steps, savings in itertools.product(COUNTED_STEPS, COUNTED_SAVINGS):
                    yield CountedWork(size, workload, steps, **savings)
            elif workload not in ON_HOST:
                yield CountedWork(size, workload, COUNTED_STEPS[-1])


def meta_model(size: str) -> MageForMaskedImageModeling:
    """A model without memory, whose attention is counted everywhere, which fused kernels are not."""
    model = build_model(size, "meta")
    model.set_attn_implementation("eager")
    return model


_model = functools.cache(meta_model)


def count_flops(
    workload: str,
    model: MageForMaskedImageModeling,
    num_inference_steps: int = 20,
    encoder_keep_share: float | None = None,
    full_steps: int | Sequence[int] = 1,
) -> float:
    """
    Floating point operations an image of a workload, two for each product of a matrix product, without doing them.

    Args:
        model ([`MageForMaskedImageModeling`]): from [`meta_model`].
    """
    setting = Setting(model, 1, torch.float32, num_inference_steps, encoder_keep_share, full_steps)
    # Drawing does the same in each of its steps: one is counted.
    setting.num_drawing_steps = 1
    # Reading and writing are not the model's work.
    run = WORKLOADS["features" if workload == "extract" else workload](setting)
    with FlopCounterMode(display=False) as counter, _RepeatedLayers(model, counter) as repeated:
        run()
    flops = counter.get_total_flops() + repeated.flops
    return flops * (DRAWING_STEPS if workload == "draw" else 1)


class _RepeatedLayers:
    """
    Spares decoding most of its steps, in which a layer takes milliseconds even without memory: one that is called
    again with tensors of the same shapes returns what it returned before, and its work is added to `flops`.
    """

    def __init__(self, model: MageForMaskedImageModeling, counter: FlopCounterMode):
        self.layers = [module for module in model.modules() if isinstance(module, MageLayer)]
        self.counter, self.flops = counter, 0

    def __enter__(self) -> "_RepeatedLayers":
        for layer in self.layers:
            layer.forward = functools.partial(self._call, layer.forward, {})  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object):
        for layer in self.layers:
            del layer.forward

    def _call(self, forward: Callable[..., torch.Tensor], known: dict, *args: Any, **kwargs: Any) -> torch.Tensor:
        if torch.is_grad_enabled():
            return forward(*args, **kwargs)
        shapes = tuple(getattr(value, "shape", value) for value in (*args, *kwargs.values()))
        if shapes in known:
            output, flops = known[shapes]
            self.flops += flops
        else:
            before = self.counter.get_total_flops()
            output = forward(*args, **kwargs)
            known[shapes] = output, self.counter.get_total_flops() - before
        return output
