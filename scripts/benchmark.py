"""
Measures how fast MAGE trains, represents and generates, with random weights and synthetic images.

    python scripts/benchmark.py --workloads train generate --size vit-base --batch_size 2 --compare plain
    python scripts/benchmark.py --size vit-large --batch_size 256 --dtype bfloat16 --compile --compare plain
    python scripts/benchmark.py --counted_work docs/counted_work.json

`--compare plain` takes turns with the plain path: attention step by step, float32, nothing compiled, logits of the
whole vocabulary at all positions, a tokenizer that executes the layers that do nothing.
"""

import os
import shlex
import sys
from dataclasses import asdict, dataclass, field

# What the profiler says of itself, and of memory that was there before it. Read when torch is loaded.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import torch

from transformers_mage.benchmarking import (
    NEED_MORE,
    ON_HOST,
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
)
from transformers_mage.command_line import argument, check_numbers, parse_arguments, reports_errors
from transformers_mage.files import write_json, write_text


@dataclass
class BenchmarkArguments:
    workloads: list[str] = field(
        default_factory=lambda: [name for name in WORKLOADS if name not in NEED_MORE],
        metadata={
            "help": f"What to measure, of {', '.join(WORKLOADS)}; by default all but {', '.join(NEED_MORE)}, "
            "which needs the extra `perceptual`."
        },
    )
    size: str = argument("vit-base", "The model.", choices=list(SIZES))
    batch_size: int = argument(2, "Images in a call.")
    dtype: str = argument(
        "float32", "What to compute in; tokens are always made in float32.", choices=["float32", "bfloat16"]
    )
    compile: bool = argument(False, "Compile what is measured; the plain path never is.")
    compare: str | None = argument(
        None, "Take turns with this path, and print how many times as fast.", choices=["plain"]
    )
    num_inference_steps: int = argument(20, "Decoding steps of `generate`.")
    encoder_keep_share: float | None = argument(None, "Least share of the tokens that the encoder of `generate` sees.")
    full_steps: int = argument(1, "Every how many steps of `generate` compute all tokens.")
    dataloader_num_workers: int = argument(0, "Processes that load, in `extract`, `load-tokens` and `load-jpegs`.")
    jpeg_size: list[int] = field(
        default_factory=lambda: [375, 500],
        metadata={"help": "Height and width of the files of `extract` and `load-jpegs`."},
    )
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
        check_numbers(self, "batch_size num_inference_steps full_steps repetitions threads", at_least=1)
        check_numbers(self, "warmup dataloader_num_workers", at_least=0)
        check_numbers(self, "encoder_keep_share", more_than=0, at_most=1)
        if self.batch_size % max(self.dataloader_num_workers, 1):
            raise ValueError(
                f"`--batch_size` {self.batch_size} must be a multiple of `--dataloader_num_workers` "
                f"{self.dataloader_num_workers}: each loads an equal part."
            )
        if len(self.jpeg_size) != 2 or min(self.jpeg_size) < 1:
            raise ValueError(f"`--jpeg_size` takes a height and a width, got {self.jpeg_size}.")


@reports_errors
def main(argv: list[str] | None = None):
    arguments = parse_arguments(BenchmarkArguments, __doc__, argv)
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
        measured, table = measure(workload, arguments, device)
        measurements += measured
        profiles += [f"{workload}:\n\n{table}"] if table else []
    for measured in measurements:
        measured.product_rate = product_rate
    report(arguments, measurements, profiles, describe_machine(device) | {"product_gflops": product_rate / 1e9}, argv)


def find_device(name: str | None) -> torch.device:
    try:
        device = torch.device(name) if name else torch.accelerator.current_accelerator(check_available=True)
        return torch.empty(0, device=device or "cpu").device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"`--device {name}` is not available: {str(error).splitlines()[0]}") from error


def measure(
    workload: str, arguments: BenchmarkArguments, device: torch.device
) -> tuple[list[Measurement], str | None]:
    """Measurements of a workload and, where asked for, of its plain path; and the operations that take its time."""
    settings = create_settings(workload, arguments, device)
    runs = {variant: WORKLOADS[workload](setting) for variant, setting in settings.items()}
    seconds = interleave(runs, device, arguments.warmup, arguments.repetitions)
    is_counted, flops = workload not in ON_HOST, None
    if is_counted:
        model = meta_model(arguments.size)
        savings = (arguments.encoder_keep_share, arguments.full_steps)
        flops = count_flops(workload, model, arguments.num_inference_steps, *savings)
    measurements = [
        Measurement(
            workload,
            variant,
            arguments.batch_size,
            seconds[variant],
            measure_peak_memory(run, device) if arguments.memory and is_counted else None,
            flops,
        )
        for variant, run in runs.items()
    ]
    return measurements, profile_table(runs["fast"], device) if arguments.profile else None


def create_settings(workload: str, arguments: BenchmarkArguments, device: torch.device) -> dict[str, Setting]:
    model = build_model(arguments.size, device)
    common = {
        "batch_size": arguments.batch_size,
        "num_inference_steps": arguments.num_inference_steps,
        "encoder_keep_share": arguments.encoder_keep_share,
        "full_steps": arguments.full_steps,
        "num_workers": arguments.dataloader_num_workers,
        "jpeg_size": tuple(arguments.jpeg_size),
    }
    settings = {"fast": Setting(model, dtype=getattr(torch, arguments.dtype), is_compiled=arguments.compile, **common)}
    if arguments.compare == "plain" and workload not in WITHOUT_PLAIN_PATH:
        settings["plain"] = Setting(plain_copy(model), **common)
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
