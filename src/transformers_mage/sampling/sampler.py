"""Makes a run's images and hands them to a writer, one batch being written while the next one is made."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from accelerate import PartialState

from ..pipeline_mage import MagePipeline, MagePipelineOutput
from ..progress import progress_bar
from .plan import ClassPlan, batches_of, generator_of
from .writers import SampleWriter

NUM_DECODED_AT_ONCE = 8


@dataclass
class Sampler:
    """
    Makes the images of a run. Image i depends on the seed and i alone.

    Args:
        pipe ([`MagePipeline`]): what makes them.
        classes ([`ClassPlan`]): of which classes.
        seed (`int`): of the run.
        options (`dict`): what else the pipeline is called with, as `temperature`.
    """

    pipe: MagePipeline
    classes: ClassPlan
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self, indices: Sequence[int]) -> np.ndarray:
        """Images `indices`: (batch_size, height, width, channels) uint8."""
        labels = self.classes[indices]
        output = self.pipe(
            num_images=len(indices) if labels is None else 1,
            class_labels=labels,
            generator=[generator_of(self.seed, index) for index in indices],
            output_type="latent",
            **self.options,
        )
        tokens = torch.as_tensor(cast(MagePipelineOutput, output).images)
        # Always as many at once: another shape is rounded otherwise, and hardly an image of 200,000 values would have
        # all of them the same after that.
        padded = torch.cat([tokens, tokens[:1].expand(-len(tokens) % NUM_DECODED_AT_ONCE, -1, -1)])
        decoded = [self.pipe.model.decode_image_tokens(part) for part in padded.split(NUM_DECODED_AT_ONCE)]
        pixels = torch.cat(decoded)[: len(tokens)].float().clamp(0, 1)
        return (pixels * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()

    def write_missing(self, writer: SampleWriter, batch_size: int, state: PartialState) -> int:
        """Makes and writes this process's images that are not there yet; returns how many."""
        num_images, num_made = writer.num_images, 0
        batches = batches_of(num_images, batch_size, writer.unit_size, state.process_index, state.num_processes)
        progress = progress_bar(
            total=-(-num_images // state.num_processes),
            desc="Generating",
            unit="image",
            disable=not state.is_local_main_process,
        )
        with progress, _Background() as background:
            for indices, num_kept in batches:
                kept = indices[:num_kept]
                if not all(map(writer.is_written, kept)):
                    background.run(writer.write, kept, self(indices)[:num_kept], self.classes[kept])
                    num_made += num_kept
                progress.update(num_kept)
        return num_made


class _Background:
    """Runs one call at a time in a thread, and raises what it raised when the next one is given, or at the end."""

    def __init__(self):
        self.pool = ThreadPoolExecutor(1)
        self.running: Future[None] | None = None

    def run(self, function: Callable[..., None], *args: Any):
        self.wait()
        self.running = self.pool.submit(function, *args)

    def wait(self):
        if self.running is not None:
            self.running.result()

    def __enter__(self) -> "_Background":
        return self

    def __exit__(self, error_type: type | None, *_):
        self.pool.shutdown()
        if error_type is None:
            self.wait()
