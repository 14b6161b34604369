"""What the Space does with its model; it knows nothing of the page."""

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModelForImageClassification

SHOWN_SIDE = 384
MAX_SIDE = 2048


class StudioError(ValueError):
    """What a visitor should do otherwise."""


def load_pipeline(name: str) -> DiffusionPipeline:
    """By folder or by name, with the package where it is installed, otherwise with the code that the model carries."""
    try:
        from transformers_mage import MagePipeline
    except ImportError:
        return DiffusionPipeline.from_pretrained(name, trust_remote_code=True)
    return MagePipeline.from_pretrained(name)


def enlarge(image: Image.Image) -> Image.Image:
    """Small images in whole multiples, so that nothing is blurred."""
    factor = max(1, SHOWN_SIDE // max(image.size))
    return image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)


@dataclass
class Studio:
    """
    A model with examples.

    Attributes:
        pipe: the pipeline.
        processor: what prepares pixels for its encoder.
        examples (`list[PIL.Image.Image]`): images to edit, and to compare others with.
        classifier (*optional*): a model that says which class an image is of.
    """

    pipe: Any
    processor: Any
    examples: list[Image.Image]
    classifier: Any = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def load(cls, name: str, examples: Iterable[Path], classifier: str | None = None) -> "Studio":
        """
        Args:
            name (`str`): a pipeline's folder or Hub name.
            examples (`Iterable[Path]`): a few files of images.
            classifier (`str`, *optional*): a classifier's folder or Hub name.
        """
        pipe = load_pipeline(name).to("cuda" if torch.cuda.is_available() else "cpu")
        pipe.set_progress_bar_config(disable=True)
        trusted = {"trust_remote_code": True}
        judge = classifier and AutoModelForImageClassification.from_pretrained(classifier, **trusted).eval()
        images = [Image.open(path).convert("RGB") for path in examples]
        processor = pipe.image_processor or AutoImageProcessor.from_pretrained(name)
        return cls(pipe, processor, [shrink(image, cls.side_of(pipe)) for image in images], judge)

    @staticmethod
    def side_of(pipe: Any) -> int:
        return pipe.model.config.patch_size * max(pipe.model.config.grid_size)

    @property
    def side(self) -> int:
        """The larger side, in pixels, of the images that the model was trained on."""
        return self.side_of(self.pipe)

    @property
    def class_names(self) -> list[str]:
        """Empty for an unconditional model."""
        config = self.pipe.model.config
        return [config.id2label[label] for label in range(config.num_classes)]

    @property
    def is_led(self) -> bool:
        """Whether representations lead the model, which images can lend it: it makes images like them."""
        is_led = self.pipe.model.config.representation_size is not None
        return is_led and self.pipe.representation_encoder is not None

    @property
    def can_guide(self) -> bool:
        config = self.pipe.model.config
        by_class = bool(self.class_names) and config.class_dropout_prob > 0
        return by_class or (config.representation_size is not None and config.representation_dropout_prob > 0)

    @property
    def defaults(self) -> dict[str, Any]:
        """Steps, temperature and guidance that the model was saved with."""
        config = self.pipe.scheduler.config
        guidance = self.pipe.config.guidance_scale or 1.0
        return {"steps": config.num_inference_steps, "temperature": config.temperature, "guidance": guidance}

    def make(self, seed: int, **arguments: Any) -> Iterator[tuple[Image.Image, float]]:
        """
        An image as it comes about: what the tokens known so far look like, then the image itself, each with the share
        of the steps that are done.
        """
        if not self.class_names:
            arguments = {name: value for name, value in arguments.items() if name != "class_labels"}
        is_led = arguments.get("class_labels") is not None or self.pipe.model.config.representation_size is not None
        if not (self.can_guide and is_led):
            arguments.pop("guidance_scale", None)
        generator = torch.Generator().manual_seed(int(seed))
        # One at a time: the scheduler keeps the steps of the call that is going on.
        with self._lock:
            for preview, done in watch(self.pipe, generator=generator, **arguments):
                yield enlarge(preview), done

    def read(self, image: Image.Image | None) -> Image.Image:
        """
        What a visitor gave, upright, not larger than can be dealt with.

        Raises:
            StudioError: where it is nothing.
        """
        if image is None:
            raise StudioError("Choose an example, or drop an image here first.")
        image = ImageOps.exif_transpose(image).convert("RGB")
        image.thumbnail((MAX_SIDE, MAX_SIDE))
        return shrink(image, self.side)

    @torch.no_grad()
    def features(self, images: list[Image.Image]) -> torch.Tensor:
        """(num_images, hidden_size) of length 1."""
        pixels = self.processor(images, return_tensors="pt")["pixel_values"].to(self.pipe.device)
        encoder = self.pipe.model.base_model
        return torch.nn.functional.normalize(encoder(pixels).pooler_output.float(), dim=-1).cpu()

    def neighbours(self, image: Image.Image, count: int = 4) -> list[tuple[Image.Image, str]]:
        """The examples whose features are nearest, with the cosine of the angle between them."""
        if not self.examples:
            raise StudioError("This Space has no examples to compare with.")
        similarity = self.features([image]) @ self.features(self.examples).T
        found = similarity[0].topk(min(count, len(self.examples)))
        return [
            (enlarge(self.examples[index]), f"{value:.2f}")
            for value, index in zip(found.values.tolist(), found.indices.tolist(), strict=True)
        ]

    @torch.no_grad()
    def classes(self, image: Image.Image) -> dict[str, float]:
        """Probabilities of the classes, where there is a classifier."""
        if self.classifier is None:
            return {}
        pixels = self.processor([image], return_tensors="pt")["pixel_values"]
        scores = self.classifier(pixels).logits[0].float().softmax(dim=-1).tolist()
        return {self.classifier.config.id2label[label]: score for label, score in enumerate(scores)}


def watch(pipe: Any, **arguments: Any) -> Iterator[tuple[Image.Image, float]]:
    """Calls a pipeline in a thread of its own, and yields what it has after each step and at the end."""
    told: queue.Queue[tuple[Image.Image, float] | Exception] = queue.Queue()

    def show(pipe: Any, step: int, timestep: int, offered: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        told.put((to_image(offered["preview"][0]), (step + 1) / pipe.num_timesteps))
        return {}

    callback = {"callback_on_step_end": show, "callback_on_step_end_tensor_inputs": ["preview"]}

    def run(call: Callable[..., Any]):
        try:
            told.put((call(**arguments, **callback).images[0], 1.0))
        except Exception as error:
            told.put(error)
        finally:
            told.put(StopIteration())

    threading.Thread(target=run, args=(pipe,), daemon=True).start()
    while not isinstance(news := told.get(), StopIteration):
        if isinstance(news, Exception):
            raise news
        yield news


def to_image(pixels: torch.Tensor) -> Image.Image:
    array = (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array)


def shrink(image: Image.Image, side: int) -> Image.Image:
    """Undoes [`enlarge`], exactly; other images stay as they are."""
    factor = max(image.size) // side
    if factor < 2 or any(length % factor for length in image.size):
        return image
    small = image.resize((image.width // factor, image.height // factor), Image.Resampling.NEAREST)
    same = np.array_equal(np.asarray(small.resize(image.size, Image.Resampling.NEAREST)), np.asarray(image))
    return small if same else image


def painted(editor: dict[str, Any] | None) -> Image.Image:
    """
    White where a visitor painted.

    Raises:
        StudioError: where nothing is painted.
    """
    layers = (editor or {}).get("layers") or []
    masks = [np.asarray(layer.convert("RGBA"))[..., 3] > 0 for layer in layers]
    if not masks or not np.any(masks):
        raise StudioError("Paint over what should be made anew first.")
    return Image.fromarray(np.any(masks, axis=0).astype(np.uint8) * 255)


def default_model() -> str:
    """The variable's, or the clothes of this repository."""
    repository = Path(__file__).resolve().parent.parent.parent
    return os.environ.get("MAGE_MODEL", str(repository / "model_cards" / "mage-fashion-conditional"))
