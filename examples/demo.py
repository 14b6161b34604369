"""
Shows in a few minutes what MAGE does, with the models of model_cards/mage-fashion and mage-fashion-conditional: it
generates clothes, paints hidden halves of clothes that it has not seen, makes what it is asked for, finds what is
alike, knows kinds from a few labels, and learns. Pictures land in outputs/demo.

    python -m examples.demo
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, DatasetDict
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from examples import ROOT, run_script
from examples.device import device
from examples.fashion.bundle import load_bundled
from examples.fashion.halves import HALVES, hide_half, paint_half
from examples.fashion.judge import FashionJudge, as_grey, judge_images
from examples.fashion.make import CARDS
from examples.fashion.make_dataset import CLASSES
from examples.fashion.pictures import draw_images, draw_rows
from examples.fashion.sampling import generate, load_pipeline
from transformers_mage.data.labels import draw_subset
from transformers_mage.representation.probing import fit_best_probe, normalize
from transformers_mage.visualization import draw_frames, draw_grid, draw_steps, save_gif


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=ROOT / "outputs" / "demo", help="where pictures go")
    parser.add_argument("--training_steps", type=int, default=300, help="of the model that is trained afresh")
    arguments = parser.parse_args(argv)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()

    judge, (images, labels) = FashionJudge.load(), load_bundled()
    show_generation(judge, arguments.output_dir)
    show_inpainting(judge, images, arguments.output_dir)
    show_classes(judge, arguments.output_dir)
    mean, class_token = extract_features(images)
    pixels = as_grey(images).flatten(1)
    show_neighbours(class_token, pixels, images, labels, arguments.output_dir)
    show_probe(mean, pixels, labels)
    show_training(images, arguments.output_dir, arguments.training_steps)
    print(f"\nDone in {time.perf_counter() - start:.0f} s.")


def show_generation(judge: FashionJudge, output_dir: Path):
    print("\n1. Sixty-four pieces of clothing from nothing")
    pipe = load_pipeline(str(CARDS["mage"]))
    output = pipe(num_images=64, generator=torch.Generator().manual_seed(0), return_steps=True)
    mask_token_id = pipe.model.config.mask_token_id
    save(draw_grid(output.images, num_columns=8, scale=2), output_dir / "generated.png")
    save(draw_steps(output.images[:8], output.steps[:, :8], mask_token_id, 10, scale=2), output_dir / "steps.png")
    save_gif(draw_frames(output.images, output.steps, mask_token_id, scale=2), output_dir / "steps.gif")
    print(f"   {output_dir / 'steps.gif'}")
    verdicts = judge_images(judge, as_tensor(output.images))
    print(f"   A classifier is sure of the kind of {verdicts.sure:.0%}, and calls {verdicts.junk:.0%} junk.")


def show_inpainting(judge: FashionJudge, images: Tensor, output_dir: Path):
    print("\n2. Unseen clothes, and below them, for each half, what is given of them and what is painted")
    some = images[::6]
    pipe, kinds, rows = load_pipeline(str(CARDS["mage"])), judge_images(judge, some).kinds, [some[::2]]
    for name, box in HALVES.items():
        painted = paint_half(pipe, some, box)
        rows += [hide_half(some[::2], box), painted[::2]]
        kept = int((judge_images(judge, painted).kinds == kinds).sum())
        print(f"   {name} half: {kept} of {len(some)} keep the kind that a classifier sees in the original.")
    save(draw_rows(rows), output_dir / "inpainted.png")


def show_classes(judge: FashionJudge, output_dir: Path, columns: int = 12):
    print(f"\n3. What is asked for, row by row: {', '.join(CLASSES)}")
    asked = torch.arange(len(CLASSES)).repeat_interleave(columns)
    pipe = load_pipeline(str(CARDS["conditional"]))
    images = generate(pipe, len(asked), class_labels=asked.tolist())
    save(draw_images(images, columns), output_dir / "classes.png")
    right = int((judge_images(judge, images).kinds == asked).sum())
    print(f"   In {right} of {len(asked)} a classifier sees what was asked for.")


@torch.no_grad()
def extract_features(images: Tensor) -> tuple[Tensor, Tensor]:
    """(N, hidden_size) each: the mean over the tokens before the final norm, and the class token after it."""
    model, processor = AutoModel.from_pretrained(CARDS["mage"]), AutoImageProcessor.from_pretrained(CARDS["mage"])
    pixels = processor(list(images.expand(-1, 3, -1, -1)), return_tensors="pt")["pixel_values"]
    output = model.to(device()).eval()(pixels.to(device()))
    return output.pooler_output.cpu(), output.last_hidden_state[:, 0].cpu()


def show_neighbours(features: Tensor, pixels: Tensor, images: Tensor, labels: Tensor, output_dir: Path):
    print("\n4. Unseen clothes, left, and the others that MAGE's class token finds most alike")
    nearest = nearest_others(features)
    queries = torch.arange(0, len(images), len(images) // 20)
    rows = torch.cat([queries[:, None], nearest[queries]], dim=1)
    save(draw_images(images[rows.flatten()], rows.shape[1]), output_dir / "neighbours.png")
    for name, found in (("MAGE's class token", nearest), ("raw pixels", nearest_others(pixels))):
        alike = (labels[found[:, 0]] == labels).float().mean()
        print(f"   By {name}, the most similar of {len(labels) - 1} others is of the same kind in {alike:.0%}.")


def nearest_others(features: Tensor, count: int = 9) -> Tensor:
    """(N, count) indices of the other images whose features (N, D) are most similar, the most similar first."""
    unit = F.normalize(normalize(features), dim=1)
    return (unit @ unit.T).fill_diagonal_(-1).topk(count, dim=1).indices


def show_probe(features: Tensor, pixels: Tensor, labels: Tensor, draws: int = 5):
    print(f"\n5. Accuracy of a linear probe that knows few labels, on the other images (mean over {draws} draws)")
    print("   labels a kind   MAGE features   raw pixels")
    for shots in (1, 5, 10, 20):
        accuracies = [
            sum(probe_accuracy(values, labels, shots, seed) for seed in range(draws)) / draws
            for values in (features, pixels)
        ]
        print(f"   {shots:>13}   {accuracies[0]:13.1%}   {accuracies[1]:10.1%}")


def probe_accuracy(features: Tensor, labels: Tensor, shots: int, seed: int) -> float:
    """On all images but the `shots` of each kind that a probe of features (N, D) is trained on."""
    is_known = torch.zeros(len(labels), dtype=torch.bool)
    is_known[torch.from_numpy(draw_subset(labels, shots, seed=seed))] = True
    values = normalize(features)
    probe = fit_best_probe(values[is_known], labels[is_known], len(CLASSES), seed=seed)
    return float((probe(values[~is_known]).argmax(dim=1) == labels[~is_known]).float().mean())


def show_training(images: Tensor, output_dir: Path, steps: int):
    print(f"\n6. A small fresh model learns from {len(images)} images' tokens, about a minute")
    photos = [Image.fromarray(image[0].numpy()) for image in images]
    DatasetDict(train=Dataset.from_dict({"image": photos})).save_to_disk(output_dir / "dataset")
    run_dir = output_dir / "training"
    (run_dir / "metrics.jsonl").unlink(missing_ok=True)
    flags = ["--config", ROOT / "configs" / "mage_fashion.yaml", "--dataset_name", output_dir / "dataset"]
    flags += ["--token_cache", "null", "--validation_split", "null", "--tokenizer_name_or_path", CARDS["mage"]]
    flags += ["--tokenized_views", 1, "--output_dir", run_dir, "--max_train_steps", steps]
    flags += ["--warmup_steps", steps // 10, "--train_batch_size", 64, "--checkpointing_steps", 0]
    flags += ["--logging_steps", max(steps // 40, 1), "--report_to", "none"]
    flags += ["--model.hidden_size", 96, "--model.num_hidden_layers", 4, "--model.intermediate_size", 384]
    run_script("train_mage", *flags)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    draw_losses(lines).savefig(output_dir / "loss.png", dpi=120)
    guess = math.log(AutoConfig.from_pretrained(CARDS["mage"]).codebook_size)
    print(f"   The loss fell from {lines[0]['loss']:.2f} to {lines[-1]['loss']:.2f} nats; guessing costs {guess:.2f}.")
    print(f"   {output_dir / 'loss.png'}")


def draw_losses(lines: list[dict]) -> Figure:
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.plot([line["step"] for line in lines], [line["loss"] for line in lines])
    axes.set(xlabel="update", ylabel="loss, nats a masked token", title="MAGE on three hundred images of clothes")
    return figure


def as_tensor(images: Sequence[Image.Image]) -> Tensor:
    """(N, 3, height, width), uint8."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def save(picture: Image.Image, path: Path):
    picture.save(path)
    print(f"   {path}")


if __name__ == "__main__":
    main()
