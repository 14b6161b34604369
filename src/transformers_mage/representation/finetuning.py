"""Fine-tuning a classifier (section 4.4): its images, its learning rates by layer, and keeping the best of it."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import VQModel
from torch import nn
from transformers import CLIPImageProcessorPil
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..configuration_mage import MageConfig
from ..data.tokenization import tokenize
from ..files import written_aside
from .classifiers import classifier_of, save_classifier
from .mixing import Mixup
from .rand_augment import RandAugment


class ClassifierInputs:
    """
    From views of images to a classifier's tokens, and from classes to what it is trained on.

    Args:
        tokenizer (`VQModel`): the frozen tokenizer. It stays outside of what is trained.
        rand_augment ([`RandAugment`], *optional*): what is done to training images.
        mixup ([`Mixup`]): how they are mixed.
        do_normalize (`bool`): take ImageNet's mean and deviation off the pixels that enter the tokenizer, as the
            paper's fine-tuning does.
    """

    def __init__(self, tokenizer: VQModel, rand_augment: RandAugment | None, mixup: Mixup, do_normalize: bool):
        self.tokenizer = tokenizer
        self.rand_augment = rand_augment
        self.mixup = mixup
        self.do_normalize = do_normalize

    def training(
        self, pixel_values: torch.Tensor, labels: torch.LongTensor, random: np.random.Generator
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`): in [0, 1].
            labels (`torch.LongTensor` of shape `(batch_size,)`): classes.
            random (`np.random.Generator`): where chance comes from.

        Returns:
            `input_ids` of shape `(batch_size, sequence_length)`, `labels` of shape `(batch_size, num_labels)`.
        """
        if self.rand_augment is not None:
            pixel_values = self.rand_augment(pixel_values, random)
        pixel_values, targets = self.mixup(self._normalize(pixel_values), labels, random)
        return {"input_ids": tokenize(self.tokenizer, pixel_values), "labels": targets}

    def evaluation(self, pixel_values: torch.Tensor) -> torch.LongTensor:
        """(batch_size, sequence_length) tokens of images in [0, 1]."""
        return tokenize(self.tokenizer, self._normalize(pixel_values))

    def _normalize(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if not self.do_normalize:
            return pixel_values
        mean, std = (
            pixel_values.new_tensor(values)[:, None, None] for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        )
        return (pixel_values - mean) / std


class BestClassifier:
    """
    Writes a classifier whenever it is better than before: more accurate or, if equally so, surer. Checkpoints remember
    what was best.

    Args:
        folder (`Path`): where it goes.
        config ([`MageConfig`]), tokenizer (`VQModel`), processor: what belongs to it.
    """

    def __init__(self, folder: Path, config: MageConfig, tokenizer: VQModel, processor: CLIPImageProcessorPil):
        self.folder = folder
        self.config = config
        self.tokenizer = tokenizer
        self.processor = processor
        self.accuracy, self.loss = -1.0, float("inf")

    def offer(self, model: nn.Module, scores: dict[str, float], accelerator: Accelerator):
        """All processes call it, with the same scores."""
        if (scores["accuracy"], -scores["loss"]) <= (self.accuracy, -self.loss):
            return
        self.accuracy, self.loss = scores["accuracy"], scores["loss"]
        state = accelerator.get_state_dict(model)
        if accelerator.is_main_process:
            with written_aside(self.folder) as aside:
                save_classifier(classifier_of(state, self.config, self.tokenizer), self.processor, aside)

    def state_dict(self) -> dict[str, float]:
        return {"accuracy": self.accuracy, "loss": self.loss}

    def load_state_dict(self, state: dict[str, float]):
        vars(self).update(state)


def layer_id(parameter_name: str, num_hidden_layers: int) -> int:
    """0 for the embeddings, `i + 1` for the encoder's i-th layer, `num_hidden_layers + 1` for all that comes after."""
    name = parameter_name.removeprefix("module.").removeprefix("mage.")
    if name.startswith("embeddings."):
        return 0
    layer = re.match(r"layers\.(\d+)\.", name)
    return int(layer.group(1)) + 1 if layer else num_hidden_layers + 1


def layer_decay_groups(
    model: nn.Module, num_hidden_layers: int, learning_rate: float, layer_decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """
    An optimizer's parameter groups: each layer has the `layer_decay`-fold learning rate of the layer after it, the
    head has `learning_rate`. Biases and other parameters of one dimension are not decayed (section 4.4).

    Args:
        model (`nn.Module`): a classifier; what does not require a gradient is left out.

    Returns:
        `list[dict[str, Any]]` with `params`, `lr`, `weight_decay`, and `layer_id` for whoever reads them.
    """
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        number, is_decayed = layer_id(name, num_hidden_layers), parameter.ndim > 1
        new = {
            "params": [],
            "lr": learning_rate * layer_decay ** (num_hidden_layers + 1 - number),
            "weight_decay": weight_decay if is_decayed else 0.0,
            "layer_id": number,
        }
        groups.setdefault((number, is_decayed), new)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]
