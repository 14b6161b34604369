"""The way back: a file in the original's format."""

import json
from pathlib import Path

import torch
from diffusers import VQModel
from transformers import AutoModelForImageClassification, AutoModelForMaskedImageModeling

from ..files import written_aside
from ..modeling_mage import MageForMaskedImageModeling, MagePreTrainedModel
from .folder import check_free, read_model, tokenizer_of
from .names import (
    TOKENIZER_PREFIX,
    convert_tokenizer,
    restore_model,
    restore_tokenizer,
    tokenizer_config,
    unused_parameters,
)
from .reading import CheckpointError

_AUTO_CLASSES = {
    "MageForMaskedImageModeling": AutoModelForMaskedImageModeling,
    "MageForImageClassification": AutoModelForImageClassification,
    "VQModel": VQModel,
}


def write_original(folder: Path, out: Path) -> str:
    """
    Writes the model in `folder` as the original would have: `{"model": state_dict}`, or `{"state_dict": …}` for a
    tokenizer alone. Parameters that the original never reads are there for its strict loading, zero.

    Args:
        folder (`Path`): a converted, or trained, model or tokenizer.
        out (`Path`): the file to write; it must not exist.

    Returns:
        `str`: what was written.

    Raises:
        CheckpointError: for a folder that holds no such model, or one that the original cannot express.
    """
    check_free(out)
    payload = original_payload(read_model(folder, _auto_class(folder)), folder)
    with written_aside(out) as path:
        torch.save(payload, path)
    ((key, state),) = payload.items()
    parameters = sum(weight.numel() for weight in state.values())
    return f"{out}: {len(state)} tensors of {parameters / 1e6:.2f} M numbers under `{key}`, in the original's naming."


def original_payload(model: MagePreTrainedModel | VQModel, folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """What the original's file of `model` holds."""
    vqvae = tokenizer_of(model)
    tokenizer = {} if vqvae is None else _restore_tokenizer(vqvae, folder)
    if isinstance(model, VQModel):
        return {"state_dict": tokenizer}
    if model.config.num_classes:
        raise CheckpointError(f"{folder} is a class-conditional model, which the original does not have.")
    channels = 3 if vqvae is None else vqvae.config.in_channels
    has_decoder = isinstance(model, MageForMaskedImageModeling)
    return {
        "model": {
            **unused_parameters(model.config, channels, has_decoder),
            **restore_model(model.state_dict()),
            **{TOKENIZER_PREFIX + name: weight for name, weight in tokenizer.items()},
        }
    }


def _auto_class(folder: Path) -> type:
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} is not a converted model: its config.json cannot be read.") from error
    name = config.get("_class_name") or (config.get("architectures") or ["nothing"])[0]
    if name not in _AUTO_CLASSES:
        raise CheckpointError(
            f"{folder} holds {name}, which the original has no format for; it has one for {', '.join(_AUTO_CLASSES)}."
        )
    return _AUTO_CLASSES[name]


def _restore_tokenizer(vqvae: VQModel, folder: Path) -> dict[str, torch.Tensor]:
    state = vqvae.state_dict()
    try:
        restored = restore_tokenizer(state)
        again, config = convert_tokenizer(restored), tokenizer_config(restored)
    except KeyError as error:
        raise CheckpointError(f"The tokenizer in {folder} is not the original's: it lacks {error}.") from None
    lost = [name for name in state if name not in again or not torch.equal(again[name], state[name])]
    lost += [f"{name}={vqvae.config[name]}" for name, value in config.items() if _as_list(vqvae.config[name]) != value]
    if lost:
        raise CheckpointError(
            f"The tokenizer in {folder} does what the original's cannot express: {', '.join(lost[:5])}."
        )
    return restored


def _as_list(value: object) -> object:
    return list(value) if isinstance(value, (list, tuple)) else value
