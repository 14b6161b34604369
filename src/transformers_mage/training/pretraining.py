"""The model that is pre-trained: made from a recipe, fed with tokens, written as a folder for users."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import VQModel
from torch import nn
from tqdm.auto import tqdm
from transformers import ViTImageProcessorPil

from ..configuration_mage import MageConfig
from ..masking import MageMasks
from ..modeling_mage import MageForMaskedImageModeling, MageMaskedImageModelingOutput, nearest_codes
from ..pipeline_mage import MagePipeline
from ..scheduling_mage import MageScheduler
from .contrastive import ProjectionHead, info_nce


class MageForPreTraining(nn.Module):
    """
    MAGE, with a projection head where the contrastive loss has a weight. The tokenizer is not part of it: it is not
    trained, so it belongs neither into its checkpoints nor into what is distributed.

    Args:
        mage ([`MageForMaskedImageModeling`]): the model, without its tokenizer.
        contrastive_weight (`float`): weight of the contrastive loss beside the reconstruction; 0.1 in the paper.
        temperature (`float`): of the contrastive loss.
    """

    def __init__(self, mage: MageForMaskedImageModeling, contrastive_weight: float = 0.0, temperature: float = 0.2):
        super().__init__()
        self.mage = mage
        self.contrastive_weight = contrastive_weight
        self.temperature = temperature
        self.projection = ProjectionHead(mage.config.hidden_size) if contrastive_weight else None

    def forward(
        self, input_ids: torch.LongTensor, masks: MageMasks, class_labels: torch.LongTensor | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                with a contrastive loss, one view of all images and then the other view of all images.
            masks ([`MageMasks`]): for all of them.
            class_labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*): see [`MageModel`].

        Returns:
            The loss, and what is worth knowing about the step.
        """
        output = self.mage(input_ids=input_ids, class_labels=class_labels, **masks.as_kwargs())
        loss = output.loss
        metrics = {"reconstruction_loss": output.loss, "accuracy": token_accuracy(output)}
        if self.projection is not None:
            features = output.encoder_last_hidden_state[:, 1:].mean(dim=1)
            metrics["contrastive_loss"] = info_nce(*self.projection(features).chunk(2), self.temperature)
            loss = loss + self.contrastive_weight * metrics["contrastive_loss"]
        return loss, {"loss": loss, **metrics}


@torch.no_grad()
def token_accuracy(output: MageMaskedImageModelingOutput) -> torch.Tensor:
    """Share of the masked tokens whose code is the most likely one."""
    return (output.masked_logits.argmax(dim=-1) == output.masked_labels).float().mean()


def build_model(values: dict, tokenizer: VQModel) -> MageForMaskedImageModeling:
    """
    A model with new weights and without its tokenizer, though its configuration knows it.

    Args:
        values (`dict`): fields of [`MageConfig`]; what the tokenizer decides need not be said.
        tokenizer (`VQModel`): the tokenizer.

    Raises:
        SystemExit: with a message, for values that make no model.
    """
    vq_config = {name: value for name, value in tokenizer.config.items() if not name.startswith("_")}
    decided = {
        "codebook_size": tokenizer.config.num_vq_embeddings,
        "patch_size": 2 ** (len(tokenizer.config.block_out_channels) - 1),
        "vq_config": vq_config,
    }
    try:
        model = MageForMaskedImageModeling(MageConfig(**{**decided, **values}))
    except (TypeError, ValueError) as error:
        raise SystemExit(f"The recipe's `model` makes no model: {error}") from error
    model.mage.vqvae = None
    return model


def image_size(config: MageConfig) -> tuple[int, int]:
    """Height and width in pixels."""
    rows, columns = config.grid_size
    return rows * config.patch_size, columns * config.patch_size


@torch.no_grad()
def tokenize(tokenizer: VQModel, pixel_values: torch.Tensor) -> torch.LongTensor:
    """(batch_size, sequence_length) codes of images (batch_size, channels, height, width) in [0, 1]."""
    latents = tokenizer.encode(pixel_values.to(tokenizer.dtype)).latents
    return nearest_codes(latents, tokenizer.quantize.embedding.weight).flatten(1)


def tokenize_views(
    tokenizer: VQModel, images: torch.Tensor, views: nn.Module, num_views: int, batch_size: int = 256
) -> torch.Tensor:
    """
    Codes of random views of all images, computed once.

    Args:
        images (`torch.Tensor` of shape `(num_images, channels, height, width)`): uint8.
        views (`nn.Module`): see [`RandomViews`].

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


def training_labels(config: MageConfig, labels: torch.Tensor | None, num_views: int) -> torch.Tensor | None:
    """Classes of all views of a batch's images, for a class-conditional model."""
    return labels.repeat(num_views) if config.num_classes and labels is not None else None


def save_model(
    model: MageForMaskedImageModeling, tokenizer: VQModel, folder: str | Path, accelerator: Accelerator, **kwargs: Any
):
    """
    Writes the folder that `AutoModel`, `AutoImageProcessor` and [`MagePipeline`] load, the tokenizer inside it.

    Args:
        kwargs: what `save_pretrained` takes, as `push_to_hub` and `repo_id`.
    """
    if not accelerator.is_main_process:
        return
    model.mage.vqvae = tokenizer.to(accelerator.device)
    height, width = image_size(model.config)
    processor = ViTImageProcessorPil(
        size={"height": height, "width": width},
        do_normalize=False,
        do_convert_rgb=tokenizer.config.in_channels == 3,
    )
    MagePipeline(model, MageScheduler(model.config.mask_token_id), processor).save_pretrained(folder, **kwargs)
