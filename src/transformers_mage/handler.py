"""
Serves a model's folder on Inference Endpoints, whose toolkit looks for `handler.py` in it.

A request is `{"inputs": ..., "parameters": {...}}`, its images are base64 (or a `data:` address, bytes, PIL):

    {"inputs": "three", "parameters": {"guidance_scale": 2.0, "seed": 0}}             images of a class
    {"inputs": 4}                                                                     four images
    {"inputs": IMAGE, "parameters": {"mask_image": MASK}}                             repaint where the mask is white
    {"inputs": 4, "parameters": {"like": IMAGE}}                                      four images like this one
    {"inputs": IMAGE, "parameters": {"task": "features"}}                             what the encoder says
    {"inputs": IMAGE}                                                                 classes, if it is a classifier

Answers are `{"images": [PNG in base64, ...], "seed": ...}`, `{"features": [[...], ...]}` and, for one image,
`[{"label": ..., "score": ...}, ...]`. A request that makes no sense gets `{"error": "..."}`.
"""

import base64
import binascii
import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageOps
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

MAX_IMAGES = 64
MAX_STEPS = 256
MAX_REPRESENTATION_STEPS = 1000
MAX_SIDE = 1024
MAX_BYTES = 20 * 2**20
MAX_PIXELS = 2**24

_EDITING = ("mask_image", "padding", "strength")
_PASSED_ON = (
    "num_inference_steps",
    "temperature",
    "guidance_scale",
    "guidance_schedule",
    "guidance_interval",
    "padding",
    "strength",
    "feather",
    "height",
    "width",
    "num_representation_steps",
)
_IMAGES = ("image", "mask_image", "like")
_GENERATION = ("num_images", "class_labels", "seed", *_IMAGES, *_PASSED_ON)
_NUMBERS = ("temperature", "guidance_scale", "strength", "feather")
_LIMITS = {
    "num_images": MAX_IMAGES,
    "num_inference_steps": MAX_STEPS,
    "num_representation_steps": MAX_REPRESENTATION_STEPS,
    "height": MAX_SIDE,
    "width": MAX_SIDE,
}


class RequestError(ValueError):
    """What is wrong with a request."""


class EndpointHandler:
    """
    Args:
        path (`str`): the folder.
    """

    def __init__(self, path: str = ""):
        self.path = path
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tasks: dict[str, Callable[[Any, dict[str, Any]], Any]] = {"features": self.features}
        if Path(path, "model_index.json").exists():
            self.pipe = DiffusionPipeline.from_pretrained(path, trust_remote_code=True).to(self.device)
            self.pipe.set_progress_bar_config(disable=True)
            self.encoder = self.pipe.model.base_model
            self.tasks["generation"] = self.generate
        elif "MageForImageClassification" in (
            AutoConfig.from_pretrained(path, trust_remote_code=True).architectures or []
        ):
            classifier = AutoModelForImageClassification.from_pretrained(path, trust_remote_code=True)
            self.classifier = classifier.to(self.device).eval()
            self.encoder = self.classifier.base_model
            self.tasks["classification"] = self.classify
        else:
            self.encoder = AutoModel.from_pretrained(path, trust_remote_code=True).to(self.device).eval()
        self.processor = self._load_processor()

    def __call__(self, data: dict[str, Any]) -> dict[str, Any] | list[Any]:
        """
        Args:
            data (`dict`): `inputs` and `parameters`; see above.

        Returns:
            `dict` or `list`: what was asked for, or `{"error": message}`.
        """
        try:
            if not isinstance(data, dict):
                raise RequestError(f"A request must be a mapping with `inputs`, got {type(data).__name__}.")
            parameters = data.get("parameters") or {}
            if not isinstance(parameters, dict):
                raise RequestError(f"`parameters` must be a mapping, got {parameters!r}.")
            parameters = dict(parameters)
            return self._task(parameters.pop("task", None))(data.get("inputs"), parameters)
        except (ValueError, TypeError) as error:
            return {"error": str(error)}

    def _is_classifier(self) -> bool:
        config = AutoConfig.from_pretrained(self.path, trust_remote_code=True)
        return "MageForImageClassification" in (config.architectures or [])

    def _task(self, name: str | None) -> Callable[[Any, dict[str, Any]], Any]:
        # What a folder was made for comes last.
        name = name or list(self.tasks)[-1]
        if name not in self.tasks:
            raise RequestError(f"`task` must be one of {sorted(self.tasks)} for this model, got {name!r}.")
        return self.tasks[name]

    def _load_processor(self) -> Any:
        if not Path(self.path, "preprocessor_config.json").exists():
            return None
        return AutoImageProcessor.from_pretrained(self.path)

    def generate(self, inputs: Any, parameters: dict[str, Any]) -> dict[str, Any]:
        """Images from nothing, of classes, or around what is known of others."""
        check_names(parameters, _GENERATION)
        check_sizes(parameters)
        arguments = {name: parameters[name] for name in _PASSED_ON if name in parameters}
        arguments |= self._subject(inputs, parameters)
        check_count(arguments)
        seed = parameters.get("seed", random.randrange(2**31))
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
            raise RequestError(f"`seed` must be a whole number of 0 or more, got {seed!r}.")
        images = self.pipe(generator=torch.Generator().manual_seed(seed), **arguments).images
        return {"images": [write_image(image) for image in images], "seed": seed}

    def _subject(self, inputs: Any, parameters: dict[str, Any]) -> dict[str, Any]:
        """What `inputs` is: an image to edit, or what the pipeline takes first, a class, several or a number."""
        subject: dict[str, Any] = {
            name: parameters[name] for name in ("num_images", "class_labels") if name in parameters
        }
        images = {name: parameters[name] for name in _IMAGES if name in parameters}
        if "image" not in images and any(name in parameters for name in _EDITING):
            images["image"] = inputs
        elif inputs not in (None, "", {}):
            subject["prompt"] = inputs
        return subject | {name: read_image(image, name) for name, image in images.items()}

    @torch.no_grad()
    def features(self, inputs: Any, parameters: dict[str, Any]) -> dict[str, Any]:
        """The mean over the image tokens, or the class token with `pool: "cls"`, of each image."""
        check_names(parameters, ("pool",))
        pool = parameters.get("pool", "mean")
        if pool not in ("mean", "cls"):
            raise RequestError(f'`pool` must be "mean" or "cls", got {pool!r}.')
        output = self.encoder(self._pixels(inputs))
        pooled = output.pooler_output if pool == "mean" else output.last_hidden_state[:, 0]
        return {"features": pooled.float().cpu().tolist()}

    @torch.no_grad()
    def classify(self, inputs: Any, parameters: dict[str, Any]) -> list[Any]:
        """The likeliest classes of an image, or of each of several, with their probabilities."""
        check_names(parameters, ("top_k",))
        names, top_k = self.classifier.config.id2label, parameters.get("top_k", 5)
        if not isinstance(top_k, int) or top_k < 1:
            raise RequestError(f"`top_k` must be a whole number of at least 1, got {top_k!r}.")
        probabilities = self.classifier(self._pixels(inputs)).logits.float().softmax(dim=-1).cpu()
        found = probabilities.topk(min(top_k, len(names)))
        answers = [
            [{"label": names[label], "score": score} for score, label in zip(scores, labels, strict=True)]
            for scores, labels in zip(found.values.tolist(), found.indices.tolist(), strict=True)
        ]
        return answers if isinstance(inputs, list) else answers[0]

    def _pixels(self, inputs: Any) -> torch.Tensor:
        images = inputs if isinstance(inputs, list) else [inputs]
        if not 0 < len(images) <= MAX_IMAGES:
            raise RequestError(f"`inputs` must hold between 1 and {MAX_IMAGES} images, got {len(images)}.")
        if self.processor is None:
            raise RequestError("This model has no image processor (preprocessor_config.json), so it takes no images.")
        read = [read_image(image, "inputs") for image in images]
        return self.processor(read, return_tensors="pt")["pixel_values"].to(self.device)


def check_names(parameters: dict[str, Any], known: tuple[str, ...]):
    """Raises RequestError for parameters that there are none of."""
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise RequestError(f"`parameters` has no {unknown[0]!r}; it can hold {sorted([*known, 'task'])}.")


def check_count(arguments: dict[str, Any]):
    """Raises RequestError for more images than can be made at once."""
    prompt = arguments.get("prompt", arguments.get("class_labels"))
    count = arguments.get("num_images", 1) * (len(prompt) if isinstance(prompt, list) else 1)
    count = max(count, prompt if isinstance(prompt, int) else 1)
    if count > MAX_IMAGES:
        raise RequestError(f"At most {MAX_IMAGES} images can be made at once, got {count}.")


def check_sizes(parameters: dict[str, Any]):
    """Raises RequestError for what is not a number or would take too much time or memory."""
    for name, limit in _LIMITS.items():
        value = parameters.get(name)
        if value is not None and (not isinstance(value, int) or not 1 <= value <= limit):
            raise RequestError(f"`{name}` must be a whole number between 1 and {limit}, got {value!r}.")
    for name in _NUMBERS:
        if not isinstance(parameters.get(name, 0), (int, float)):
            raise RequestError(f"`{name}` must be a number, got {parameters[name]!r}.")
    padding = parameters.get("padding", 0)
    for side in padding if isinstance(padding, list) else [padding]:
        if not isinstance(side, int) or not 0 <= side <= MAX_SIDE:
            raise RequestError(f"`padding` must be whole numbers between 0 and {MAX_SIDE}, got {padding!r}.")


def read_image(content: Any, name: str) -> Image.Image:
    """
    An image of a request, turned as its EXIF says.

    Args:
        content: base64, a `data:` address, bytes or a PIL image.
        name (`str`): what the request calls it.

    Raises:
        RequestError: where it is none, or too large.
    """
    if isinstance(content, Image.Image):
        return content
    if isinstance(content, str):
        content = _decode(content, name)
    if not isinstance(content, (bytes, bytearray)):
        raise RequestError(f"`{name}` must be an image in base64, got {type(content).__name__}.")
    if len(content) > MAX_BYTES:
        raise RequestError(f"`{name}` must be an image of at most {MAX_BYTES} bytes, got {len(content)}.")
    try:
        image = Image.open(io.BytesIO(content))
        if image.width * image.height > MAX_PIXELS:
            raise RequestError(f"`{name}` must have at most {MAX_PIXELS} pixels, got {image.width} x {image.height}.")
        image.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise RequestError(f"`{name}` holds no image that can be read: {error}.") from error
    return ImageOps.exif_transpose(image)


def _decode(text: str, name: str) -> bytes:
    if len(text) > 2 * MAX_BYTES:
        raise RequestError(f"`{name}` must be an image of at most {MAX_BYTES} bytes, got more.")
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"`{name}` must be an image in base64: {error}.") from error


def write_image(image: Image.Image) -> str:
    """PNG in base64."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


__all__ = ["EndpointHandler"]
