"""
The handwritten digits that scikit-learn bundles (UCI ML hand-written digits, 1,797 images of 8 x 8 pixels): a small
world of real images in which a model can be trained, and judged, in minutes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PILImage
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from transformers_mage.pipeline_mage import MagePipeline

IMAGE_SIZE = 32


DIGIT_SIZE = 8


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
    """A support vector classifier of raw pixels, trained on the real training digits: what an image shows."""

    def __init__(self, train: Dataset):
        self.classifier = CalibratedClassifierCV(SVC(C=10), ensemble=False)
        self.classifier.fit(raw_pixels(train["image"]), train["label"])

    def __call__(self, images: Sequence[PILImage.Image]) -> tuple[np.ndarray, np.ndarray]:
        """The digit that each image shows, and how probable that is."""
        probabilities = self.classifier.predict_proba(raw_pixels(images))
        return probabilities.argmax(axis=1), probabilities.max(axis=1)


def noise_images(num_images: int, seed: int = 0) -> list[PILImage.Image]:
    """Images of independent, uniform pixels: what a classifier of digits says of something that is none."""
    pixels = np.random.default_rng(seed).integers(0, 256, (num_images, DIGIT_SIZE, DIGIT_SIZE), dtype=np.uint8)
    return [enlarge(image) for image in pixels]


def score_samples(judge: DigitJudge, images: Sequence[PILImage.Image]) -> dict[str, float]:
    """Share of the images that the judge is over 0.9 sure of, and how many of the ten digits are among them."""
    digits, certainty = judge(images)
    return {"sure": float((certainty > 0.9).mean()), "digits": len(np.unique(digits[certainty > 0.9]))}


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
    """The image as it is before painting: grey where [`hide_half`] hides it."""
    return PILImage.composite(PILImage.new("RGB", image.size, "grey"), image, hide_half(side))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def generate(pipe: MagePipeline, num_images: int, batch_size: int = 64) -> list[PILImage.Image]:
    """Images by `pipe`, image i from a generator with the seed i."""
    images = []
    for start in tqdm(range(0, num_images, batch_size), desc="Generating"):
        generators = [seeded(i) for i in range(start, min(start + batch_size, num_images))]
        images += pipe(num_images=len(generators), generator=generators).images
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


def draw_shots(labels: Sequence[int], shots_per_class: int, seed: int) -> np.ndarray:
    """Indices of `shots_per_class` random examples of each class."""
    labels, generator = np.asarray(labels), np.random.default_rng(seed)
    chosen = [
        generator.choice(np.flatnonzero(labels == label), shots_per_class, replace=False)
        for label in np.unique(labels)
    ]
    return np.concatenate(chosen)


def linear_probe(regularisation: float = 1.0) -> Pipeline:
    """Logistic regression on standardised features."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=regularisation, max_iter=5000))


def probe_accuracy(
    features: dict[str, np.ndarray], labels: dict[str, Sequence[int]], shots_per_class: int | None, seed: int = 0
) -> float:
    """
    Accuracy on the test split of a linear probe trained on a few examples of each class, or on all.

    Args:
        features, labels: of the splits "train" and "test".
    """
    train_labels = np.asarray(labels["train"])
    chosen = slice(None) if shots_per_class is None else draw_shots(train_labels, shots_per_class, seed)
    probe = linear_probe().fit(features["train"][chosen], train_labels[chosen])
    return float(probe.score(features["test"], labels["test"]))
