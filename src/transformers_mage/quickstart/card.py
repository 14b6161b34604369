"""What a quickstart adds to a model's card: what was measured, next to what it compares with, and pictures of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from ..hub.cards import markdown_table, percent


def eval_results(scores: Mapping[str, Any], dataset_name: str) -> list[EvalResult]:
    """For the card's header, which the Hub reads."""
    return [
        EvalResult(
            task_type="unconditional-image-generation",
            dataset_type=dataset_name,
            dataset_name=dataset_name,
            dataset_split="test",
            metric_type="fid",
            metric_name=f"Fréchet distance by {scores['network']}",
            metric_value=float(f"{scores['samples']:.4g}"),
        )
    ]


def add_measurements(path: Path, sections: Sequence[str]):
    """Puts sections before what the card says of limits, unless somebody has written another card."""
    card = ModelCard.load(path)
    if "## Measured" in card.text or "## Limits" not in card.text:
        return
    before, _, after = card.text.partition("## Limits")
    card.text = "\n\n".join([f"{before.rstrip()}", "## Measured", *sections, f"## Limits{after}"])
    card.save(path)


def generation_sections(scores: Mapping[str, Any]) -> list[str]:
    """Distances of samples, of the tokenizer and of real images; and whether samples are copies."""
    rows = [
        ("floor: as many training images", f"{scores['floor']:.3f}"),
        ("test images through the tokenizer", f"{scores['reconstruction']['rfid']:.3f}"),
        ("samples", f"{scores['samples']:.3f}"),
    ]
    if "conditional samples" in scores:
        rows.append(
            ("samples of `conditional`, each class as often as in training", f"{scores['conditional samples']:.3f}")
        )
    near = [(name, f"{scores[f'distance to training images, {name}']:.3f}") for name in ("samples", "test images")]
    known = (
        f", which tells {percent(scores['judge accuracy'])} % of the test images right"
        if "judge accuracy" in scores
        else ""
    )
    return [
        f"Fréchet distances of {scores['num_images']} images to {scores['num_references']} test images, by "
        f"{scores['network']}{known}. They compare with one another, and with nothing else.",
        markdown_table(("Fréchet distance", ""), rows),
        "![Samples](pictures/samples.png)",
        "Samples, and below each the training image that it is nearest to:",
        "![Samples above their nearest training images](pictures/neighbours.png)",
        markdown_table(("median difference of pixels to the nearest training image (root mean square)", ""), near),
    ]


def reconstruction_sections(scores: Mapping[str, Any], num_codes: int) -> list[str]:
    """How the tokenizer reconstructs test images."""
    made = scores["reconstruction"]
    rows = [("PSNR, dB", f"{made['psnr']:.1f}"), ("SSIM", f"{made['ssim']:.3f}")]
    if "perceptual_distance" in made:
        rows.append(("perceptual distance (efficientnet-lite0)", f"{made['perceptual_distance']:.3f}"))
    rows.append(("codes used", f"{made['codes_used']} of {num_codes}"))
    return [
        "The tokenizer, on test images, originals above reconstructions:",
        "![Originals above reconstructions](pictures/reconstructions.png)",
        markdown_table(("reconstruction", ""), rows),
        "Test images of which one half and then another is painted anew:",
        "![Inpaintings](pictures/inpaintings.png)",
    ]


def sampling_sections(rows: Sequence[Mapping[str, float]], num_samples: int) -> list[str]:
    """The ways of sampling that were tried."""
    if not rows:
        return []
    ways = [(row["temperature"], row["num_inference_steps"], f"{row['distance']:.3f}") for row in rows]
    return [
        f"Ways of sampling, of {num_samples} samples each, compared with validation images. The best is the default:",
        markdown_table(("temperature", "steps", "Fréchet distance"), ways),
    ]


def probe_sections(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What frozen features tell of the classes."""
    if not results:
        return []
    rows = [(result["classifier"], percent(result["accuracy"])) for result in results]
    return [
        f"What frozen features tell of the classes, learned from {results[0]['num_train']} images and scored on the "
        "test images; the linear probe is the classifier in `probe`:",
        markdown_table(("top-1 accuracy, %", ""), rows),
    ]


def class_sections(is_conditional: bool) -> list[str]:
    """Samples of the class-conditional model."""
    if not is_conditional:
        return []
    return [
        "`conditional` holds a model that is told the class. Its samples, the classes in turn:",
        "![Samples of classes](pictures/classes.png)",
    ]
