"""Looking at a tokenizer while it trains: scores and pictures of held-out images."""

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import VQModel
from PIL import Image
from torch import Tensor, nn

from ...image_tokens import decode_images, encode_images
from ...visualization import draw_grid
from ..pictures import to_images


class HeldOutImages:
    """
    Scores tokenizers on images that they are not trained on. All processes share the work.

    Args:
        images (`torch.Tensor` of shape `(num_images, channels, height, width)`): uint8, the same in all processes.
        accelerator (`Accelerator`): the topology.
        output_dir (`str`): where processes exchange what they have counted.
        batch_size (`int`): images at once.
        feature_network (`nn.Module`, *optional*): for rFID; see [`load_feature_network`].
        perceptual (callable, *optional*): a [`PerceptualDistance`].
    """

    def __init__(
        self,
        images: Tensor,
        accelerator: Accelerator,
        output_dir: str,
        batch_size: int = 64,
        feature_network: nn.Module | None = None,
        perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
    ):
        self.images = images
        self.device = accelerator.device
        self.batches = images[accelerator.process_index :: accelerator.num_processes].split(batch_size)
        self.networks = {} if feature_network is None else {"": feature_network.to(self.device)}
        self.perceptual = perceptual
        self.options = {
            "num_process": accelerator.num_processes,
            "process_id": accelerator.process_index,
            "cache_dir": str(Path(output_dir, ".exchange")),
        }

    @torch.no_grad()
    def scores(self, tokenizer: VQModel) -> dict[str, float]:
        """Those of [`TokenizerScores`], each as `validation_NAME`, on the main process; none on the others."""
        # Its extra, `evaluation`, is needed by those alone who ask for a held-out split.
        from ...metrics import TokenizerScores

        scores = TokenizerScores(tokenizer, self.networks, perceptual=self.perceptual, **self.options)
        for batch in self.batches:
            scores.add_batch(batch.to(self.device))
        return {f"validation_{name}": value for name, value in (scores.compute() or {}).items()}

    @torch.no_grad()
    def picture(self, tokenizer: VQModel, columns: int = 8, rows: int = 2) -> Image.Image:
        """The first images, and below each row its reconstructions."""
        columns = min(columns, len(self.images))
        pixels = self.images[: columns * rows].to(self.device).float() / 255
        made = decode_images(tokenizer, encode_images(tokenizer, pixels)).clamp(0, 1)
        lines = [part for pair in zip(pixels.split(columns), made.split(columns), strict=True) for part in pair]
        whole = [line for line in lines if len(line) == columns]
        return draw_grid(to_images(torch.cat(whole)), columns)
