"""
Pictures for the gallery of a model card: what a generator makes, what a classifier says. As a command, gives the card
in a pipeline's folder a gallery:

    python -m transformers_mage.hub.gallery FOLDER
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from ..modeling_mage import MageForImageClassification
from ..pipeline_mage import MagePipeline
from .model_card import Sample, add_gallery

# As many samples as this stand in a gallery, or one of each class where there are not many more of them.
NUM_SAMPLES, MOST_CLASSES = 8, 12


def sample_gallery(pipe: MagePipeline, num_samples: int | None = None) -> list[Sample]:
    """
    The first samples of a pipeline, of the first classes where it has classes, by the seeds from 0 on; none where it
    makes no pixels, or is led by representations that nothing draws.

    Args:
        pipe ([`MagePipeline`]): any.
        num_samples (`int`, *optional*): how many; 8, or one of each class where there are 8 to 12 of them, by default.
    """
    config = pipe.model.config
    if pipe.vqvae is None or (config.representation_size and pipe.representation_model is None):
        return []
    if num_samples is None:
        num_samples = config.num_classes if NUM_SAMPLES < config.num_classes <= MOST_CLASSES else NUM_SAMPLES
    generators = [torch.Generator().manual_seed(seed) for seed in range(num_samples)]
    pipe.set_progress_bar_config(disable=True)
    if not config.num_classes:
        images = pipe(num_images=num_samples, generator=generators, return_dict=False)[0]
        return [Sample(image, f"seed {seed}") for seed, image in enumerate(images)]
    labels = [number % config.num_classes for number in range(num_samples)]
    guidance = pipe.config.guidance_scale or (2.0 if config.class_dropout_prob > 0 else 0.0)
    images = pipe(class_labels=labels, guidance_scale=guidance, generator=generators, return_dict=False)[0]
    return [Sample(image, config.id2label[label]) for label, image in zip(labels, images, strict=True)]


@torch.no_grad()
def classifier_gallery(
    model: MageForImageClassification, processor, images: Sequence[Image.Image], top_k: int = 3
) -> list[Sample]:
    """Images, with what a classifier takes them for."""
    pixel_values = processor(list(images), return_tensors="pt")["pixel_values"].to(model.device)
    found = model(pixel_values).logits.float().softmax(dim=-1).cpu().topk(min(top_k, model.num_labels))
    names = model.config.id2label
    return [
        Sample(image, f"Image {number + 1}", dict(zip([names[label] for label in labels], scores, strict=True)))
        for number, (image, labels, scores) in enumerate(
            zip(images, found.indices.tolist(), found.values.tolist(), strict=True)
        )
    ]


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description="Gives the card in a pipeline's folder a gallery of its samples.")
    parser.add_argument("folder", type=Path, help="with a README.md")
    parser.add_argument("--num_samples", type=int, metavar="N", help="8, or one of each of a few classes, by default")
    arguments = parser.parse_args(argv)
    pipe = MagePipeline.from_pretrained(arguments.folder)
    add_gallery(arguments.folder / "README.md", sample_gallery(pipe, arguments.num_samples))


__all__ = ["classifier_gallery", "sample_gallery"]

if __name__ == "__main__":
    main()
