"""
What leads a model of clothes, compared: nothing, representations that its own kind has learned without labels (RCG),
or the classes. The same network, masks, images and updates, a few seeds each.

    python -m examples.fashion.compare_conditions --token_cache outputs/fashion/tokens \
        --dataset_name outputs/fashion/data

It prints a table of means and standard deviations, and draws some samples of each beside those of the others. In the
folder of each run are its samples, with the nearest training images below some of them; those of the runs by
representations also hold images like given ones and images between two of them. What is there is not made again, and
an interrupted training continues.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from examples import ROOT, run_script
from examples.comparison import Column, Comparison, Figures
from transformers_mage import MagePipeline, standardize
from transformers_mage.files import write_json

from .images import load_split
from .judge import BUNDLED, NUM_CLASSES, FashionJudge, as_grey, judge_images
from .pictures import draw_images, draw_rows
from .sampling import generate, load_pipeline, to_uint8
from .scores import fashion_scores, nearest_images
from .show_claims import CROPS, NETWORK, flatten

# More is hidden where something leads, and the same where nothing does, so that only that differs.
MASKS = ("--model.mask_ratio_mean", 0.75)
BATCH_SIZE = 250


@dataclass(frozen=True)
class Variant:
    """
    A way of sampling a model.

    Attributes:
        model (`str`): which: a method of [`Runs`] trains it.
        is_guided (`bool`): whether there is guidance.
        is_drawn (`bool`): whether representations, where they lead, are drawn, or those of the test images.
    """

    model: str
    is_guided: bool = False
    is_drawn: bool = True


VARIANTS = {
    "unconditional": Variant("unconditional"),
    "by MAGE": Variant("by_mage"),
    "by MAGE guided": Variant("by_mage", is_guided=True),
    "by MAGE of test images": Variant("by_mage", is_drawn=False),
    "by MAGE-C": Variant("by_mage_c"),
    "by MAGE-C guided": Variant("by_mage_c", is_guided=True),
    "by MAGE-C of test images": Variant("by_mage_c", is_drawn=False),
    "by class": Variant("by_class"),
    "by class guided": Variant("by_class", is_guided=True),
}
COLUMNS = {
    "fd": Column("FD", decimals=2),
    "sure": Column("sure, %", 100),
    "junk": Column("junk, %", 100),
    "precision": Column("precision, %", 100),
    "recall": Column("recall, %", 100),
    "distance": Column("distance to training images", decimals=3),
}


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", type=Path, default=Path("outputs", "fashion", "data"))
    parser.add_argument("--token_cache", type=Path, default=Path("outputs", "fashion", "tokens"))
    parser.add_argument("--judge", type=Path, default=BUNDLED, help="its weights")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs", "fashion", "conditions"))
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--max_train_steps", type=int, default=2000, help="updates of each MAGE")
    parser.add_argument("--max_diffusion_steps", type=int, default=10000, help="updates of what draws representations")
    parser.add_argument("--num_images", type=int, default=1000, help="samples of each way")
    parser.add_argument("--guidance_scale", type=float, default=1.0, help="where there is guidance")
    parser.add_argument("--mixed_precision", default="no", help="bf16 on a processor that is fast at it")
    arguments = parser.parse_args(argv)

    runs, comparison = Runs(arguments), Comparison(arguments.output_dir, COLUMNS)
    for seed in arguments.seeds:
        for name in arguments.variants:
            comparison.complete(name, seed, runs.figures)
    table = comparison.table(list(VARIANTS), heading="led")
    (arguments.output_dir / "table.md").write_text(table + "\n")
    folders = [comparison.folder(name, arguments.seeds[0]) for name in arguments.variants]
    draw_side_by_side([folder / "samples.png" for folder in folders]).save(arguments.output_dir / "samples.png")
    print(table)


def draw_side_by_side(pictures: Sequence[Path], height: int = 56, gap: int = 2) -> Image.Image:
    """The first row of each picture of samples, one below the other."""
    rows = [Image.open(path).convert("L") for path in pictures]
    sheet = Image.new("L", (max(row.width for row in rows), len(rows) * (height + gap) - gap), 255)
    for number, row in enumerate(rows):
        sheet.paste(row.crop((0, 0, row.width, height)), (0, number * (height + gap)))
    return sheet


class Runs:
    """
    Trains what is missing, and samples it.

    Args:
        arguments (`argparse.Namespace`): the command line.
    """

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        self.judge = FashionJudge.load(arguments.judge)

    @cached_property
    def test(self) -> Tensor:
        return load_split(self.arguments.dataset_name, "test")[0]

    @cached_property
    def train(self) -> Tensor:
        return load_split(self.arguments.dataset_name, "train")[0]

    @cached_property
    def references(self) -> Tensor:
        """The judge's features of the test images."""
        return judge_images(self.judge, self.test).features

    def figures(self, name: str, seed: int, folder: Path) -> Figures:
        """Trains a model unless it is there, samples it, draws the samples and scores them."""
        variant = VARIANTS[name]
        trained = getattr(self, variant.model)(seed)
        pipe = load_pipeline(str(trained), self.arguments.mixed_precision == "bf16")
        images = self.sample(pipe, variant)
        folder.mkdir(parents=True, exist_ok=True)
        distances, nearest = nearest_images(images, self.train)
        draw_images(images[:100], num_columns=10).save(folder / "samples.png", optimize=True)
        draw_rows([images[:20], self.train[nearest[:20]]]).save(folder / "neighbours.png", optimize=True)
        if pipe.representation_encoder is not None and variant.is_drawn:
            self.draw_alike(pipe, folder, self.guidance(variant))
        scores = fashion_scores(self.judge, images, self.references)
        write_json(folder / "shares.json", scores["shares"])
        return {key: scores[key] for key in COLUMNS if key in scores} | {"distance": float(distances.median())}

    def guidance(self, variant: Variant) -> dict[str, float]:
        return {"guidance_scale": self.arguments.guidance_scale if variant.is_guided else 0.0}

    def sample(self, pipe: MagePipeline, variant: Variant) -> Tensor:
        """(num_images, 1, 28, 28) uint8 samples; of classes in turn where they lead."""
        count, options = self.arguments.num_images, self.guidance(variant)
        if pipe.model.config.num_classes:
            return generate(pipe, count, BATCH_SIZE, [number % NUM_CLASSES for number in range(count)], **options)
        if variant.is_drawn:
            return generate(pipe, count, BATCH_SIZE, **options)
        alike = [
            pipe(like=as_rgb(batch), generator=torch.Generator().manual_seed(number), output_type="pt", **options)
            for number, batch in enumerate(self.test[:count].split(BATCH_SIZE))
        ]
        return torch.cat([to_uint8(output.images) for output in alike])

    def draw_alike(self, pipe: MagePipeline, folder: Path, options: dict[str, float]):
        """Test images above images like them; and, from test image to test image, what lies between them."""

        def make(representations: Tensor, seed: int = 0) -> Tensor:
            generator = torch.Generator().manual_seed(seed)
            output = pipe(representations=representations, generator=generator, output_type="pt", **options)
            return to_uint8(output.images)

        shown = self.test[:12]
        representations = pipe.get_representations(as_rgb(shown))
        rows = [make(representations, seed) for seed in range(4)]
        draw_rows([shown, *rows]).save(folder / "alike.png", optimize=True)
        pairs = []
        for first, second in zip(range(0, 8, 2), range(1, 8, 2), strict=True):
            shares = torch.linspace(0, 1, 10)[:, None]
            between = torch.lerp(representations[first], representations[second], shares)
            pairs.append(torch.cat([shown[first : first + 1], make(standardize(between)), shown[second : second + 1]]))
        draw_rows(pairs).save(folder / "between.png", optimize=True)

    def unconditional(self, seed: int) -> Path:
        return self.train_mage("unconditional", seed, self.whole)

    def mage_c(self, seed: int) -> Path:
        """Only its representations count. It compares two crops of an image, which have a cache of their own."""
        return self.train_mage("mage-c", seed, self.crops, "--contrastive_weight", 0.1)

    def by_class(self, seed: int) -> Path:
        return self.train_mage("by-class", seed, self.whole, "--class_conditional", True)

    def by_mage(self, seed: int) -> Path:
        return self.by_representation("by-mage", seed, self.unconditional)

    def by_mage_c(self, seed: int) -> Path:
        return self.by_representation("by-mage-c", seed, self.mage_c)

    def by_representation(self, name: str, seed: int, encoder: Callable[[int], Path]) -> Path:
        """A model that is led by what an earlier one says of images, and what draws that."""
        led = self.train_mage(name, seed, self.whole, "--representation_model_name_or_path", encoder(seed))
        folder = self.folder(f"{name}-complete", seed)
        if not (folder / "model.safetensors").exists():
            flags = ["--config", ROOT / "configs" / "representation_diffusion_fashion.yaml", "--report_to", "none"]
            flags += ["--model_name_or_path", led, *self.whole(), "--output_dir", folder, "--seed", seed]
            flags += ["--max_train_steps", self.arguments.max_diffusion_steps, "--resume_from_checkpoint", "latest"]
            flags += ["--mixed_precision", self.arguments.mixed_precision]
            run_script("train_representation_diffusion", *flags)
        return folder

    def train_mage(self, name: str, seed: int, tokens: Callable[[], Sequence], *flags: object) -> Path:
        folder = self.folder(name, seed)
        if not (folder / "model.safetensors").exists():
            common = ["--config", ROOT / "configs" / "mage_fashion.yaml", *NETWORK, *MASKS, *tokens(), "--seed", seed]
            common += ["--max_train_steps", self.arguments.max_train_steps, "--validation_split", "null"]
            common += ["--mixed_precision", self.arguments.mixed_precision, "--report_to", "none"]
            run_script("train_mage", *common, *flags, "--output_dir", folder, "--resume_from_checkpoint", "latest")
        return folder

    def folder(self, name: str, seed: int) -> Path:
        return self.arguments.output_dir / "models" / f"{name}-{seed}"

    def whole(self) -> Sequence:
        """Flags that name the tokens of whole images."""
        return ["--token_cache", self.arguments.token_cache, "--crop_scale_min", 1.0]

    def crops(self) -> Sequence:
        """Flags that name those of crops, which are made now if they are missing."""
        folder = self.arguments.output_dir / "tokens-of-crops"
        if not (folder / "complete").exists():
            flags = ["--dataset_name", self.arguments.dataset_name, "--image_size", 28, "--batch_size", 128]
            flags += ["--tokenizer_name_or_path", self.arguments.token_cache / "tokenizer", "--horizontal_flip", False]
            run_script("cache_tokens", *flags, *flatten(CROPS), "--output_dir", folder)
            (folder / "complete").touch()
        return ["--token_cache", folder, "--crop_scale_min", CROPS["--crop_scale_min"]]


def as_rgb(images: Tensor) -> Tensor:
    """(N, 3, height, width), as the pipeline reads images."""
    return as_grey(images).expand(-1, 3, -1, -1)


if __name__ == "__main__":
    main()
