"""
What each loss does to a tokenizer: the same network, data, batches and updates, with pixels alone, with a perceptual
loss, and with a discriminator as well, for several seeds.

    python -m examples.compare_tokenizers fashion --dataset_name outputs/fashion/data
    python -m examples.compare_tokenizers emoji --dataset_name outputs/emoji --card docs/tokenizer.md

It prints a table of means and spreads and draws a picture: originals, and the reconstructions of each recipe. Runs
that are already in `--output_dir` are not repeated, so several of these commands may share the work, each with its own
`--recipes` or `--seeds`.
"""

import argparse
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from datasets import load_from_disk
from diffusers import VQModel
from PIL import Image
from torch import Tensor, nn

from examples import ROOT, run_script
from examples.comparison import Column, Comparison, Figures
from examples.device import device
from transformers_mage.data.tokenization import load_tokenizer
from transformers_mage.hub.cards import replace_block
from transformers_mage.image_networks import load_image_network
from transformers_mage.image_tokens import decode_images, encode_images
from transformers_mage.metrics import TokenizerScores
from transformers_mage.quickstart.judge import Judge, train_judge
from transformers_mage.training.vqgan.perceptual import PerceptualDistance
from transformers_mage.visualization import draw_grid

from .fashion.judge import FashionJudge

RECIPES = {
    "L1 + L2": ("--perceptual_weight", 0, "--adversarial_weight", 0),
    "perceptual": ("--adversarial_weight", 0),
    "perceptual + GAN": (),
}
# The losses of configs/vqgan_fashion.yaml, which the emoji's recipe does without. There are few emoji: what the
# discriminator sees of them is moved about and recoloured.
LOSSES = ("--l1_share", 0.5, "--perceptual_weight", 0.1, "--perceptual_network", "efficientnet-lite0")
LOSSES += ("--perceptual_stages", 3, "--adversarial_weight", 0.05, "--discriminator_channels", 16)
LOSSES += ("--discriminator_levels", 2, "--discriminator_learning_rate", 1e-3, "--lecam_weight", 0.001)
LOSSES += ("--discriminator_augmentation", "color,translation", "--use_ema", True)
# Updates in which the judge of the emoji, whom no loss saw, learns their groups.
JUDGE_UPDATES = 1000
PHOTOGRAPHS, JUDGE = "EfficientNet-lite0", "judge"
COLUMNS = {
    "psnr": Column("PSNR (dB)", decimals=2),
    "ssim": Column("SSIM", decimals=3),
    "perceptual_distance": Column("perceptual distance", decimals=3),
    f"rfid ({PHOTOGRAPHS})": Column(f"rFID, {PHOTOGRAPHS}", decimals=2),
    f"rfid ({JUDGE})": Column("rFID, judge", decimals=3),
    "codes_used": Column("codes used", decimals=0),
}


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(SETS), help="the images, which have a recipe configs/vqgan_NAME.yaml")
    parser.add_argument("--dataset_name", type=Path, required=True, help="their folder, which make_dataset.py made")
    parser.add_argument("--output_dir", type=Path, help="by default outputs/tokenizers-NAME")
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--max_train_steps", type=int, default=2000, help="updates of each tokenizer")
    parser.add_argument("--num_test_images", type=int, default=2000, help="images to reconstruct, at most")
    parser.add_argument("--card", type=Path, help="document whose block `tokenizers-NAME` takes the table")
    arguments = parser.parse_args(argv)

    output_dir = arguments.output_dir or ROOT / "outputs" / f"tokenizers-{arguments.name}"
    trials = SETS[arguments.name](arguments, output_dir)
    comparison = Comparison(output_dir, COLUMNS)
    for seed in arguments.seeds:
        for recipe in arguments.recipes:
            comparison.complete(recipe, seed, trials.run)
    table = comparison.table(list(RECIPES), heading="losses")
    print(table)
    draw(comparison, trials.test_images[:16]).save(output_dir / "reconstructions.png", optimize=True)
    if arguments.card:
        replace_block(arguments.card, f"tokenizers-{arguments.name}", table)


@dataclass
class Trials:
    """What all runs share."""

    arguments: argparse.Namespace
    output_dir: Path

    losses = ()

    @cached_property
    def test_images(self) -> Tensor:
        """(N, 3, height, width) uint8."""
        return self.images("test")[0][: self.arguments.num_test_images]

    def images(self, split: str) -> tuple[Tensor, Tensor]:
        """All images of a split, (N, 3, height, width) uint8, and their classes."""
        rows = load_from_disk(str(self.arguments.dataset_name))[split]
        pixels = np.stack([np.asarray(image.convert("RGB")) for image in rows["image"]])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.tensor(rows["label"][:])

    @cached_property
    def judge(self) -> nn.Module:
        """A network that was trained on the images, and that no loss looks through."""
        raise NotImplementedError

    def run(self, recipe: str, seed: int, folder: Path) -> Figures:
        """Trains a tokenizer, whose discriminator starts after a third of the updates, and scores it."""
        steps = self.arguments.max_train_steps
        if not (folder / "config.json").exists():
            flags = [
                "--config",
                ROOT / "configs" / f"vqgan_{self.arguments.name}.yaml",
                *self.losses,
                *RECIPES[recipe],
            ]
            flags += ["--dataset_name", self.arguments.dataset_name, "--max_train_steps", steps, "--seed", seed]
            flags += ["--adversarial_start_step", steps // 3, "--adversarial_ramp_steps", max(steps // 6, 1)]
            flags += ["--ema_decay", max(1 - 10 / steps, 0.5), "--report_to", "none", "--output_dir", folder]
            run_script("train_vqgan", *flags, "--resume_from_checkpoint", "latest")
        return self.score(load_tokenizer(folder).to(device()))

    def score(self, tokenizer: VQModel) -> Figures:
        photographs = load_image_network("efficientnet-lite0").to(device())
        networks = {PHOTOGRAPHS: photographs, JUDGE: self.judge.to(device())}
        scores = TokenizerScores(tokenizer, networks, perceptual=PerceptualDistance(photographs))
        for batch in self.test_images.split(250):
            scores.add_batch(batch.to(device()))
        return scores.compute()


class Clothes(Trials):
    @cached_property
    def judge(self) -> nn.Module:
        return FashionJudge.load()


class Emoji(Trials):
    losses = LOSSES

    @cached_property
    def judge(self) -> Judge:
        """It is kept beside the runs: all of them have the same."""
        images, labels = self.images("train")
        file, num_classes = self.output_dir / "judge.safetensors", int(labels.max()) + 1
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            train_judge(images, labels, num_classes, JUDGE_UPDATES).save(file)
        return Judge.load(file, num_classes)


SETS = {"fashion": Clothes, "emoji": Emoji}


@torch.no_grad()
def draw(comparison: Comparison, images: Tensor) -> Image.Image:
    """Originals in the first row, and one of reconstructions for each recipe that is trained, of its first seed."""
    rows = [images]
    for recipe in RECIPES:
        for file in comparison.files(recipe, "config.json")[:1]:
            tokenizer = load_tokenizer(file.parent).to(device())
            pixels = decode_images(tokenizer, encode_images(tokenizer, images.to(device()).float() / 255)).clamp(0, 1)
            rows.append((pixels * 255).round().byte().cpu())
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in torch.cat(rows)]
    return draw_grid(pictures, num_columns=len(images), scale=2, gap=2)


if __name__ == "__main__":
    main()
