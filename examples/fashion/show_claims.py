"""
Shows the paper's claims in small: models of clothes that differ in one thing, a few seeds each, and what they generate
and represent.

    python -m examples.fashion.show_claims --folder outputs/fashion --card model_cards/mage-fashion/README.md

`--folder` holds what `make.py` made: the data, the judge and the tokenizer of 64 codes. Runs that are already in
`--output_dir` are not repeated, so several of these commands may share the work, each with its own `--variants` or
`--seeds`.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from diffusers import VQModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import ViTMAEModel

from examples import ROOT, run_module, run_script
from examples.comparison import Column, Comparison, Figures
from examples.device import bfloat16, device
from transformers_mage import MageModel
from transformers_mage.data.labels import draw_subset
from transformers_mage.hub.cards import replace_block
from transformers_mage.image_tokens import encode_images
from transformers_mage.representation import fit_best_probe, score
from transformers_mage.representation.probing import normalize

from .images import load_split
from .judge import NUM_CLASSES, FashionJudge, as_grey, judge_images
from .sampling import generate, load_pipeline
from .scores import fashion_scores

# How an image is cropped: flags of scripts/cache_tokens.py and of the training scripts. The contrastive loss compares
# two crops of an image, and what is compared with it sees crops of the same kind.
WHOLE = {"--views": 1, "--crop_scale_min": 1.0}
CROPS = {"--views": 2, "--crop_scale_min": 0.5}
# A smaller network than the recipes', so that all of them take hours and not days.
NETWORK = ("--model.hidden_size", 128, "--model.num_hidden_layers", 4, "--model.num_attention_heads", 4)
NETWORK += ("--model.intermediate_size", 512, "--train_batch_size", 64, "--warmup_steps", 100, "--ema_decay", 0.998)
FIXED = ("--model.mask_ratio_std", 0, "--model.mask_ratio_mean")

# What each is trained with beside configs/mage_fashion.yaml.
VARIANTS: dict[str, tuple[dict, tuple]] = {
    "variable ratio": (WHOLE, ()),
    "fixed ratio 0.55": (WHOLE, (*FIXED, 0.55)),
    "fixed ratio 0.75": (WHOLE, (*FIXED, 0.75)),
    "fixed ratio 0.9": (WHOLE, (*FIXED, 0.9)),
    "told the class": (WHOLE, ("--class_conditional", True)),
    "variable ratio, crops": (CROPS, ()),
    "MAGE-C, crops": (CROPS, ("--contrastive_weight", 0.1)),
}
VIT_MAE = {"ViT-MAE": WHOLE, "ViT-MAE, crops": CROPS}
SHOTS = (10, 100, 0)
COLUMNS = {
    "fd": Column("FD", decimals=2),
    "sure": Column("sure samples, %", 100),
    "junk": Column("junk, %", 100),
    "probe_10": Column("probe, 10 labels a class, %", 100),
    "probe_100": Column("100 labels", 100),
    "probe_all": Column("all labels", 100),
}


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*VARIANTS, *VIT_MAE]
    parser.add_argument("--folder", type=Path, default=Path("outputs", "fashion"), help="with data, judge, tokenizer")
    parser.add_argument("--tokenizer_name_or_path", help="another than `vqgan-64` of the folder")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs", "fashion", "claims"))
    parser.add_argument("--variants", nargs="+", choices=names, default=names)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--max_train_steps", type=int, default=2000, help="updates of each model")
    parser.add_argument("--num_images", type=int, default=1000, help="samples of each model")
    parser.add_argument("--mixed_precision", default="no", help="bf16 on a processor that is fast at it")
    parser.add_argument("--card", type=Path, help="model card whose block `claims` takes the table")
    arguments = parser.parse_args(argv)

    claims = Claims(arguments)
    comparison = Comparison(arguments.output_dir, COLUMNS)
    for seed in arguments.seeds:
        for variant in arguments.variants:
            comparison.complete(variant, seed, claims.vit_mae if variant in VIT_MAE else claims.mage)
    table = comparison.table(names)
    print(table)
    if arguments.card:
        replace_block(arguments.card, "claims", table)


@dataclass
class Claims:
    """What all runs share."""

    arguments: argparse.Namespace
    judge: FashionJudge = field(init=False)

    def __post_init__(self):
        self.judge = FashionJudge.load(self.arguments.folder / "judge" / "model.safetensors")

    @property
    def data(self) -> Path:
        return self.arguments.folder / "data"

    @cached_property
    def images(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Images and kinds of the training images, which probes learn from, and of the test images."""
        return {split: load_split(self.data, split) for split in ("train", "test")}

    @cached_property
    def references(self) -> Tensor:
        """The judge's features of the test images."""
        return judge_images(self.judge, self.images["test"][0]).features

    def tokens(self, views: dict) -> Path:
        """The tokens of the training images, in a folder for each way of cropping."""
        folder = self.arguments.output_dir / f"tokens-{views['--crop_scale_min']}"
        if not (folder / "complete").exists():
            tokenizer = self.arguments.tokenizer_name_or_path or self.arguments.folder / "vqgan-64"
            flags = ["--dataset_name", self.data, "--tokenizer_name_or_path", tokenizer]
            flags += ["--image_size", 28, "--batch_size", 128, "--horizontal_flip", False, "--output_dir", folder]
            run_script("cache_tokens", *flags, *flatten(views))
            (folder / "complete").touch()
        return folder

    def training_flags(self, recipe: str, views: dict, seed: int, folder: Path) -> list:
        flags = ["--config", ROOT / "configs" / f"{recipe}.yaml", "--dataset_name", self.data, "--seed", seed]
        flags += ["--crop_scale_min", views["--crop_scale_min"], "--max_train_steps", self.arguments.max_train_steps]
        flags += [*NETWORK, "--mixed_precision", self.arguments.mixed_precision, "--report_to", "none"]
        return [*flags, "--output_dir", folder, "--resume_from_checkpoint", "latest"]

    def mage(self, variant: str, seed: int, folder: Path) -> Figures:
        """Trains a MAGE, and scores what it generates and represents."""
        views, flags = VARIANTS[variant]
        if not (folder / "model.safetensors").exists():
            common = self.training_flags("mage_fashion", views, seed, folder)
            run_script(
                "train_mage", *common, "--token_cache", self.tokens(views), "--validation_split", "null", *flags
            )
        pipe = load_pipeline(str(folder), self.arguments.mixed_precision == "bf16")
        count = self.arguments.num_images
        labels = [number % NUM_CLASSES for number in range(count)] if pipe.model.config.num_classes else None
        samples = generate(pipe, count, class_labels=labels)
        scores = fashion_scores(self.judge, samples, self.references)
        return {name: scores[name] for name in ("fd", "sure", "junk")} | self.probe(self.mage_features(folder))

    def vit_mae(self, variant: str, seed: int, folder: Path) -> Figures:
        """Trains transformers' ViT-MAE, and scores what it represents."""
        if not (folder / "model.safetensors").exists():
            flags = self.training_flags("vit_mae_fashion", VIT_MAE[variant], seed, folder)
            run_module("examples.fashion.train_vit_mae", *flags)
        return self.probe(self.vit_mae_features(folder))

    def probe(self, features: dict[str, Tensor]) -> Figures:
        """Accuracies of linear probes of pooled features, over three draws where only some images are labelled."""
        features = {split: normalize(values) for split, values in features.items()}
        labels, wanted = self.images["train"][1], self.images["test"][1]
        accuracies = {}
        for shots in SHOTS:
            draws = [draw_subset(labels, shots or None, seed=seed) for seed in range(3 if shots else 1)]
            found = []
            for seed, rows in enumerate(map(torch.from_numpy, draws)):
                known, answers = features["train"][rows].to(device()), labels[rows].to(device())
                probe = fit_best_probe(known, answers, NUM_CLASSES, seed=seed)
                found.append(score(probe(features["test"].to(device())).cpu(), wanted)["accuracy"])
            accuracies[f"probe_{shots or 'all'}"] = sum(found) / len(found)
        return accuracies

    def mage_features(self, folder: Path) -> dict[str, Tensor]:
        """(N, hidden_size) by split: the mean over the tokens before the final norm, as in the paper."""
        model = MageModel.from_pretrained(folder, attn_implementation="eager").to(device()).eval()
        with bfloat16(self.arguments.mixed_precision == "bf16"):
            return {
                split: in_batches(lambda ids: model(input_ids=ids).pooler_output, tokens)
                for split, tokens in self.input_ids(model.vqvae).items()
            }

    def vit_mae_features(self, folder: Path) -> dict[str, Tensor]:
        """The same of a ViT-MAE, of which nothing is masked."""
        model = ViTMAEModel.from_pretrained(folder, mask_ratio=0.0, attn_implementation="eager").to(device()).eval()

        def pool(images: Tensor) -> Tensor:
            return model(as_grey(images), output_hidden_states=True).hidden_states[-1][:, 1:].mean(dim=1)

        with bfloat16(self.arguments.mixed_precision == "bf16"):
            return {split: in_batches(pool, images) for split, (images, _) in self.images.items()}

    def input_ids(self, tokenizer: VQModel) -> dict[str, Tensor]:
        """The tokens of all images by split. They are the same for every model, so they are kept."""
        file = self.arguments.output_dir / "input_ids.safetensors"
        if not file.exists():

            def tokenize(images: Tensor) -> Tensor:
                return encode_images(tokenizer, as_grey(images).expand(-1, 3, -1, -1)).flatten(1)

            with bfloat16(False):
                tokens = {split: in_batches(tokenize, images) for split, (images, _) in self.images.items()}
            # Under a name of its own first: commands that share the work may come here at the same time.
            own = file.with_suffix(f".{os.getpid()}")
            save_file(tokens, own)
            own.replace(file)
        return load_file(file)


@torch.no_grad()
def in_batches(function: Callable[[Tensor], Tensor], inputs: Tensor, batch_size: int = 500) -> Tensor:
    batches = tqdm(inputs.split(batch_size), desc="Extracting features", mininterval=5, leave=False)
    return torch.cat([function(batch.to(device())).cpu() for batch in batches])


def flatten(flags: dict) -> list:
    return [word for pair in flags.items() for word in pair]


if __name__ == "__main__":
    main()
