"""The model that is pre-trained: made from a recipe, fed with tokens, written as a folder for users."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import VQModel
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedModel, ViTImageProcessorPil

from ..configuration_mage import MageConfig
from ..hub.gallery import sample_gallery
from ..hub.model_card import write_card
from ..image_tokens import vq_config_of
from ..masking import MageMasks, sample_masks
from ..modeling_mage import MageForMaskedImageModeling, MageMaskedImageModelingOutput
from ..pipeline_mage import MagePipeline
from ..scheduling_mage import MageScheduler
from .arguments import TrainingArguments
from .contrastive import Contrast, ProjectionHead, info_nce
from .tracking import Metric, loss_by_mask_ratio
from .vqgan.codebook import code_counts, code_perplexity

VALIDATION_SEED = 0


class MageForPreTraining(nn.Module):
    """
    MAGE, with a projection head where the contrastive loss has a weight. The tokenizer is not part of it: it is not
    trained, so it belongs neither into its checkpoints nor into what is distributed.

    Args:
        mage ([`MageForMaskedImageModeling`]): the model, without its tokenizer.
        contrastive_weight (`float`): weight of the contrastive loss against the reconstruction's 1; 0.1 in the paper.
        temperature (`float`): of the contrastive loss.
    """

    def __init__(self, mage: MageForMaskedImageModeling, contrastive_weight: float = 0.0, temperature: float = 0.2):
        super().__init__()
        self.mage = mage
        self.contrastive_weight = contrastive_weight
        self.temperature = temperature
        self.projection = ProjectionHead(mage.config.hidden_size) if contrastive_weight else None

    def forward(
        self,
        input_ids: torch.LongTensor,
        masks: MageMasks,
        class_labels: torch.LongTensor | None = None,
        representations: torch.Tensor | None = None,
        contrast: Contrast | None = None,
        only_project: bool = False,
    ) -> tuple[torch.Tensor, dict[str, Metric]] | torch.Tensor:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                with a contrastive loss, one view of all images and then the other view of all images.
            masks ([`MageMasks`]): for all of them.
            class_labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*): see [`MageModel`].
            representations (`torch.Tensor` of shape `(batch_size, representation_size)`, *optional*): the same.
            contrast ([`Contrast`], *optional*):
                the contrastive loss of all micro-batches of an update; by default each has a loss of its own.
            only_project (`bool`): compute nothing but the projections that the contrastive loss compares.

        Returns:
            The loss, and what is worth knowing about the step; or the projections, `(batch_size, projection_size)`.
        """
        condition = {"class_labels": class_labels, "representations": representations}
        if only_project:
            return self._project(self._encode(input_ids, masks, condition))
        output = self.mage(input_ids=input_ids, **condition, **masks.as_kwargs())
        loss = output.loss
        metrics = {"reconstruction_loss": output.loss, "accuracy": token_accuracy(output)}
        if self.training:
            metrics |= loss_by_mask_ratio(output.loss, masks)
            metrics["code_perplexity"] = code_perplexity(code_counts(input_ids, self.mage.config.codebook_size))
        if self.projection is not None and self.training:
            metrics["contrastive_loss"] = self._contrast(self._project(output.encoder_last_hidden_state), contrast)
            loss = loss + self.contrastive_weight * metrics["contrastive_loss"]
        return loss, {"loss": loss, **metrics}

    def _encode(self, input_ids: torch.LongTensor, masks: MageMasks, condition: dict[str, Any]) -> torch.Tensor:
        """(batch_size, 1 + num_kept, hidden_size): what the whole model's encoder gives for the same images."""
        output = self.mage.mage(
            input_ids=input_ids,
            bool_masked_pos=masks.bool_masked_pos,
            bool_dropped_pos=masks.bool_dropped_pos,
            num_dropped=masks.num_dropped,
            **condition,
        )
        return output.last_hidden_state

    def _project(self, last_hidden_state: torch.Tensor) -> torch.Tensor:
        """(batch_size, projection_size) of the mean over the tokens."""
        assert self.projection is not None  # only a model with a contrastive loss is asked
        return self.projection(last_hidden_state[:, 1:].mean(dim=1))

    def _contrast(self, projections: torch.Tensor, contrast: Contrast | None) -> torch.Tensor:
        if contrast is None:
            first, second = projections.chunk(2)
            return info_nce(first, second, self.temperature)
        return contrast.loss_of(projections)


@torch.no_grad()
def token_accuracy(output: MageMaskedImageModelingOutput) -> torch.Tensor:
    """Share of the masked tokens whose code is the most likely one."""
    # The model gives both wherever something is masked.
    assert output.masked_logits is not None
    assert output.masked_labels is not None
    return output.masked_logits.argmax(dim=-1).eq(output.masked_labels).float().mean()


@torch.no_grad()
def evaluate(
    model: nn.Module,
    tokens: torch.Tensor,
    batch_size: int,
    accelerator: Accelerator,
    represent: Callable[[torch.Tensor], torch.Tensor | None] = lambda tokens: None,
) -> dict[str, float]:
    """
    Loss and accuracy on held-out tokens. Their masks are always the same, drawn with the training's masking ratios.

    Args:
        model (`nn.Module`): a prepared [`MageForPreTraining`].
        tokens (`torch.Tensor` of shape `(num_images, sequence_length)`): the same in all processes, which share the
            work.
        represent (`Callable`): gives the representations of images, by their tokens, where they lead the model.
    """
    config = accelerator.unwrap_model(model).mage.config
    was_training = model.training
    model.eval()
    batches = list(enumerate(tokens.split(batch_size)))
    num_rounds = -(-len(batches) // accelerator.num_processes)
    sums = torch.zeros(3, device=accelerator.device)
    for i in range(num_rounds):
        # In the last round there may be less to do than processes; sharded models need all of them all the same.
        number, batch = batches[(i * accelerator.num_processes + accelerator.process_index) % len(batches)]
        is_new = i * accelerator.num_processes + accelerator.process_index < len(batches)
        generator = torch.Generator().manual_seed(VALIDATION_SEED + number)
        masks = sample_masks(config, len(batch), generator=generator, device=accelerator.device)
        batch = batch.to(accelerator.device)
        _, metrics = model(batch, masks, representations=represent(batch))
        values = torch.stack([metrics["reconstruction_loss"], metrics["accuracy"], torch.ones_like(metrics["loss"])])
        sums += values.float() * len(batch) * is_new
    model.train(was_training)
    loss, accuracy, count = accelerator.reduce(sums, "sum").tolist()
    return {"validation_loss": loss / count, "validation_accuracy": accuracy / count}


def model_values() -> dict[str, Any]:
    """The fields of [`MageConfig`] that a recipe can set, with their defaults."""
    own = MageConfig.__annotations__
    own_values = {f.name: f.default for f in dataclasses.fields(MageConfig) if f.name in own}
    return {**own_values, "attn_implementation": None}


def build_model(values: dict, tokenizer: VQModel) -> MageForMaskedImageModeling:
    """
    A model with new weights and without its tokenizer, though its configuration knows it.

    Args:
        values (`dict`): fields of [`MageConfig`]; what the tokenizer decides need not be said.
        tokenizer (`VQModel`): the tokenizer.

    Raises:
        ValueError: for values that make no model.
    """
    attention = values.get("attn_implementation")
    if attention is not None and not isinstance(attention, str):
        raise ValueError(f"`model.attn_implementation` must be a name, got {attention!r}.")
    decided = {
        "codebook_size": tokenizer.config.num_vq_embeddings,
        "patch_size": 2 ** (len(tokenizer.config.block_out_channels) - 1),
        "vq_config": vq_config_of(tokenizer),
    }
    try:
        model = MageForMaskedImageModeling(MageConfig(**{**decided, **values}))
    except (TypeError, ValueError, KeyError, StrictDataclassError) as error:
        raise ValueError(f"The recipe's `model` makes no model: {error.__cause__ or error}") from error
    model.mage.vqvae = None
    return model


def training_labels(config: MageConfig, labels: torch.Tensor | None, num_views: int) -> torch.Tensor | None:
    """Classes of all views of a batch's images, for a class-conditional model."""
    return labels.repeat(num_views) if config.num_classes and labels is not None else None


def save_model(
    state: dict[str, torch.Tensor],
    config: MageConfig,
    tokenizer: VQModel,
    folder: str | Path,
    representation_encoder: PreTrainedModel | None = None,
) -> MagePipeline:
    """
    Writes the folder that `AutoModel`, `AutoImageProcessor` and [`MagePipeline`] load, the tokenizer inside it.

    Args:
        state (`dict`): trained weights of [`MageForPreTraining`].
        config ([`MageConfig`]): the model's.
        representation_encoder (`PreTrainedModel`, *optional*): what gives the representations that lead the model.

    Returns:
        [`MagePipeline`]: what was written.
    """
    model = MageForMaskedImageModeling(config)
    weights = {name.removeprefix("mage."): value for name, value in state.items() if name.startswith("mage.")}
    tokenizer_weights = {f"mage.vqvae.{name}": value for name, value in tokenizer.state_dict().items()}
    model.load_state_dict(weights | tokenizer_weights)
    height, width = config.image_height_width
    processor = ViTImageProcessorPil(
        size={"height": height, "width": width},
        do_normalize=False,
        do_convert_rgb=tokenizer.config.in_channels == 3,
    )
    scheduler = MageScheduler(config.mask_token_id)
    pipe = MagePipeline(model.eval(), scheduler, processor, representation_encoder=representation_encoder)
    pipe.save_pretrained(folder)
    return pipe


def write_generator(
    folder: Path,
    state: dict[str, torch.Tensor],
    config: MageConfig,
    tokenizer: VQModel,
    arguments: TrainingArguments,
    name: str,
    representation_encoder: PreTrainedModel | None = None,
):
    """Writes the folder of a pre-trained model, with a card that shows what it makes."""
    pipe = save_model(state, config, tokenizer, folder, representation_encoder)
    write_card(folder, arguments.card_facts(name, "generation", config, sample_gallery(pipe)))
