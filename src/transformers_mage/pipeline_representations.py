"""The representations that a pipeline's images are led by: given, taken from images, or drawn by a diffusion model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import PIL.Image
import torch
from diffusers import DDIMScheduler, ModelMixin, SchedulerMixin
from transformers import PreTrainedModel

from .conditioning import UNCONDITIONAL_LABEL, Condition
from .configuration_mage import MageConfig
from .image_inputs import ImageInput, read_images, to_tensor
from .representation_diffusion import DDIM_SETTINGS, draw_representations
from .representations import RepresentationEncoder, RepresentationSource

Representations: TypeAlias = torch.Tensor | np.ndarray

# Not at runtime: diffusers expects one pipeline, no more, in the code that a folder carries.
if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as _Pipeline
else:
    _Pipeline = object


class PipelineRepresentationMixin(_Pipeline):
    """
    What a pipeline whose model is led by representations (RCG, arXiv 2312.03701) can do with them. They are plain
    tensors: means of several, points between two and the like lead the model too.
    """

    model: Any
    representation_model: ModelMixin | None
    representation_scheduler: SchedulerMixin | None
    representation_encoder: PreTrainedModel | None

    @torch.no_grad()
    def get_representations(self, images: ImageInput) -> torch.FloatTensor:
        r"""
        What leads the model to images like these.

        Args:
            images (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them):
                of any sizes: each is resized to cover the model's size, and the middle of it counts.

        Returns:
            `torch.FloatTensor` of shape `(num_images, representation_size)`, standardised.

        Raises:
            ValueError: for a model that is not led by representations, or that came without what computes them.
        """
        return self._representations_of("images", images)

    @torch.no_grad()
    def draw_representations(
        self,
        num_representations: int = 1,
        num_inference_steps: int = 250,
        eta: float = 1.0,
        class_labels: torch.LongTensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> torch.FloatTensor:
        r"""
        Representations of images that do not exist, by `representation_model`.

        Args:
            num_representations (`int`, *optional*, defaults to 1): how many.
            num_inference_steps (`int`, *optional*, defaults to 250): steps of the diffusion.
            eta (`float`, *optional*, defaults to 1.0): how much noise each step of DDIM adds: 1 as DDPM, 0 none.
            class_labels (`torch.LongTensor` of shape `(num_representations,)`, *optional*): for a diffusion model
                that knows classes; negative ones, and all of them by default, are drawn at random.
            generator (`torch.Generator` or a list of them, one each, *optional*): the randomness.

        Returns:
            `torch.FloatTensor` of shape `(num_representations, representation_size)`.

        Raises:
            ValueError: without a diffusion model.
        """
        if self.representation_model is None:
            raise ValueError(
                "This pipeline has no `representation_model` to draw representations with. Train one "
                "(scripts/train_representation_diffusion.py), or pass `representations` or `like`."
            )
        device = self._execution_device
        return draw_representations(
            self.representation_model,
            num_representations,
            self.representation_scheduler,
            num_inference_steps,
            eta,
            self._drawn_classes(num_representations, class_labels, generator),
            generator,
            progress_bar=not getattr(self, "_progress_bar_config", {}).get("disable", False),
            device=device,
        )

    def _with_drawn(
        self,
        condition: Condition,
        count: int,
        num_inference_steps: int,
        generator: torch.Generator | Sequence[torch.Generator] | None,
    ) -> Condition:
        """The condition with a new representation for each of `count` images, of its classes where they are known."""
        labels = condition.class_labels
        drawn = self.draw_representations(count, num_inference_steps, class_labels=labels, generator=generator)
        return Condition(labels if self.model.config.num_classes else None, drawn)

    def _check_classes_are_read(self, condition: Condition):
        if condition.class_labels is not None and not self.model.config.num_classes:
            raise ValueError(
                "Only `representation_model` knows classes here: they say what to draw, and nothing is drawn for "
                "`representations`, for `like` or around an `image`. Leave the classes out."
            )

    def _drawn_classes(
        self,
        count: int,
        labels: torch.LongTensor | None,
        generator: torch.Generator | Sequence[torch.Generator] | None,
    ) -> torch.LongTensor | None:
        """(count,): a diffusion model of classes knows no drawing without one."""
        num_classes, device = self._num_drawn_classes, self._execution_device
        if not num_classes:
            return None
        if labels is not None and not (labels == UNCONDITIONAL_LABEL).any():
            return labels
        generators = generator if isinstance(generator, Sequence) else [generator]
        each = count // len(generators)
        drawn = [torch.randint(num_classes, (each,), generator=one, device=_device_of(one)) for one in generators]
        some = torch.cat([part.to(device) for part in drawn])
        return some if labels is None else torch.where(labels < 0, some, labels)

    @property
    def _num_drawn_classes(self) -> int:
        """Classes that representations can be drawn of."""
        return 0 if self.representation_model is None else self.representation_model.config.num_classes or 0

    @property
    def _prompt_config(self) -> MageConfig:
        """What says which classes can be asked for: the model's, or those that representations are drawn of."""
        config = self.model.config
        if config.num_classes or not self._num_drawn_classes:
            return config
        return type(config)(num_classes=self._num_drawn_classes, id2label=config.id2label)

    def _check_representation_parts(self):
        """Raises ValueError for a diffusion model that draws what the model cannot take."""
        if self.representation_model is None:
            return
        size, drawn = self.model.config.representation_size, self.representation_model.config.representation_size
        if size != drawn:
            takes = "none" if size is None else f"representations of {size}"
            raise ValueError(
                f"`representation_model` draws representations of {drawn} numbers, and the model takes {takes} "
                "(`config.representation_size`). Pass the one that was trained for it."
            )

    def _default_representation_scheduler(self) -> SchedulerMixin | None:
        return None if self.representation_model is None else DDIMScheduler(**DDIM_SETTINGS)

    def _asked_representations(
        self, representations: Representations | None, like: ImageInput | None
    ) -> torch.FloatTensor | None:
        """(num_prompts, representation_size): those that were given, or of the images that were."""
        if representations is not None and like is not None:
            raise ValueError("Pass either `representations` or `like`, got both.")
        if like is not None:
            return self._representations_of("like", like)
        return None if representations is None else self._checked(representations)

    def _checked(self, representations: Representations) -> torch.FloatTensor:
        size = self._check_is_led("representations")
        given = torch.as_tensor(representations)
        rows = given[None] if given.ndim == 1 else given
        if rows.ndim != 2 or not len(rows) or rows.shape[1] != size or not rows.is_floating_point():
            raise ValueError(
                f"`representations` must be floating point of shape ({size},) or (num, {size}), got {given.dtype} of "
                f"shape {tuple(given.shape)}."
            )
        return rows.to(self._execution_device, torch.float32)

    def _check_is_led(self, name: str) -> int:
        """The size of a representation. Raises ValueError where the model takes none."""
        size = self.model.config.representation_size
        if size is None:
            raise ValueError(
                f"`{name}` was passed, but this model is not led by representations (`config.representation_size` is "
                "None). Leave it out, or train one with `--representation_model_name_or_path`."
            )
        return size

    def _representations_of(self, name: str, images: ImageInput) -> torch.FloatTensor:
        self._check_is_led(name)
        if self.representation_encoder is None:
            raise ValueError(
                f"`{name}` needs the model that representations are taken with, and this pipeline came without its "
                "`representation_encoder`. Pass `representations` instead, or load the pipeline with it."
            )
        source = RepresentationSource(**(self.model.config.representation_source or {"model_name_or_path": ""}))
        encoder = RepresentationEncoder(self.representation_encoder, source)
        read = read_images(name, images, self._num_channels)
        pixels = torch.cat([_cover(image, self.model.config.image_height_width) for image in read])
        pixels = pixels.to(self._execution_device)
        if encoder.reads_tokens:
            # It shares the pipeline's tokenizer.
            return encoder(input_ids=self._encode(pixels).flatten(1))
        return encoder(pixels)


def _cover(image: np.ndarray, size: tuple[int, int]) -> torch.FloatTensor:
    """(1, channels, height, width): the middle of the image, which is resized until it just covers that size."""
    height, width = size
    scale = max(height / image.shape[0], width / image.shape[1])
    covering = (max(round(scale * image.shape[0]), height), max(round(scale * image.shape[1]), width))
    pixels = to_tensor([image], *covering, PIL.Image.Resampling.BICUBIC)
    top, left = ((covering[0] - height) // 2, (covering[1] - width) // 2)
    return pixels[..., top : top + height, left : left + width]


def _device_of(generator: torch.Generator | None) -> torch.device | None:
    return None if generator is None else generator.device


__all__ = ["PipelineRepresentationMixin", "Representations"]
