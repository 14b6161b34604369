"""MagePipeline: images from a MAGE model by iterative decoding, from nothing or around what is known."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, ImagePipelineOutput, VQModel
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from transformers.image_processing_utils import BaseImageProcessor

from .modeling_mage import MageForMaskedImageModeling
from .scheduling_mage import MageScheduler

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class MagePipeline(DiffusionPipeline):
    r"""
    Generates images, and repaints parts of them.

    Args:
        model ([`MageForMaskedImageModeling`]): the model, its tokenizer inside.
        scheduler ([`MageScheduler`]): which tokens to keep at each step.
        image_processor (`BaseImageProcessor`, *optional*):
            what prepares pixels for `AutoModel`. The pipeline saves it with the model and does not use it.
    """

    model_cpu_offload_seq = "model"
    _optional_components = ["image_processor"]
    _callback_tensor_inputs = ["tokens"]

    def __init__(
        self,
        model: MageForMaskedImageModeling,
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
        self.mask_processor = VaeImageProcessor(
            resample="nearest", do_binarize=True, do_convert_grayscale=True, **prepare
        )

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
        image: PipelineImageInput | None = None,
        mask_image: PipelineImageInput | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["MagePipeline", int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("tokens",),
    ) -> ImagePipelineOutput | tuple:
        r"""
        Args:
            num_images (`int`, *optional*, defaults to 1): images to make; with `image`, of each of them.
            num_inference_steps (`int`, *optional*): decoding steps; the scheduler's default (20 in the paper).
            temperature (`float`, *optional*): strength of the noise on the choice of tokens to keep; more gives more
                diverse images. The scheduler's default (6.0 in the paper for ViT-B).
            generator (`torch.Generator` or a list of them, one an image, *optional*):
                with a list, image i does not depend on the other images.
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them, *optional*):
                images to repaint, resized to the model's size.
            mask_image (of the same types, *optional*): white is repainted, black is kept to the pixel.
            output_type (`str`, *optional*, defaults to `"pil"`):
                `"pil"`; `"np"`, (batch_size, height, width, channels) in [0, 1]; `"pt"`, (batch_size, channels,
                height, width) in [0, 1]; `"latent"`, tokens of shape (batch_size, rows, columns).
            return_dict (`bool`): return an [`ImagePipelineOutput`] rather than a tuple.
            callback_on_step_end (`Callable`, *optional*):
                called as `callback(pipe, step, timestep, {"tokens": tokens})` after each step; tokens in the
                dictionary that it returns replace the pipeline's.
            callback_on_step_end_tensor_inputs (`Sequence[str]`): what the callback is given; only `"tokens"` exists.

        Returns:
            [`ImagePipelineOutput`] or `tuple`: the images.

        Raises:
            ValueError: for arguments that make no images; the message says which would do.
        """
        self.check_inputs(num_images, image, mask_image, output_type, callback_on_step_end_tensor_inputs)
        self.scheduler.set_timesteps(num_inference_steps, temperature)
        known_pixels, mask = self._prepare_known(image, mask_image, num_images)
        tokens = self._prepare_tokens(num_images, known_pixels, mask)
        with self.progress_bar(total=self.scheduler.num_inference_steps) as progress_bar:
            for step, timestep in enumerate(self.scheduler.timesteps.tolist()):
                logits = self.model(input_ids=tokens).logits
                tokens = self.scheduler.step(logits, timestep, tokens, generator).prev_sample
                if callback_on_step_end is not None:
                    changed = callback_on_step_end(self, step, timestep, {"tokens": tokens}) or {}
                    tokens = changed.get("tokens", tokens)
                progress_bar.update()
        images = self._finish(tokens, known_pixels, mask, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def check_inputs(
        self,
        num_images: int,
        image: PipelineImageInput | None,
        mask_image: PipelineImageInput | None,
        output_type: str,
        callback_on_step_end_tensor_inputs: Sequence[str],
    ):
        if not isinstance(num_images, int) or num_images < 1:
            raise ValueError(f"`num_images` must be a whole number of at least 1, got {num_images!r}.")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {OUTPUT_TYPES}, got {output_type!r}.")
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` can hold {self._callback_tensor_inputs}, got {sorted(unknown)}."
            )
        if self.vqvae is None and (image is not None or output_type != "latent"):
            raise ValueError(
                "This model has no tokenizer, so it can neither read nor make pixels. Pass `output_type='latent'` for "
                "its tokens, or load a model with a tokenizer."
            )
        if (image is None) != (mask_image is None):
            missing = "`mask_image` (white where to repaint)" if mask_image is None else "`image`"
            raise ValueError(f"Repainting takes both `image` and `mask_image`; {missing} is missing.")
        if image is not None:
            self._check_sizes(_sizes(image), _sizes(mask_image))

    def _check_sizes(self, image_sizes: list[tuple[int, int]], mask_sizes: list[tuple[int, int]]):
        if not image_sizes or any(0 in size for size in (*image_sizes, *mask_sizes)):
            raise ValueError(f"`image` and `mask_image` must hold pixels, got sizes {image_sizes} and {mask_sizes}.")
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

    def _prepare_known(
        self, image: PipelineImageInput | None, mask_image: PipelineImageInput | None, num_images: int
    ) -> tuple[torch.FloatTensor | None, torch.FloatTensor | None]:
        """Pixels in [0, 1], (batch_size, channels, height, width), and a mask with one channel, 1 where to repaint."""
        if image is None:
            return None, None
        rows, columns = self.model.config.grid_size
        patch = self.model.config.patch_size
        size = {"height": rows * patch, "width": columns * patch}
        pixels = self.pixel_processor.preprocess(image, **size).to(self._execution_device, torch.float32)
        mask = self.mask_processor.preprocess(mask_image, **size).to(pixels)
        mask = mask.expand(len(pixels), -1, -1, -1)
        return pixels.repeat_interleave(num_images, dim=0), mask.repeat_interleave(num_images, dim=0)

    def _prepare_tokens(
        self, num_images: int, known_pixels: torch.FloatTensor | None, mask: torch.FloatTensor | None
    ) -> torch.LongTensor:
        """(batch_size, sequence_length): the known tokens, and the mask token wherever the mask touches a patch."""
        config = self.model.config
        if known_pixels is None:
            shape = (num_images, config.sequence_length)
            return torch.full(shape, config.mask_token_id, device=self._execution_device)
        touched = F.max_pool2d(mask, kernel_size=config.patch_size).flatten(1) > 0
        tokens = self.model.get_image_tokens(known_pixels).flatten(1)
        return tokens.masked_fill(touched, config.mask_token_id)

    def _finish(
        self,
        tokens: torch.LongTensor,
        known_pixels: torch.FloatTensor | None,
        mask: torch.FloatTensor | None,
        output_type: str,
    ) -> list[PIL.Image.Image] | np.ndarray | torch.Tensor:
        """Decodes, pastes the known pixels back and converts."""
        tokens = tokens.unflatten(1, self.model.config.grid_size)
        if output_type == "latent":
            return tokens
        pixels = self.model.decode_image_tokens(tokens).float().clamp(0, 1)
        if known_pixels is not None:
            pixels = torch.where(mask > 0, pixels, known_pixels)
        return self.pixel_processor.postprocess(pixels, output_type, do_denormalize=[False] * len(pixels))

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        max_shard_size: int | str = "5GB",
        push_to_hub: bool = False,
        **kwargs: Any,
    ):
        """
        Saves one folder that serves `AutoModel`, `AutoImageProcessor` and [`MagePipeline`], each weight stored once.

        Args:
            save_directory (`str` or `os.PathLike`): the folder, created if need be.
            max_shard_size (`int` or `str`, *optional*, defaults to `"5GB"`): largest size of one file of weights.
            push_to_hub (`bool`, *optional*):
                upload the folder afterwards; `repo_id`, `private`, `token` and `commit_message` in `kwargs`.
        """
        kwargs.pop("safe_serialization", None)  # there is no other way
        self.model.save_pretrained(save_directory, max_shard_size=max_shard_size)
        self.scheduler.save_pretrained(os.path.join(save_directory, "scheduler"))
        if self.image_processor is not None:
            self.image_processor.save_pretrained(save_directory)
        self.save_config(save_directory)
        if push_to_hub:
            self._push_folder(save_directory, **kwargs)

    def _push_folder(
        self, folder: str | os.PathLike, repo_id: str | None = None, private: bool | None = None, **kwargs: Any
    ):
        from huggingface_hub import create_repo, upload_folder

        name = repo_id or os.path.basename(os.path.normpath(folder))
        token = kwargs.get("token")
        repo_id = create_repo(name, exist_ok=True, private=private, token=token).repo_id
        upload_folder(repo_id=repo_id, folder_path=folder, token=token, commit_message=kwargs.get("commit_message"))


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


__all__ = ["MagePipeline"]
