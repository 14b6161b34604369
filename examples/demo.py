"""
Shows in a few minutes what MAGE does, with the model of model_cards/mage-digits: it generates digits, paints hidden
halves of digits it has not seen, represents digits, and learns. Pictures land in outputs/demo.

    python -m examples.demo
"""

import argparse
import json
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from datasets import DatasetDict
from transformers import AutoImageProcessor, AutoModel

from examples import ROOT, run_script
from examples.digits import tasks as digits
from examples.digits.make import CARD
from transformers_mage import MagePipeline
from transformers_mage.visualization import draw_frames, draw_grid, draw_steps, save_gif


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=ROOT / "outputs" / "demo", help="where pictures go")
    parser.add_argument("--training_steps", type=int, default=400, help="of the model that is trained afresh")
    arguments = parser.parse_args()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()

    dataset = digits.load_digits_dataset()
    pipe = MagePipeline.from_pretrained(CARD)
    pipe.set_progress_bar_config(desc="Decoding steps")
    show_generation(pipe, arguments.output_dir)
    show_inpainting(pipe, dataset, arguments.output_dir)
    show_representations(dataset)
    show_training(dataset, arguments.output_dir, arguments.training_steps)
    print(f"\nDone in {time.perf_counter() - start:.0f} s.")


def show_generation(pipe: MagePipeline, output_dir: Path):
    print("\n1. Sixty-four digits from nothing")
    output = pipe(num_images=64, generator=[digits.seeded(i) for i in range(64)], return_steps=True)
    mask_token_id = pipe.model.config.mask_token_id
    save(draw_grid(output.images, num_columns=8), output_dir / "generated.png")
    save(draw_steps(output.images[:8], output.steps[:, :8], mask_token_id, 10, scale=2), output_dir / "steps.png")
    save_gif(draw_frames(output.images, output.steps, mask_token_id, scale=2), output_dir / "steps.gif")
    print(f"   {output_dir / 'steps.gif'}")


def show_inpainting(pipe: MagePipeline, dataset: DatasetDict, output_dir: Path):
    print("\n2. The lower halves of test digits, hidden and painted again: truth, what is given, what comes out")
    originals = dataset["test"]["image"][:64]
    painted = digits.inpaint(pipe, originals)
    rows = [originals[:16], [digits.blank_half(image) for image in originals[:16]], painted[:16]]
    save(draw_grid([image for row in rows for image in row], num_columns=16), output_dir / "inpainted.png")
    kept = digits.score_inpainting(digits.DigitJudge(dataset["train"]), originals, painted)
    print(f"   {kept:.0%} of {len(originals)} keep the label that a classifier gives the original.")


def show_representations(dataset: DatasetDict):
    print("\n3. Accuracy of a linear probe on the test split (mean over three draws of the examples)")
    model, processor = AutoModel.from_pretrained(CARD).eval(), AutoImageProcessor.from_pretrained(CARD)
    images = {split: dataset[split]["image"][:] for split in dataset}
    labels = {split: dataset[split]["label"][:] for split in dataset}
    features = {split: digits.extract_features(model, processor, images[split]) for split in images}
    pixels = {split: digits.raw_pixels(images[split]) for split in images}
    print("   labels a class   MAGE features   raw pixels")
    for shots in (10, None):
        accuracies = [
            sum(digits.probe_accuracy(values, labels, shots, seed) for seed in range(3)) / 3
            for values in (features, pixels)
        ]
        print(f"   {shots or 'all':>14}   {accuracies[0]:13.1%}   {accuracies[1]:10.1%}")


def show_training(dataset: DatasetDict, output_dir: Path, steps: int):
    print("\n4. A fresh model learns, about a minute")
    dataset.save_to_disk(output_dir / "dataset")
    run_dir = output_dir / "training"
    (run_dir / "metrics.jsonl").unlink(missing_ok=True)
    flags = ["--config", ROOT / "configs" / "mage_digits.yaml", "--dataset_name", output_dir / "dataset"]
    flags += ["--tokenizer_name_or_path", CARD, "--output_dir", run_dir, "--max_train_steps", steps]
    flags += ["--warmup_steps", steps // 10, "--tokenized_views", 2, "--checkpointing_steps", 0]
    flags += ["--logging_steps", 10, "--report_to", "none"]
    run_script("train_mage", *flags)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.plot([line["step"] for line in lines], [line["loss"] for line in lines])
    axes.set(xlabel="update", ylabel="loss (nats a masked token, label-smoothed)", title="MAGE on digits")
    figure.savefig(output_dir / "loss.png", dpi=120)
    print(f"   The loss fell from {lines[0]['loss']:.2f} to {lines[-1]['loss']:.2f}.\n   {output_dir / 'loss.png'}")


def save(picture, path: Path):
    picture.save(path)
    print(f"   {path}")


if __name__ == "__main__":
    main()
