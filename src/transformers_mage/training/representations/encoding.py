"""The representations of training images: by a frozen model, in the step that learns from them, or all at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import VQModel

from ...command_line import argument
from ...data.batches import Batch
from ...data.token_cache import CachedTokens
from ...data.tokenization import BatchTokenizer, patch_size
from ...files import FolderError
from ...image_tokens import decode_images, pixel_range
from ...progress import progress_bar
from ...representations import RepresentationEncoder


@dataclass
class RepresentationArguments:
    """Which representations lead a model."""

    representation_model_name_or_path: str | None = argument(
        None, "Let the representations of this frozen model lead: MAGE or any image model of transformers."
    )
    representation_layer: int = argument(-1, "Its layer: 0 are the embeddings, -1 is the last one.")
    representation_pooling: str | None = argument(
        None,
        "By default the mean of MAGE's tokens, and the class token of another model.",
        choices=["mean", "cls", "pooler"],
    )


def load_representation_encoder(
    arguments: RepresentationArguments, tokenizer: VQModel, reads_tokens_only: bool
) -> RepresentationEncoder | None:
    """
    The model that the command line names, if it names one.

    Args:
        tokenizer (`VQModel`): whose tokens the model to be led is trained on. A MAGE that has the same one reads them
            too.
        reads_tokens_only (`bool`): whether there are no pixels, as with a token cache.

    Raises:
        FolderError: where there is no such model.
        ValueError: where it needs pixels and there are none.
    """
    name = arguments.representation_model_name_or_path
    if name is None:
        return None
    try:
        encoder = RepresentationEncoder.from_pretrained(
            name, arguments.representation_layer, arguments.representation_pooling
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FolderError(f"There is no model in {name} to take representations with: {reason}") from error
    share_tokenizer(encoder, tokenizer)
    if reads_tokens_only and not encoder.reads_tokens:
        raise ValueError(
            f"{name} reads pixels, and a token cache has none. Train on images (`--dataset_name`), or take the "
            "representations of a MAGE with the same tokenizer."
        )
    return encoder


def share_tokenizer(encoder: RepresentationEncoder, tokenizer: VQModel):
    """
    Leaves the tokenizer of a MAGE out where this one gives the same tokens, whatever decodes them: it is stored once,
    and they are made once.
    """
    model: Any = encoder.model
    if encoder.is_mage and model.vqvae is not None and _tells_the_same(model.vqvae, tokenizer):
        model.vqvae = None
        model.config.vq_config = None


def _tells_the_same(one: VQModel, other: VQModel) -> bool:
    states = [
        {name: value for name, value in each.state_dict().items() if not name.startswith(("decoder.", "post_quant_"))}
        for each in (one, other)
    ]
    same_names = states[0].keys() == states[1].keys() and pixel_range(one) == pixel_range(other)
    return same_names and all(torch.equal(value.cpu(), states[1][name].cpu()) for name, value in states[0].items())


def representation_values(encoder: RepresentationEncoder | None) -> dict[str, Any]:
    """The fields of `MageConfig` that say how a model is led."""
    if encoder is None:
        return {}
    source = encoder.source.as_dict()
    if Path(source["model_name_or_path"]).is_dir():
        # Where it lay on this machine is nobody's business: it travels with the model.
        source["model_name_or_path"] = Path(source["model_name_or_path"]).resolve().name
    return {"representation_size": encoder.size, "representation_source": source}


class BatchEncoder:
    """
    Gives the tokens of a batch and, where an encoder is there, the representations.

    Args:
        accelerator (`Accelerator`): its device and precision.
        tokenize ([`BatchTokenizer`]): what gives the tokens.
        encoder ([`RepresentationEncoder`], *optional*): what says what they are like.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        tokenize: BatchTokenizer,
        encoder: RepresentationEncoder | None = None,
    ):
        self.accelerator = accelerator
        self.tokenize = tokenize
        self.encoder = None if encoder is None else encoder.to(accelerator.device)

    def __call__(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        (num_views x batch_size, sequence_length) tokens, the first views of all images before the second ones, and
        (num_views x batch_size, representation_size).
        """
        pixels = self.tokenize.pixels(batch)
        input_ids = self.tokenize.tokens(batch, pixels)
        return input_ids, self.represent(input_ids, pixels)

    def representations_of(self, batch: Batch) -> torch.Tensor:
        """(num_views x batch_size, representation_size), without tokens where they are not needed for that."""
        assert self.encoder is not None
        pixels = self.tokenize.pixels(batch)
        needs_tokens = pixels is None or self.encoder.reads_tokens
        representations = self.represent(self.tokenize.tokens(batch, pixels) if needs_tokens else None, pixels)
        assert representations is not None
        return representations

    def represent(self, input_ids: torch.Tensor | None, pixels: torch.Tensor | None = None) -> torch.Tensor | None:
        """Of tokens or, by an encoder that reads pixels, of these or of what the tokens stand for."""
        if self.encoder is None:
            return None
        with self.accelerator.autocast():
            if self.encoder.reads_tokens:
                return self.encoder(input_ids=input_ids)
            if pixels is None:
                assert input_ids is not None
                pixels = self._decode(input_ids)
            return self.encoder(pixels)

    def _decode(self, input_ids: torch.Tensor) -> torch.Tensor:
        height, width = self.tokenize.views.image_size
        tokenizer = self.tokenize.tokenizer
        patch = patch_size(tokenizer)
        return decode_images(tokenizer, input_ids.unflatten(1, (height // patch, width // patch))).clamp(0, 1)


def cached_representations(data: CachedTokens, encode: BatchEncoder, batch_size: int) -> torch.Tensor:
    """
    The representations of all views in a token cache, computed once: each process does its share.

    Returns:
        `torch.Tensor` of shape `(num_images, num_views, representation_size)`, float32, on the host.
    """
    accelerator, num_images = encode.accelerator, len(data)
    share = -(-num_images // accelerator.num_processes)
    start = accelerator.process_index * share
    # All processes gather equally many, so the last one may repeat the last image.
    mine = [min(index, num_images - 1) for index in range(start, start + share)]
    parts = []
    for first in progress_bar(range(0, share, batch_size), desc="Taking representations", leave=False):
        tokens = torch.from_numpy(data.all_views(mine[first : first + batch_size])).to(accelerator.device)
        taken = encode.represent(tokens.flatten(0, 1))
        assert taken is not None
        parts.append(accelerator.gather(taken.unflatten(0, tokens.shape[:2])).cpu())
    # Batch after batch of all processes, to process after process.
    chunks = [part.chunk(accelerator.num_processes) for part in parts]
    return torch.cat([torch.cat(of_process) for of_process in zip(*chunks, strict=True)])[:num_images]
