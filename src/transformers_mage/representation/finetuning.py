"""Fine-tuning a classifier (section 4.4): what happens to its images, and keeping the best of it."""

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import VQModel
from torch import nn
from transformers import CLIPImageProcessorPil
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..configuration_mage import MageConfig
from ..data.tokenization import tokenize
from ..modeling_mage import MageForImageClassification
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
            write_classifier(state, self.config, self.tokenizer, self.processor, self.folder)

    def state_dict(self) -> dict[str, float]:
        return {"accuracy": self.accuracy, "loss": self.loss}

    def load_state_dict(self, state: dict[str, float]):
        vars(self).update(state)


def write_classifier(
    state: dict[str, torch.Tensor],
    config: MageConfig,
    tokenizer: VQModel,
    processor: CLIPImageProcessorPil,
    folder: str | Path,
    **kwargs,
):
    """
    Writes the folder that `AutoModelForImageClassification` and `pipeline("image-classification")` load.

    Args:
        state (`dict`): weights of a [`MageForImageClassification`] without its tokenizer.
        kwargs: what `save_pretrained` takes, as `push_to_hub` and `repo_id`.
    """
    model = MageForImageClassification(MageConfig(**{**config.to_dict(), "vq_config": None}))
    model.load_state_dict(state)
    model.mage.vqvae, model.config.vq_config = tokenizer, config.vq_config
    model.save_pretrained(folder, **kwargs)
    processor.save_pretrained(folder, **kwargs)
