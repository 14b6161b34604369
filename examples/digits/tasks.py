"""
The handwritten digits that scikit-learn bundles (UCI ML hand-written digits, 1,797 images of 8 x 8 pixels): a small
world of real images in which a model can be trained, and judged, in minutes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PILImage
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from examples.junk import make_junk
from transformers_mage.data.labels import draw_subset
from transformers_mage.pipeline_mage import MagePipeline
from transformers_mage.representation.probing import fit_best_probe, normalize

IMAGE_SIZE = 32
DIGIT_SIZE = 8
# The judge's eleventh class.
JUNK = 10
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def load_digits_dataset() -> DatasetDict:
    """
    The digits, enlarged to 32 x 32 RGB: splits "train" (1,437) and "test" (360), the same in every call, with equal
    shares of the classes; columns "image" and "label".
    """
    digits = load_digits()
    pixels = (digits.images / digits.images.max() * 255).astype(np.uint8)
    images = [enlarge(image) for image in pixels]
    train, test = train_test_split(np.arange(len(images)), test_size=0.2, random_state=0, stratify=digits.target)
    features = Features({"image": Image(), "label": ClassLabel(names=NAMES)})
    splits = {"train": train, "test": test}
    return DatasetDict(
        {
            name: Dataset.from_dict(
                {"image": [images[i] for i in indices], "label": digits.target[indices]}, features=features
            )
            for name, indices in splits.items()
        }
    )


def enlarge(digit: np.ndarray) -> PILImage.Image:
    """A digit of 8 x 8 grey levels as an image that a model sees."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    return PILImage.fromarray(digit).resize(size, PILImage.Resampling.BICUBIC).convert("RGB")


def raw_pixels(images: Sequence[PILImage.Image]) -> np.ndarray:
    """(num_images, 64) grey levels in [0, 1] of images, reduced to the digits' own 8 x 8 pixels."""
    size = (DIGIT_SIZE, DIGIT_SIZE)
    small = [np.asarray(image.convert("L").resize(size, PILImage.Resampling.BOX)) for image in images]
    return np.stack(small).reshape(len(small), -1) / 255


class DigitJudge:
    """
    A support vector classifier of raw pixels: what an image shows. It knows the real training digits and, as an
    eleventh class, junk made of them; one of digits alone is sure of half of all noise.
    """

    def __init__(self, train: Dataset):
        digits, labels = raw_pixels(train["image"]), np.array(train["label"])
        junk = junk_pixels(digits, labels, draws=3, seed=0)
        self.classifier = CalibratedClassifierCV(SVC(C=10, gamma=0.5), ensemble=False)
        self.classifier.fit(np.concatenate([digits, junk]), np.concatenate([labels, np.full(len(junk), JUNK)]))

    def __call__(self, images: Sequence[PILImage.Image]) -> tuple[np.ndarray, np.ndarray]:
        """The digit that each image shows, or [`JUNK`], and how probable that is."""
        probabilities = self.classifier.predict_proba(raw_pixels(images))
        return probabilities.argmax(axis=1), probabilities.max(axis=1)


def junk_pixels(digits: np.ndarray, labels: np.ndarray, draws: int = 1, seed: int = 0) -> np.ndarray:
    """(draws x num_digits, 64) pixels of junk of all kinds, made of digits (num_digits, 64) of these labels."""
    generator = torch.Generator().manual_seed(seed)
    images, kinds, junk = torch.from_numpy(digits).view(-1, 1, DIGIT_SIZE, DIGIT_SIZE), torch.from_numpy(labels), []
    for _ in range(draws):
        order = torch.randperm(len(images), generator=generator)
        junk.append(make_junk(images[order].float(), kinds[order], generator))
    return torch.cat(junk).flatten(1).numpy()


def junk_images(test: Dataset, seed: int = 0) -> list[PILImage.Image]:
    """Junk made of unseen digits."""
    junk = junk_pixels(raw_pixels(test["image"]), np.array(test["label"]), seed=seed)
    return [enlarge((pixels.reshape(DIGIT_SIZE, DIGIT_SIZE) * 255).round().astype(np.uint8)) for pixels in junk]


def score_samples(judge: DigitJudge, images: Sequence[PILImage.Image]) -> dict[str, float]:
    """
    Share of the images that the judge is over 0.9 sure are a digit, how many of the ten digits are among them, and
    the share that is likelier junk.
    """
    digits, certainty = judge(images)
    sure = (digits != JUNK) & (certainty > 0.9)
    return {
        "sure": float(sure.mean()),
        "digits": len(np.unique(digits[sure])),
        "junk": float((digits == JUNK).mean()),
    }


def score_inpainting(
    judge: DigitJudge, originals: Sequence[PILImage.Image], painted: Sequence[PILImage.Image]
) -> float:
    """Share of the painted images in which the judge sees the digit that it saw in the original."""
    return float((judge(originals)[0] == judge(painted)[0]).mean())


def hide_half(side: str = "bottom") -> PILImage.Image:
    """A mask, white over the bottom, top, left or right half."""
    half = IMAGE_SIZE // 2
    boxes = {
        "bottom": (0, half, IMAGE_SIZE, IMAGE_SIZE),
        "top": (0, 0, IMAGE_SIZE, half),
        "left": (0, 0, half, IMAGE_SIZE),
        "right": (half, 0, IMAGE_SIZE, IMAGE_SIZE),
    }
    mask = PILImage.new("L", (IMAGE_SIZE, IMAGE_SIZE))
    mask.paste(255, boxes[side])
    return mask


def blank_half(image: PILImage.Image, side: str = "bottom") -> PILImage.Image:
    """The image before painting: grey where [`hide_half`] hides it."""
    return PILImage.composite(PILImage.new("RGB", image.size, "grey"), image, hide_half(side))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def generate(
    pipe: MagePipeline,
    num_images: int,
    class_labels: Sequence[int | None] | None = None,
    batch_size: int = 64,
    **kwargs: Any,
) -> list[PILImage.Image]:
    """
    Images by `pipe`, image i from a generator with the seed i, and of the class `class_labels[i]`.

    Args:
        kwargs: of the pipeline's call, as `guidance_scale`.
    """
    images = []
    for start in tqdm(range(0, num_images, batch_size), desc="Generating", leave=False):
        batch = range(start, min(start + batch_size, num_images))
        classes = {"num_images": len(batch)}
        if class_labels is not None:
            classes = {"class_labels": [class_labels[i] for i in batch]}
        images += pipe(generator=[seeded(i) for i in batch], **classes, **kwargs).images
    return images


def inpaint(
    pipe: MagePipeline, images: Sequence[PILImage.Image], side: str = "bottom", batch_size: int = 90
) -> list[PILImage.Image]:
    """The images with one half painted again, image i from a generator with the seed i."""
    painted = []
    for start in tqdm(range(0, len(images), batch_size), desc=f"Painting the {side} half"):
        batch = list(images[start : start + batch_size])
        generators = [seeded(start + i) for i in range(len(batch))]
        painted += pipe(image=batch, mask_image=hide_half(side), generator=generators).images
    return painted


@torch.no_grad()
def extract_features(
    model: PreTrainedModel, processor: BaseImageProcessor, images: Sequence[PILImage.Image], batch_size: int = 128
) -> np.ndarray:
    """(num_images, hidden_size) features that linear probing uses: the mean over the tokens before the final norm."""
    features = []
    for start in tqdm(range(0, len(images), batch_size), desc="Extracting features"):
        inputs = processor(images[start : start + batch_size], return_tensors="pt")
        features.append(model(**inputs).pooler_output)
    return torch.cat(features).numpy()


def probe_accuracy(
    features: dict[str, np.ndarray], labels: dict[str, Sequence[int]], shots_per_class: int | None, seed: int = 0
) -> float:
    """
    Accuracy on the test split of the linear probe of scripts/linear_probe.py, trained on a few examples of each class,
    or on all.

    Args:
        features, labels: of the splits "train" and "test".
    """
    chosen = draw_subset(labels["train"], shots_per_class, seed=seed)
    train, test = (normalize(torch.from_numpy(features[split])) for split in ("train", "test"))
    train_labels, test_labels = (torch.as_tensor(labels[split]) for split in ("train", "test"))
    probe = fit_best_probe(train[chosen], train_labels[chosen], len(NAMES), seed=seed)
    return float((probe(test).argmax(dim=1) == test_labels).float().mean())
