"""From images to tokens: loading a tokenizer, and encoding batches and whole data sets with it."""

import inspect
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import VQModel

from ..files import FolderError
from ..hub_folders import fetch_folder, weight_patterns
from ..image_tokens import PIXEL_RANGE, PIXEL_RANGE_ENTRY, decode_images, encode_images, pixel_range, set_pixel_range
from ..modeling_mage import MageModel
from ..progress import progress_bar
from ..vq_shortcuts import skip_noop_layers
from .batches import Batch
from .indexed import validation_images
from .loading import DatasetSpec, load_images
from .views import RandomViews

logger = logging.getLogger(__name__)

# Names of what black and white may be to a tokenizer.
PIXEL_RANGES = {"unit": PIXEL_RANGE, "symmetric": (-1.0, 1.0)}
# How many decibels better one range of pixels must be reconstructed than the other to be taken for the tokenizer's.
CLEARLY_BETTER = 3.0


class TokenizerError(FolderError):
    """A folder or a repository without a tokenizer that MAGE can stand on."""


def load_tokenizer(name_or_path: str | Path, subfolder: str | None = None) -> VQModel:
    """
    Loads a tokenizer, frozen: any stock `VQModel` of diffusers, or that of a MAGE model.

    Args:
        name_or_path (`str` or `Path`): a folder, or the name of a repository of the Hub.
        subfolder (`str`, *optional*): where in it; pipelines keep theirs in `vqvae`.

    Raises:
        TokenizerError: where there is none, or it is no `VQModel`.
    """
    where = f"{name_or_path}/{subfolder}" if subfolder else str(name_or_path)
    try:
        folder = name_or_path if Path(name_or_path).is_dir() else _fetch(str(name_or_path), subfolder)
        config = VQModel.load_config(folder, subfolder=subfolder)
        _check_class(config, where)
        model_class = MageModel if "vq_config" in config else VQModel
        # transformers takes no subfolder for none, rather than `None`.
        place: dict[str, Any] = {"subfolder": subfolder} if subfolder else {}
        model = model_class.from_pretrained(folder, **place)
    except TokenizerError:
        raise
    except (OSError, ValueError) as error:
        hint = "" if subfolder else " If it is in a subfolder, say `--tokenizer_subfolder vqvae`."
        raise TokenizerError(f"There is no tokenizer in {where}: {error}{hint}") from error
    vqvae = model if isinstance(model, VQModel) else model.vqvae
    if vqvae is None:
        raise TokenizerError(f"There is no tokenizer in {where}: the model takes tokens only.")
    if model is not vqvae:
        set_pixel_range(vqvae, *pixel_range(vqvae))
    skip_noop_layers(vqvae.requires_grad_(False))
    return vqvae.eval()


def _fetch(name: str, subfolder: str | None) -> str:
    files = ("config.json", "diffusion_pytorch_model*.safetensors*", *weight_patterns())
    return fetch_folder(name, [f"{subfolder}/{file}" if subfolder else file for file in files])


def _check_class(config: Mapping[str, Any], where: str):
    name = config.get("_class_name", "VQModel")
    if name != "VQModel" and "vq_config" not in config:
        raise TokenizerError(
            f"{where} holds a {name}, and MAGE needs tokens of a codebook: a `VQModel` of diffusers, as those of "
            "aMUSEd or of the latent diffusion models of 2021. An autoencoder with continuous latents has no tokens."
        )


def check_image_size(tokenizer: VQModel, image_size: int):
    """
    Raises:
        TokenizerError: where images of that side, in pixels, are no whole number of tokens.
    """
    side = patch_size(tokenizer)
    if image_size % side:
        fits = max(image_size // side, 1) * side
        raise TokenizerError(
            f"A token of this tokenizer is {side} x {side} pixels, and images of `--image_size` {image_size} are no "
            f"whole number of them. {fits} or {fits + side} would do."
        )


def patch_size(tokenizer: VQModel) -> int:
    """Side, in pixels, of the square that one token stands for."""
    return 2 ** (len(tokenizer.config.block_out_channels) - 1)


def settle_pixel_range(tokenizer: VQModel, said: str, images: Callable[[], torch.Tensor]) -> None:
    """
    Notes in the tokenizer's configuration what black and white are to it, if that is not there yet. No stock
    `VQModel`'s configuration tells; those of latent diffusion take pixels in [-1, 1].

    Args:
        said (`str`): a name of `PIXEL_RANGES`; or "auto" to take [-1, 1] where images are reconstructed clearly better
            that way, and [0, 1] otherwise.
        images (callable): gives a few real images `(N, C, H, W)`, uint8, if they are needed.

    Raises:
        ValueError: for another name.
    """
    if said not in ("auto", *PIXEL_RANGES):
        raise ValueError(f'`--tokenizer_pixel_range` takes auto, {", ".join(PIXEL_RANGES)}; got "{said}".')
    if said != "auto":
        set_pixel_range(tokenizer, *PIXEL_RANGES[said])
    elif PIXEL_RANGE_ENTRY not in tokenizer.config:
        pixels = images().float() / 255
        unit, symmetric = (_psnr(_reconstruct(tokenizer, pixels, range_), pixels) for range_ in PIXEL_RANGES.values())
        # What an untrained tokenizer makes is nearer to grey than to black, and no sign of anything.
        grey = _psnr(pixels.mean(), pixels)
        set_pixel_range(tokenizer, *PIXEL_RANGE)
        if symmetric > max(unit, grey) + CLEARLY_BETTER:
            set_pixel_range(tokenizer, *PIXEL_RANGES["symmetric"])
            logger.info(
                f"The tokenizer takes pixels in [-1, 1]: it reconstructs {len(pixels)} images at {symmetric:.1f} dB "
                f"that way, and at {unit:.1f} dB in [0, 1]. Say `--tokenizer_pixel_range unit` if that is wrong."
            )


def first_images(tokenizer: VQModel, spec: DatasetSpec, side: int, limit: int = 2) -> torch.Tensor:
    """(limit, channels, side, side) uint8 evaluation crops of a split's first images."""
    dataset, columns = load_images(spec)
    return validation_images(dataset, columns.image, (tokenizer.config.in_channels, side, side), limit)


def _reconstruct(tokenizer: VQModel, pixels: torch.Tensor, range_: tuple[float, float]) -> torch.Tensor:
    """Of images in [0, 1], by a tokenizer that knows no range, if it has this one."""
    low, high = range_
    made = decode_images(tokenizer, encode_images(tokenizer, (pixels * (high - low) + low).to(tokenizer.device)))
    return ((made - low) / (high - low)).clamp(0, 1).cpu()


def _psnr(reconstruction: torch.Tensor, pixels: torch.Tensor) -> float:
    return -10 * (reconstruction - pixels).square().mean().clamp(min=1e-10).log10().item()


def tokenizer_values() -> dict[str, Any]:
    """What a `VQModel` can be made of, with the defaults."""
    parameters = inspect.signature(VQModel.__init__).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name != "self"}


def build_tokenizer(values: dict[str, Any]) -> VQModel:
    """
    A new tokenizer.

    Raises:
        ValueError: for values that make none.
    """
    try:
        return VQModel(**values)
    # Each of diffusers' layers has its own way to refuse.
    except Exception as error:
        raise ValueError(f"The recipe's `vq_config` makes no tokenizer: {type(error).__name__}: {error}") from error


def tokenize(tokenizer: VQModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """(batch_size, sequence_length) codes of images (batch_size, channels, height, width) in [0, 1]."""
    return encode_images(tokenizer, pixel_values).flatten(1)


class BatchTokenizer:
    """
    Gives the tokens of a batch, which may hold them already, or pixels.

    Args:
        tokenizer (`VQModel`): on the batches' device, if they hold no tokens.
        views ([`RandomViews`]): what makes views of whole images.
    """

    def __init__(self, tokenizer: VQModel, views: RandomViews):
        self.tokenizer = tokenizer
        self.views = views

    def __call__(self, batch: Batch) -> torch.Tensor:
        """(num_views x batch_size, sequence_length): the first views of all images, then the second ones."""
        return self.tokens(batch, self.pixels(batch))

    def pixels(self, batch: Batch) -> torch.Tensor | None:
        """The views to tokenize, `(num_views x batch_size, channels, height, width)`; none of a batch of tokens."""
        return None if batch.input_ids is not None else self.views.of(batch)

    def tokens(self, batch: Batch, pixels: torch.Tensor | None) -> torch.Tensor:
        """Those of a batch whose `pixels` are these."""
        if pixels is not None:
            return tokenize(self.tokenizer, pixels)
        assert batch.input_ids is not None
        return batch.input_ids


def tokenize_views(
    tokenizer: VQModel, images: torch.Tensor, views: RandomViews, num_views: int, batch_size: int = 256
) -> torch.Tensor:
    """
    Codes of random views of all images, computed once.

    Args:
        images (`torch.Tensor` of shape `(num_images, channels, height, width)`): uint8.
        views ([`RandomViews`]): what makes them.

    Returns:
        `torch.Tensor` of shape `(num_images, num_views, sequence_length)`, int32.
    """
    batches = images.split(batch_size)
    with progress_bar(total=num_views * len(batches), desc="Encoding views", leave=False) as progress:
        tokens = []
        for _ in range(num_views):
            codes = []
            for batch in batches:
                codes.append(tokenize(tokenizer, views(batch.to(tokenizer.device))).int().cpu())
                progress.update()
            tokens.append(torch.cat(codes))
    return torch.stack(tokens, dim=1)


def validation_tokens(tokenizer: VQModel, spec: DatasetSpec, size: tuple[int, int], limit: int) -> torch.Tensor:
    """(num_images, sequence_length) tokens of the evaluation crops of a split's first `limit` images."""
    dataset, columns = load_images(spec)
    images = validation_images(dataset, columns.image, (tokenizer.config.in_channels, *size), limit)
    batches = [batch.to(tokenizer.device).float() / 255 for batch in images.split(64)]
    return torch.cat([tokenize(tokenizer, batch).cpu() for batch in batches])
