"""MagePipeline: images from a MAGE model by iterative decoding, from nothing or around what is known."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, VQModel
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from diffusers.utils import BaseOutput
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from .conditioning import (
    GUIDANCE_SCHEDULES,
    UNCONDITIONAL_LABEL,
    ClassLabels,
    apply_guidance,
    guidance_at,
    resolve_class_labels,
)
from .editing import (
    Canvas,
    canvas_size,
    check_canvas_side,
    merge_windows,
    parse_padding,
    split_into_windows,
)
from .pipeline_saving import PipelineSavingMixin
from .scheduling_mage import MageScheduler, rand_tensor

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass
class MagePipelineOutput(BaseOutput):
    """
    Output of [`MagePipeline`].

    Args:
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`): as `output_type` asks.
        steps (`torch.LongTensor` of shape `(num_inference_steps, batch_size, rows, columns)`, *optional*):
            the tokens after each step, `config.mask_token_id` where still unknown, with `return_steps=True`.
    """

    images: list[PIL.Image.Image] | np.ndarray | torch.Tensor
    steps: torch.LongTensor | None = None


class MagePipeline(PipelineSavingMixin, DiffusionPipeline):
    r"""
    Generates images, unconditionally or of a class, and edits images: repaints, extends and varies them.

    Args:
        model ([`MageForMaskedImageModeling`]): the model, its tokenizer inside.
        scheduler ([`MageScheduler`]): which tokens to keep at each step.
        image_processor (`BaseImageProcessor`, *optional*):
            what prepares pixels for `AutoModel`. The pipeline saves it with the model and does not use it.
    """

    model_cpu_offload_seq = "model"
    _optional_components = ["image_processor"]
    _callback_tensor_inputs = ["tokens", "preview"]

    def __init__(
        self,
        # As wide as diffusers checks it: code that lies in a folder is imported once by each of the libraries.
        model: PreTrainedModel,
        scheduler: MageScheduler,
        image_processor: BaseImageProcessor | None = None,
    ):
        super().__init__()
        self.register_modules(model=model, scheduler=scheduler, image_processor=image_processor)
        # The package rather than its files, so that saved folders outlive a change of layout.
        for name, component in (("model", model), ("scheduler", scheduler)):
            self.register_to_config(**{name: (__package__, type(component).__name__)})
        prepare = {"vae_scale_factor": model.config.patch_size, "do_normalize": False}
        is_grey = self.vqvae is not None and self.vqvae.config.in_channels == 1
        channels = {"do_convert_grayscale": True} if is_grey else {"do_convert_rgb": True}
        self.pixel_processor = VaeImageProcessor(resample="bicubic", **channels, **prepare)
        self.mask_processor = VaeImageProcessor(resample="nearest", do_convert_grayscale=True, **prepare)
        self._code_colors = None
        self._is_compiled = False

    @property
    def vqvae(self) -> VQModel | None:
        """The tokenizer."""
        return self.model.base_model.vqvae

    @torch.no_grad()
    def __call__(
        self,
        num_images: int = 1,
        num_inference_steps: int | None = None,
        temperature: float | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        class_labels: ClassLabels = None,
        guidance_scale: float = 0.0,
        guidance_schedule: str = "linear",
        image: PipelineImageInput | None = None,
        mask_image: PipelineImageInput | None = None,
        padding: int | Sequence[int] | None = None,
        strength: float | None = None,
        feather: int | None = None,
        height: int | None = None,
        width: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        return_steps: bool = False,
        callback_on_step_end: Callable[["MagePipeline", int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("tokens",),
    ) -> MagePipelineOutput | tuple:
        r"""
        Args:
            num_images (`int`, *optional*, defaults to 1): images to make; of each class or `image` where given.
            num_inference_steps (`int`, *optional*): decoding steps; the scheduler's default (20 in the paper).
            temperature (`float`, *optional*): strength of the noise on the choice of tokens to keep; more gives more
                diverse images. The scheduler's default (6.0 in the paper for ViT-B).
            generator (`torch.Generator` or a list of them, one an image, *optional*):
                with a list, image i does not depend on the other images.
            class_labels (`int`, `str`, `None`, a list of them or `torch.LongTensor`, *optional*):
                classes, by id or by name (`config.id2label`), for a class-conditional model; `None` is no class.
            guidance_scale (`float`, *optional*, defaults to 0.0):
                classifier-free guidance: logits are cond + g (cond - uncond). 0 is no guidance, at half the cost.
                Without a class both are the same, so that it changes nothing.
            guidance_schedule (`str`, *optional*, defaults to `"linear"`):
                how g comes to `guidance_scale` over the share r of steps done: `"linear"`, r; `"constant"`, 1;
                `"cosine"`, (1 - cos(pi r)) / 2.
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them, *optional*):
                images to edit, resized to cover the model's size at their own shape, in whole tokens.
            mask_image (of the same types, *optional*):
                white is repainted, black is kept to the pixel, grey shows both. As large as its image.
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
                (batch_size, sequence_length), in the dictionary that it returns replace the pipeline's.
            callback_on_step_end_tensor_inputs (`Sequence[str]`): what the callback is given: `"tokens"`; `"preview"`,
                images as [`~MagePipeline.preview`] makes them.

        Returns:
            [`MagePipelineOutput`] or `tuple`: the images, and the steps if asked for.

        Raises:
            ValueError: for arguments that make no images; the message says which would do.
        """
        self._check_output(num_images, image, output_type, callback_on_step_end_tensor_inputs)
        self.check_guidance(guidance_scale, guidance_schedule)
        self._check_editing(image, mask_image, padding, strength, feather)
        labels = resolve_class_labels(self.model.config, class_labels)
        prompts = _num_prompts(image, labels)
        canvas = self._prepare_canvas(prompts, image, mask_image, padding, height, width).repeat(num_images)
        labels = self._prepare_labels(labels, prompts, num_images)
        self.scheduler.set_timesteps(num_inference_steps, temperature, grid_size=canvas.grid_size)
        tokens = self._hide_tokens(canvas, strength, generator).flatten(1)
        self._code_colors, steps = None, []
        num_steps = self.scheduler.num_inference_steps
        with self.progress_bar(total=num_steps) as progress_bar:
            for step, timestep in enumerate(self.scheduler.timesteps.tolist()):
                guidance = guidance_at(guidance_scale, guidance_schedule, (step + 1) / num_steps)
                # CUDA graphs, if the step was compiled, may forget the step before.
                torch.compiler.cudagraph_mark_step_begin()
                # Blank canvases of a prompt are all alike. Compiled, fewer of them would take graphs of their own.
                alike = num_images if step == 0 and image is None and not self._is_compiled else 1
                logits = self._predict_logits(tokens.unflatten(1, canvas.grid_size), labels, guidance, alike)
                tokens = self.scheduler.step(logits, timestep, tokens, generator).prev_sample
                if callback_on_step_end is not None:
                    offered = self._offer(callback_on_step_end_tensor_inputs, tokens, canvas.grid_size)
                    tokens = (callback_on_step_end(self, step, timestep, offered) or {}).get("tokens", tokens)
                if return_steps:
                    steps.append(tokens.unflatten(1, canvas.grid_size))
                progress_bar.update()
        images = self._finish(tokens.unflatten(1, canvas.grid_size), canvas, feather, output_type)
        self.maybe_free_model_hooks()
        output = MagePipelineOutput(images=images, steps=torch.stack(steps) if return_steps else None)
        return output if return_dict else output.to_tuple()

    def _check_output(
        self, num_images: int, image: PipelineImageInput | None, output_type: str, callback_inputs: Sequence[str]
    ):
        if not isinstance(num_images, int) or num_images < 1:
            raise ValueError(f"`num_images` must be a whole number of at least 1, got {num_images!r}.")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {OUTPUT_TYPES}, got {output_type!r}.")
        unknown = set(callback_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` can hold {self._callback_tensor_inputs}, got {sorted(unknown)}."
            )
        needs_pixels = image is not None or output_type != "latent" or "preview" in callback_inputs
        if self.vqvae is None and needs_pixels:
            raise ValueError(
                "This model has no tokenizer, so it can neither read nor make pixels. Pass `output_type='latent'` for "
                "its tokens, or load a model with a tokenizer."
            )

    def check_guidance(self, guidance_scale: float, guidance_schedule: str):
        """Raises ValueError for guidance that does not exist or that the model cannot give."""
        if guidance_schedule not in GUIDANCE_SCHEDULES:
            raise ValueError(
                f"`guidance_schedule` must be one of {list(GUIDANCE_SCHEDULES)}, got {guidance_schedule!r}."
            )
        if not 0 <= guidance_scale < math.inf:
            raise ValueError(f"`guidance_scale` must be 0 (no guidance) or more and finite, got {guidance_scale}.")
        config = self.model.config
        if guidance_scale == 0 or (config.num_classes and config.class_dropout_prob > 0):
            return
        reason = (
            "was trained with classes only (`config.class_dropout_prob` is 0), so it has no unconditional prediction"
            if config.num_classes
            else "is unconditional (`config.num_classes` is 0), so it has no class"
        )
        raise ValueError(f"`guidance_scale` is {guidance_scale}, but this model {reason} to guide by. Leave it at 0.")

    def _check_editing(
        self,
        image: PipelineImageInput | None,
        mask_image: PipelineImageInput | None,
        padding: int | Sequence[int] | None,
        strength: float | None,
        feather: int | None,
    ):
        changes = {"mask_image": mask_image, "padding": padding, "strength": strength}
        given = [name for name, value in changes.items() if value is not None]
        if image is None and given:
            raise ValueError(f"`image` is missing: `{given[0]}` says what to change in it.")
        if image is not None and not given:
            raise ValueError(
                "`mask_image` (white where to repaint), `padding` or `strength` is missing: say what to change in "
                "`image`."
            )
        if strength is not None and not 0 < strength <= 1:
            raise ValueError(f"`strength` must lie above 0 and be at most 1, got {strength}.")
        if strength is not None and padding is not None:
            raise ValueError("`padding` has nothing to vary: pass either `strength` or `padding`.")
        if feather is not None and (not isinstance(feather, int) or feather < 0):
            raise ValueError(f"`feather` must be a whole number of pixels, 0 or more, got {feather!r}.")
        if image is not None:
            self._check_sizes(_sizes(image), None if mask_image is None else _sizes(mask_image))

    def _check_sizes(self, image_sizes: list[tuple[int, int]], mask_sizes: list[tuple[int, int]] | None):
        if not image_sizes or any(0 in size for size in (*image_sizes, *(mask_sizes or ()))):
            raise ValueError(f"`image` and `mask_image` must hold pixels, got sizes {image_sizes} and {mask_sizes}.")
        if mask_sizes is None:
            return
        if len(mask_sizes) not in (1, len(image_sizes)):
            raise ValueError(
                f"Pass one mask, or one for each of the {len(image_sizes)} images, got {len(mask_sizes)}."
            )
        for number, size in enumerate(image_sizes):
            mask_size = mask_sizes[number % len(mask_sizes)]
            if mask_size != size:
                raise ValueError(
                    f"`mask_image` must be as large as its image, {size} (height, width), got {mask_size}. Resize it."
                )

    def _prepare_canvas(
        self,
        prompts: int,
        image: PipelineImageInput | None,
        mask_image: PipelineImageInput | None,
        padding: int | Sequence[int] | None,
        height: int | None,
        width: int | None,
    ) -> Canvas:
        """What is known of each prompt's image: nothing, or the pixels and tokens of `image` amid the padding."""
        patch = self.model.config.patch_size
        height, width = self._canvas_size(image, height, width)
        if image is None:
            canvas = Canvas.blank(prompts, (height // patch, width // patch), self._execution_device)
        else:
            pixels = self.pixel_processor.preprocess(image, height, width).to(self._execution_device, torch.float32)
            if mask_image is not None:
                mask = self.mask_processor.preprocess(mask_image, height, width).to(pixels)
            else:
                mask = torch.full_like(pixels[:, :1], float(padding is None))
            # Before padding, so that the tokenizer sees no made-up pixels.
            tokens = self.model.get_image_tokens(pixels)
            canvas = Canvas.from_image(tokens, pixels, mask).pad(parse_padding(padding, patch))
            canvas = canvas.repeat(prompts // len(pixels))
        self._check_grid(canvas.grid_size)
        return canvas

    def _canvas_size(self, image: PipelineImageInput | None, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width, in pixels, of the images before padding."""
        patch = self.model.config.patch_size
        trained = tuple(patch * side for side in self.model.config.grid_size)
        if height is None and width is None:
            return trained if image is None else canvas_size(_sizes(image), trained, patch)
        if height is None or width is None:
            raise ValueError(f"Pass both `height` and `width` or none, got {height} and {width}.")
        check_canvas_side("height", height, patch)
        check_canvas_side("width", width, patch)
        return height, width

    def _check_grid(self, grid_size: tuple[int, int]):
        trained, patch = self.model.config.grid_size, self.model.config.patch_size
        if any(side < window for side, window in zip(grid_size, trained, strict=True)):
            size, least = (tuple(patch * side for side in grid) for grid in (grid_size, trained))
            raise ValueError(
                f"The canvas must be at least as large as the images that the model was trained on, {least} pixels "
                f"(height, width), got {size}. Add `padding`, or leave out `height` and `width`."
            )

    def _prepare_labels(self, labels: list[int] | None, prompts: int, num_images: int) -> torch.LongTensor | None:
        """(batch_size,): the class of each image to make."""
        if labels is None:
            return None
        labels = torch.tensor(labels, device=self._execution_device).expand(prompts)
        return labels.repeat_interleave(num_images)

    def _hide_tokens(
        self, canvas: Canvas, strength: float | None, generator: torch.Generator | Sequence[torch.Generator] | None
    ) -> torch.LongTensor:
        """(batch_size, sequence_length): the known tokens, and the mask token where they are to be made."""
        is_hidden = canvas.is_hidden.flatten(1)
        if strength is not None:
            noise = rand_tensor(is_hidden.shape, generator, is_hidden.device).masked_fill(~is_hidden, 2)
            count = (is_hidden.sum(dim=1, keepdim=True) * strength).ceil()
            is_hidden = is_hidden & (noise.argsort(dim=1).argsort(dim=1) < count)
        return canvas.tokens.flatten(1).masked_fill(is_hidden, self.model.config.mask_token_id)

    def _predict_logits(
        self, tokens: torch.LongTensor, class_labels: torch.LongTensor | None, guidance: float, alike: int = 1
    ) -> torch.FloatTensor:
        """
        (batch_size, sequence_length, codebook_size), guided: both passes in one batch. Of each `alike` canvases in a
        row only the first is looked at.
        """
        if alike > 1:
            class_labels = None if class_labels is None else class_labels[::alike]
            return self._predict_logits(tokens[::alike], class_labels, guidance).repeat_interleave(alike, dim=0)
        if class_labels is None or guidance == 0:
            return self._predict_canvas(tokens, class_labels)
        class_labels = torch.cat([class_labels, torch.full_like(class_labels, UNCONDITIONAL_LABEL)])
        logits = self._predict_canvas(tokens.repeat(2, 1, 1), class_labels)
        return apply_guidance(logits, torch.full((), guidance, device=logits.device))

    def _predict_canvas(self, tokens: torch.LongTensor, class_labels: torch.LongTensor | None) -> torch.FloatTensor:
        """The same without guidance; a canvas larger than the trained grid is seen through overlapping windows."""
        grid_size, window = tuple(tokens.shape[1:]), self.model.config.grid_size
        if grid_size == window:
            return self.model(input_ids=tokens, class_labels=class_labels).logits
        windows = split_into_windows(tokens, window)
        if class_labels is not None:
            class_labels = class_labels.repeat(len(windows) // len(tokens))
        return merge_windows(self.model(input_ids=windows, class_labels=class_labels).logits, grid_size, window)

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
        images = torch.cat([self.model.decode_image_tokens(part).float().clamp(0, 1) for part in grids])
        means = F.adaptive_avg_pool2d(images, config.grid_size).permute(0, 2, 3, 1).flatten(0, 2)
        sums = means.new_zeros(config.codebook_size, means.shape[1]).index_add(0, codes, means)
        colors = sums / codes.bincount(minlength=config.codebook_size)[:, None]
        return torch.cat([colors, torch.full_like(colors[:1], 0.5)])

    def _finish(
        self, tokens: torch.LongTensor, canvas: Canvas, feather: int | None, output_type: str
    ) -> list[PIL.Image.Image] | np.ndarray | torch.Tensor:
        """Decodes, pastes the known pixels back and converts."""
        if output_type == "latent":
            return tokens
        pixels = self.model.decode_image_tokens(tokens).float().clamp(0, 1)
        pixels = canvas.paste(pixels, self.model.config.patch_size if feather is None else feather)
        return self.pixel_processor.postprocess(pixels, output_type, do_denormalize=[False] * len(pixels))


def _num_prompts(image: PipelineImageInput | None, class_labels: list[int] | None) -> int:
    """How many images, classes or pairs of them there are to make images of."""
    counts = [1 if image is None else len(_sizes(image)), 1 if class_labels is None else len(class_labels)]
    if min(counts) != 1 and counts[0] != counts[1]:
        raise ValueError(f"Pass one class, or one for each of the {counts[0]} images, got {counts[1]}.")
    return max(counts)


def _sizes(images: PipelineImageInput) -> list[tuple[int, int]]:
    """Height and width of each image."""
    if isinstance(images, PIL.Image.Image):
        return [(images.height, images.width)]
    if isinstance(images, np.ndarray):
        return [images.shape[:2]] if images.ndim < 4 else [images.shape[1:3]] * len(images)
    if isinstance(images, torch.Tensor):
        return [tuple(images.shape[-2:])] * (len(images) if images.ndim == 4 else 1)
    if isinstance(images, (list, tuple)):
        return [size for image in images for size in _sizes(image)]
    raise ValueError("Images must be PIL images, arrays, tensors or lists of them, got " + type(images).__name__ + ".")


__all__ = ["MagePipeline", "MagePipelineOutput"]
