"""The work of every workload, counted without doing it, and kept in a file so that a test sees when it grows."""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch.utils.flop_counter import FlopCounterMode

from ..modeling_mage import MageForMaskedImageModeling
from ..progress import progress_bar
from .models import SIZES, build_model
from .workloads import ON_HOST, WORKLOADS, Setting

# Of `generate`.
COUNTED_STEPS = (4, 20)
COUNTED_KEEP_SHARES = (None, 0.5)


@dataclass(frozen=True)
class CountedWork:
    """
    What a workload takes of one image.

    Attributes:
        size (`str`): one of `SIZES`.
        workload (`str`): one of `WORKLOADS`.
        num_inference_steps (`int`): of `generate`; the others do not depend on it.
        gflops (`float`): 10^9 floating point operations.
        encoder_keep_share (`float`, *optional*): of `generate`.
    """

    size: str
    workload: str
    num_inference_steps: int
    gflops: float = 0.0
    encoder_keep_share: float | None = None

    def count(self) -> "CountedWork":
        """The same workload with the work that it takes now."""
        flops = count_flops(self.workload, _model(self.size), self.num_inference_steps, self.encoder_keep_share)
        return replace(self, gflops=flops / 1e9)


def count_all() -> list[CountedWork]:
    """The work of every workload of every size."""
    return [work.count() for work in progress_bar(list(_counted()), desc="Counting")]


def _counted() -> Iterator[CountedWork]:
    for size in SIZES:
        for workload in WORKLOADS:
            if workload == "generate":
                for steps, share in itertools.product(COUNTED_STEPS, COUNTED_KEEP_SHARES):
                    yield CountedWork(size, workload, steps, encoder_keep_share=share)
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
) -> float:
    """
    Floating point operations an image of a workload, two for each product of a matrix product, without doing them.

    Args:
        model ([`MageForMaskedImageModeling`]): from [`meta_model`].
    """
    # Reading and writing are not the model's work.
    run = WORKLOADS["features" if workload == "extract" else workload](
        Setting(model, batch_size=1, num_inference_steps=num_inference_steps, encoder_keep_share=encoder_keep_share)
    )
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()
