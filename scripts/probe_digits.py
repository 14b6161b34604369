"""
Measures what the features of the digits model tell, and what it learns when fine-tuned, from a few or all labels:
beside raw pixels, and beside an encoder with random weights.

    python scripts/probe_digits.py                                            # prints the table
    python scripts/probe_digits.py --card model_cards/mage-digits/README.md   # and puts it into the card

Parts that are already in `--output_dir` are not repeated.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from datasets import DatasetDict
from transformers import AutoImageProcessor, set_seed

from transformers_mage import MageForMaskedImageModeling
from transformers_mage.training import digits
from transformers_mage.training.cards import replace_block
from transformers_mage.training.classification import ClassificationArguments, score
from transformers_mage.training.probing import fit_best_probe, nearest_neighbour_scores
from transformers_mage.training.results import Result, save_results, table
from transformers_mage.training.subsets import draw_subset

ROOT = Path(__file__).resolve().parents[1]
SHOTS = (1, 5, 10, 25, 0)  # 0 takes all images
NUM_SEEDS = 3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", default=str(ROOT / "model_cards" / "mage-digits"), help="the model")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "outputs" / "probe-digits")
    parser.add_argument("--card", type=Path, help="model card whose block `representations` takes the table")
    arguments = parser.parse_args()

    dataset = digits.load_digits_dataset()
    data = arguments.output_dir / "digits"
    if not data.exists():
        dataset.save_to_disk(data)
    random = arguments.output_dir / "random-model"
    if not random.exists():
        save_random_model(arguments.model_name_or_path, random)
    labelled = ["--shots_per_class", *SHOTS, "--num_seeds", NUM_SEEDS]
    cached = ["linear_probe", "--cached_features", "--poolings", "mean", "cls", *labelled]
    parts = {
        "features": (*cached, "--model_name_or_path", arguments.model_name_or_path),
        "linear probe": ("linear_probe", "--poolings", "mean", "cls", "--num_seeds", NUM_SEEDS),
        "random encoder": (*cached, "--model_name_or_path", random),
        "fine-tuning": ("finetune", *labelled),
    }
    results = []
    for name, (script, *flags) in parts.items():
        folder = arguments.output_dir / name.replace(" ", "-")
        if not (folder / "results.json").exists():
            flags = ["--model_name_or_path", arguments.model_name_or_path, *flags]
            run_script(script, *flags, "--dataset_name", data, "--output_dir", folder)
        results += read_results(folder, name)
    results += probe_pixels(dataset)
    save_results(results, arguments.output_dir)
    print(table(results))
    if arguments.card:
        replace_block(arguments.card, "representations", table(results))


def save_random_model(name_or_path: str, folder: Path):
    """The same model with a random encoder: only the tokenizer has learned anything."""
    set_seed(1)
    trained = MageForMaskedImageModeling.from_pretrained(name_or_path)
    model = MageForMaskedImageModeling(trained.config)
    model.mage.vqvae.load_state_dict(trained.mage.vqvae.state_dict())
    model.save_pretrained(folder)
    AutoImageProcessor.from_pretrained(name_or_path).save_pretrained(folder)


def run_script(script: str, *flags: object):
    config = ROOT / "configs" / f"{script}_digits.yaml"
    command = [sys.executable, ROOT / "scripts" / f"{script}.py", "--config", config, "--report_to", "none", *flags]
    subprocess.run([str(word) for word in command], check=True)


def read_results(folder: Path, name: str) -> list[Result]:
    """A part's results; those of another encoder under its name."""
    prefix = f"{name}: " if name == "random encoder" else ""
    rows = json.loads((folder / "results.json").read_text())
    return [Result(**{**row, "classifier": prefix + row["classifier"], "dataset": "digits"}) for row in rows]


def probe_pixels(dataset: DatasetDict) -> list[Result]:
    """The probes of the features, on the 64 grey levels of the digits, with the same draws."""
    pixels = {split: torch.from_numpy(digits.raw_pixels(dataset[split]["image"][:])).float() for split in dataset}
    labels = {split: torch.tensor(dataset[split]["label"][:]) for split in dataset}
    results = []
    for shots in SHOTS:
        for seed in range(NUM_SEEDS):
            arguments = ClassificationArguments(dataset_name="digits", shots_per_class=[shots], seed=seed)
            rows = torch.from_numpy(draw_subset(labels["train"], arguments.shots, seed=seed))
            known, classes = pixels["train"][rows], labels["train"][rows]
            scores = {
                "linear probe": fit_best_probe(known, classes, 10, seed=seed)(pixels["test"]),
                "k-NN": nearest_neighbour_scores(known, classes, pixels["test"], 10),
            }
            for method, logits in scores.items():
                name = f"raw pixels: {method}"
                results.append(Result.of(arguments, name, len(rows), score(logits, labels["test"])))
    return results


if __name__ == "__main__":
    main()
