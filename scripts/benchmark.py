"""
Measures how fast MAGE trains, represents and generates, with random weights and synthetic images.

    python scripts/benchmark.py --workloads train generate --size vit-base --batch_size 2 --compare plain
    python scripts/benchmark.py --size vit-large --batch_size 256 --dtype bfloat16 --compile --compare plain
    python scripts/benchmark.py --workloads train --size configs/mage_digits.yaml --batch_size 64 --compare plain
    python scripts/benchmark.py --counted_work docs/counted_work.json

`--compare plain` takes turns with the plain path: attention step by step, float32, nothing compiled, logits of the
whole vocabulary at all positions, a tokenizer that executes the layers that do nothing. Other flags can take turns:

    python scripts/benchmark.py --workloads generate --compare plain encoder_keep_share=0.5,full_steps=2 dtype=bfloat16
"""

import copy
import os
import shlex
import sys
from dataclasses import asdict, dataclass, field, replace

# What the profiler says of itself, and of memory that was there before it. Read when torch is loaded.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import torch

from transformers_mage.benchmarking import (
    NEED_MORE,
    ON_HOST,
    QUANTIZATIONS,
    SIZES,
    WITHOUT_PLAIN_PATH,
    WORKLOADS,
    Measurement,
    Setting,
    as_json,
    build_model,
    count_all,
    count_flops,
    describe_machine,
    interleave,
    markdown_table,
    measure_peak_memory,
    measure_product_rate,
    meta_model,
    plain_copy,
    profile_table,
    ratio_table,
    read_sizes,
)
from transformers_mage.command_line import argument, check_numbers, parse_arguments, reports_errors
from transformers_mage.files import write_json, write_text

FAST, PLAIN = "fast", "plain"
# Flags that what takes turns may set otherwise.
OTHER = ("dtype", "compile", "quantization", "num_inference_steps", "encoder_keep_share", "full_steps")


@dataclass
class BenchmarkArguments:
    workloads: list[str] = argument(
        [name for name in WORKLOADS if name not in NEED_MORE],
        f"What to measure, of {', '.join(WORKLOADS)}; by default all but {', '.join(NEED_MORE)}, which needs the "
        "extra `perceptual`.",
    )
    size: str = argument(
        "vit-base", f"The model: {', '.join(SIZES)}, or a recipe of train_mage.py, as configs/mage_digits.yaml."
    )
    batch_size: int = argument(2, "Images in a call.")
    dtype: str = argument(
        "float32", "What to compute in; tokens are always made in float32.", choices=["float32", "bfloat16"]
    )
    compile: bool = argument(False, "Compile what is measured; the plain path never is.")
    quantization: str | None = argument(
        None,
        "Matrices in eight bits where nothing is trained, by torchao: `int8-weights` stores them so, `int8-products` "
        "also rounds what they multiply.",
        choices=list(QUANTIZATIONS),
    )
    compare: list[str] | None = field(
        default=None,
        metadata={
            "help": "Take turns with `plain` or with other flags, as `dtype=bfloat16,compile=true`, and print how "
            f"many times as fast. Flags that can be others: {', '.join(OTHER)}."
        },
    )
    num_inference_steps: int = argument(20, "Decoding steps of `generate`.")
    encoder_keep_share: float | None = argument(None, "Least share of the tokens that the encoder of `generate` sees.")
    full_steps: int = argument(1, "Every how many steps of `generate` compute all tokens.")
    dataloader_num_workers: int = argument(0, "Processes that load, in `extract`, `load-tokens` and `load-jpegs`.")
    jpeg_size: list[int] = argument([375, 500], "Height and width of the files of `extract` and `load-jpegs`.")
    warmup: int = argument(2, "Calls before the first that counts; compiled training is compiled in two of them.")
    repetitions: int = argument(5, "Calls that count.")
    memory: bool = argument(True, "Measure the peak of memory, in a call of its own.")
    profile: bool = argument(False, "Print the operations that take the time.")
    device: str | None = argument(None, "A device's name; by default the accelerator, or the CPU without one.")
    threads: int | None = argument(None, "Threads on the CPU; PyTorch says how many by default.")
    json: str | None = argument(None, "File to write all measurements to.")
    markdown: str | None = argument(None, "File to write the tables to.")
    counted_work: str | None = argument(
        None, "Measure nothing, but count the work of every model and workload, and write it to this file."
    )

    def check(self):
        unknown = sorted(set(self.workloads) - set(WORKLOADS))
        if unknown:
            raise ValueError(f"`--workloads` can be {', '.join(WORKLOADS)}, got {', '.join(unknown)}.")
        read_sizes(self.size)
        check_numbers(self, "batch_size num_inference_steps full_steps repetitions threads", at_least=1)
        check_numbers(self, "warmup dataloader_num_workers", at_least=0)
        check_numbers(self, "encoder_keep_share", more_than=0, at_most=1)
        if self.batch_size % max(self.dataloader_num_workers, 1):
            raise ValueError(
                f"`--batch_size` {self.batch_size} must be a multiple of `--dataloader_num_workers` "
                f"{self.dataloader_num_workers}: each loads an equal part."
            )
        for name in self.compare or ():
            words = [word.partition("=") for word in name.split(",")]
            if name != PLAIN and not all(flag in OTHER and value for flag, _, value in words):
                raise ValueError(
                    f"`--compare` takes `{PLAIN}` or FLAG=VALUE,... with the flags {', '.join(OTHER)}, got `{name}`."
                )
        if len(self.jpeg_size) != 2 or min(self.jpeg_size) < 1:
            raise ValueError(f"`--jpeg_size` takes a height and a width, got {self.jpeg_size}.")


@reports_errors
def main(argv: list[str] | None = None):
    arguments, *others = read_arguments(sys.argv[1:] if argv is None else argv)
    if arguments.counted_work:
        write_json(arguments.counted_work, [asdict(work) for work in count_all()])
        return
    device = find_device(arguments.device)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    product_rate = measure_product_rate(device, getattr(torch, arguments.dtype))
    measurements, profiles = [], []
    for workload in arguments.workloads:
        measured, table = measure(workload, arguments, others, device)
        measurements += measured
        profiles += [f"{workload}:\n\n{table}"] if table else []
    for measured in measurements:
        measured.product_rate = product_rate
    report(arguments, measurements, profiles, describe_machine(device) | {"product_gflops": product_rate / 1e9}, argv)


def read_arguments(words: list[str]) -> list[BenchmarkArguments]:
    """The arguments, and those of each variant that takes turns with them but for the plain path."""
    arguments = parse_arguments(BenchmarkArguments, __doc__, words)
    variants = [name for name in arguments.compare or () if name != PLAIN]
    flags = [[part for flag in name.split(",") for part in f"--{flag}".split("=", 1)] for name in variants]
    return [arguments, *(parse_arguments(BenchmarkArguments, __doc__, [*words, *changed]) for changed in flags)]


def find_device(name: str | None) -> torch.device:
    try:
        device = torch.device(name) if name else torch.accelerator.current_accelerator(check_available=True)
        return torch.empty(0, device=device or "cpu").device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"`--device {name}` is not available: {str(error).splitlines()[0]}") from error


def measure(
    workload: str, arguments: BenchmarkArguments, others: list[BenchmarkArguments], device: torch.device
) -> tuple[list[Measurement], str | None]:
    """Measurements of a workload and of what takes turns with it; and the operations that take its time."""
    settings = create_settings(workload, arguments, others, device)
    runs = {variant: WORKLOADS[workload](setting) for variant, setting in settings.items()}
    seconds = interleave(runs, device, arguments.warmup, arguments.repetitions)
    is_counted = workload not in ON_HOST
    measurements = [
        Measurement(
            workload,
            variant,
            arguments.batch_size,
            seconds[variant],
            measure_peak_memory(run, device) if arguments.memory and is_counted else None,
            count_work(workload, arguments.size, settings[variant]) if is_counted else None,
        )
        for variant, run in runs.items()
    ]
    return measurements, profile_table(runs[FAST], device) if arguments.profile else None


def count_work(workload: str, size: str, setting: Setting) -> float:
    """Operations an image, without what the plain path adds to them."""
    return count_flops(
        workload, meta_model(size), setting.num_inference_steps, setting.encoder_keep_share, setting.full_steps
    )


def create_settings(
    workload: str, arguments: BenchmarkArguments, others: list[BenchmarkArguments], device: torch.device
) -> dict[str, Setting]:
    """A model of its own for each, since casting and compiling change it; all have the same weights."""
    model = build_model(arguments.size, device)
    names = [name for name in arguments.compare or () if name != PLAIN]
    settings = {
        name: Setting(
            model if given is arguments else copy.deepcopy(model),
            arguments.batch_size,
            getattr(torch, given.dtype),
            given.num_inference_steps,
            given.encoder_keep_share,
            given.full_steps,
            is_compiled=given.compile,
            quantization=given.quantization,
            num_workers=arguments.dataloader_num_workers,
            jpeg_size=(arguments.jpeg_size[0], arguments.jpeg_size[1]),
        )
        for name, given in zip([FAST, *names], [arguments, *others], strict=True)
    }
    if PLAIN in (arguments.compare or ()) and workload not in WITHOUT_PLAIN_PATH:
        plain = {"model": plain_copy(model), "dtype": torch.float32, "is_compiled": False, "quantization": None}
        settings[PLAIN] = replace(settings[FAST], **plain)
    return settings


def report(
    arguments: BenchmarkArguments,
    measurements: list[Measurement],
    profiles: list[str],
    machine: dict,
    argv: list[str] | None,
):
    command = shlex.join(["python", "scripts/benchmark.py", *(sys.argv[1:] if argv is None else argv)])
    head = ", ".join(
        f"{name} {value:.0f}" if isinstance(value, float) else f"{name} {value}" for name, value in machine.items()
    )
    parts = [f"`{command}`", head, markdown_table(measurements), ratio_table(measurements), *profiles]
    text = "\n\n".join(part for part in parts if part)
    print(text)
    if arguments.markdown:
        write_text(arguments.markdown, text + "\n")
    if arguments.json:
        write_json(arguments.json, as_json(measurements, machine, asdict(arguments)))


if __name__ == "__main__":
    main()
