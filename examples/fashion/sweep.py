"""
Tries ways of sampling a model of clothes, and scores each against the validation images: how the kept one was chosen.

    python -m examples.fashion.sweep --model_name_or_path outputs/fashion/mage --judge outputs/fashion/judge

What scripts/tune_sampling.py does with any model, by the judge of clothes. Each try is added to `sweep.jsonl` at once,
and what is there is not tried again; `frontier.png` shows the distances against the work, and `frontier-NETWORK.png`
those by `--image_network`.
"""

import argparse
import json
from pathlib import Path

from transformers_mage.benchmarking import (
    Tries,
    averaged,
    combinations,
    count_gflops,
    draw_frontier,
    pipe_with,
    without_weights,
)

from .images import load_split
from .judge import FashionJudge, judge_images
from .sampling import generate, load_pipeline
from .scores import NetworkDistance, fashion_scores


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
    parser.add_argument("--masking_schedule", nargs="+", default=["cosine"])
    parser.add_argument(
        "--encoder_keep_share", type=float, nargs="+", default=[None], help="see MagePipeline; 1 is all"
    )
    parser.add_argument("--full_steps", type=int, nargs="+", default=[1], help="see MagePipeline")
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--guidance_scale", type=float, nargs="+", help="of a class-conditional model")
    parser.add_argument("--image_network", help='also a Fréchet distance by this network, as "efficientnet-lite0"')
    parser.add_argument("--bf16", action="store_true", help="sample in bfloat16, on a processor that is fast at it")
    arguments = parser.parse_args(argv)

    judge = FashionJudge.load(arguments.judge / "model.safetensors")
    validation = load_split(arguments.dataset_name, "validation")[0]
    references = judge_images(judge, validation).features
    distance = NetworkDistance(arguments.image_network, validation) if arguments.image_network else lambda images: {}
    pipe = load_pipeline(arguments.model_name_or_path, arguments.bf16)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    counted, tries = without_weights(pipe), Tries(arguments.output_dir / "sweep.jsonl")
    settings = all_settings(arguments)
    for setting in tries.untried(settings):
        call = call_arguments(setting, arguments.num_images)
        images = generate(pipe_with(pipe, setting), arguments.num_images, seed=setting["seed"], **call)
        work = count_gflops(pipe_with(counted, setting), **call_arguments(setting, 1))
        scores = fashion_scores(judge, images, references) | distance(images)
        tries.add(setting | {"gflops": work} | scores)
        print(json.dumps(tries.rows[-1]), flush=True)
    rows = averaged(tries.of(settings), settings, "fd")
    draw_frontier(rows, "fd", arguments.output_dir / "frontier.png", "Fréchet distance (judge)")
    if arguments.image_network:
        name = arguments.image_network
        rows = averaged(tries.of(settings), settings, f"fd_{name}")
        draw_frontier(rows, f"fd_{name}", arguments.output_dir / f"frontier-{name}.png", f"Fréchet distance ({name})")


def all_settings(arguments: argparse.Namespace) -> list[dict]:
    names = (
        *("num_inference_steps", "unmasking_order", "temperature", "token_temperature", "masking_schedule"),
        *("full_steps", "seed"),
    )
    choices = {name: getattr(arguments, name) for name in names}
    choices["encoder_keep_share"] = [None if share == 1 else share for share in arguments.encoder_keep_share]
    choices["guidance_scale"] = arguments.guidance_scale or [None]
    common = {"model": str(arguments.model_name_or_path), "num_images": arguments.num_images}
    return [common | setting for setting in combinations(choices)]


def call_arguments(setting: dict, num_images: int) -> dict:
    if setting["guidance_scale"] is None:
        return {}
    labels = [number % 10 for number in range(num_images)]
    return {"class_labels": labels, "guidance_scale": setting["guidance_scale"]}


if __name__ == "__main__":
    main()
