"""
Tries ways of sampling a model of clothes, and scores each against the validation images: how the kept one was chosen.

    python -m examples.fashion.sweep --model_name_or_path outputs/fashion/mage --judge outputs/fashion/judge

What scripts/tune_sampling.py does with any model, by the judge of clothes. Each try is added to `sweep.jsonl` at once,
and what is there is not tried again; `frontier.png` shows the distances against the work, `table.md` has them.
"""

import argparse
import json
from pathlib import Path

from transformers_mage import MagePipeline
from transformers_mage.benchmarking import (
    Tries,
    averaged,
    combinations,
    count_gflops,
    draw_frontier,
    method_of,
    pipe_with,
    without_weights,
)
from transformers_mage.files import write_text
from transformers_mage.hub.cards import markdown_table, percent

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
    parser.add_argument(
        "--guidance_scale", type=float, nargs="+", help="of a class-conditional model; its own by default"
    )
    parser.add_argument(
        "--guidance_interval", type=float, nargs="+", default=[0.0, 1.0], help="two shares of the steps for each"
    )
    parser.add_argument("--image_network", help='also a Fréchet distance by this network, as "efficientnet-lite0"')
    parser.add_argument("--bf16", action="store_true", help="sample in bfloat16, on a processor that is fast at it")
    arguments = parser.parse_args(argv)
    if len(arguments.guidance_interval) % 2:
        parser.error(f"--guidance_interval takes two shares for each interval, got {arguments.guidance_interval}")

    judge = FashionJudge.load(arguments.judge / "model.safetensors")
    validation = load_split(arguments.dataset_name, "validation")[0]
    references = judge_images(judge, validation).features
    distance = NetworkDistance(arguments.image_network, validation) if arguments.image_network else lambda images: {}
    pipe = load_pipeline(arguments.model_name_or_path, arguments.bf16)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    counted, tries = without_weights(pipe), Tries(arguments.output_dir / "sweep.jsonl")
    settings = all_settings(arguments)
    for setting in tries.untried(settings):
        classes = class_labels(pipe, arguments.num_images)
        images = generate(pipe_with(pipe, setting), arguments.num_images, class_labels=classes, seed=setting["seed"])
        work = count_gflops(pipe_with(counted, setting), class_labels=class_labels(pipe, 1))
        scores = fashion_scores(judge, images, references, classes) | distance(images)
        tries.add(setting | {"gflops": work} | scores)
        print(json.dumps(tries.rows[-1]), flush=True)
    report(tries.of(settings), settings, arguments.image_network, arguments.output_dir)


def report(rows: list[dict], settings: list[dict], image_network: str | None, folder: Path):
    """Means over seeds, as a picture and as a table, the cheapest first."""
    scores = {"fd": "Fréchet distance, judge of clothes"}
    if image_network:
        scores[f"fd_{image_network}"] = f"Fréchet distance, {image_network}"
    shares = {"sure": "sure, %"} | (
        {"asked_class": "as asked, %"} if all("asked_class" in row for row in rows) else {}
    )
    means = averaged(rows, settings, *scores, *shares)
    draw_frontier(means, scores, folder / "frontier.png")
    header = ["steps", "guidance", "way", "GFLOP", *scores.values(), *shares.values(), "seeds"]
    table = [
        [
            *(row["num_inference_steps"], row["guidance_scale"], method_of(row), f"{row['gflops']:.2f}"),
            *(f"{row[score]:.2f}" for score in scores),
            *(percent(row[share]) for share in shares),
            row["seeds"],
        ]
        for row in sorted(means, key=lambda row: row["gflops"])
    ]
    if len({row["guidance_scale"] for row in means}) == 1:
        header, *table = [[line[0], *line[2:]] for line in (header, *table)]
    spreads = [f"{max(row[f'{score}_spread'] for row in means):.2f} ({label})" for score, label in scores.items()]
    text = f"{markdown_table(header, table)}\n\nSeeds differ by up to {', '.join(spreads)}.\n"
    write_text(folder / "table.md", text)


def all_settings(arguments: argparse.Namespace) -> list[dict]:
    names = (
        *("num_inference_steps", "unmasking_order", "temperature", "token_temperature", "masking_schedule"),
        *("full_steps", "seed"),
    )
    choices = {name: getattr(arguments, name) for name in names}
    choices["encoder_keep_share"] = [None if share == 1 else share for share in arguments.encoder_keep_share]
    choices["guidance_scale"] = arguments.guidance_scale or [None]
    shares = arguments.guidance_interval
    choices["guidance_interval"] = [[begin, end] for begin, end in zip(shares[::2], shares[1::2], strict=True)]
    common = {"model": str(arguments.model_name_or_path), "num_images": arguments.num_images}
    return [common | setting for setting in combinations(choices)]


def class_labels(pipe: MagePipeline, num_images: int) -> list[int] | None:
    """All classes in turn, of a class-conditional model."""
    num_classes = pipe.model.config.num_classes
    return [number % num_classes for number in range(num_images)] if num_classes else None


if __name__ == "__main__":
    main()
