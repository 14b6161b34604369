"""
Makes model_cards/mage-digits-conditional again: teaches model_cards/mage-digits the classes of the digits, and fills
the figures and pictures into the card.

    python -m examples.digits.make_conditional                 # everything
    python -m examples.digits.make_conditional --only_evaluate # the figures and pictures of the model that is there
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from datasets import Dataset, DatasetDict
from PIL import Image
from sklearn.datasets import load_sample_image
from tqdm.auto import tqdm

from examples import ROOT, run_script
from examples.digits import tasks as digits
from examples.digits.make import CARD as UNCONDITIONAL
from examples.digits.make import DATASET
from transformers_mage import MagePipeline, MageScheduler
from transformers_mage.hub.cards import markdown_table, percent, replace_block, set_results
from transformers_mage.hub.gallery import sample_gallery
from transformers_mage.hub.model_card import add_gallery
from transformers_mage.metrics import FrechetInceptionDistance, PrecisionRecall
from transformers_mage.visualization import draw_frames, draw_grid, save_gif

CARD = ROOT / "model_cards" / "mage-digits-conditional"
GUIDANCE_SCALES = (0.0, 1.0, 2.0, 4.0)
GUIDANCE_OF_THE_CARD = 1.0
STEPS = (4, 8, 12, 20)
ORDERS = {
    "confidence": {},
    "halton": {"unmasking_order": "halton"},
    "halton, token temperature 0.7": {"unmasking_order": "halton", "token_temperature": 0.7},
}
SIZE = digits.IMAGE_SIZE


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=ROOT / "outputs" / "digits-conditional", help="of training")
    parser.add_argument("--model_dir", type=Path, default=CARD, help="the model's folder, card and pictures included")
    parser.add_argument(
        "--num_samples",
        type=int,
        default=1000,
        help="images behind each line of figures; half of them where steps are compared",
    )
    parser.add_argument("--only_evaluate", action="store_true", help="do not train")
    arguments = parser.parse_args()

    dataset = digits.load_digits_dataset()
    if not arguments.only_evaluate:
        train(dataset, arguments.output_dir, arguments.model_dir)
    pipe = MagePipeline.from_pretrained(arguments.model_dir)
    pipe.set_progress_bar_config(disable=True)
    judge = ConditionalJudge(dataset["train"])
    pictures = arguments.model_dir / "pictures"
    pictures.mkdir(exist_ok=True)

    draw_samples(pipe, pictures)
    draw_edits(pipe, dataset["test"], pictures)
    draw_photograph(pipe, pictures)
    guidance = measure_guidance(pipe, judge, arguments.num_samples)
    steps = measure_steps(pipe, judge, arguments.num_samples // 2)
    print(json.dumps({"guidance": guidance, "steps": steps}, indent=2))
    draw_guidance(guidance, pictures / "guidance.png")
    draw_steps_plot(steps, pictures / "steps.png")
    write_card(guidance, steps, arguments.model_dir)
    add_gallery(arguments.model_dir / "README.md", sample_gallery(pipe))


def train(dataset: DatasetDict, output_dir: Path, model_dir: Path):
    """Runs the training script, from the unconditional model on, and takes over the result."""
    shutil.rmtree(output_dir, ignore_errors=True)
    dataset.save_to_disk(output_dir / "dataset")
    flags = ["--dataset_name", str(output_dir / "dataset"), "--output_dir", str(output_dir / "mage")]
    flags += ["--pretrained_model_name_or_path", str(UNCONDITIONAL)]
    run_script("train_mage", "--config", ROOT / "configs" / "mage_digits_conditional.yaml", *flags)
    pipe = MagePipeline.from_pretrained(output_dir / "mage")
    pipe.scheduler = MageScheduler.from_pretrained(UNCONDITIONAL, subfolder="scheduler")
    pipe.register_to_config(guidance_scale=GUIDANCE_OF_THE_CARD)
    pipe.save_pretrained(model_dir)


class ConditionalJudge:
    """What samples of asked classes are worth: right class, likeness to real digits, and coverage of them."""

    def __init__(self, train: Dataset):
        self.judge = digits.DigitJudge(train)
        self.real = torch.from_numpy(digits.raw_pixels(train["image"]))

    def __call__(self, images: list[Image.Image], labels: list[int]) -> dict[str, float]:
        pixels = torch.from_numpy(digits.raw_pixels(images))
        shares = PrecisionRecall().compute(predictions=pixels, references=self.real)
        distance = FrechetInceptionDistance().compute(predictions=pixels, references=self.real)["fid"]
        accuracy = float((self.judge(images)[0] == np.array(labels)).mean())
        return {"accuracy": accuracy, **shares, "distance": distance}


def sample(pipe: MagePipeline, num_images: int, **kwargs: Any) -> tuple[list[Image.Image], list[int]]:
    """Images of all classes in turn, and their classes."""
    labels = [i % 10 for i in range(num_images)]
    return digits.generate(pipe, num_images, labels, batch_size=100, **kwargs), labels


def measure_guidance(pipe: MagePipeline, judge: ConditionalJudge, num_samples: int) -> dict[str, dict[str, float]]:
    scales = tqdm(GUIDANCE_SCALES, desc="Guidance")
    return {str(scale): judge(*sample(pipe, num_samples, guidance_scale=scale)) for scale in scales}


def measure_steps(
    pipe: MagePipeline, judge: ConditionalJudge, num_samples: int
) -> dict[str, dict[str, dict[str, float]]]:
    results, scheduler = {}, pipe.scheduler
    for order, choices in tqdm(ORDERS.items(), desc="Orders"):
        pipe.scheduler = MageScheduler.from_config(scheduler.config, **choices)
        results[order] = {
            str(steps): judge(*sample(pipe, num_samples, num_inference_steps=steps, guidance_scale=0.0))
            for steps in STEPS
        }
    pipe.scheduler = scheduler
    return results


def draw_samples(pipe: MagePipeline, pictures: Path):
    """Eight samples of each class, a column a class, and how they come to be."""
    generators = [digits.seeded(i) for i in range(80)]
    output = pipe(
        class_labels=list(range(10)) * 8,
        generator=generators,
        return_steps=True,
    )
    draw_grid(output.images, num_columns=10).save(pictures / "samples.png")
    frames = draw_frames(output.images, output.steps, pipe.model.config.mask_token_id, num_columns=10)
    save_gif(frames, pictures / "samples.gif")


def draw_edits(pipe: MagePipeline, test: Dataset, pictures: Path):
    """Unseen digits, one of each class, repainted, varied and extended."""
    first = [test["label"].index(label) for label in range(10)]
    originals = test.select(first)["image"][:]
    mask = digits.hide_half("bottom")

    def edit(images: list[Image.Image], **kwargs) -> list[Image.Image]:
        generators = [digits.seeded(i) for i in range(len(images))]
        return pipe(image=images, generator=generators, **kwargs).images

    rows = [originals, [digits.blank_half(image) for image in originals]]
    for shift in (0, 1, 5):
        labels = [(label + shift) % 10 for label in range(10)]
        rows.append(edit(originals, mask_image=mask, class_labels=labels))
    draw_grid([image for row in rows for image in row], num_columns=10).save(pictures / "inpainting.png")

    rows = [originals, *(edit(originals, strength=strength, class_labels=range(10)) for strength in (0.3, 0.6, 0.9))]
    draw_grid([image for row in rows for image in row], num_columns=10).save(pictures / "variations.png")

    wide = edit(originals, padding=(0, 0, SIZE, 0), class_labels=range(10))
    draw_grid(wide, num_columns=5).save(pictures / "outpainting.png")
    small = edit(originals, height=SIZE // 2, width=SIZE // 2, padding=SIZE // 4, class_labels=range(10))
    shrunk = [Image.new("RGB", (SIZE, SIZE), "grey") for _ in originals]
    for canvas, image in zip(shrunk, originals, strict=True):
        canvas.paste(image.resize((SIZE // 2, SIZE // 2), Image.Resampling.BICUBIC), (SIZE // 4, SIZE // 4))
    draw_grid([*shrunk, *small], num_columns=10).save(pictures / "uncropping.png")


def draw_photograph(pipe: MagePipeline, pictures: Path):
    """A photograph, larger than the images of training and of nothing that they show, with a hole painted over."""
    photo = Image.fromarray(load_sample_image("china.jpg")).resize((192, 128), Image.Resampling.BICUBIC)
    mask = Image.new("L", photo.size)
    mask.paste(255, (104, 36, 152, 84))
    edit = {"image": photo, "mask_image": mask, "height": photo.height, "width": photo.width, "class_labels": 8}
    painted = [pipe(**edit, feather=feather, generator=digits.seeded(0)).images[0] for feather in (0, 4)]
    hole = Image.composite(Image.new("RGB", photo.size, "grey"), photo, mask)
    outside = np.asarray(mask) == 0
    for image in painted:
        if not np.array_equal(np.asarray(image)[outside], np.asarray(photo)[outside]):
            raise RuntimeError("Pixels outside the mask changed.")
    draw_grid([hole, *painted], num_columns=3).save(pictures / "photograph.png")


def draw_guidance(results: dict[str, dict[str, float]], path: Path):
    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    scales = [float(scale) for scale in results]
    for name, label in (("accuracy", "asked class"), ("precision", "precision"), ("recall", "recall")):
        axes.plot(scales, [100 * result[name] for result in results.values()], marker="o", label=label)
    axes.set(xlabel="guidance scale", ylabel="%", ylim=(0, 102))
    axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_steps_plot(results: dict[str, dict[str, dict[str, float]]], path: Path):
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for order, by_steps in results.items():
        steps = [int(count) for count in by_steps]
        left.plot(steps, [result["distance"] for result in by_steps.values()], marker="o", label=order)
        right.plot(steps, [100 * result["accuracy"] for result in by_steps.values()], marker="o", label=order)
    left.set(xlabel="decoding steps", ylabel="Fréchet distance of pixels", ylim=(0, None), xticks=STEPS)
    right.set(xlabel="decoding steps", ylabel="asked class, %", xticks=STEPS)
    left.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write_card(guidance: dict, steps: dict, model_dir: Path):
    """Fills the figures into the card."""
    rows = [[scale, *table_row(result)] for scale, result in guidance.items()]
    header = ["asked class, %", "precision, %", "recall, %", "Fréchet distance"]
    replace_block(model_dir / "README.md", "guidance", markdown_table(["guidance scale", *header], rows))
    scale = GUIDANCE_OF_THE_CARD
    scores = {
        "accuracy": (f"share that is of the class asked for, guidance scale {scale}", guidance[str(scale)]["accuracy"])
    }
    set_results(model_dir / "README.md", "text-to-image", DATASET, scores)
    rows = [[order, count, *table_row(result)] for order in steps for count, result in steps[order].items()]
    replace_block(model_dir / "README.md", "steps", markdown_table(["order", "steps", *header], rows))


def table_row(result: dict[str, float]) -> list[str]:
    shares = [percent(result[name]) for name in ("accuracy", "precision", "recall")]
    return [*shares, f"{result['distance']:.3f}"]


if __name__ == "__main__":
    main()
