"""
Makes model_cards/mage-digits again from scratch: tokenizer, model, figures, pictures, card.

    python -m examples.digits.make                 # everything
    python -m examples.digits.make --only_evaluate # the figures and pictures of the model that is there
"""

import argparse
import json
import shutil
from pathlib import Path

from datasets import Dataset, DatasetDict

from examples import ROOT, run_script
from examples.digits import tasks as digits
from transformers_mage import MagePipeline, MageScheduler
from transformers_mage.hub.cards import markdown_table, percent, replace_block, set_results
from transformers_mage.hub.gallery import sample_gallery
from transformers_mage.hub.model_card import add_gallery
from transformers_mage.visualization import draw_grid, draw_steps

CARD = ROOT / "model_cards" / "mage-digits"
# The paper's temperature of 6.0 is for 256 tokens; with these 64 it leaves fewer samples that the judge is sure of.
SAMPLING = {"temperature": 3.0, "token_temperature": 0.8}
DATASET = {"dataset_type": "digits", "dataset_name": "the digits of scikit-learn", "dataset_split": "test"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=ROOT / "outputs" / "digits", help="where training works")
    parser.add_argument("--model_dir", type=Path, default=CARD, help="the model's folder, card and pictures included")
    parser.add_argument("--only_evaluate", action="store_true", help="do not train")
    arguments = parser.parse_args()

    dataset = digits.load_digits_dataset()
    if not arguments.only_evaluate:
        train(dataset, arguments.output_dir, arguments.model_dir)
    figures = evaluate(dataset, arguments.model_dir)
    write_card(figures, arguments.model_dir)
    print(json.dumps(figures, indent=2))


def train(dataset: DatasetDict, output_dir: Path, model_dir: Path):
    """Runs the two training scripts, from the beginning, and takes over the model."""
    shutil.rmtree(output_dir, ignore_errors=True)
    dataset.save_to_disk(output_dir / "dataset")
    common = ["--dataset_name", output_dir / "dataset", "--output_dir"]
    run_script("train_vqgan", "--config", ROOT / "configs" / "vqgan_digits.yaml", *common, output_dir / "vqgan")
    flags = ["--tokenizer_name_or_path", output_dir / "vqgan"]
    run_script("train_mage", "--config", ROOT / "configs" / "mage_digits.yaml", *flags, *common, output_dir / "mage")
    pipe = MagePipeline.from_pretrained(output_dir / "mage")
    pipe.scheduler = MageScheduler.from_config(pipe.scheduler.config, **SAMPLING)
    pipe.save_pretrained(model_dir)


def evaluate(dataset: DatasetDict, model_dir: Path) -> dict:
    """The figures and the pictures of the card."""
    judge = digits.DigitJudge(dataset["train"])
    pipe = MagePipeline.from_pretrained(model_dir)
    pipe.set_progress_bar_config(disable=True)
    pictures = model_dir / "pictures"
    pictures.mkdir(exist_ok=True)

    samples = digits.generate(pipe, 256)
    draw_grid(samples[:64], num_columns=8).save(pictures / "samples.png")
    steps = pipe(6, generator=[digits.seeded(i) for i in range(6)], return_steps=True)
    draw_steps(steps.images, steps.steps, pipe.model.config.mask_token_id, num_columns=10).save(pictures / "steps.png")
    return {
        "samples": digits.score_samples(judge, samples),
        "test_images": digits.score_samples(judge, dataset["test"]["image"][:]),
        "junk": digits.score_samples(judge, digits.junk_images(dataset["test"])),
        "inpainting": evaluate_inpainting(judge, pipe, dataset["test"], pictures),
    }


def evaluate_inpainting(judge: digits.DigitJudge, pipe: MagePipeline, test: Dataset, pictures: Path) -> dict:
    """Share of the test digits that keep their label, for each half that is hidden and painted again."""
    originals, kept = test["image"][:], {}
    for side in ("bottom", "top", "left", "right"):
        painted = digits.inpaint(pipe, originals, side)
        kept[side] = digits.score_inpainting(judge, originals, painted)
        if side == "bottom":
            rows = [originals[:16], [digits.blank_half(image, side) for image in originals[:16]], painted[:16]]
            draw_grid([image for row in rows for image in row], num_columns=16).save(pictures / "inpainting.png")
    return kept


def write_card(figures: dict, model_dir: Path):
    """Fills the figures into the card."""
    card = model_dir / "README.md"
    measures = [
        ["samples that the classifier is over 0.9 sure of", percent(figures["samples"]["sure"])],
        ["the same of the real test digits", percent(figures["test_images"]["sure"])],
        ["the same of junk: shuffled blocks, halves of two digits, noise, blur", percent(figures["junk"]["sure"])],
        ["samples that are likelier junk than any digit", percent(figures["samples"]["junk"])],
        ["the same of the real test digits", percent(figures["test_images"]["junk"])],
        ["different digits among those samples", figures["samples"]["digits"]],
    ]
    for side, kept in figures["inpainting"].items():
        measures.append([f"test digits that keep their label, {side} half painted again", percent(kept)])
    replace_block(card, "generation", markdown_table(["measure", "% (or count)"], measures))
    samples = figures["samples"]
    scores = {"sure": ("share that the judge is sure of", samples["sure"]), "junk": ("share of junk", samples["junk"])}
    set_results(card, "unconditional-image-generation", DATASET, scores)
    add_gallery(card, sample_gallery(MagePipeline.from_pretrained(model_dir)))


if __name__ == "__main__":
    main()
