"""Layer-wise learning rates (arXiv 2003.10555): the nearer a layer is to the input, the less fine-tuning moves it."""

import re

from torch import nn


def layer_id(parameter_name: str, num_hidden_layers: int) -> int:
    """0 for the embeddings, `i + 1` for the encoder's i-th layer, `num_hidden_layers + 1` for all that comes after."""
    name = parameter_name.removeprefix("module.").removeprefix("mage.")
    if name.startswith("embeddings."):
        return 0
    layer = re.match(r"layers\.(\d+)\.", name)
    return int(layer.group(1)) + 1 if layer else num_hidden_layers + 1


def layer_decay_groups(
    model: nn.Module, num_hidden_layers: int, learning_rate: float, layer_decay: float, weight_decay: float
) -> list[dict]:
    """
    An optimizer's parameter groups: each layer has the `layer_decay`-fold learning rate of the layer after it, the
    head has `learning_rate`. Biases and other parameters of one dimension are not decayed (section 4.4).

    Args:
        model (`nn.Module`): a classifier; what does not require a gradient is left out.

    Returns:
        `list[dict]` with `params`, `lr`, `weight_decay`, and `layer_id` for whoever reads them.
    """
    groups = {}
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
