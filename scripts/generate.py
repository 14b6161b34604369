"""
Makes images with a MAGE model, as many as asked for, on any number of processes.

    accelerate launch scripts/generate.py --pretrained_model_name_or_path FOLDER --output_dir OUT --num_images 50000

Image i depends on `--seed` and i alone, whatever the number of processes and however often the run is stopped: the
same command resumes where it was. Other batch sizes make the same images too, but for a few: sums of floating-point
numbers are rounded in another order there, which can turn the choice between two codes that are almost as likely.
"""

import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from transformers_mage import MagePipeline, MageScheduler
from transformers_mage.command_line import argument, check_numbers, parse_arguments, reports_errors
from transformers_mage.conditioning import GUIDANCE_SCHEDULES
from transformers_mage.files import explains_full_disk, fingerprint, locked, written_aside
from transformers_mage.hub_folders import UNREADABLE
from transformers_mage.pipeline_saving import PIPELINE_DEFAULTS
from transformers_mage.precision import is_bfloat16_fast_for_all
from transformers_mage.sampling import (
    FORMATS,
    ClassPlan,
    ImageFolderWriter,
    NpzWriter,
    Sampler,
    SampleWriter,
    TarWriter,
    check_folder,
    write_manifest,
)
from transformers_mage.scheduling_mage import MASKING_SCHEDULES, TEMPERATURE_SCHEDULES, UNMASKING_ORDERS
from transformers_mage.visualization import draw_grid

SCHEDULER_CHOICES = (
    *("masking_schedule", "temperature_schedule", "unmasking_order"),
    *("token_temperature", "top_k", "top_p"),
)
CALL_CHOICES = ("num_inference_steps", "temperature")
PIPELINE_CHOICES = tuple(PIPELINE_DEFAULTS)
# How images were made before all of these could be chosen; folders of then are resumed.
EARLIER = PIPELINE_DEFAULTS | {"temperature_schedule": "linear"}
NUM_IN_GRID = 64


@dataclass
class GenerationArguments:
    pretrained_model_name_or_path: str | None = argument(None, "A MAGE model's folder or Hub name.")
    output_dir: str = argument("outputs/samples", "An empty or new folder, or that of the run to resume.")
    num_images: int = argument(50_000, "Images to make.")
    seed: int = argument(0, "Seed of the run.")
    batch_size: int = argument(64, "Images made at once by a process.")
    output_format: str = argument(
        "png", "Files of one image (`png`, lossless `webp`), webdataset shards, or one array.", choices=list(FORMATS)
    )
    shard_size: int = argument(1024, "Images in a shard of `--output_format tar`.")
    dtype: str = argument(
        "float32",
        "Precision of the model; `auto` is bfloat16 where that is fast, and otherwise float32.",
        choices=["float32", "float16", "bfloat16", "auto"],
    )
    torch_compile: bool = argument(False, "Compile the model, which takes minutes and pays for many images.")

    class_labels: str | None = argument(
        None,
        "`balanced`, `none`, or a text file with the class (id or name) of image i in line i. A class-conditional "
        "model's are balanced by default.",
    )
    guidance_scale: float | None = argument(
        None, "Strength of classifier-free guidance, 0 for none; the model's folder says how strong."
    )
    guidance_schedule: str | None = argument(None, "How guidance rises.", choices=list(GUIDANCE_SCHEDULES))
    guidance_interval: list[float] = argument(
        [], "Shares of the steps from which and up to which there is guidance; others cost half."
    )
    num_inference_steps: int | None = argument(None, "Decoding steps; the model's scheduler says how many.")
    temperature: float | None = argument(None, "Strength of the noise on the choice of tokens to keep.")
    masking_schedule: str | None = argument(
        None, "How the number of masked tokens falls.", choices=list(MASKING_SCHEDULES)
    )
    temperature_schedule: str | None = argument(
        None, "How that noise falls over the steps.", choices=list(TEMPERATURE_SCHEDULES)
    )
    unmasking_order: str | None = argument(None, "Which tokens are kept first.", choices=list(UNMASKING_ORDERS))
    token_temperature: float | None = argument(None, "Divides the logits that tokens are sampled from.")
    top_k: int | None = argument(None, "Sample among the k likeliest codes.")
    top_p: float | None = argument(None, "Sample among the likeliest codes that have this probability together.")
    encoder_keep_share: float | None = argument(
        None, "Least share of the tokens that the encoder sees, 1 for all; the model's folder says how many."
    )
    full_steps: int | None = argument(
        None, "Every how many steps compute all tokens, 1 for each; the model's folder says how many."
    )

    def check(self):
        if not self.pretrained_model_name_or_path:
            raise ValueError("Say which model to use: `--pretrained_model_name_or_path FOLDER`.")
        check_numbers(self, "num_images batch_size shard_size num_inference_steps top_k full_steps", at_least=1)
        check_numbers(self, "seed guidance_scale temperature token_temperature", at_least=0)
        check_numbers(self, "top_p encoder_keep_share", more_than=0, at_most=1)
        if len(self.guidance_interval) not in (0, 2):
            raise ValueError(f"`--guidance_interval` takes two shares of the steps, got {self.guidance_interval}.")


@reports_errors
def main(argv: list[str] | None = None):
    arguments = parse_arguments(GenerationArguments, __doc__, argv)
    state = PartialState()
    if arguments.dtype == "auto":
        # Kept with the images as what it is here.
        arguments.dtype = "bfloat16" if is_bfloat16_fast_for_all() else "float32"
    pipe = load_pipeline(arguments, state.device)
    with explains_full_disk(arguments.output_dir):
        run(arguments, pipe, state)


def run(arguments: GenerationArguments, pipe: MagePipeline, state: PartialState):
    folder = Path(arguments.output_dir)
    classes = ClassPlan(pipe.model.config, arguments.class_labels, arguments.num_images)
    pipe.check_guidance()
    settings = describe(arguments, pipe, classes)
    is_resumed = check_folder(folder, settings, EARLIER)
    writer = create_writer(arguments, pipe)
    sampler = Sampler(pipe, classes, arguments.seed, {name: getattr(arguments, name) for name in CALL_CHOICES})
    state.wait_for_everyone()
    with locked(folder) if state.is_main_process else nullcontext():
        if state.is_main_process:
            write_manifest(folder, settings)
            writer.prepare()
            print(f"{'Resuming' if is_resumed else 'Writing'} {arguments.num_images} images in {folder}.")
        state.wait_for_everyone()
        write_samples(sampler, writer, arguments.batch_size, state, folder / "grid.png")


def write_samples(sampler: Sampler, writer: SampleWriter, batch_size: int, state: PartialState, picture: Path):
    """Makes what is missing, on all processes, and `picture` of the first images."""
    start = time.perf_counter()
    num_made = sampler.write_missing(writer, batch_size, state)
    writer.close()
    num_made, seconds = sum(gather_object([num_made])), time.perf_counter() - start
    if state.is_main_process:
        writer.finish(sampler.classes)
        with written_aside(picture) as aside:
            images = [writer.read(index) for index in range(min(NUM_IN_GRID, writer.num_images))]
            draw_grid(images).save(aside, format="PNG")
        print(f"Made {num_made} images in {seconds:.1f} s, {num_made / seconds:.1f} images/s.")
        print(f"The first ones: {picture}")


def load_pipeline(arguments: GenerationArguments, device: torch.device) -> MagePipeline:
    name = arguments.pretrained_model_name_or_path
    try:
        precision = {} if arguments.dtype == "float32" else {"torch_dtype": getattr(torch, arguments.dtype)}
        pipe = MagePipeline.from_pretrained(name, **precision).to(device)
    except UNREADABLE as error:
        raise ValueError(f"{name} cannot be loaded: {error}") from error
    chosen = {key: getattr(arguments, key) for key in SCHEDULER_CHOICES if getattr(arguments, key) is not None}
    pipe.scheduler = MageScheduler.from_config(pipe.scheduler.config, **chosen)
    chosen = {key: getattr(arguments, key) for key in PIPELINE_CHOICES if getattr(arguments, key) not in (None, [])}
    if chosen.get("encoder_keep_share") == 1:
        chosen["encoder_keep_share"] = None
    pipe.register_to_config(**chosen)
    pipe.set_progress_bar_config(disable=True)
    if arguments.torch_compile:
        pipe.compile()
    return pipe


def describe(arguments: GenerationArguments, pipe: MagePipeline, classes: ClassPlan) -> dict:
    """Whatever decides what the images are and how they are kept."""
    names = ("num_images", "seed", "output_format", "dtype")
    shards = {"shard_size": arguments.shard_size} if arguments.output_format == "tar" else {}
    scheduler = {key: pipe.scheduler.config[key] for key in SCHEDULER_CHOICES}
    for key in CALL_CHOICES:
        given = getattr(arguments, key)
        scheduler[key] = pipe.scheduler.config[key] if given is None else given
    return {
        "model": fingerprint(pipe.model),
        "class_labels": classes.describe(),
        **{name: getattr(arguments, name) for name in names},
        **shards,
        **scheduler,
        **{key: pipe.config[key] for key in PIPELINE_CHOICES},
    }


def create_writer(arguments: GenerationArguments, pipe: MagePipeline) -> SampleWriter:
    folder, num_images = Path(arguments.output_dir), arguments.num_images
    if arguments.output_format == "tar":
        return TarWriter(folder, arguments.shard_size, num_images)
    if arguments.output_format == "npz":
        size = tuple(side * pipe.model.config.patch_size for side in pipe.model.config.grid_size)
        return NpzWriter(folder, arguments.batch_size, num_images, size)
    return ImageFolderWriter(folder / "images", arguments.batch_size, num_images, arguments.output_format)


if __name__ == "__main__":
    main()
