"""
Trains small digits models that differ in one thing, a few seeds each, and compares what they generate and represent:
the paper's variable masking ratio against fixed ones, and MAGE-C against MAGE.

    python -m examples.digits.ablate --tokenizer_name_or_path model_cards/mage-digits

Runs that are already in `--output_dir` are not repeated, so several of these commands may share the work, each with
its own `--variants` or `--seeds`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import DatasetDict
from PIL import Image
from sklearn.neural_network import MLPClassifier
from transformers import AutoImageProcessor, AutoModel

from examples import ROOT, run_script
from examples.comparison import Column, Comparison, Figures
from examples.digits import tasks as digits
from transformers_mage import MagePipeline
from transformers_mage.hub.cards import replace_block
from transformers_mage.metrics.generation import frechet_distance
from transformers_mage.metrics.statistics import GaussianStatistics

VARIANTS = {
    "variable ratio": [],
    "fixed ratio 0.75": ["--model.mask_ratio_mean", "0.75", "--model.mask_ratio_std", "0"],
    "fixed ratio 0.55": ["--model.mask_ratio_mean", "0.55", "--model.mask_ratio_std", "0"],
    "MAGE-C": ["--contrastive_weight", "0.1"],
}
SHOTS = (10, None)
COLUMNS = {
    "sure": Column("sure samples, %", 100),
    "fid": Column("FID", decimals=2),
    "probe_10": Column("probe, 10 labels a class, %", 100),
    "probe_all": Column("probe, all labels, %", 100),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer_name_or_path", required=True, help="the tokenizer that all models share")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "outputs" / "ablation")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--max_train_steps", type=int, default=1000, help="updates of each model")
    parser.add_argument("--num_samples", type=int, default=512, help="images that each model generates")
    parser.add_argument("--card", type=Path, help="model card whose block `ablation` takes the table")
    arguments = parser.parse_args()

    dataset = digits.load_digits_dataset()
    data = arguments.output_dir / "dataset"
    if not data.exists():
        dataset.save_to_disk(data)

    def make(variant: str, seed: int, folder: Path) -> Figures:
        train(variant, seed, data, folder, arguments)
        return evaluate(folder, dataset, arguments.num_samples)

    comparison = Comparison(arguments.output_dir, COLUMNS)
    for seed in arguments.seeds:
        for variant in arguments.variants:
            comparison.complete(variant, seed, make)
    table = comparison.table(list(VARIANTS))
    print(table)
    if arguments.card:
        replace_block(arguments.card, "ablation", table)


def train(variant: str, seed: int, data: Path, folder: Path, arguments: argparse.Namespace):
    flags = ["--config", ROOT / "configs" / "mage_digits.yaml", "--dataset_name", data, "--output_dir", folder]
    flags += ["--tokenizer_name_or_path", arguments.tokenizer_name_or_path, "--seed", seed, "--report_to", "none"]
    flags += ["--max_train_steps", arguments.max_train_steps, "--resume_from_checkpoint", "latest"]
    run_script("train_mage", *flags, *VARIANTS[variant])


def evaluate(folder: Path, dataset: DatasetDict, num_samples: int) -> Figures:
    """Quality of samples by the classifier and by a Fréchet distance, and accuracies of linear probes."""
    pipe = MagePipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    samples = digits.generate(pipe, num_samples)
    figures = {"sure": digits.score_samples(digits.DigitJudge(dataset["train"]), samples)["sure"]}
    figures["fid"] = fid(samples, dataset["train"]["image"][:], dataset["train"]["label"][:])
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)
    labels = {split: dataset[split]["label"][:] for split in dataset}
    features = {split: digits.extract_features(model, processor, dataset[split]["image"][:]) for split in dataset}
    for shots in SHOTS:
        accuracies = [digits.probe_accuracy(features, labels, shots, draw) for draw in range(3 if shots else 1)]
        figures[f"probe_{shots or 'all'}"] = float(np.mean(accuracies))
    return figures


def fid(samples: Sequence[Image.Image], real: Sequence[Image.Image], labels: Sequence[int]) -> float:
    """Fréchet distance between the hidden features, 32 numbers each, of a small network that tells digits apart."""
    network = MLPClassifier((32,), max_iter=400, random_state=0).fit(digits.raw_pixels(real), labels)
    sides = []
    for images in (samples, real):
        hidden = np.maximum(digits.raw_pixels(images) @ network.coefs_[0] + network.intercepts_[0], 0)
        statistics = GaussianStatistics()
        statistics.update(torch.from_numpy(hidden))
        sides.append(statistics)
    return frechet_distance(*sides)


if __name__ == "__main__":
    main()
