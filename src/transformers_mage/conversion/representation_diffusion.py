"""Names and sizes of RCG's diffusion of representations: the original's to ours."""

import re
from collections.abc import Iterable, Mapping

import torch

from .names import count

# Where RCG's training checkpoints keep the network, its moving average, whose names have no dots, and the embedding of
# its classes, which models without classes have too and never read.
NETWORK_PREFIX = "model.diffusion_model."
AVERAGE_PREFIX = "model_ema.diffusion_model"
CLASS_EMBEDDING = "cond_stage_model.embedding.weight"
_NAMES = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_proj": "input_proj",
    "out.0": "norm_out",
    "out.2": "linear_out",
}
_BLOCK_NAMES = {
    "in_layers.0": "norm1",
    "in_layers.2": "linear1",
    "emb_layers.1": "time_proj",
    "context_layers.1": "class_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "linear2",
}


def convert_representation_diffusion(original: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Weights for a `RepresentationDiffusionModel`.

    Args:
        original (`Mapping[str, torch.Tensor]`): the original network's, with or without `NETWORK_PREFIX`, and the
            classes' embedding where it has one. The moving average of the weights, which the original samples with,
            is taken where there is one. Whatever else a training checkpoint holds is left out.

    Raises:
        KeyError: for names that the original's network does not have.
    """
    converted = {}
    for name, weight in _network(original).items():
        block = re.fullmatch(r"res_blocks\.(\d+)\.(.+)\.(weight|bias)", name)
        if block:
            number, part, kind = block.groups()
            converted[f"blocks.{number}.{_BLOCK_NAMES[part]}.{kind}"] = weight
        else:
            module, _, kind = name.rpartition(".")
            converted[f"{_NAMES[module]}.{kind}"] = weight
    if reads_classes(original):
        converted["class_embedding.weight"] = original[CLASS_EMBEDDING]
    return converted


def representation_diffusion_config(original: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Sizes of the `RepresentationDiffusionModel`, read off the original's shapes."""
    network = _network(original)
    hidden_size, representation_size = network["input_proj.weight"].shape
    config = {
        "representation_size": representation_size,
        "hidden_size": hidden_size,
        "bottleneck_size": network["res_blocks.0.in_layers.2.weight"].shape[0],
        "time_embedding_size": network["time_embed.0.weight"].shape[0],
        "num_blocks": count(network, r"res_blocks\.(\d+)\."),
    }
    if reads_classes(original):
        config["num_classes"], config["class_embedding_size"] = original[CLASS_EMBEDDING].shape
    return config


def _network(original: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    inside = {
        name.removeprefix(NETWORK_PREFIX): weight
        for name, weight in original.items()
        if name.startswith(NETWORK_PREFIX)
    }
    averaged = {name: original.get(AVERAGE_PREFIX + name.replace(".", ""), weight) for name, weight in inside.items()}
    return averaged or dict(original)


def is_representation_diffusion(names: Iterable[str]) -> bool:
    """Whether a checkpoint with these names is one of RCG's diffusion of representations."""
    return any(re.match(rf"({re.escape(NETWORK_PREFIX)})?res_blocks\.0\.in_layers\.", name) for name in names)


def reads_classes(names: Iterable[str]) -> bool:
    return any("res_blocks.0.context_layers." in name for name in names)
