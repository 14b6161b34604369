"""
Compares what the features of a small model tell, and what it learns when fine-tuned, from a few or all labels, with
raw pixels and with an encoder with random weights.

    python -m examples.compare_representations digits --card model_cards/mage-digits/README.md
    python -m examples.compare_representations emoji --dataset_name outputs/emoji --model_name_or_path FOLDER
    python -m examples.compare_representations fashion --dataset_name outputs/fashion/data --model_name_or_path FOLDER

It prints a table and, with `--card`, puts it there. Parts that are already in `--output_dir` are not repeated. The
features of other models join it as `--other_models "MAGE-C=outputs/mage-c-digits"`.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, DatasetDict, load_from_disk
from PIL import Image
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, ViTMAEModel, set_seed

from examples import ROOT, run_script
from examples.device import device
from examples.digits import tasks as digits
from transformers_mage import MageForMaskedImageModeling
from transformers_mage.hub.cards import replace_block
from transformers_mage.representation import ClassificationArguments, Result, comparing, save_results, table
from transformers_mage.representation.probing import normalize

NUM_SEEDS = 3
SPLITS = ("train", "test")


def colours(images: Sequence[Image.Image]) -> np.ndarray:
    """(num_images, 3 x height x width) red, green and blue in [0, 1]."""
    return np.stack([np.asarray(image.convert("RGB")) for image in images]).reshape(len(images), -1) / 255


def grey_levels(images: Sequence[Image.Image]) -> np.ndarray:
    """(num_images, height x width) grey levels in [0, 1]."""
    return np.stack([np.asarray(image.convert("L")) for image in images]).reshape(len(images), -1) / 255


@dataclass(frozen=True)
class Images:
    """
    A set of images to compare on.

    Attributes:
        shots (`tuple[int, ...]`): labelled images a class; 0 takes all.
        raw_pixels (`Callable`): what a probe of pixels is given, `(num_images, num_values)` in [0, 1].
    """

    shots: tuple[int, ...]
    raw_pixels: Callable[[Sequence[Image.Image]], np.ndarray]


# Each has recipes of its name: configs/linear_probe_NAME.yaml and configs/finetune_NAME.yaml.
SETS = {
    "digits": Images((1, 5, 10, 25, 0), digits.raw_pixels),
    "emoji": Images((1, 4, 0), colours),
    "fashion": Images((1, 5, 10, 25, 100, 600, 0), grey_levels),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(SETS), help="the images")
    parser.add_argument("--dataset_name", type=Path, help="their folder; the digits come without one")
    parser.add_argument("--model_name_or_path", help="the model; that of the digits is model_cards/mage-digits")
    others = {"nargs": "+", "type": name_and_folder, "default": [], "metavar": "NAME=FOLDER"}
    parser.add_argument("--other_models", **others, help="models to compare with")
    parser.add_argument("--vit_mae", type=Path, help="folder of a ViT-MAE of transformers to compare with")
    parser.add_argument("--output_dir", type=Path, help="by default outputs/representations-NAME")
    parser.add_argument("--card", type=Path, help="model card whose block `representations` takes the table")
    arguments = parser.parse_args()
    name, model = arguments.name, arguments.model_name_or_path
    if model is None and name == "digits":
        model = str(ROOT / "model_cards" / "mage-digits")
    if model is None:
        parser.error(f"say which model to use for the {name}: `--model_name_or_path FOLDER`")
    output_dir = arguments.output_dir or ROOT / "outputs" / f"representations-{name}"

    dataset = load_images(name, arguments.dataset_name)
    keep_to_one_model(output_dir, model)
    data = output_dir / name
    if not data.exists():
        dataset.save_to_disk(data)
    random = output_dir / "random-model"
    if not random.exists():
        save_random_model(model, random)
    labelled = ["--shots_per_class", *SETS[name].shots, "--num_seeds", NUM_SEEDS]
    cached = ["linear_probe", "--cached_features", "--poolings", "mean", "cls", *labelled]
    parts = {
        "features": (*cached, "--model_name_or_path", model),
        "linear probe": ("linear_probe", "--poolings", "mean", "cls", "--num_seeds", NUM_SEEDS),
        "fine-tuning": ("finetune", *labelled),
    }
    others = {"random encoder": random, **dict(arguments.other_models)}
    if parts.keys() & others.keys() or len(others) <= len(arguments.other_models):
        parser.error(f"`--other_models` need names of their own, other than {', '.join(parts)} and random encoder")
    parts |= {other: (*cached, "--model_name_or_path", folder) for other, folder in others.items()}
    results = []
    for part, (script, *flags) in parts.items():
        folder = output_dir / part.replace(" ", "-")
        if not (folder / "results.json").exists():
            config = [
                "--report_to",
                "none",
                "--config",
                ROOT / "configs" / f"{script}_{name}.yaml",
                "--model_name_or_path",
                model,
            ]
            run_script(script, *config, *flags, "--dataset_name", data, "--output_dir", folder)
        results += read_results(folder, f"{part}: " if part in others else "", name)
    results += probe_pixels(dataset, name)
    if arguments.vit_mae:
        results += probe_vit_mae(arguments.vit_mae, dataset, name)
    save_results(results, output_dir)
    print(table(results))
    if arguments.card:
        replace_block(arguments.card, "representations", table(results))


def keep_to_one_model(output_dir: Path, model: str):
    """Parts of another model must not pass for this one's."""
    note = output_dir / "model.txt"
    if note.exists() and note.read_text() != model:
        raise SystemExit(
            f"{output_dir} holds results of {note.read_text()}, not of {model}: say another `--output_dir`."
        )
    output_dir.mkdir(parents=True, exist_ok=True)
    note.write_text(model)


def name_and_folder(text: str) -> tuple[str, str]:
    name, _, folder = text.partition("=")
    if not name or not folder:
        raise argparse.ArgumentTypeError(f"a name and a folder are needed, NAME=FOLDER, got {text}")
    return name, folder


def load_images(name: str, folder: Path | None) -> DatasetDict:
    if folder is None and name == "digits":
        return digits.load_digits_dataset()
    if folder is None or not (folder / "dataset_dict.json").exists():
        raise SystemExit(f"There are no {name} in {folder}: make them, and say where with `--dataset_name FOLDER`.")
    return load_from_disk(folder)


def save_random_model(name_or_path: str, folder: Path):
    """The same model with a random encoder: only the tokenizer has learned anything."""
    set_seed(1)
    trained = MageForMaskedImageModeling.from_pretrained(name_or_path)
    model = MageForMaskedImageModeling(trained.config)
    model.mage.vqvae.load_state_dict(trained.mage.vqvae.state_dict())
    model.save_pretrained(folder)
    AutoImageProcessor.from_pretrained(name_or_path).save_pretrained(folder)


def read_results(folder: Path, prefix: str, name: str) -> list[Result]:
    rows = json.loads((folder / "results.json").read_text())
    return [Result(**{**row, "classifier": prefix + row["classifier"], "dataset": name}) for row in rows]


def probe_pixels(dataset: DatasetDict, name: str) -> list[Result]:
    pixels = {split: torch.from_numpy(SETS[name].raw_pixels(dataset[split]["image"][:])).float() for split in SPLITS}
    return probe_features({"raw pixels": pixels}, dataset, name)


def probe_vit_mae(folder: Path, dataset: DatasetDict, name: str) -> list[Result]:
    """Of its last layer, before the final norm, the mean over the tokens and the class token."""
    model = ViTMAEModel.from_pretrained(folder, mask_ratio=0.0).to(device()).eval()
    pooled = {split: vit_mae_features(model, dataset[split]) for split in SPLITS}
    features = {
        f"ViT-MAE, {pooling}": {split: normalize(pooled[split][pooling]) for split in SPLITS}
        for pooling in ("mean", "cls")
    }
    return probe_features(features, dataset, name)


@torch.no_grad()
def vit_mae_features(model: ViTMAEModel, images: Dataset, batch_size: int = 250) -> dict[str, torch.Tensor]:
    """(num_images, hidden_size) each."""
    mode, hidden = {1: "L", 3: "RGB"}[model.config.num_channels], []
    for batch in tqdm(images.batch(batch_size), desc="Extracting ViT-MAE's features", leave=False):
        pixels = np.stack([np.atleast_3d(np.asarray(image.convert(mode))) for image in batch["image"]])
        pixel_values = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        hidden.append(model(pixel_values.to(device()), output_hidden_states=True).hidden_states[-1].cpu())
    tokens = torch.cat(hidden)
    return {"mean": tokens[:, 1:].mean(dim=1), "cls": tokens[:, 0]}


def probe_features(features: dict[str, dict[str, torch.Tensor]], dataset: DatasetDict, name: str) -> list[Result]:
    """
    The probes of scripts/linear_probe.py on features from elsewhere, with the same draws.

    Args:
        features: (num_images, hidden_size) of each split, by what they are features of.
    """
    known, unknown = (
        comparing.DescribedImages(
            {what: values[split] for what, values in features.items()}, torch.tensor(dataset[split]["label"][:])
        )
        for split in SPLITS
    )
    num_classes = dataset["train"].features["label"].num_classes
    results = []
    for shots in SETS[name].shots:
        for seed in range(NUM_SEEDS):
            arguments = ClassificationArguments(dataset_name=name, shots_per_class=[shots], seed=seed)
            results += comparing.probe_features(known, unknown, num_classes, arguments)
    return results


if __name__ == "__main__":
    main()
