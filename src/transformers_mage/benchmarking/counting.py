"""The work of every workload, counted without doing it, and kept in a file so that a test sees when it grows."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

from torch.utils.flop_counter import FlopCounterMode

from ..modeling_mage import MageForMaskedImageModeling
from ..progress import progress_bar
from .models import SIZES, build_model
from .workloads import ON_HOST, WORKLOADS, Setting

# Of `generate`.
COUNTED_STEPS = (4, 20)


@dataclass(frozen=True)
class CountedWork:
    """
    What a workload takes of one image.

    Attributes:
        size (`str`): one of `SIZES`.
        workload (`str`): one of `WORKLOADS`.
        num_inference_steps (`int`): of `generate`; the others do not depend on it.
        gflops (`float`): 10^9 floating point operations.
    """

    size: str
    workload: str
    num_inference_steps: int
    gflops: float = 0.0

    def count(self) -> "CountedWork":
        """The same workload with the work that it takes now."""
        flops = count_flops(self.workload, _model(self.size), self.num_inference_steps)
        return CountedWork(self.size, self.workload, self.num_inference_steps, flops / 1e9)


def count_all() -> list[CountedWork]:
    """The work of every workload of every size."""
    return [work.count() for work in progress_bar(list(_counted()), desc="Counting")]


def _counted() -> Iterator[CountedWork]:
    for size in SIZES:
        for workload in WORKLOADS:
            if workload not in ON_HOST:
                for steps in COUNTED_STEPS if workload == "generate" else COUNTED_STEPS[-1:]:
                    yield CountedWork(size, workload, steps)


def meta_model(size: str) -> MageForMaskedImageModeling:
    """A model without memory, whose attention is counted everywhere, which fused kernels are not."""
    model = build_model(size, "meta")
    model.set_attn_implementation("eager")
    return model


_model = functools.cache(meta_model)


def count_flops(workload: str, model: MageForMaskedImageModeling, num_inference_steps: int = 20) -> float:
    """
    Floating point operations an image of a workload, two for each product of a matrix product, without doing them.

    Args:
        model ([`MageForMaskedImageModeling`]): from [`meta_model`].
    """
    # Reading and writing are not the model's work.
    run = WORKLOADS["features" if workload == "extract" else workload](
        Setting(model, batch_size=1, num_inference_steps=num_inference_steps)
    )
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()
