"""Representations of images, by which a model can be led: MAGE's own features, or those of any image model."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedModel

from .modeling_mage import MageModel


@dataclass(frozen=True)
class RepresentationSource:
    """
    Where representations come from. It is part of a model's configuration (`config.representation_source`).

    Attributes:
        model_name_or_path (`str`): a folder or the name on the Hub of MAGE or of any image model of transformers.
        layer (`int`): 0 are the embeddings, -1 is the last layer's output, before MAGE's final norm.
        pooling (`str`): `"mean"` over the tokens of the image, `"cls"`, the class token, or `"pooler"`, whatever the
            model itself gives as `pooler_output`.
        image_mean, image_std (`tuple[float, ...]`, *optional*): what pixels are normalised with; `None` does not.
        image_size (`int`, *optional*): side to which images are resized; `None` takes them as they come.
        antialias (`bool`): whether they are smoothed when they are made smaller. RCG's published models were not.
    """

    model_name_or_path: str
    layer: int = -1
    pooling: str = "mean"
    image_mean: tuple[float, ...] | None = None
    image_std: tuple[float, ...] | None = None
    image_size: int | None = None
    antialias: bool = True

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class RepresentationEncoder(nn.Module):
    """
    Standardised representations of images, from a frozen model.

    Args:
        model (`PreTrainedModel`): MAGE's encoder, or any model with `last_hidden_state` and the class token first.
        source ([`RepresentationSource`]): which of its features.
    """

    def __init__(self, model: PreTrainedModel, source: RepresentationSource):
        super().__init__()
        if source.pooling not in ("mean", "cls", "pooler"):
            raise ValueError(f'`pooling` must be "mean", "cls" or "pooler", got {source.pooling!r}.')
        self.model = model.requires_grad_(False).eval()
        self.source = source

    @classmethod
    def from_pretrained(
        cls, model_name_or_path: str, layer: int = -1, pooling: str | None = None, **kwargs: Any
    ) -> "RepresentationEncoder":
        """
        Loads a model and finds out what it wants its images to look like.

        Args:
            model_name_or_path (`str`): a folder or a name on the Hub.
            layer, pooling: see [`RepresentationSource`]; by default the mean of MAGE's tokens, or the class token of
                another model.
            kwargs: what `from_pretrained` takes, as `revision` and `token`.
        """
        if AutoConfig.from_pretrained(model_name_or_path, **kwargs).model_type == "mage":
            source = RepresentationSource(str(model_name_or_path), layer, pooling or "mean")
            return cls(MageModel.from_pretrained(model_name_or_path, **kwargs), source)
        processor = AutoImageProcessor.from_pretrained(model_name_or_path, **kwargs)
        normalises = getattr(processor, "do_normalize", False)
        size = getattr(processor, "crop_size", None) or processor.size
        source = RepresentationSource(
            str(model_name_or_path),
            layer,
            pooling or "cls",
            image_mean=tuple(processor.image_mean) if normalises else None,
            image_std=tuple(processor.image_std) if normalises else None,
            image_size=size.get("height") or size.get("shortest_edge"),
        )
        return cls(AutoModel.from_pretrained(model_name_or_path, **kwargs), source)

    @property
    def size(self) -> int:
        """Numbers in a representation."""
        projected = getattr(self.model.config, "projection_size", None)
        return projected if projected and self.source.pooling == "pooler" else self.model.config.hidden_size

    @property
    def reads_tokens(self) -> bool:
        """Whether it takes tokens rather than pixels: a MAGE that was left its tokenizer out."""
        return self.is_mage and self.model.vqvae is None

    @property
    def is_mage(self) -> bool:
        # Not by its class: where folders carry their code, each of them has one of its own.
        return self.model.config.model_type == "mage"

    @torch.no_grad()
    def forward(
        self, pixel_values: torch.FloatTensor | None = None, input_ids: torch.LongTensor | None = None
    ) -> torch.Tensor:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): in [0, 1].
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): tokens instead, for MAGE.

        Returns:
            `torch.Tensor` of shape `(batch_size, representation_size)`, float32, standardised per image.
        """
        if input_ids is not None and not self.is_mage:
            raise ValueError(
                f"{self.source.model_name_or_path} reads pixels, but tokens were given. Train on images, not on "
                "a token cache, or take the representations of a MAGE model with the same tokenizer."
            )
        if input_ids is not None:
            inputs = {"input_ids": input_ids}
        elif pixel_values is not None:
            inputs = {"pixel_values": self._prepare(pixel_values)}
        else:
            raise ValueError("Pass either `pixel_values` or `input_ids`, got neither.")
        outputs = self.model(**inputs, output_hidden_states=self.source.layer != -1 or self.is_mage)
        return standardize(self._pool(outputs).float())

    def _prepare(self, pixel_values: torch.Tensor) -> torch.Tensor:
        size, mean, std = self.source.image_size, self.source.image_mean, self.source.image_std
        if size is not None and pixel_values.shape[-2:] != (size, size):
            smooth = self.source.antialias
            pixel_values = F.interpolate(pixel_values, (size, size), mode="bicubic", antialias=smooth)
            # Bicubic curves overshoot, which the published models saw.
            pixel_values = pixel_values.clamp(0, 1) if smooth else pixel_values
        if mean is None:
            return pixel_values
        if pixel_values.shape[1] == 1:
            pixel_values = pixel_values.expand(-1, len(mean), -1, -1)
        assert std is not None
        shift, scale = (pixel_values.new_tensor(values)[:, None, None] for values in (mean, std))
        return (pixel_values - shift) / scale

    def _pool(self, outputs: Any) -> torch.Tensor:
        if self.source.pooling == "pooler":
            return outputs.pooler_output
        # MAGE's last hidden state is normalised, its hidden states are not: these are what linear probing uses.
        hidden = outputs.hidden_states is not None
        states = outputs.hidden_states[self.source.layer] if hidden else outputs.last_hidden_state
        return states[:, 0] if self.source.pooling == "cls" else states[:, 1:].mean(dim=1)


def standardize(representations: torch.Tensor) -> torch.Tensor:
    """Each of `(batch_size, representation_size)` with mean 0 and deviation 1 over its entries, as RCG does."""
    mean = representations.mean(dim=1, keepdim=True)
    return (representations - mean) / representations.std(dim=1, keepdim=True)


__all__ = ["RepresentationEncoder", "RepresentationSource", "standardize"]
