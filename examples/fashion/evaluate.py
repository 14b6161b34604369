"""
Scores a model of clothes on the test images, and draws it.

    python -m examples.fashion.evaluate --model_name_or_path MODEL_FOLDER --output_dir outputs/fashion/evaluation

Each part is a file in the output folder; what is there is not made again.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from examples.junk import JUNK_KINDS
from transformers_mage import MagePipeline
from transformers_mage.image_tokens import decode_images, encode_images
from transformers_mage.visualization import draw_steps

from .halves import HALVES, hide_half, paint_half
from .images import load_split
from .judge import FashionJudge, as_grey, judge_images
from .pictures import draw_images, draw_rows
from .sampling import generate, load_pipeline, to_uint8
from .scores import NetworkDistance, fashion_scores, nearest_images


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", type=Path, default=Path("outputs", "fashion", "data"))
    parser.add_argument("--model_name_or_path", default="outputs/fashion/mage")
    parser.add_argument("--judge", type=Path, default=Path("outputs", "fashion", "judge"))
    parser.add_argument("--output_dir", type=Path, default=Path("outputs", "fashion", "evaluation"))
    parser.add_argument("--num_images", type=int, default=5000, help="samples to score")
    parser.add_argument("--num_inpainted", type=int, default=1000, help="test images of which halves are hidden")
    parser.add_argument("--guidance_scale", type=float, help="of a class-conditional model; its own by default")
    parser.add_argument("--image_network", help='also a Fréchet distance by this network, as "efficientnet-lite0"')
    parser.add_argument("--bf16", action="store_true", help="sample in bfloat16, on a processor that is fast at it")
    arguments = parser.parse_args(argv)

    evaluation = Evaluation.open(arguments)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    parts = {
        "real": score_real,
        "tokenizer": score_tokenizer,
        "samples": score_samples,
        "inpainting": score_inpainting,
    }
    figures = {name: stored(arguments.output_dir / f"{name}.json", part, evaluation) for name, part in parts.items()}
    print(json.dumps(figures, indent=2))


@dataclass
class Evaluation:
    """What all parts of an evaluation need."""

    arguments: argparse.Namespace
    judge: FashionJudge
    pipe: MagePipeline
    test: tuple[Tensor, Tensor]
    train: tuple[Tensor, Tensor]
    references: Tensor

    @classmethod
    def open(cls, arguments: argparse.Namespace) -> "Evaluation":
        judge = FashionJudge.load(arguments.judge / "model.safetensors")
        pipe = load_pipeline(arguments.model_name_or_path, arguments.bf16)
        test, train = (load_split(arguments.dataset_name, split) for split in ("test", "train"))
        return cls(arguments, judge, pipe, test, train, judge_images(judge, test[0]).features)

    @property
    def classes(self) -> dict[str, float]:
        """What to pass to a class-conditional pipeline beside the classes."""
        return {"guidance_scale": self.arguments.guidance_scale} if self.pipe.model.config.num_classes else {}

    def scores(self, images: Tensor, asked: list[int] | None = None) -> dict:
        scores = fashion_scores(self.judge, images, self.references, asked)
        return scores | self.network_distance(images) if self.arguments.image_network else scores

    @cached_property
    def network_distance(self) -> NetworkDistance:
        return NetworkDistance(self.arguments.image_network, self.test[0])

    def save(self, picture: Image.Image, name: str):
        picture.save(self.arguments.output_dir / f"{name}.png", optimize=True)


def stored(file: Path, part: Callable[[Evaluation], dict], evaluation: Evaluation) -> dict:
    """The figures of a part, from its file or else measured and written there."""
    if not file.exists():
        file.write_text(json.dumps(part(evaluation), indent=2) + "\n")
    return json.loads(file.read_text())


def score_real(evaluation: Evaluation) -> dict:
    """As many real training images as there are samples, and junk: what the figures of samples stand between."""
    images = evaluation.train[0]
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: evaluation.arguments.num_images]
    generator, (test, test_labels) = torch.Generator().manual_seed(0), evaluation.test
    sure_of_junk = {
        name: judge_images(evaluation.judge, make(as_grey(test[:1000]), test_labels[:1000], generator)).sure
        for name, make in JUNK_KINDS.items()
    }
    return evaluation.scores(images[chosen]) | {"sure_of_junk": sure_of_junk}


def score_tokenizer(evaluation: Evaluation) -> dict:
    """As many test images through the tokenizer and back: what no model of its tokens can be better than."""
    vqvae, images = evaluation.pipe.vqvae, evaluation.test[0][: evaluation.arguments.num_images]
    channels = vqvae.config.in_channels
    pixels = as_grey(images).expand(-1, channels, -1, -1)
    batches = tqdm(pixels.split(500), leave=False)
    decoded = [decode_images(vqvae, encode_images(vqvae, batch.to(vqvae.device))) for batch in batches]
    rebuilt = to_uint8(torch.cat(decoded).clamp(0, 1)).cpu()
    error = (as_grey(rebuilt) - as_grey(images)).square().mean(dim=(1, 2, 3))
    evaluation.save(draw_rows([images[:16], rebuilt[:16]]), "tokenizer")
    return evaluation.scores(rebuilt) | {"psnr": float(-10 * error.log10().mean())}


def score_samples(evaluation: Evaluation) -> dict:
    """Samples, and how far they are from training images, beside how far test images are."""
    count, pipe = evaluation.arguments.num_images, evaluation.pipe
    labels = [number % 10 for number in range(count)] if evaluation.classes else None
    images = generate(pipe, count, class_labels=labels, **evaluation.classes)
    figures = evaluation.scores(images, labels)
    for name, some in (("samples", images[:1000]), ("test_images", evaluation.test[0][:1000])):
        figures[f"distance_to_training_{name}"] = float(nearest_images(some, evaluation.train[0])[0].median())
    draw_samples(evaluation, images)
    return figures


def draw_samples(evaluation: Evaluation, images: Tensor):
    evaluation.save(draw_images(images[:100], num_columns=10), "samples")
    nearest = evaluation.train[0][nearest_images(images[:20], evaluation.train[0])[1]]
    evaluation.save(draw_rows([images[:20], nearest]), "neighbours")
    classes = {"class_labels": list(range(6))} | evaluation.classes if evaluation.classes else {"num_images": 6}
    output = evaluation.pipe(generator=torch.Generator().manual_seed(0), return_steps=True, **classes)
    mask_token_id = evaluation.pipe.model.config.mask_token_id
    picture = draw_steps(output.images, output.steps, mask_token_id, num_columns=10, scale=2)
    evaluation.save(picture, "steps")


def score_inpainting(evaluation: Evaluation) -> dict:
    """How many test images keep the judge's kind when a half is painted anew."""
    images = evaluation.test[0][: evaluation.arguments.num_inpainted]
    before, kept, rows = judge_images(evaluation.judge, images).kinds, {}, [images[:16]]
    for name, box in HALVES.items():
        painted = paint_half(evaluation.pipe, images, box)
        kept[name] = float((judge_images(evaluation.judge, painted).kinds == before).float().mean())
        rows += [hide_half(images[:16], box), painted[:16]]
    evaluation.save(draw_rows(rows), "inpainting")
    return {"kept": kept, "mean": sum(kept.values()) / len(kept)}


if __name__ == "__main__":
    main()
