"""MagePipeline: images from a MAGE model by iterative decoding, from nothing or around what is known."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin, VQModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from .checks import finite_number, share
from .conditioning import (
    ClassLabels,
    Condition,
    GuidancePlan,
    apply_guidance,
    resolve_prompt,
)
from .decoding_plan import WHOLE_LOOK, DecodingPlan, Look, check_full_steps, count_hidden
from .editing import (
    Canvas,
    Edit,
    canvas_size,
    check_canvas_side,
    merge_windows,
    pad_with_unknown,
    read_edit,
    split_into_windows,
)
from .hole_filling import fill_from_around
from .image_inputs import ImageInput, to_tensor
from .kept_context import KeyValues
from .modeling_mage import check_weights
from .pipeline_representations import PipelineRepresentationMixin, Representations
from .pipeline_saving import PipelineSavingMixin
from .scheduling_mage import MageScheduler, rand_tensor

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass
class MagePipelineOutput(BaseOutput):
    """
    Output of [`MagePipeline`].

    Args:
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`): as `output_type` asks.
        steps (`torch.LongTensor` of shape `(num_steps, batch_size, rows, columns)`, *optional*):
            the tokens after each step, `config.mask_token_id` where still unknown, with `return_steps=True`; as many
            as `num_inference_steps`, or fewer after an interruption.
    """

    images: list[PIL.Image.Image] | np.ndarray | torch.Tensor
    steps: torch.LongTensor | None = None


class MagePipeline(PipelineSavingMixin, PipelineRepresentationMixin, DiffusionPipeline):
    r"""
    Generates images, unconditionally, of a class or led by a representation, and edits images: repaints, extends and
    varies them.

    Args:
        model ([`MageForMaskedImageModeling`]): the model, its tokenizer inside.
        scheduler ([`MageScheduler`]): which tokens to keep at each step.
        image_processor (`BaseImageProcessor`, *optional*):
            what prepares pixels for `AutoModel`. The pipeline saves it with the model and does not use it.
        representation_model ([`RepresentationDiffusionModel`], *optional*):
            what draws representations, where the model is led by them (RCG, arXiv 2312.03701).
        representation_scheduler (`SchedulerMixin`, *optional*):
            how they are drawn; by default as RCG does, by DDIM.
        representation_encoder (`PreTrainedModel`, *optional*):
            what gives representations of images, as `config.representation_source` says.
        encoder_keep_share (`float`, *optional*):
            share of the tokens, above 0 and up to 1, that the encoder sees at least in each step: all known ones and,
            up to this share, random hidden ones. The others are dropped, as in training (section 3.2), which makes
            other images at less cost. By default none are. It is saved with the pipeline. While editing, the encoder
            sees as many tokens of each image as are known of the one of which most are.
        full_steps (`int` or `Sequence[int]`, *optional*, defaults to 1):
            every how many steps, or in which (counted from 0), all tokens are computed. Steps between compute only
            the tokens that were hidden in the last full one; the others' keys and values stay what they were there
            (ReCAP, arXiv 2505.19089). It is saved with the pipeline.
        guidance_scale (`float`, *optional*, defaults to 0.0):
            that of calls that do not say theirs, as the next two. It is saved with the pipeline.
        guidance_schedule (`str`, *optional*, defaults to `"linear"`): likewise.
        guidance_interval (`tuple[float, float]`, *optional*, defaults to `(0.0, 1.0)`): likewise.

    Raises:
        ValueError: where `representation_model` draws representations of another size than the model takes, or for
            guidance that the model cannot give.
    """

    model_cpu_offload_seq = "representation_encoder->representation_model->model"
    _optional_components = [
        "image_processor",
        "representation_model",
        "representation_scheduler",
        "representation_encoder",
    ]
    _callback_tensor_inputs = ["tokens", "preview"]

    def __init__(
        self,
        # As wide as diffusers checks it: code that lies in a folder is imported once by each of the libraries.
        model: PreTrainedModel,
        scheduler: MageScheduler,
        image_processor: BaseImageProcessor | None = None,
        representation_model: ModelMixin | None = None,
        representation_scheduler: SchedulerMixin | None = None,
        representation_encoder: PreTrainedModel | None = None,
        # As wide as they can be: diffusers warns of what is given otherwise.
        encoder_keep_share: float | int | None = None,
        full_steps: int | Sequence = 1,
        guidance_scale: float | int = 0.0,
        guidance_schedule: str = "linear",
        guidance_interval: Sequence = (0.0, 1.0),
    ):
        super().__init__()
        self.register_modules(
            model=model,
            scheduler=scheduler,
            image_processor=image_processor,
            representation_model=representation_model,
            representation_scheduler=representation_scheduler,
            representation_encoder=representation_encoder,
        )
        self._check_representation_parts()
        if representation_scheduler is None:
            self.register_modules(representation_scheduler=self._default_representation_scheduler())
        # The package rather than its files, so that saved folders outlive a change of layout.
        for name, component in (("model", model), ("scheduler", scheduler)):
            self.register_to_config(**{name: (__package__, type(component).__name__)})
        if encoder_keep_share is not None:
            encoder_keep_share = share("encoder_keep_share", encoder_keep_share)
        guidance = self._plan_guidance(guidance_scale, guidance_schedule, guidance_interval)
        self.register_to_config(
            encoder_keep_share=encoder_keep_share,
            full_steps=check_full_steps(full_steps),
            # As Python's own numbers, since they are saved as JSON.
            guidance_scale=float(guidance_scale),
            guidance_schedule=guidance.schedule,
            guidance_interval=list(guidance.interval),
        )
        self.pixel_processor = VaeImageProcessor(vae_scale_factor=model.config.patch_size, do_normalize=False)
        self._code_colors: torch.Tensor | None = None
        self._is_compiled = False
        self._guidance_scale, self._num_timesteps, self._interrupt = 0.0, 0, False

    @property
    def vqvae(self) -> VQModel | None:
        """The tokenizer."""
        return self.model.base_model.vqvae

    @property
    def guidance_scale(self) -> float:
        """That of the present call. A callback may set `pipe._guidance_scale` for the steps to come."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the model, given a class or a representation, is asked without it too."""
        config = self.model.config
        return self._guidance_scale > 0 and (config.num_classes > 0 or config.representation_size is not None)

    @property
    def num_timesteps(self) -> int:
        """Decoding steps of the present call."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the present call was told to end. A callback, or another thread, sets `pipe._interrupt = True`."""
        return self._interrupt

    @torch.no_grad()
    def __call__(
        self,
        prompt: ClassLabels = None,
        num_inference_steps: int | None = None,
        temperature: float | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        class_labels: ClassLabels = None,
        guidance_scale: float | None = None,
        guidance_schedule: str | None = None,
        image: ImageInput | None = None,
        mask_image: ImageInput | None = None,
        padding: int | Sequence[int] | None = None,
        strength: float | None = None,
        feather: int | None = None,
        height: int | None = None,
        width: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        return_steps: bool = False,
        callback_on_step_end: Callable[["MagePipeline", int, int, dict], dict | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("tokens",),
        num_images: int | None = None,
        guidance_interval: Sequence[float] | None = None,
        representations: Representations | None = None,
        like: ImageInput | None = None,
        num_representation_steps: int = 250,
    ) -> MagePipelineOutput | tuple:
        r"""
        Args:
            prompt (`int`, `str` or a list, *optional*): the short way to say what to make. A number is `num_images`,
                as in `pipe(4)`; names or a list are `class_labels`, as in `pipe("three")` or `pipe(["three", 7])`.
            num_inference_steps (`int`, *optional*): decoding steps; the scheduler's default (20 in the paper).
            temperature (`float`, *optional*): strength of the noise on the choice of tokens to keep; more gives more
                diverse images. The scheduler's default (6.0 in the paper for ViT-B).
            generator (`torch.Generator` or a list of them, one an image, *optional*):
                with a list, image i does not depend on the other images.
            class_labels (`int`, `str`, `None`, a list of them, `np.ndarray` or `torch.LongTensor`, *optional*):
                classes, by id or by name (`config.id2label`), for a class-conditional model; `None` is no class.
            guidance_scale (`float`, *optional*):
                classifier-free guidance by the class, the representation or both: logits are cond + g (cond -
                uncond). 0 is no guidance, at half the cost. Without either both are the same, so that it changes
                nothing. The pipeline's own by default, which is 0 where nothing else was saved.
            guidance_schedule (`str`, *optional*):
                how g comes to `guidance_scale` over the share r of steps done: `"linear"`, r; `"constant"`, 1;
                `"cosine"`, (1 - cos(pi r)) / 2. The pipeline's own by default, `"linear"` as it comes.
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them, *optional*):
                images to edit, resized to cover the model's size at their own shape, in whole tokens. Integers are
                scaled by their depth (uint8 by 255), floats must lie in [0, 1], transparency is dropped, and EXIF
                orientation is applied; see [`~image_inputs.read_images`].
            mask_image (of the same types, or of truth values, *optional*):
                white (255, 1 or true) is repainted, black is kept to the pixel, grey shows both. As large as its
                image; one, or one an image. What is repainted does not depend on what was there, but for `strength`.
            padding (`int` or `tuple[int, int, int, int]`, *optional*):
                pixels to add around the resized image (outpainting), or on its left, top, right and bottom.
            strength (`float`, *optional*): share of the tokens, above 0 and up to 1, drawn at random, that is made
                anew: variations of `image`, or of what `mask_image` covers.
            feather (`int`, *optional*): pixels, inside of what is repainted, over which its edge is blended; one
                token by default, 0 for none.
            height, width (`int`, *optional*): size in pixels of the images to make, or to resize `image` to before
                padding (so a small one with much padding uncrops). Beyond the model's size it sees the canvas through
                overlapping windows. The model's size by default.
            output_type (`str`, *optional*, defaults to `"pil"`):
                `"pil"`; `"np"`, (batch_size, height, width, channels) in [0, 1]; `"pt"`, (batch_size, channels,
                height, width) in [0, 1]; `"latent"`, tokens of shape (batch_size, rows, columns).
            return_dict (`bool`): return a [`MagePipelineOutput`] rather than a tuple.
            return_steps (`bool`): return the tokens of every step too.
            callback_on_step_end (`Callable`, *optional*):
                called as `callback(pipe, step, timestep, {"tokens": tokens})` after each step; tokens, of shape
                (batch_size, sequence_length), in the dictionary that it returns replace the pipeline's. It may set
                `pipe._interrupt = True`: the images are then finished from what this step sampled.
            callback_on_step_end_tensor_inputs (`Sequence[str]`): what the callback is given: `"tokens"`; `"preview"`,
                images as [`~MagePipeline.preview`] makes them.
            num_images (`int`, *optional*, defaults to 1): images to make; of each class or `image` where given.
            guidance_interval (`tuple[float, float]`, *optional*):
                shares of the steps from which and up to which there is guidance. Outside of it a step costs half. The
                pipeline's own by default, `(0.0, 1.0)` as it comes.
            representations (`torch.Tensor` or `np.ndarray`, *optional*): for a model led by representations, one of
                shape (representation_size,) or several of shape (num, representation_size), as
                [`~MagePipeline.get_representations`] gives them; rows of NaN are the learned empty one. Without any,
                and without `like`, a new one is drawn for each image if there is a `representation_model`. If there
                is none, or an `image` is edited, the empty one is taken.
            like (of the types of `image`, *optional*): make images like these: led by their representations.
            num_representation_steps (`int`, *optional*, defaults to 250): steps in which representations are drawn.

        Returns:
            [`MagePipelineOutput`] or `tuple`: the images, and the steps if asked for.

        Raises:
            ValueError: for arguments that make no images; the message says which would do. And for models whose
                predictions are not finite.
        """
        labels, num_images = resolve_prompt(self._prompt_config, prompt, class_labels, num_images)
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        self._check_output(image is not None, output_type, callback_on_step_end_tensor_inputs)
        scale, guidance = self.check_guidance(guidance_scale, guidance_schedule, guidance_interval)
        patch = self.model.config.patch_size
        edit = read_edit(image, mask_image, padding, strength, feather, self._num_channels, patch)
        size = self._canvas_size(edit, height, width)
        with evaluation_mode(self.model):
            asked = self._asked_representations(representations, like)
            canvas, condition = self._prepare(edit, labels, asked, num_images, size)
            self.scheduler.set_timesteps(num_inference_steps, temperature, grid_size=canvas.grid_size)
            draws = asked is None and edit is None and self.representation_model is not None
            if draws:
                condition = self._with_drawn(condition, len(canvas.tokens), num_representation_steps, generator)
            self._check_classes_are_read(condition)
            self._guidance_scale, self._interrupt, self._code_colors = scale, False, None
            tokens = self._hide_tokens(canvas, edit, generator)
            decoding = self._decode(
                tokens,
                condition,
                # Compiled, each shape would take a graph of its own.
                alike=num_images if edit is None and not draws and not self._is_compiled else 1,
                plan=self._plan(tokens, edit, looks_again=callback_on_step_end is not None),
                guidance=guidance,
                generator=generator,
                callback=callback_on_step_end,
                callback_inputs=callback_on_step_end_tensor_inputs,
            )
            steps = list(decoding) if return_steps else deque(decoding, maxlen=1)
            images = self._finish(steps[-1], canvas, edit, output_type)
        self.maybe_free_model_hooks()
        output = MagePipelineOutput(images=images, steps=torch.stack(list(steps)) if return_steps else None)
        return output if return_dict else output.to_tuple()

    def _decode(
        self,
        tokens: torch.LongTensor,
        condition: Condition,
        alike: int,
        plan: DecodingPlan,
        guidance: GuidancePlan,
        generator: torch.Generator | Sequence[torch.Generator] | None,
        callback: Callable | None,
        callback_inputs: Sequence[str],
    ) -> Iterator[torch.LongTensor]:
        """
        The tokens, (batch_size, rows, columns), after each step: the last ones without a mask.

        Args:
            alike: canvases in a row that are the same before the first step: one of them is looked at.
            plan: what each step looks at.
        """
        self._is_finite = torch.ones((), dtype=torch.bool, device=tokens.device)
        (rows, columns), tokens = tokens.shape[1:], tokens.flatten(1)
        grid_size = (rows, columns)
        timesteps = self.scheduler.timesteps.tolist()
        self._num_timesteps = len(timesteps)
        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for step, timestep in enumerate(timesteps):
                scale = guidance.at(self._guidance_scale, step, len(timesteps))
                # CUDA graphs, if the step was compiled, may forget the step before.
                torch.compiler.cudagraph_mark_step_begin()
                canvases = tokens.unflatten(1, grid_size)
                look = plan.look(step, canvases, generator)
                logits = self._predict_logits(canvases, condition, scale, alike if step == 0 else 1, look)
                # On an accelerator looked at in the end, since the host would have to wait for it here.
                self._is_finite &= logits.amax(dim=-1).isfinite().all()
                if logits.device.type == "cpu":
                    self._check_finite()
                tokens, sampled = self.scheduler.step(logits, timestep, tokens, generator, return_dict=False)
                if callback is not None:
                    offered = self._offer(callback_inputs, tokens, grid_size)
                    replaced = _tokens_returned(callback(self, step, timestep, offered), tokens.shape)
                    if replaced is not None:
                        tokens = replaced
                        plan.forget()
                if self._interrupt or step == len(timesteps) - 1:
                    # Nothing is left to do but after an interruption, or where a callback masked tokens again.
                    tokens = torch.where(tokens == self.model.config.mask_token_id, sampled, tokens)
                yield tokens.unflatten(1, grid_size)
                progress_bar.update()
                if self._interrupt:
                    break

    def _check_output(self, reads_pixels: bool, output_type: str, callback_inputs: Sequence[str]):
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {OUTPUT_TYPES}, got {output_type!r}.")
        if isinstance(callback_inputs, str) or not set(callback_inputs) <= set(self._callback_tensor_inputs):
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be a list out of {self._callback_tensor_inputs}, got "
                f"{callback_inputs!r}."
            )
        if self.vqvae is None and (reads_pixels or output_type != "latent" or "preview" in callback_inputs):
            raise ValueError(
                "This model has no tokenizer, so it can neither read nor make pixels. Pass `output_type='latent'` for "
                "its tokens, or load a model with a tokenizer."
            )

    def check_guidance(
        self,
        guidance_scale: float | None = None,
        guidance_schedule: str | None = None,
        guidance_interval: Sequence[float] | None = None,
    ) -> tuple[float, GuidancePlan]:
        """
        The guidance of a call with these, the pipeline's own where they are `None`: how strong, and how it goes over
        the steps. Raises ValueError for what does not exist or the model cannot give.
        """
        own = self.config
        scale = own.guidance_scale if guidance_scale is None else guidance_scale
        schedule = own.guidance_schedule if guidance_schedule is None else guidance_schedule
        interval = own.guidance_interval if guidance_interval is None else guidance_interval
        plan = self._plan_guidance(scale, schedule, interval)
        return float(scale), plan

    def _plan_guidance(
        self, guidance_scale: float, guidance_schedule: str, guidance_interval: Sequence[float]
    ) -> GuidancePlan:
        plan = GuidancePlan(guidance_schedule, guidance_interval)
        finite_number("guidance_scale", guidance_scale, "0 (no guidance) or more and finite")
        config = self.model.config
        knows_no_class = config.num_classes and config.class_dropout_prob > 0
        knows_no_representation = config.representation_size and config.representation_dropout_prob > 0
        if guidance_scale == 0 or knows_no_class or knows_no_representation:
            return plan
        reason = "is unconditional (`config.num_classes` is 0), so it has no class"
        if config.num_classes or config.representation_size:
            name, switch = ("classes", "class") if config.num_classes else ("representations", "representation")
            always = f"was trained with {name} only (`config.{switch}_dropout_prob` is 0)"
            reason = f"{always}, so it has no unconditional prediction"
        raise ValueError(f"`guidance_scale` is {guidance_scale}, but this model {reason} to guide by. Leave it at 0.")

    @property
    def _num_channels(self) -> int:
        return 3 if self.vqvae is None else self.vqvae.config.in_channels

    def _prepare(
        self,
        edit: Edit | None,
        labels: list[int] | None,
        representations: torch.FloatTensor | None,
        num_images: int,
        canvas_size: tuple[int, int],
    ) -> tuple[Canvas, Condition]:
        """The canvas, and what each image is asked to be: `num_images` of each prompt."""
        classes: Any = None if labels is None else torch.tensor(labels, device=self._execution_device)
        condition = Condition(classes, representations)
        counts = {"images": 1 if edit is None else len(edit.images), "classes": 1 if labels is None else len(labels)}
        prompts = _num_prompts(counts | {"representations": 1 if representations is None else len(representations)})
        canvas = self._prepare_canvas(prompts, edit, canvas_size)
        self._check_grid(canvas.grid_size)
        one_each = condition.map(lambda rows: rows.expand(prompts, *rows.shape[1:]))
        if edit is not None and edit.forgets:
            canvas = self._read_again(canvas, one_each)
        return canvas.repeat(num_images), one_each.map(lambda rows: rows.repeat_interleave(num_images, dim=0))

    def _prepare_canvas(self, prompts: int, edit: Edit | None, size: tuple[int, int]) -> Canvas:
        """What is known of each prompt's image: nothing, or the pixels and tokens of an image amid the padding."""
        patch, device = self.model.config.patch_size, self._execution_device
        if edit is None:
            return Canvas.blank(prompts, (size[0] // patch, size[1] // patch), device)
        pixels = to_tensor(edit.images, *size, PIL.Image.Resampling.BICUBIC).to(device)
        if edit.masks is not None:
            mask = to_tensor(edit.masks, *size, PIL.Image.Resampling.NEAREST).to(device)
        else:
            mask = torch.full_like(pixels[:, :1], float(edit.strength is not None))
        pixels, mask = pad_with_unknown(pixels, mask, edit.padding)
        seen = fill_from_around(pixels, mask) if edit.forgets else pixels
        return Canvas.from_image(self._encode(seen), pixels, mask).repeat(prompts // len(pixels))

    def _read_again(self, canvas: Canvas, condition: Condition) -> Canvas:
        """
        The canvas with the tokens of the image that has a first guess in place of what is to be made: the likeliest
        tokens at one look. A token tells of pixels far around its patch, so that a hole shows in those beside it; and
        those that the edge of the mask runs through now know the part of their patch that is kept.
        """
        tokens = canvas.tokens.masked_fill(canvas.is_hidden, self.model.config.mask_token_id)
        torch.compiler.cudagraph_mark_step_begin()
        likeliest = self._predict_logits(tokens, condition, guidance=0.0).argmax(dim=-1).view_as(tokens)
        guess = torch.where(canvas.is_hidden, likeliest, canvas.tokens)
        # Whatever `feather` says of the result: an edge there would show in the tokens.
        image = canvas.paste(self._decode_tokens(guess), feather=self.model.config.patch_size)
        return canvas.read_again(self._encode(image))

    def _encode(self, pixels: torch.FloatTensor) -> torch.LongTensor:
        # What moves an offloaded model to its device waits for `forward`, which this is not.
        return apply_forward_hook(lambda model: model.get_image_tokens(pixels))(self.model)

    def _decode_tokens(self, tokens: torch.LongTensor) -> torch.FloatTensor:
        """(batch_size, channels, height, width), in [0, 1]."""
        return apply_forward_hook(lambda model: model.decode_image_tokens(tokens))(self.model).float().clamp(0, 1)

    def _canvas_size(self, edit: Edit | None, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width, in pixels, of the images before padding."""
        patch = self.model.config.patch_size
        rows, columns = self.model.config.grid_size
        trained = (patch * rows, patch * columns)
        if height is None and width is None:
            return trained if edit is None else canvas_size(edit.sizes, trained, patch)
        if height is None or width is None:
            raise ValueError(f"Pass both `height` and `width` or none, got {height} and {width}.")
        return check_canvas_side("height", height, patch), check_canvas_side("width", width, patch)

    def _check_grid(self, grid_size: tuple[int, int]):
        trained, patch = self.model.config.grid_size, self.model.config.patch_size
        if any(side < window for side, window in zip(grid_size, trained, strict=True)):
            size, least = (tuple(patch * side for side in grid) for grid in (grid_size, trained))
            raise ValueError(
                f"The canvas must be at least as large as the images that the model was trained on, {least} pixels "
                f"(height, width), got {size}. Add `padding`, or leave out `height` and `width`."
            )

    def _hide_tokens(
        self, canvas: Canvas, edit: Edit | None, generator: torch.Generator | Sequence[torch.Generator] | None
    ) -> torch.LongTensor:
        """(batch_size, rows, columns): the known tokens, and the mask token where they are to be made."""
        is_hidden = canvas.is_hidden.flatten(1)
        if edit is not None and edit.strength is not None:
            noise = rand_tensor(is_hidden.shape, generator, is_hidden.device).masked_fill(~is_hidden, 2)
            count = (is_hidden.sum(dim=1, keepdim=True) * edit.strength).ceil()
            is_hidden = is_hidden & (noise.argsort(dim=1).argsort(dim=1) < count)
        return canvas.tokens.masked_fill(is_hidden.view(canvas.tokens.shape), self.model.config.mask_token_id)

    def _plan(self, tokens: torch.LongTensor, edit: Edit | None, looks_again: bool) -> DecodingPlan:
        """What the steps look at, from these tokens on."""
        length, config = tokens.shape[1] * tokens.shape[2], self.model.config
        keep_share, full_steps = self.config.encoder_keep_share, self.config.full_steps
        hidden = (length, length)
        if edit is not None:
            # Looked at only where it matters, since the host has to wait for it.
            is_counted = keep_share is not None or full_steps != 1
            hidden = count_hidden(tokens, config.mask_token_id) if is_counted else (0, length)
        return DecodingPlan(
            self.scheduler,
            length,
            config.sequence_length,
            hidden,
            keep_share,
            full_steps,
            # Compiled, each number of them would take a graph of its own.
            reads_all=self._is_compiled,
            looks_again=looks_again,
        )

    def _predict_logits(
        self,
        tokens: torch.LongTensor,
        condition: Condition,
        guidance: float,
        alike: int = 1,
        look: Look = WHOLE_LOOK,
    ) -> torch.FloatTensor:
        """
        (batch_size, sequence_length, codebook_size), guided: both passes in one batch. Of each `alike` canvases in a
        row only the first is looked at. They may be 0 where nothing is hidden.
        """
        if alike > 1:
            first = condition.map(lambda rows: rows[::alike])
            logits = self._predict_logits(tokens[::alike], first, guidance, 1, look)
            return logits.repeat_interleave(alike, dim=0)
        if not condition or guidance == 0:
            return self._predict_canvas(tokens, condition, look)
        look = look.rearranged(lambda grids: grids.repeat(2, 1, 1))
        logits = self._predict_canvas(tokens.repeat(2, 1, 1), condition.with_unconditional(), look)
        return apply_guidance(logits, torch.full((), guidance, device=logits.device))

    def _predict_canvas(
        self, tokens: torch.LongTensor, condition: Condition, look: Look = WHOLE_LOOK
    ) -> torch.FloatTensor:
        """The same without guidance; a canvas larger than the trained grid is seen through overlapping windows."""
        rows, columns = tokens.shape[1:]
        grid_size, window = (rows, columns), self.model.config.grid_size
        if grid_size == window:
            return self._predict_grid(tokens, condition, look)
        windows = split_into_windows(tokens, window)
        times = len(windows) // len(tokens)
        seen = condition.map(lambda rows: rows.repeat(times, *[1] * (rows.ndim - 1)))
        look = look.rearranged(lambda grids: split_into_windows(grids, window))
        return merge_windows(self._predict_grid(windows, seen, look), grid_size, window)

    def _predict_grid(self, tokens: torch.LongTensor, condition: Condition, look: Look) -> torch.FloatTensor:
        """The same for grids of the trained size."""
        is_hidden = tokens.flatten(1) == self.model.config.mask_token_id
        arguments = look.arguments(is_hidden)
        output = self.model(input_ids=tokens, **condition.as_kwargs(), **arguments, return_dict=True)
        look.remember(self._own(output.context_key_values))
        positions = arguments.get("read_positions")
        if positions is None:
            return output.logits
        logits = output.logits.new_zeros(*is_hidden.shape, output.logits.shape[-1])
        return logits.scatter_(1, positions[..., None].expand_as(output.logits), output.logits)

    def _own(self, key_values: Sequence[KeyValues] | None) -> Sequence[KeyValues] | None:
        """The same in memory that no later step writes to, as CUDA graphs do."""
        if key_values is None or not self._is_compiled:
            return key_values
        return tuple((key.clone(), value.clone()) for key, value in key_values)

    def _offer(self, names: Sequence[str], tokens: torch.LongTensor, grid_size: tuple[int, int]) -> dict[str, Any]:
        """What the callback is given after a step."""
        offered = {"tokens": lambda: tokens, "preview": lambda: self.preview(tokens.unflatten(1, grid_size))}
        return {name: offered[name]() for name in names}

    def compile(self, mode: str | None = None, **kwargs: Any):
        """
        Compiles what takes the time: the model, the choice of tokens and the tokenizer. The first call with another
        number of images, canvas or use of guidance then takes a minute or more, and all after it are faster.

        On a GPU each decoding step is replayed as a CUDA graph, so that its many small kernels start at once.

        Args:
            mode (`str`, *optional*): of `torch.compile`; by default `"reduce-overhead"` on a GPU, else `"default"`.
            kwargs: what else `torch.compile` takes.
        """
        self._is_compiled = True
        on_gpu = self._execution_device.type == "cuda"
        step_mode = mode or ("reduce-overhead" if on_gpu else "default")
        self.model.compile(fullgraph=True, mode=step_mode, **kwargs)
        self.scheduler.compile(mode=step_mode, **kwargs)
        if self.vqvae is not None:
            if on_gpu:
                self.vqvae.to(memory_format=torch.channels_last)
            # Its time is in large kernels, and the memory of a CUDA graph is never given back.
            self.vqvae.encoder.compile(mode=mode, **kwargs)
            self.vqvae.decoder.compile(mode=mode, **kwargs)

    @torch.no_grad()
    def preview(self, tokens: torch.LongTensor) -> torch.FloatTensor:
        """
        A rough look at tokens without decoding them: a square of the colour that each code has on average. To find
        the colours, once a run, takes as long as to decode 8 tokens of each code.

        Args:
            tokens (`torch.LongTensor` of shape `(batch_size, rows, columns)`): the mask token shows grey.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, channels, height, width)`, in [0, 1].
        """
        if self._code_colors is None:
            self._code_colors = self._find_code_colors().to(tokens.device)
        colors = self._code_colors[tokens.clamp(max=self.model.config.codebook_size)].permute(0, 3, 1, 2)
        patch = self.model.config.patch_size
        return colors.repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)

    def _find_code_colors(self) -> torch.FloatTensor:
        """(codebook_size + 1, channels): each code's mean among random neighbours, and grey for the mask token."""
        config, generator = self.model.config, torch.Generator().manual_seed(0)
        codes = torch.cat([torch.randperm(config.codebook_size, generator=generator) for _ in range(8)])
        count = math.ceil(len(codes) / config.sequence_length) * config.sequence_length
        codes = codes[torch.arange(count) % len(codes)].to(self._execution_device)
        grids = codes.view(-1, *config.grid_size).split(16)
        images = torch.cat([self._decode_tokens(part) for part in grids])
        means = F.adaptive_avg_pool2d(images, config.grid_size).permute(0, 2, 3, 1).flatten(0, 2)
        sums = means.new_zeros(config.codebook_size, means.shape[1]).index_add(0, codes, means)
        colors = sums / codes.bincount(minlength=config.codebook_size)[:, None]
        return torch.cat([colors, torch.full_like(colors[:1], 0.5)])

    def _finish(
        self, tokens: torch.LongTensor, canvas: Canvas, edit: Edit | None, output_type: str
    ) -> list[PIL.Image.Image] | np.ndarray | torch.Tensor:
        """Decodes, pastes the known pixels back and converts."""
        if output_type == "latent":
            self._check_finite()
            return tokens
        decoded = self._decode_tokens(tokens)
        pixels = decoded if edit is None else canvas.paste(decoded, edit.feather)
        self._check_finite(decoded)
        return self.pixel_processor.postprocess(pixels, output_type, do_denormalize=[False] * len(pixels))

    def _check_finite(self, decoded: torch.FloatTensor | None = None):
        """Names weights that are not finite, or says what else is wrong, where predictions were not."""
        is_finite = self._is_finite if decoded is None else self._is_finite & decoded.isfinite().all()
        # The meta device, where work is counted, has no values.
        if is_finite.device.type == "meta" or is_finite:
            return
        check_weights(self.model)
        raise ValueError(
            "The predictions of the model are not finite, though its weights are: they overflow in "
            f"{self.model.dtype}. Load it with `dtype=torch.float32`."
        )


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Turns dropout off, and afterwards on again in those modules where it was on."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _tokens_returned(returned: Any, shape: torch.Size) -> torch.LongTensor | None:
    """The tokens that a callback returned in place of the pipeline's, which have this shape; `None` if it did not."""
    if returned is not None and not isinstance(returned, Mapping):
        raise ValueError(f"`callback_on_step_end` must return a dictionary or None, got {type(returned).__name__}.")
    if returned is None or "tokens" not in returned:
        return None
    tokens = returned["tokens"]
    if not isinstance(tokens, torch.Tensor) or tokens.shape != shape:
        given = getattr(tokens, "shape", None)
        raise ValueError(
            f"`tokens` that `callback_on_step_end` returns must be a tensor of shape {tuple(shape)}, got "
            f"{type(tokens).__name__}{'' if given is None else f' of shape {tuple(given)}'}."
        )
    return tokens


def _num_prompts(counts: dict[str, int]) -> int:
    """How many images, classes, representations or combinations of them there are to make images of."""
    several = {name: count for name, count in counts.items() if count != 1}
    if len(set(several.values())) > 1:
        got = " and ".join(f"{count} {name}" for name, count in several.items())
        raise ValueError(f"Pass one of each, or as many of one as of the other, got {got}.")
    return max(counts.values())


__all__ = ["MagePipeline", "MagePipelineOutput"]
