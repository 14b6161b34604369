"""The diffusion of representations (section 3.2 of RCG): what it learns, from what, and the folder it goes to."""

import inspect
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import nn

from ...hub.gallery import sample_gallery
from ...hub.model_card import write_card
from ...pipeline_mage import MagePipeline
from ...representation_diffusion import DDIM_SETTINGS, RepresentationDiffusionModel
from ..arguments import TrainingArguments
from ..tracking import Metric


class RepresentationDiffusionForTraining(nn.Module):
    """
    The diffusion model with the loss that it is trained by: the squared error of the clean representation that it
    predicts from a noisy one, all noise levels being equally likely.

    Args:
        diffusion ([`RepresentationDiffusionModel`]): the model.
    """

    def __init__(self, diffusion: RepresentationDiffusionModel):
        super().__init__()
        self.diffusion = diffusion
        self.scheduler = DDIMScheduler(**DDIM_SETTINGS)

    @property
    def num_train_timesteps(self) -> int:
        return self.scheduler.config.num_train_timesteps

    def forward(
        self,
        representations: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.LongTensor,
        class_labels: torch.LongTensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, Metric]]:
        """
        Args:
            representations, noise (`torch.Tensor` of shape `(batch_size, representation_size)`): what is mixed.
            timesteps (`torch.LongTensor` of shape `(batch_size,)`): how strong the noise is.
            class_labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*): for a model of classes.

        Returns:
            The loss, and what is worth knowing about the step.
        """
        noisy = self.scheduler.add_noise(representations, noise, timesteps)
        predicted = self.diffusion(noisy, timesteps, class_labels).sample
        loss = F.mse_loss(predicted.float(), representations)
        return loss, {"loss": loss}


def diffusion_values() -> dict[str, Any]:
    """The fields of [`RepresentationDiffusionModel`] that a recipe can set, with their defaults."""
    decided = ("self", "representation_size", "num_classes")
    parameters = inspect.signature(RepresentationDiffusionModel.__init__).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name not in decided}


def build_diffusion(
    values: dict[str, Any], representation_size: int, num_classes: int | None
) -> RepresentationDiffusionModel:
    """
    A new diffusion model of representations of this size.

    Raises:
        ValueError: for values that make none.
    """
    try:
        return RepresentationDiffusionModel(**values, representation_size=representation_size, num_classes=num_classes)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"The recipe's `representation_model` makes no model: {error}") from error


def write_diffusion(
    folder: Path,
    state: dict[str, torch.Tensor],
    diffusion: RepresentationDiffusionModel,
    pipe: MagePipeline | None,
    arguments: TrainingArguments,
    name: str,
):
    """
    Writes the trained diffusion: with the model that it draws for, as one pipeline with a card; or alone.

    Args:
        folder (`Path`): where to.
        state (`dict`): trained weights of [`RepresentationDiffusionForTraining`].
        diffusion ([`RepresentationDiffusionModel`]): what has the configuration.
        pipe ([`MagePipeline`], *optional*): of the model that it draws for.
        arguments ([`TrainingArguments`]): the command line.
        name (`str`): of the repository or folder.
    """
    written = RepresentationDiffusionModel.from_config(diffusion.config)
    written.load_state_dict({key.removeprefix("diffusion."): value for key, value in state.items()})
    if pipe is None:
        written.save_pretrained(folder)
        return
    pipe.register_modules(representation_model=written.eval(), representation_scheduler=DDIMScheduler(**DDIM_SETTINGS))
    pipe.save_pretrained(folder)
    facts = arguments.card_facts(name, "generation", pipe.model.config, sample_gallery(pipe))
    write_card(folder, facts)
