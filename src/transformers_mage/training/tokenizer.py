"""Loading a trained tokenizer."""

from pathlib import Path

from diffusers import VQModel

from ..modeling_mage import MageModel
from ..vq_shortcuts import skip_noop_layers


def load_tokenizer(name_or_path: str) -> VQModel:
    """
    Loads a tokenizer from a `VQModel`'s folder or from that of a MAGE model, frozen.

    Raises:
        SystemExit: with a message, where there is none.
    """
    try:
        is_mage = "vq_config" in (Path(name_or_path, "config.json").read_text() if Path(name_or_path).is_dir() else "")
        vqvae = MageModel.from_pretrained(name_or_path).vqvae if is_mage else VQModel.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        raise SystemExit(f"There is no tokenizer in {name_or_path}: {error}") from error
    skip_noop_layers(vqvae.requires_grad_(False))
    return vqvae.eval()
