"""Optimiser, learning rate, number of steps and averages of the paper's pre-training recipe (appendix A)."""

import math
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from .arguments import TrainingArguments


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Biases and other one-dimensional parameters are not decayed."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decayed = [parameter for _, parameter in trained if parameter.ndim > 1]
    others = [parameter for _, parameter in trained if parameter.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def create_optimizer(model: nn.Module, arguments: TrainingArguments, batch_size: int) -> torch.optim.AdamW:
    """
    AdamW, at the learning rate of a global batch of `batch_size` images: base x batch / 256 unless it is given.
    """
    return torch.optim.AdamW(
        parameter_groups(model, arguments.weight_decay),
        lr=peak_learning_rate(arguments, batch_size),
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        fused=True,
    )


def peak_learning_rate(arguments: TrainingArguments, batch_size: int) -> float:
    if arguments.learning_rate is not None:
        return arguments.learning_rate
    return arguments.base_learning_rate * batch_size / 256


def create_scheduler(
    optimizer: torch.optim.Optimizer, arguments: TrainingArguments, num_samples: int | None, batch_size: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then cosine to `min_learning_rate`, by update; all groups' rates in proportion."""
    total, warmup = num_updates(arguments, num_samples, batch_size), arguments.warmup_steps
    if warmup is None:
        warmup = updates_of_epochs(arguments, arguments.warmup_epochs, num_samples, batch_size)
    least_share = arguments.min_learning_rate / optimizer.defaults["lr"]
    return get_cosine_with_min_lr_schedule_with_warmup(optimizer, warmup, total, min_lr_rate=least_share)


def num_updates(arguments: TrainingArguments, num_samples: int | None, batch_size: int) -> int:
    """The updates to make, `num_samples` being the size of the data where it is known."""
    if arguments.max_train_steps:
        return arguments.max_train_steps
    return updates_of_epochs(arguments, arguments.num_train_epochs, num_samples, batch_size)


def updates_of_epochs(arguments: TrainingArguments, epochs: float, num_samples: int | None, batch_size: int) -> int:
    """
    Raises:
        ValueError: where neither the data nor the command line say how many images there are.
    """
    if epochs == 0:
        return 0
    num_samples = num_samples or arguments.num_train_samples
    if num_samples is None:
        raise ValueError(
            "A streamed dataset does not say how many images it has: say `--num_train_samples N`, or "
            "`--max_train_steps N --warmup_steps N`."
        )
    return math.ceil(epochs * num_samples / batch_size)


class MovingAverage(EMAModel):
    """diffusers' moving average, whose checkpoints hold whole tensors where the model is sharded."""

    shadow_params: list[torch.Tensor]

    def state_dict(self) -> dict[str, Any]:
        whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in self.shadow_params]
        return super().state_dict() | {"shadow_params": whole}

    def load_state_dict(self, state_dict: dict[str, Any]):
        sharded = self.shadow_params
        super().load_state_dict(state_dict)
        self.shadow_params = [_like(new, old) for new, old in zip(self.shadow_params, sharded, strict=True)]


def _like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """`tensor` where `other` is, and sharded as it is."""
    tensor = tensor.to(other.device)
    if not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(tensor, other.device_mesh, other.placements)
