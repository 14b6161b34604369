"""
What each loss does to a tokenizer: the same network, data, batches and updates, with pixels alone, with a perceptual
loss, and with a discriminator as well, for several seeds.

    python -m examples.fashion.compare_tokenizers --dataset_name outputs/fashion/data

It prints a table of means and spreads and draws a picture: originals, and the reconstructions of each recipe.
Tokenizers that are already in `--output_dir` are not trained again.
"""

import argparse
import statistics
from pathlib import Path

from diffusers import VQModel
from torch import Tensor

from examples import ROOT, run_script
from transformers_mage.data.indexed import validation_images
from transformers_mage.data.loading import DatasetSpec, load_images
from transformers_mage.data.tokenization import load_tokenizer
from transformers_mage.files import write_json
from transformers_mage.hub.cards import markdown_table
from transformers_mage.image_networks import load_image_network
from transformers_mage.image_tokens import decode_images, encode_images
from transformers_mage.metrics import TokenizerScores
from transformers_mage.training.vqgan.perceptual import PerceptualDistance

from .judge import FashionJudge
from .pictures import draw_rows

SHAPE = (3, 28, 28)
# A smaller network than the recipe's, so that nine of them take minutes.
NETWORK = ("--vq_config.block_out_channels", "[8, 16, 32]", "--discriminator_channels", 8, "--ema_decay", 0.99)
RECIPES = {
    "L1 + L2": ("--perceptual_weight", 0, "--adversarial_weight", 0),
    "+ perceptual": ("--adversarial_weight", 0),
    "+ perceptual + GAN": (),
}
PHOTOGRAPHS, CLOTHES = "EfficientNet-lite0", "judge of clothes"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", required=True, help="the folder of examples.fashion.make_dataset")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/fashion/tokenizers"))
    parser.add_argument("--num_seeds", type=int, default=3)
    parser.add_argument("--max_train_steps", type=int, default=300)
    parser.add_argument("--train_batch_size", type=int, default=16)
    parser.add_argument("--num_test_images", type=int, default=2000)
    arguments = parser.parse_args()
    dataset, columns = load_images(DatasetSpec(arguments.dataset_name, split="test"))
    images = validation_images(dataset, columns.image, SHAPE, arguments.num_test_images)
    scores = {}
    for recipe in RECIPES:
        folders = [train(arguments, recipe, seed) for seed in range(arguments.num_seeds)]
        scores[recipe] = [score(load_tokenizer(folder), images) for folder in folders]
    write_json(arguments.output_dir / "results.json", scores)
    print(table_of(scores))
    draw(arguments.output_dir, images[:16]).save(arguments.output_dir / "reconstructions.png")


def folder_of(output_dir: Path, recipe: str, seed: int) -> Path:
    return output_dir / f"{list(RECIPES).index(recipe)}-{seed}"


def train(arguments: argparse.Namespace, recipe: str, seed: int) -> Path:
    """The folder of a tokenizer. The discriminator starts after a third of the updates."""
    folder, steps = folder_of(arguments.output_dir, recipe, seed), arguments.max_train_steps
    if not (folder / "config.json").exists():
        flags = ["--config", ROOT / "configs" / "vqgan_fashion.yaml", "--dataset_name", arguments.dataset_name]
        flags += [*NETWORK, "--max_train_steps", steps, "--train_batch_size", arguments.train_batch_size]
        flags += ["--max_train_samples", steps * arguments.train_batch_size, "--seed", seed, "--report_to", "none"]
        flags += ["--adversarial_start_step", steps // 3, "--adversarial_ramp_steps", steps // 6]
        run_script("train_vqgan", *flags, *RECIPES[recipe], "--checkpointing_steps", 0, "--output_dir", folder)
    return folder


def score(tokenizer: VQModel, images: Tensor) -> dict[str, float]:
    """PSNR and the like of held-out images; no loss saw the judge."""
    photographs = load_image_network("efficientnet-lite0")
    networks = {PHOTOGRAPHS: photographs, CLOTHES: FashionJudge.load()}
    scores = TokenizerScores(tokenizer, networks, perceptual=PerceptualDistance(photographs))
    for batch in images.split(250):
        scores.add_batch(batch)
    return scores.compute()


def table_of(scores: dict[str, list[dict[str, float]]]) -> str:
    """A line for each recipe: means over the seeds, and standard deviations."""
    columns = {
        "psnr": ("PSNR (dB)", 2),
        "perceptual_distance": ("perceptual distance", 3),
        f"rfid ({PHOTOGRAPHS})": (f"rFID, {PHOTOGRAPHS}", 1),
        f"rfid ({CLOTHES})": (f"rFID, {CLOTHES}", 2),
        "codes_used": ("codes used", 0),
    }
    rows = []
    for recipe, runs in scores.items():
        cells = []
        for name, (_, digits) in columns.items():
            values = [run[name] for run in runs]
            spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.{digits}f}{spread}")
        rows.append([recipe, *cells])
    return markdown_table(["", *(heading for heading, _ in columns.values())], rows)


def draw(output_dir: Path, images: Tensor):
    """Originals in the first row, and a row of reconstructions for each recipe, of its first seed."""
    rows = [images]
    for recipe in RECIPES:
        tokenizer = load_tokenizer(folder_of(output_dir, recipe, 0))
        pixels = decode_images(tokenizer, encode_images(tokenizer, images.float() / 255)).clamp(0, 1)
        rows.append((pixels * 255).round().byte())
    return draw_rows(rows)


if __name__ == "__main__":
    main()
