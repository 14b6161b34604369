"""Encoders of images that transformers has no class for: a ViT with the projection that it was trained by."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, ViTConfig, ViTModel
from transformers.modeling_outputs import BaseModelOutputWithPooling


class ViTWithProjection(PreTrainedModel):
    """
    transformers' ViT and, over its class token, an MLP: what contrastive learning compares (MoCo v3, arXiv
    2104.02057), and what RCG takes for the representation of an image.

    Args:
        config (`ViTConfig`): with `projection_size`, numbers in a representation, and `projection_hidden_size`, the
            width of the MLP's two hidden layers.
    """

    config: Any
    config_class = ViTConfig
    base_model_prefix = "vit"
    main_input_name = "pixel_values"
    _no_split_modules = ["ViTEmbeddings", "ViTLayer"]
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: Any):
        super().__init__(config)
        self.vit = ViTModel(config, add_pooling_layer=False)
        width, hidden, size = config.hidden_size, config.projection_hidden_size, config.projection_size
        layers = [nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, size)]
        self.projection = nn.Sequential(*layers)
        self.post_init()

    def forward(self, pixel_values: torch.FloatTensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): normalised images.
            kwargs: what else `ViTModel` takes, as `output_hidden_states`.

        Returns:
            `BaseModelOutputWithPooling`: its `pooler_output`, of shape `(batch_size, projection_size)`, is projected.
        """
        outputs = self.vit(pixel_values, **kwargs | {"return_dict": True})
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=self.projection(outputs.last_hidden_state[:, 0]),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = ["ViTWithProjection"]
