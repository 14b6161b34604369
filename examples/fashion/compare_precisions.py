"""
What a model of clothes draws in lower precision, beside float32: tokens that become others, and distances of samples.

    python -m examples.fashion.compare_precisions --dataset_name outputs/fashion/data

Eight-bit matrices need torchao, which the extra `deployment` brings.
"""

import argparse
import json
import time
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from examples import ROOT
from examples.device import device
from transformers_mage import MagePipeline
from transformers_mage.benchmarking import QUANTIZATIONS, quantize
from transformers_mage.hub.cards import markdown_table, percent
from transformers_mage.image_tokens import encode_images

from .images import load_split
from .judge import FashionJudge, judge_images
from .sampling import generate, load_pipeline
from .scores import NetworkDistance, fashion_scores

PRECISIONS = ("float32", "bfloat16", *QUANTIZATIONS)


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", type=Path, default=Path("outputs", "fashion", "data"))
    parser.add_argument("--model_name_or_path", default=str(ROOT / "model_cards" / "mage-fashion"))
    parser.add_argument("--output_dir", type=Path, default=Path("outputs", "fashion", "precisions"))
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--num_images", type=int, default=5000, help="samples of each, and images with hidden tokens")
    parser.add_argument("--image_network", help='also a Fréchet distance by this network, as "efficientnet-lite0"')
    arguments = parser.parse_args(argv)
    if set(arguments.precisions) & QUANTIZATIONS.keys() and find_spec("torchao") is None:
        parser.error("eight bits need torchao: pip install 'transformers-mage[deployment]', or leave them out")

    judge = FashionJudge.load()
    validation = load_split(arguments.dataset_name, "validation")[0]
    references = judge_images(judge, validation).features
    distance = NetworkDistance(arguments.image_network, validation) if arguments.image_network else lambda images: {}
    tokens, is_hidden = hide_tokens(load_pipeline(arguments.model_name_or_path), validation[: arguments.num_images])
    expected = draw_tokens(load(arguments.model_name_or_path, "float32"), tokens)
    rows: dict[str, dict] = {}
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    for precision in arguments.precisions:
        pipe = load(arguments.model_name_or_path, precision)
        others = (draw_tokens(pipe, tokens) != expected)[is_hidden].float().mean()
        start = time.perf_counter()
        images = generate(pipe, arguments.num_images)
        seconds = (time.perf_counter() - start) / arguments.num_images
        scores = fashion_scores(judge, images, references) | distance(images)
        rows[precision] = {"other_tokens": float(others), "seconds_an_image": seconds} | scores
        (arguments.output_dir / "precisions.json").write_text(json.dumps(rows, indent=2))
    print(table(rows, arguments.image_network))


def load(name_or_path: str, precision: str) -> MagePipeline:
    pipe = load_pipeline(name_or_path, bf16=precision == "bfloat16")
    if precision in QUANTIZATIONS:
        quantize(pipe.model, precision)
    return pipe


@torch.no_grad()
def hide_tokens(pipe: MagePipeline, images: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens of images, half of them hidden at random, and where those are: `(N, L)` each."""
    pixels = images.to(device()).expand(-1, 3, -1, -1) / 255
    tokens = torch.cat([encode_images(pipe.vqvae, batch) for batch in pixels.split(250)]).flatten(1)
    is_hidden = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(0)).to(tokens.device) < 0.5
    return tokens.masked_fill(is_hidden, pipe.model.config.mask_token_id), is_hidden


@torch.no_grad()
def draw_tokens(pipe: MagePipeline, tokens: Tensor) -> Tensor:
    """A token drawn at every position, `(N, L)`, by the same random numbers in every precision."""
    generator, drawn = torch.Generator().manual_seed(0), []
    for batch in tokens.split(250):
        logits = pipe.model(input_ids=batch).logits.float()
        noise = torch.empty(logits.shape).exponential_(generator=generator).to(logits.device)
        drawn.append((logits - noise.log()).argmax(-1).flatten(1))
    return torch.cat(drawn)


def table(rows: dict[str, dict], image_network: str | None) -> str:
    networks = {"fd": "FD, judge"} | ({f"fd_{image_network}": f"FD, {image_network}"} if image_network else {})
    header = ["computed in", "other tokens, %", *networks.values(), "sure, %", "seconds an image"]
    return markdown_table(
        header,
        [
            [
                precision,
                percent(row["other_tokens"]),
                *(f"{row[name]:.2f}" for name in networks),
                percent(row["sure"]),
                f"{row['seconds_an_image']:.3f}",
            ]
            for precision, row in rows.items()
        ],
    )


if __name__ == "__main__":
    main()
