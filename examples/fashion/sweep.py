"""
Tries ways of sampling a model of clothes, and scores each against the validation images: how the kept one was chosen.

    python -m examples.fashion.sweep --model_name_or_path outputs/fashion/mage --judge outputs/fashion/judge

Each row of the table is appended to `sweep.jsonl` at once; what is there is not tried again.
"""

import argparse
import itertools
import json
from pathlib import Path

from transformers_mage import MagePipeline, MageScheduler

from .images import load_split
from .judge import FashionJudge, judge_images
from .sampling import generate, load_pipeline
from .scores import fashion_scores


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", type=Path, default=Path("outputs", "fashion", "data"))
    parser.add_argument("--model_name_or_path", default="outputs/fashion/mage")
    parser.add_argument("--judge", type=Path, default=Path("outputs", "fashion", "judge"))
    parser.add_argument("--output_dir", type=Path, default=Path("outputs", "fashion", "sweep"))
    parser.add_argument("--num_images", type=int, default=1000, help="samples of each try")
    parser.add_argument("--num_inference_steps", type=int, nargs="+", default=[20])
    parser.add_argument("--unmasking_order", nargs="+", default=["confidence", "random", "halton"])
    parser.add_argument("--temperature", type=float, nargs="+", default=[3.0, 6.0, 12.0])
    parser.add_argument("--token_temperature", type=float, nargs="+", default=[1.0])
    parser.add_argument("--guidance_scale", type=float, nargs="+", help="of a class-conditional model")
    parser.add_argument("--bf16", action="store_true", help="sample in bfloat16, on a processor that is fast at it")
    arguments = parser.parse_args(argv)

    judge = FashionJudge.load(arguments.judge / "model.safetensors")
    references = judge_images(judge, load_split(arguments.dataset_name, "validation")[0]).features
    pipe = load_pipeline(arguments.model_name_or_path, arguments.bf16)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    table = arguments.output_dir / "sweep.jsonl"
    for settings in untried(all_settings(arguments), table):
        images = generate(pipe_with(pipe, settings), arguments.num_images, **call_arguments(settings, arguments))
        row = settings | fashion_scores(judge, images, references)
        with table.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


def all_settings(arguments: argparse.Namespace) -> list[dict]:
    """Every combination, the noise on confidence only where the order is that of confidence."""
    names = ("num_inference_steps", "unmasking_order", "temperature", "token_temperature", "guidance_scale")
    choices = [getattr(arguments, name) or [None] for name in names]
    found = []
    for values in itertools.product(*choices):
        settings = {"model": str(arguments.model_name_or_path), **dict(zip(names, values, strict=True))}
        if settings["unmasking_order"] != "confidence":
            settings["temperature"] = None
        if settings not in found:
            found.append(settings)
    return found


def untried(settings: list[dict], table: Path) -> list[dict]:
    rows = [json.loads(line) for line in table.read_text().splitlines()] if table.exists() else []
    return [each for each in settings if not any(each.items() <= row.items() for row in rows)]


def pipe_with(pipe: MagePipeline, settings: dict) -> MagePipeline:
    """The pipeline with a scheduler of these settings."""
    names = ("num_inference_steps", "unmasking_order", "temperature", "token_temperature")
    given = {name: settings[name] for name in names if settings[name] is not None}
    pipe.scheduler = MageScheduler.from_config(pipe.scheduler.config, **given)
    return pipe


def call_arguments(settings: dict, arguments: argparse.Namespace) -> dict:
    if settings["guidance_scale"] is None:
        return {}
    labels = [number % 10 for number in range(arguments.num_images)]
    return {"class_labels": labels, "guidance_scale": settings["guidance_scale"]}


if __name__ == "__main__":
    main()
