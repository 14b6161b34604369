"""
Makes images with a MAGE model, as many as asked for, on any number of processes.

    accelerate launch scripts/generate.py --pretrained_model_name_or_path FOLDER --output_dir OUT --num_images 50000

Image i depends on `--seed` and i alone, whatever the number of processes and however often the run is stopped: the
same command goes on where it was. Other batch sizes make the same images too, but for a few: sums of floating-point
numbers are rounded in another order there, which can turn the choice between two codes that are almost as likely.
"""

import errno
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from diffusers.utils import make_image_grid
from tqdm.auto import tqdm

from transformers_mage import MagePipeline, MageScheduler
from transformers_mage.command_line import argument, parse_arguments, reports_errors
from transformers_mage.conditioning import GUIDANCE_SCHEDULES
from transformers_mage.sampling.plan import (
    ClassPlan,
    batches_of,
    check_folder,
    fingerprint,
    generator_of,
    write_manifest,
)
from transformers_mage.sampling.writers import FORMATS, ImageFolderWriter, NpzWriter, SampleWriter, TarWriter
from transformers_mage.scheduling_mage import MASKING_SCHEDULES, UNMASKING_ORDERS

SCHEDULER_CHOICES = ("masking_schedule", "unmasking_order", "token_temperature", "top_k", "top_p")
PIPELINE_CHOICES = ("num_inference_steps", "temperature", "guidance_scale", "guidance_schedule")
NUM_IN_GRID = 64
NUM_DECODED_AT_ONCE = 8


@dataclass
class GenerationArguments:
    pretrained_model_name_or_path: str | None = argument(None, "A MAGE model's folder or Hub name.")
    output_dir: str = argument("outputs/samples", "An empty or new folder, or that of the run to go on with.")
    num_images: int = argument(50_000, "Images to make.")
    seed: int = argument(0, "Seed of the run.")
    batch_size: int = argument(64, "Images made at once by a process.")
    output_format: str = argument(
        "png", "Files of one image (`png`, lossless `webp`), webdataset shards, or one array.", choices=list(FORMATS)
    )
    shard_size: int = argument(1024, "Images in a shard of `--output_format tar`.")
    dtype: str = argument("float32", "Precision of the model.", choices=["float32", "float16", "bfloat16"])
    torch_compile: bool = argument(False, "Compile the model, which takes minutes and pays for many images.")

    class_labels: str | None = argument(
        None,
        "`balanced`, `none`, or a text file with the class (id or name) of image i in line i. A class-conditional "
        "model's are balanced by default.",
    )
    guidance_scale: float = argument(0.0, "Strength of classifier-free guidance; 0 is none.")
    guidance_schedule: str = argument("linear", "How guidance rises.", choices=list(GUIDANCE_SCHEDULES))
    num_inference_steps: int | None = argument(None, "Decoding steps; the model's scheduler says how many.")
    temperature: float | None = argument(None, "Strength of the noise on the choice of tokens to keep.")
    masking_schedule: str | None = argument(
        None, "How the number of masked tokens falls.", choices=list(MASKING_SCHEDULES)
    )
    unmasking_order: str | None = argument(None, "Which tokens are kept first.", choices=list(UNMASKING_ORDERS))
    token_temperature: float | None = argument(None, "Divides the logits that tokens are sampled from.")
    top_k: int | None = argument(None, "Sample among the k likeliest codes.")
    top_p: float | None = argument(None, "Sample among the likeliest codes that have this probability together.")

    def check(self):
        if not self.pretrained_model_name_or_path:
            raise ValueError("Say which model to use: `--pretrained_model_name_or_path FOLDER`.")
        for name in ("num_images", "batch_size", "shard_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`--{name}` must be at least 1, got {getattr(self, name)}.")
        if self.seed < 0:
            raise ValueError(f"`--seed` must be 0 or more, got {self.seed}.")


@reports_errors
def main(argv: list[str] | None = None):
    arguments = parse_arguments(GenerationArguments, __doc__, argv)
    state = PartialState()
    try:
        pipe = load_pipeline(arguments, state.device)
        run(arguments, pipe, state)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise SystemExit(
            f"There is no room left in {arguments.output_dir}. What is there is whole: make room, and start the same "
            "command again to go on."
        ) from error


def run(arguments: GenerationArguments, pipe: MagePipeline, state: PartialState):
    folder = Path(arguments.output_dir)
    classes = ClassPlan(pipe.model.config, arguments.class_labels, arguments.num_images)
    pipe.check_guidance(arguments.guidance_scale, arguments.guidance_schedule)
    settings = describe(arguments, pipe, classes)
    is_resumed = check_folder(folder, settings)
    writer = create_writer(arguments, pipe)
    state.wait_for_everyone()
    if state.is_main_process:
        write_manifest(folder, settings)
        writer.prepare()
        print(f"{'Going on with' if is_resumed else 'Writing'} {arguments.num_images} images in {folder}.")
    state.wait_for_everyone()

    start = time.perf_counter()
    num_made = sum(write_images(arguments, pipe, classes, writer, state))
    writer.close()
    state.wait_for_everyone()
    num_made, seconds = sum(gather_object([num_made])), time.perf_counter() - start
    if state.is_main_process:
        writer.finish(classes)
        draw_grid(writer, arguments.num_images).save(folder / "grid.png")
        print(f"Made {num_made} images in {seconds:.1f} s, {num_made / seconds:.1f} images/s.")
        print(f"The first ones: {folder / 'grid.png'}")


def load_pipeline(arguments: GenerationArguments, device: torch.device) -> MagePipeline:
    name = arguments.pretrained_model_name_or_path
    try:
        precision = {} if arguments.dtype == "float32" else {"torch_dtype": getattr(torch, arguments.dtype)}
        pipe = MagePipeline.from_pretrained(name, **precision).to(device)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{name} cannot be loaded: {error}") from error
    chosen = {key: getattr(arguments, key) for key in SCHEDULER_CHOICES if getattr(arguments, key) is not None}
    pipe.scheduler = MageScheduler.from_config(pipe.scheduler.config, **chosen)
    pipe.set_progress_bar_config(disable=True)
    if arguments.torch_compile:
        pipe.compile()
    return pipe


def describe(arguments: GenerationArguments, pipe: MagePipeline, classes: ClassPlan) -> dict:
    """Whatever decides what the images are, and how they are kept."""
    names = ("num_images", "seed", "output_format", "dtype", "guidance_scale", "guidance_schedule")
    shards = {"shard_size": arguments.shard_size} if arguments.output_format == "tar" else {}
    scheduler = {key: pipe.scheduler.config[key] for key in SCHEDULER_CHOICES}
    for key in ("num_inference_steps", "temperature"):
        given = getattr(arguments, key)
        scheduler[key] = pipe.scheduler.config[key] if given is None else given
    return {
        "model": fingerprint(pipe.model),
        "class_labels": classes.describe(),
        **{name: getattr(arguments, name) for name in names},
        **shards,
        **scheduler,
    }


def create_writer(arguments: GenerationArguments, pipe: MagePipeline) -> SampleWriter:
    folder, num_images = Path(arguments.output_dir), arguments.num_images
    if arguments.output_format == "tar":
        return TarWriter(folder, arguments.shard_size, num_images)
    if arguments.output_format == "npz":
        size = tuple(side * pipe.model.config.patch_size for side in pipe.model.config.grid_size)
        return NpzWriter(folder, arguments.batch_size, num_images, size)
    return ImageFolderWriter(folder / "images", arguments.batch_size, num_images, arguments.output_format)


def write_images(
    arguments: GenerationArguments, pipe: MagePipeline, classes: ClassPlan, writer: SampleWriter, state: PartialState
) -> Iterator[int]:
    """Makes this process's images, writing a batch while the next one is made; yields how many each time."""
    batches = batches_of(
        arguments.num_images, arguments.batch_size, writer.unit_size, state.process_index, state.num_processes
    )
    written: Future | None = None
    progress_bar = tqdm(
        total=-(-arguments.num_images // state.num_processes),
        desc="Generating",
        unit="image",
        disable=not state.is_local_main_process,
    )
    with progress_bar, ThreadPoolExecutor(1) as background:
        for indices, num_kept in batches:
            kept = indices[:num_kept]
            if not all(map(writer.is_written, kept)):
                labels = classes[indices]
                images = make_images(arguments, pipe, indices, labels)[:num_kept]
                if written is not None:
                    written.result()
                written = background.submit(writer.write, kept, images, labels and labels[:num_kept])
                yield num_kept
            progress_bar.update(num_kept)
        if written is not None:
            written.result()


def make_images(
    arguments: GenerationArguments, pipe: MagePipeline, indices: list[int], labels: list[int] | None
) -> np.ndarray:
    """(batch_size, height, width, channels) uint8."""
    tokens = pipe(
        num_images=len(indices) if labels is None else 1,
        class_labels=labels,
        generator=[generator_of(arguments.seed, index) for index in indices],
        output_type="latent",
        **{name: getattr(arguments, name) for name in PIPELINE_CHOICES},
    ).images
    # Always as many at once: another shape is rounded otherwise, and hardly an image of 200,000 values would have all
    # of them the same after that.
    padded = torch.cat([tokens, tokens[:1].expand(-len(tokens) % NUM_DECODED_AT_ONCE, -1, -1)])
    pixels = [pipe.model.decode_image_tokens(part) for part in padded.split(NUM_DECODED_AT_ONCE)]
    pixels = torch.cat(pixels)[: len(tokens)].float().clamp(0, 1)
    return (pixels * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def draw_grid(writer: SampleWriter, num_images: int):
    images = [writer.read(index).convert("RGB") for index in range(min(NUM_IN_GRID, num_images))]
    columns = int(np.ceil(np.sqrt(len(images))))
    images = images[: len(images) // columns * columns]
    return make_image_grid(images, rows=len(images) // columns, cols=columns)


if __name__ == "__main__":
    main()
