"""The loss on held-out images at fixed masks."""

import torch
from accelerate import Accelerator
from torch import nn

from ..masking import sample_masks

VALIDATION_SEED = 0


@torch.no_grad()
def evaluate(model: nn.Module, tokens: torch.Tensor, batch_size: int, accelerator: Accelerator) -> dict[str, float]:
    """
    Loss and accuracy on held-out tokens. Their masks are always the same, drawn with the training's masking ratios.

    Args:
        model (`nn.Module`): a prepared [`MageForPreTraining`].
        tokens (`torch.Tensor` of shape `(num_images, sequence_length)`): the same in all processes, which share the
            work.
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
        _, metrics = model(batch.to(accelerator.device), masks)
        values = torch.stack([metrics["reconstruction_loss"], metrics["accuracy"], torch.ones_like(metrics["loss"])])
        sums += values.float() * len(batch) * is_new
    model.train(was_training)
    loss, accuracy, count = accelerator.reduce(sums, "sum").tolist()
    return {"validation_loss": loss / count, "validation_accuracy": accuracy / count}
