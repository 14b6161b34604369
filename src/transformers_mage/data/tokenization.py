"""From images to tokens: loading a tokenizer, and encoding batches and whole data sets with it."""

from pathlib import Path

import torch
from diffusers import VQModel
from tqdm.auto import tqdm

from ..configuration_mage import MageConfig
from ..files import FolderError
from ..image_tokens import encode_images
from ..modeling_mage import MageModel
from ..vq_shortcuts import skip_noop_layers
from .batches import Batch
from .indexed import validation_images
from .loading import DatasetSpec, load_images
from .views import RandomViews


def load_tokenizer(name_or_path: str) -> VQModel:
    """
    Loads a tokenizer from a `VQModel`'s folder or from that of a MAGE model, frozen.

    Raises:
        FolderError: where there is none.
    """
    try:
        is_mage = "vq_config" in (Path(name_or_path, "config.json").read_text() if Path(name_or_path).is_dir() else "")
        vqvae = MageModel.from_pretrained(name_or_path).vqvae if is_mage else VQModel.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        raise FolderError(f"There is no tokenizer in {name_or_path}: {error}") from error
    skip_noop_layers(vqvae.requires_grad_(False))
    return vqvae.eval()


def image_size(config: MageConfig) -> tuple[int, int]:
    """Height and width in pixels."""
    rows, columns = config.grid_size
    return rows * config.patch_size, columns * config.patch_size


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
        if batch.input_ids is not None:
            return batch.input_ids
        return tokenize(self.tokenizer, self.views.of(batch))


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
    with tqdm(total=num_views * len(batches), desc="Encoding views", leave=False) as progress_bar:
        tokens = []
        for _ in range(num_views):
            codes = []
            for batch in batches:
                codes.append(tokenize(tokenizer, views(batch.to(tokenizer.device))).int().cpu())
                progress_bar.update()
            tokens.append(torch.cat(codes))
    return torch.stack(tokens, dim=1)


def validation_tokens(tokenizer: VQModel, spec: DatasetSpec, size: tuple[int, int], limit: int) -> torch.Tensor:
    """(num_images, sequence_length) tokens of the evaluation crops of a split's first `limit` images."""
    dataset, columns = load_images(spec)
    images = validation_images(dataset, columns.image, (tokenizer.config.in_channels, *size), limit)
    batches = [batch.to(tokenizer.device).float() / 255 for batch in images.split(64)]
    return torch.cat([tokenize(tokenizer, batch).cpu() for batch in batches])
