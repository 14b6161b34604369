"""PyTorch MAGE model: a masked generative encoder over the tokens of a VQGAN (arXiv 2211.09117)."""

import inspect
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import VQModel
from diffusers.utils.accelerate_utils import apply_forward_hook
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .carried_code import IS_INSTALLED, remove_code, write_code
from .checks import whole_number
from .conditioning import UNCONDITIONAL_LABEL
from .configuration_mage import MageConfig
from .dropout import MageDropout, apply_dropout
from .hub_folders import PUSHING, check_repository, push_folder, refused_pickles, remove_other_weights
from .image_tokens import decode_images, encode_images
from .kept_context import KeptContext, KeyValues, keep_context
from .vq_shortcuts import skip_noop_layers


@dataclass
class MageMaskedImageModelingOutput(ModelOutput):
    """
    Output of [`MageForMaskedImageModeling`].

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, returned when `bool_masked_pos` is given):
            Label-smoothed cross-entropy over the codes, mean over the masked positions.
        logits (`torch.FloatTensor` of shape `(batch_size, sequence_length, codebook_size)`):
            Scores of the codes at every position. `None` while training with masks, when only masked positions count.
        masked_logits (`torch.FloatTensor` of shape `(num_masked, codebook_size)`):
            Scores at the masked positions, image by image, returned when `bool_masked_pos` is given.
        masked_labels (`torch.LongTensor` of shape `(num_masked,)`): the codes hidden there.
        encoder_last_hidden_state (`torch.FloatTensor` of shape `(batch_size, 1 + num_kept, hidden_size)`):
            The encoder's output for the class token and the tokens that were not dropped.
        encoder_pooler_output (`torch.FloatTensor` of shape `(batch_size, hidden_size)`):
            Mean over those tokens before the final norm.
        hidden_states, attentions (`tuple[torch.FloatTensor]`, *optional*): the encoder's, as in every model.
        context_key_values (`tuple[tuple[torch.FloatTensor, torch.FloatTensor]]`, *optional*):
            Keys and values of each layer, the encoder's first, at `context_positions`, of shape
            `(batch_size, num_heads, num_context, head_dim)`, for later calls.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    masked_logits: torch.FloatTensor | None = None
    masked_labels: torch.LongTensor | None = None
    encoder_last_hidden_state: torch.FloatTensor | None = None
    encoder_pooler_output: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    context_key_values: tuple[KeyValues, ...] | None = None


@dataclass
class MageModelOutput(BaseModelOutputWithPooling):
    """
    Output of [`MageModel`].

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, 1 + num_kept, hidden_size)`):
            The encoder's output for the class token and the tokens that were not dropped.
        pooler_output (`torch.FloatTensor` of shape `(batch_size, hidden_size)`):
            Mean over those tokens before the final norm, which is what linear probing uses (appendix B).
        hidden_states, attentions (`tuple[torch.FloatTensor]`, *optional*): as in every model.
        image_tokens (`torch.LongTensor` of shape `(batch_size, rows, columns)`): the tokens, nothing masked.
        kept_positions (`torch.LongTensor` of shape `(batch_size, num_kept)`, *optional*):
            The positions that the encoder saw, in order, where some were dropped.
        context_key_values (`tuple[tuple[torch.FloatTensor, torch.FloatTensor]]`, *optional*):
            Keys and values of each layer at `context_positions`.
    """

    image_tokens: torch.LongTensor | None = None
    kept_positions: torch.LongTensor | None = None
    context_key_values: tuple[KeyValues, ...] | None = None


def interpolate_position_embeddings(
    embeddings: torch.Tensor, trained_grid: tuple[int, int], grid: tuple[int, int]
) -> torch.Tensor:
    """
    Position embeddings of another grid than the trained one, bicubically interpolated; the class position is kept.

    Args:
        embeddings (`torch.Tensor` of shape `(1, 1 + rows * columns, hidden_size)`): the trained ones.
        trained_grid, grid (`tuple[int, int]`): rows and columns of tokens.
    """
    if grid == trained_grid:
        return embeddings
    image = embeddings[:, 1:].unflatten(1, trained_grid).permute(0, 3, 1, 2)
    image = F.interpolate(image.float(), size=grid, mode="bicubic", align_corners=False).to(embeddings.dtype)
    return torch.cat([embeddings[:, :1], image.flatten(2).transpose(1, 2)], dim=1)


class MageWordEmbeddings(nn.Embedding):
    """
    Vectors of the tokens, which the encoder reads and the head compares its output with. A class of its own, so that
    it can be sharded and offloaded apart from the rest: it is called from two places.
    """


class MageEmbeddings(nn.Module):
    """Class token and tokens: word and learned position embeddings, layer norm, dropout."""

    def __init__(self, config: MageConfig):
        super().__init__()
        self.config = config
        self.word_embeddings = MageWordEmbeddings(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Parameter(torch.empty(1, 1 + config.sequence_length, config.hidden_size))
        self.class_embeddings = nn.Embedding(config.num_classes, config.hidden_size) if config.num_classes else None
        self.representation_embeddings = (
            MageRepresentationEmbeddings(config.representation_size, config.hidden_size)
            if config.representation_size
            else None
        )
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = MageDropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: torch.LongTensor,
        grid: tuple[int, int],
        kept_positions: torch.LongTensor | None = None,
        class_labels: torch.LongTensor | None = None,
        representations: torch.FloatTensor | None = None,
    ) -> torch.Tensor:
        positions = interpolate_position_embeddings(self.position_embeddings, self.config.grid_size, grid)
        if kept_positions is not None:
            input_ids = input_ids.gather(1, kept_positions)
            positions = positions[0][F.pad(kept_positions + 1, (1, 0))]
        words = self.word_embeddings(F.pad(input_ids, (1, 0), value=self.config.unconditional_token_id))
        is_normalized = self.config.class_embedding_is_normalized
        if class_labels is not None and is_normalized:
            words = torch.cat([self.class_token(words[:, :1], class_labels), words[:, 1:]], dim=1)
        embedded = self.dropout(self.layernorm(words + positions))
        if self.representation_embeddings is None and (class_labels is None or is_normalized):
            return embedded
        first = embedded[:, :1]
        if class_labels is not None and not is_normalized:
            first = self.class_token(first, class_labels)
        if self.representation_embeddings is not None:
            represented = self.representation_embeddings(representations, input_ids.shape[0])
            first = represented + first if self.class_embeddings is not None else represented
        return torch.cat([first, embedded[:, 1:]], dim=1)

    def class_token(self, unconditional: torch.Tensor, class_labels: torch.LongTensor) -> torch.Tensor:
        """(batch_size, 1, hidden_size): the images' classes, or the unconditional token where a label is negative."""
        assert self.class_embeddings is not None
        known = self.class_embeddings(class_labels.clamp(min=0))[:, None]
        return torch.where(class_labels[:, None, None] < 0, unconditional, known)


class MageRepresentationEmbeddings(nn.Module):
    """
    The vector that a representation puts into the class position, where it says what the image shall be (RCG, arXiv
    2312.03701, section 3.3). Images without one get a learned empty representation.
    """

    def __init__(self, representation_size: int, hidden_size: int):
        super().__init__()
        self.projection = nn.Linear(representation_size, hidden_size)
        self.empty = nn.Parameter(torch.empty(1, representation_size))

    def forward(self, representations: torch.FloatTensor | None, batch_size: int) -> torch.Tensor:
        """(batch_size, 1, hidden_size) of `(batch_size, representation_size)`, rows of NaN being empty."""
        empty = self.empty.expand(batch_size, -1)
        if representations is None:
            return self.projection(empty)[:, None]
        representations = representations.to(empty.dtype)
        return self.projection(torch.where(representations.isnan(), empty, representations))[:, None]


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    probabilities = apply_dropout(probabilities, dropout, module.training)
    return (probabilities @ value).transpose(1, 2).contiguous(), probabilities


class MageAttention(nn.Module):
    def __init__(self, config: MageConfig, hidden_size: int, num_attention_heads: int):
        super().__init__()
        self.config = config
        self.head_dim = hidden_size // num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(hidden_size, hidden_size)
        # The original draws queries, keys and values as one matrix, three times as tall as each of these.
        for project in (self.q_proj, self.k_proj, self.v_proj):
            setattr(project, "initializer_gain", 2**-0.5)  # noqa: B010 -- modules declare tensors and modules only

    def forward(
        self,
        hidden_states: torch.Tensor,
        query_states: torch.Tensor | None = None,
        context: KeptContext | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query_states = hidden_states if query_states is None else query_states
        input_shape = query_states.shape[:-1]
        query, key, value = (
            project(states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project, states in (
                (self.q_proj, query_states),
                (self.k_proj, hidden_states),
                (self.v_proj, hidden_states),
            )
        )
        if context is not None:
            key, value = context(key, value)
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.attention_dropout if self.training else 0.0
        if dropout > 0 and query.device.type == "cpu" and self.config._attn_implementation == "sdpa":
            # A processor has no kernel for this: PyTorch would take the same steps, and draw random numbers slowly.
            attention_interface = eager_attention_forward
        output, probabilities = attention_interface(
            self, query, key, value, attention_mask=None, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(output.reshape(*input_shape, -1)), probabilities


class MageMLP(nn.Module):
    """Two layers with dropout after each, as the original's."""

    def __init__(self, config: MageConfig, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, hidden_size)
        self.dropout = MageDropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.dropout(self.activation_fn(self.fc1(hidden_states)))
        return self.dropout(self.fc2(hidden_states))


class MageDropPath(nn.Module):
    """Stochastic depth: drops a whole residual branch for some images (arXiv 1603.09382)."""

    def __init__(self, drop_probability: float):
        super().__init__()
        self.drop_probability = drop_probability

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.drop_probability == 0 or not self.training:
            return hidden_states
        keep = 1 - self.drop_probability
        shape = (hidden_states.shape[0],) + (1,) * (hidden_states.ndim - 1)
        return hidden_states * hidden_states.new_empty(shape).bernoulli_(keep) / keep


class MageLayer(GradientCheckpointingLayer):
    """One pre-norm transformer block, of the encoder or of the decoder."""

    def __init__(self, config: MageConfig, hidden_size: int, num_heads: int, intermediate_size: int, drop_path: float):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = MageAttention(config, hidden_size, num_heads)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = MageMLP(config, hidden_size, intermediate_size)
        self.dropout = MageDropout(config.hidden_dropout_prob)
        self.drop_path = MageDropPath(drop_path)

    def forward(
        self,
        hidden_states: torch.Tensor,
        read_positions: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """At all positions, or at `read_positions`, of shape `(batch_size, num_read)`, which attend to all."""
        normalized, queries = self.layernorm_before(hidden_states), None
        if read_positions is not None:
            queries = _gather_positions(normalized, read_positions)
            hidden_states = _gather_positions(hidden_states, read_positions)
        attention_output, _ = self.attention(normalized, queries, **kwargs)
        hidden_states = hidden_states + self.drop_path(self.dropout(attention_output))
        return hidden_states + self.drop_path(self.mlp(self.layernorm_after(hidden_states)))


def _gather_positions(hidden_states: torch.Tensor, positions: torch.LongTensor) -> torch.Tensor:
    """(batch_size, num_positions, width) of (batch_size, sequence_length, width)."""
    return hidden_states.gather(1, positions[..., None].expand(-1, -1, hidden_states.shape[-1]))


class MageDecoder(nn.Module):
    """
    Fills the encoder's features into the whole grid and processes it (section 3.2). Masked positions start from the
    class token's feature, which so tells every one of them what the image is.
    """

    def __init__(self, config: MageConfig):
        super().__init__()
        self.config = config
        width, heads = config.decoder_hidden_size, config.decoder_num_attention_heads
        self.embed = nn.Linear(config.hidden_size, width)
        self.position_embeddings = nn.Parameter(torch.empty(1, 1 + config.sequence_length, width))
        self.layers = nn.ModuleList(
            [
                MageLayer(config, width, heads, config.decoder_intermediate_size, drop_path=0.0)  # type: ignore[arg-type]
                for _ in range(config.decoder_num_hidden_layers)
            ]
        )
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def fill_grid(
        self, features: torch.Tensor, is_masked: torch.BoolTensor, kept_positions: torch.LongTensor | None
    ) -> torch.Tensor:
        """(batch_size, 1 + sequence_length, width): kept features in their places, padding at masked positions."""
        padding, features = features[:, :1], features[:, 1:]
        if kept_positions is not None:
            grid = padding.expand(-1, is_masked.shape[1], -1)
            features = grid.scatter(1, kept_positions[..., None].expand_as(features), features)
        return torch.cat([padding, torch.where(is_masked[..., None], padding, features)], dim=1)

    def forward(
        self,
        encoder_hidden_states: torch.Tensor,
        is_masked: torch.BoolTensor,
        grid: tuple[int, int],
        kept_positions: torch.LongTensor | None = None,
        read_positions: torch.LongTensor | None = None,
        context: KeptContext | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """
        (batch_size, sequence_length, width), or (batch_size, num_read, width) at `read_positions`. Nothing is read at
        other positions of the last layer, so it computes only keys and values there.
        """
        hidden_states = self.fill_grid(self.embed(encoder_hidden_states), is_masked, kept_positions)
        positions = interpolate_position_embeddings(self.position_embeddings, self.config.grid_size, grid)
        hidden_states = hidden_states + positions
        read_slots = None if read_positions is None else read_positions + 1
        if context is not None:
            hidden_states = context.select(hidden_states)
            kwargs["context"] = context  # type: ignore[typeddict-unknown-key]
            read_slots = None if read_positions is None else context.slots_of(read_positions, is_masked.shape[1])
        *layers, last_layer = self.layers
        for layer in layers:
            hidden_states = layer(hidden_states, **kwargs)
        if read_slots is None:
            return self.layernorm(last_layer(hidden_states, **kwargs)[:, 1:])
        return self.layernorm(last_layer(hidden_states, read_slots, **kwargs))


class MageHead(nn.Module):
    """Scores of the codes: a transform and a product with their word embeddings, which it does not train."""

    def __init__(self, config: MageConfig):
        super().__init__()
        self.codebook_size = config.codebook_size
        self.dense = nn.Linear(config.decoder_hidden_size, config.hidden_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=1e-5)
        # One bias a vocabulary entry, as published; those beyond the codes are never read.
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden_states: torch.Tensor, code_embeddings: torch.Tensor) -> torch.Tensor:
        hidden_states = self.layernorm(self.activation_fn(self.dense(hidden_states)))
        return F.linear(hidden_states, code_embeddings, self.bias[: self.codebook_size])


# Embeddings that a model has once it is told more than the saved one was, and what in its configuration says so.
_NEW_EMBEDDINGS = {"class_embeddings": "num_classes", "representation_embeddings": "representation_size"}
# What `PreTrainedModel.save_pretrained` takes, of which it ignores the last, while anything else is a mistake.
_SAVING = {*inspect.signature(PreTrainedModel.save_pretrained).parameters, "safe_serialization"}


class MagePreTrainedModel(PreTrainedModel):
    """Weight initialisation, loading and the features that transformers asks models to declare."""

    config: MageConfig
    config_class = MageConfig
    base_model_prefix = "mage"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    # Losses are means over the batch, so transformers' `Trainer` must average them over accumulated batches.
    accepts_loss_kwargs = False
    supports_gradient_checkpointing = True
    _no_split_modules = ["MageEmbeddings", "MageWordEmbeddings", "MageLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": MageLayer, "attentions": MageAttention}
    # What diffusers' group offloading must enter, being called from elsewhere than its parent's `forward`.
    _group_offload_block_modules = [
        *("mage", "embeddings", "word_embeddings"),
        *("vqvae", "encoder", "quant_conv", "quantize", "embedding", "post_quant_conv", "decoder"),
    ]
    # Weights that start anew where a checkpoint lacks them, and transformers says so; all others must be there.
    _may_be_missing: tuple[str, ...] = ()

    def __init__(self, config: MageConfig, *inputs: Any, **kwargs: Any):
        super().__init__(config, *inputs, **kwargs)
        if config.vq_config is None:
            self.main_input_name = "input_ids"

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *args: Any,
        output_loading_info: bool = False,
        **kwargs: Any,
    ):
        """
        See [`~transformers.PreTrainedModel.from_pretrained`].

        Raises:
            ValueError: where weights are missing: of the tokenizer, the encoder, the decoder or the head. Only the
                layers of a classifier and what added classes or representations need may be new. Also where a folder
                stores weights as integers, or as a pickle of more than tensors.
        """
        path = pretrained_model_name_or_path
        with refused_pickles(path):
            loaded: Any = super().from_pretrained(path, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        missing = {name for name in info["missing_keys"] if not name.startswith(cls._may_be_missing)}
        for part, size in _NEW_EMBEDDINGS.items():
            new = {name for name in missing if f".{part}." in f".{name}"}
            if new and _saved_value(size, pretrained_model_name_or_path, kwargs) != getattr(model.config, size):
                missing -= new
        if missing:
            raise ValueError(_missing_weights_message(cls.__name__, pretrained_model_name_or_path, sorted(missing)))
        if not hasattr(model, "hf_quantizer"):
            _check_stored_types(pretrained_model_name_or_path)
        if model.base_model.vqvae is not None:
            skip_noop_layers(model.base_model.vqvae.requires_grad_(False))
        return (model, info) if output_loading_info else model

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Refuses: the vocabulary is the tokenizer's codes, with special tokens after them."""
        vocab_size = self.config.vocab_size
        if new_num_tokens not in (None, vocab_size) or (pad_to_multiple_of and vocab_size % pad_to_multiple_of):
            raise ValueError(
                f"The vocabulary of a MAGE model cannot be resized: its {vocab_size} entries are the "
                f"{self.config.codebook_size} codes of its tokenizer and what comes after them. Make a new model with "
                "`MageConfig(codebook_size=...)` for a tokenizer with another number of codes."
            )
        return self.get_input_embeddings()  # type: ignore[return-value]  # transformers calls its own a `Module`

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        *args,
        push_to_hub: bool = False,
        variant: str | None = None,
        with_code: bool | None = None,
        **kwargs,
    ):
        """
        As every model's, and what an earlier save left there of the same variant is replaced.

        Args:
            with_code (`bool`, *optional*):
                add the code that loads the folder without this package. By default, if it is pushed.
            others: see `PreTrainedModel.save_pretrained`.
        """
        hub = {name: kwargs.pop(name) for name in PUSHING if name in kwargs}
        unknown = sorted(set(kwargs) - _SAVING)
        if unknown:
            raise TypeError(f"`save_pretrained` takes no `{unknown[0]}`.")
        if push_to_hub and is_main_process:
            name = hub.pop("repo_id", None) or os.path.basename(os.path.abspath(save_directory))
            hub["repo_id"] = check_repository(name, hub.get("token"), hub.get("private"))
        super().save_pretrained(save_directory, is_main_process, *args, variant=variant, **kwargs)  # type: ignore[misc]
        if not is_main_process:
            return
        remove_other_weights(save_directory, variant)
        carries_code = (push_to_hub or not IS_INSTALLED) if with_code is None else with_code
        (write_code if carries_code else remove_code)(save_directory)
        if push_to_hub:
            push_folder(save_directory, variant=variant, **hub)

    def push_to_hub(  # type: ignore[override]
        self, repo_id: str, *, max_shard_size: int | str = "50GB", **kwargs
    ) -> str:
        """
        Uploads the model, with the code that loads it without this package.

        Args:
            repo_id (`str`): `org/name`, or a name in the account of the token.
            others: see `PreTrainedModel.push_to_hub`.
        """
        repo_id = check_repository(repo_id, kwargs.get("token"), kwargs.get("private"))
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size=max_shard_size, with_code=True)
            return push_folder(folder, repo_id, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        std = self.config.initializer_range
        vqvae: Any = self.base_model.vqvae
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight, gain=getattr(module, "initializer_gain", 1.0))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            if vqvae is not None and module is vqvae.quantize.embedding:
                init.uniform_(module.weight, -1 / module.num_embeddings, 1 / module.num_embeddings)
            else:
                init.normal_(module.weight, std=std)
        elif isinstance(module, (MageEmbeddings, MageDecoder)):
            init.normal_(module.position_embeddings, std=std)
        elif isinstance(module, MageRepresentationEmbeddings):
            init.normal_(module.empty, std=std)
        elif isinstance(module, MageHead):
            init.zeros_(module.bias)
        elif callable(reset := getattr(module, "reset_parameters", None)):
            reset()


def _saved_value(name: str, folder: str | os.PathLike | None, kwargs: dict[str, Any]) -> int | None:
    """A value of the configuration of the model that was saved, whatever it is loaded as."""
    if folder is None:
        return None
    names = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
    saved, _ = MageConfig.get_config_dict(folder, **{name: kwargs[name] for name in names if name in kwargs})
    return saved.get(name, getattr(MageConfig, name))


def _check_stored_types(folder: str | os.PathLike | None):
    """Loading casts whatever it finds, rounded numbers too."""
    for path in sorted(Path(folder).glob("*.safetensors")) if folder is not None else ():
        with safe_open(path, framework="pt") as file:
            types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 -- no mapping
        wrong = [name for name, kind in types.items() if "F" not in kind and not name.endswith("num_batches_tracked")]
        if wrong:
            raise ValueError(
                f"{path} stores {len(wrong)} of its weights as whole numbers ({wrong[0]} as {types[wrong[0]]}), so "
                "that what was learned is lost. Download, convert or save it again."
            )


def _missing_weights_message(model_class: str, folder: str | os.PathLike | None, missing: list[str]) -> str:
    if any("vqvae." in name for name in missing):
        remedy = "Its tokenizer is incomplete: pass `vq_config=None` to load the model without one, for tokens only."
    elif all(name.startswith(("decoder.", "head.")) for name in missing):
        remedy = (
            "It seems to hold an encoder only: load it with `AutoModel`. To train a decoder on it, make a new model "
            "of its configuration and set its `mage` to that encoder."
        )
    else:
        remedy = "Download, convert or save it again."
    shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    return (
        f"{folder} lacks {len(missing)} of the weights of {model_class} ({shown}), and results of random ones would "
        f"mean nothing. {remedy}"
    )


@torch.no_grad()
def check_weights(model: nn.Module):
    """
    Makes sure, at the cost of reading them once, that all weights are finite numbers.

    Args:
        model (`nn.Module`): a model or a tokenizer. Weights that are not there (offloaded) or quantized are left out.

    Raises:
        ValueError: with the names of those that are not.
    """
    tensors = {name: tensor for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.numel()}
    wrong = [name for name, parameter in model.named_parameters() if not parameter.dtype.is_floating_point]
    plain = {name: tensor for name, tensor in tensors.items() if _holds_floats(tensor)}
    extremes = {name: torch.stack(tensor.aminmax()) for name, tensor in plain.items()}
    # One look at all of them together, so that the host waits for an accelerator once.
    if extremes and not torch.cat([extreme.float().cpu() for extreme in extremes.values()]).isfinite().all():
        wrong += [name for name, extreme in extremes.items() if not extreme.isfinite().all()]
    if wrong:
        shown = ", ".join(wrong[:3]) + (", ..." if len(wrong) > 3 else "")
        raise ValueError(
            f"{len(wrong)} of the weights of {type(model).__name__} are not finite numbers ({shown}): the training "
            "that made them diverged, or the file is damaged. Use an earlier checkpoint, or download it again."
        )


def _holds_floats(tensor: torch.Tensor) -> bool:
    is_plain = type(tensor.detach()) is torch.Tensor and not tensor.is_meta
    return is_plain and tensor.is_floating_point() and tensor.element_size() > 1


class MageModel(MagePreTrainedModel):
    """
    The encoder, with the tokenizer inside: features of images.

    Args:
        config ([`MageConfig`]): the sizes.
        add_final_layernorm (`bool`): whether `last_hidden_state` is normalised. Classifiers of the mean feature have
            no such layer.
    """

    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^head\.", r"^classifier\.", r"^fc_norm\.", r"^batch_norm\."]
    # Classifiers of the mean feature have none.
    _may_be_missing = ("layernorm.",)

    def __init__(self, config: MageConfig, add_final_layernorm: bool = True):
        super().__init__(config)
        width, depth = config.hidden_size, config.num_hidden_layers
        self.embeddings = MageEmbeddings(config)
        drop_paths = [config.drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        self.layers = nn.ModuleList(
            [
                MageLayer(config, width, config.num_attention_heads, config.intermediate_size, drop_path)  # type: ignore[arg-type]
                for drop_path in drop_paths
            ]
        )
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps) if add_final_layernorm else nn.Identity()
        # Last, so that `dtype`, which is the first parameter's, is the encoder's.
        self.vqvae = VQModel.from_config(config.vq_config).requires_grad_(False) if config.vq_config else None
        if self.vqvae is not None:
            # Half precision would change some tokens; the encoder's features depend on them all.
            self._keep_in_fp32_modules_strict = ["vqvae"]
            skip_noop_layers(self.vqvae)
        self.post_init()

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True):
        """What `to`, `half` and their kind do to every tensor; the tokenizer moves along, but stays in float32."""
        vqvae, self.vqvae = self.vqvae, None
        try:
            super()._apply(fn, recurse)
        finally:
            self.vqvae = vqvae
        if vqvae is not None and recurse:
            vqvae._apply(_not_below_float32(fn))
        return self

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module):
        self.embeddings.word_embeddings = value  # type: ignore[assignment]

    # Hooks that bring a whole model to its device know of `forward` only.
    @apply_forward_hook
    def get_image_tokens(self, pixel_values: torch.FloatTensor) -> torch.LongTensor:
        """
        Tokens of images: the nearest code, by Euclidean distance, of each of the tokenizer's latents.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): in [0, 1].

        Returns:
            `torch.LongTensor` of shape `(batch_size, rows, columns)`.

        Raises:
            ValueError: without a tokenizer, or for pixels that it does not take.
        """
        self._check_pixel_values(pixel_values)
        return encode_images(self.vqvae, pixel_values)

    @apply_forward_hook
    def decode_image_tokens(self, image_tokens: torch.LongTensor) -> torch.FloatTensor:
        """
        Pixels of tokens, computed in bfloat16 where the model is.

        Args:
            image_tokens (`torch.LongTensor` of shape `(batch_size, rows, columns)` or
                `(batch_size, sequence_length)`): codes, without masks.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`, in about [0, 1]: the tokenizer
            does not clip, its user does.
        """
        self._check_tokenizer("decode tokens")
        _check_image_tokens(image_tokens, self.config.codebook_size)
        # Half precision would change tokens, but pixels by hardly a shade.
        dtype = torch.bfloat16 if self.dtype == torch.bfloat16 else None
        return decode_images(self.vqvae, image_tokens.view(-1, *self._grid_of(image_tokens)), dtype)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        bool_masked_pos: torch.BoolTensor | None = None,
        bool_dropped_pos: torch.BoolTensor | None = None,
        class_labels: torch.LongTensor | None = None,
        representations: torch.FloatTensor | None = None,
        num_dropped: int | None = None,
        context_positions: torch.LongTensor | None = None,
        context_key_values: Sequence[KeyValues] | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MageModelOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): images in [0, 1].
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)` or `(batch_size, rows, columns)`):
                codes instead of images, or `config.mask_token_id` where unknown. A grid that is not square and not the
                trained one must come with its rows and columns.
            bool_masked_pos (`torch.BoolTensor` of shape `(batch_size, sequence_length)`): positions to hide.
            bool_dropped_pos (`torch.BoolTensor` of shape `(batch_size, sequence_length)`):
                positions that the encoder does not see at all, equally many in each image.
            class_labels (`torch.LongTensor` of shape `(batch_size,)`): classes; -1 is unconditional.
            representations (`torch.FloatTensor` of shape `(batch_size, representation_size)`):
                what the images shall be like, for models with a `config.representation_size`; without them, and in
                rows of NaN, such models use the empty representation that they learned.
            num_dropped (`int`): how many are dropped in each image. It spares the device a synchronisation, and
                compiled or exported models need it.
            context_positions (`torch.LongTensor` of shape `(batch_size, num_context)`):
                positions, in order, whose keys and values are returned, for later calls. They must not be dropped.
            context_key_values (`Sequence[tuple[torch.FloatTensor, torch.FloatTensor]]`):
                keys and values of each layer at `context_positions`, from an earlier call. Nothing is computed at
                these positions then: other positions look at what was there (ReCAP, arXiv 2505.19089).
            interpolate_pos_encoding (`bool`): take grids of another size than the trained one.

        Returns:
            [`MageModelOutput`]: `last_hidden_state` of shape `(batch_size, 1 + num_kept, hidden_size)`, the class
            position first; `pooler_output` of shape `(batch_size, hidden_size)`, the mean of the image tokens before
            the final norm, which is what linear probing uses (appendix B).
        """
        image_tokens = self._prepare_tokens(pixel_values, input_ids, interpolate_pos_encoding)
        grid, input_ids = self._grid_of(image_tokens), image_tokens.flatten(1)
        bool_masked_pos = _as_bool_mask("bool_masked_pos", bool_masked_pos, input_ids.shape)
        bool_dropped_pos = _as_bool_mask("bool_dropped_pos", bool_dropped_pos, input_ids.shape)
        self._check_dropped(input_ids, bool_masked_pos, bool_dropped_pos)
        self._check_class_labels(input_ids, class_labels)
        self._check_representations(input_ids, representations)
        if self.training and class_labels is not None:
            class_labels = self._drop_classes(class_labels)
        if self.training and representations is not None:
            representations = self._drop_representations(representations)
        if bool_masked_pos is not None:
            input_ids = input_ids.masked_fill(bool_masked_pos, self.config.mask_token_id)
        context = keep_context(context_positions, context_key_values)
        if context is not None:
            bool_dropped_pos, num_dropped = context.exclude(bool_dropped_pos, num_dropped, input_ids.shape[1])
            kwargs["context"] = context  # type: ignore[typeddict-unknown-key]
        kept_positions = kept_positions_of(bool_dropped_pos, num_dropped)
        if context is not None:
            context.follow(kept_positions)
        hidden_states = self.embeddings(input_ids, grid, kept_positions, class_labels, representations)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        return MageModelOutput(
            last_hidden_state=self.layernorm(hidden_states),
            pooler_output=hidden_states[:, 1:].mean(dim=1),
            image_tokens=image_tokens,
            kept_positions=kept_positions,
            context_key_values=None if context is None else context.recorded,
        )

    def _prepare_tokens(
        self, pixel_values: torch.Tensor | None, input_ids: torch.Tensor | None, interpolate_pos_encoding: bool
    ) -> torch.LongTensor:
        """(batch_size, rows, columns) tokens."""
        if (pixel_values is None) == (input_ids is None):
            given = "neither" if pixel_values is None else "both"
            raise ValueError(f"Pass either `pixel_values` or `input_ids`, got {given}.")
        if pixel_values is not None:
            input_ids = self.get_image_tokens(pixel_values).to(pixel_values.device)
        else:
            assert input_ids is not None
            _check_image_tokens(input_ids, self.config.codebook_size, self.config.mask_token_id)
        grid = self._grid_of(input_ids)
        if grid != self.config.grid_size and not interpolate_pos_encoding:
            raise ValueError(
                f"The model was trained on grids of {self.config.grid_size} tokens (rows, columns), got {grid}. "
                "Resize the images, or pass `interpolate_pos_encoding=True`."
            )
        return input_ids.long().view(-1, *grid)

    def _grid_of(self, image_tokens: torch.Tensor) -> tuple[int, int]:
        if image_tokens.ndim == 3:
            return image_tokens.shape[1], image_tokens.shape[2]
        length = image_tokens.shape[1]
        if length == self.config.sequence_length:
            return self.config.grid_size
        side = round(length**0.5)
        if side * side != length:
            raise ValueError(
                f"{length} tokens make no square, and the trained grid {self.config.grid_size} has "
                f"{self.config.sequence_length}. Pass them in shape (batch_size, rows, columns)."
            )
        return side, side

    def _check_tokenizer(self, task: str):
        if self.vqvae is None:
            raise ValueError(
                f"This model has no tokenizer (`config.vq_config` is None), so it cannot {task}. Pass `input_ids`, or "
                "convert the checkpoint together with its tokenizer."
            )

    def _check_pixel_values(self, pixel_values: torch.Tensor):
        self._check_tokenizer("take `pixel_values`")
        channels, patch = self.config.num_channels, self.config.patch_size
        if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
            raise ValueError(
                f"`pixel_values` must have shape (batch_size, {channels}, height, width), got "
                f"{tuple(pixel_values.shape)}."
            )
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"`pixel_values` must be floating point in [0, 1], got {pixel_values.dtype}. Use the model's image "
                "processor, or divide by 255."
            )
        height, width = pixel_values.shape[2:]
        if pixel_values.shape[0] == 0 or height < patch or width < patch or height % patch or width % patch:
            raise ValueError(
                f"`pixel_values` must hold images whose sides are multiples of {patch} pixels, got "
                f"{tuple(pixel_values.shape)}."
            )
        if _is_on_host(pixel_values) and not pixel_values.isfinite().all():
            raise ValueError("`pixel_values` must be in [0, 1], got NaN or infinity.")

    def _check_dropped(self, input_ids: torch.Tensor, masked: torch.Tensor | None, dropped: torch.Tensor | None):
        if dropped is not None and _is_on_host(dropped):
            hidden = input_ids == self.config.mask_token_id if masked is None else masked
            if (dropped & ~hidden).any():
                raise ValueError("`bool_dropped_pos` marks positions that `bool_masked_pos` does not mask.")

    def _check_class_labels(self, input_ids: torch.Tensor, labels: torch.Tensor | None):
        if labels is None:
            return
        classes = self.config.num_classes
        if not classes:
            raise ValueError(
                "`class_labels` were given to an unconditional model (`config.num_classes` is 0). Leave them out, or "
                "load a class-conditional model."
            )
        if labels.shape != input_ids.shape[:1] or labels.is_floating_point():
            raise ValueError(
                f"`class_labels` must be integers of shape ({input_ids.shape[0]},), got {labels.dtype} of shape "
                f"{tuple(labels.shape)}."
            )
        is_wrong = (labels < UNCONDITIONAL_LABEL) | (labels >= classes)
        if _is_on_host(labels) and is_wrong.any():
            raise ValueError(
                f"`class_labels` must be from 0 to {classes - 1}, or {UNCONDITIONAL_LABEL} for no class, got "
                f"{int(labels[is_wrong][0])}."
            )

    def _drop_classes(self, class_labels: torch.LongTensor) -> torch.LongTensor:
        """Replaces some labels by the unconditional token, so that guidance has something to contrast a class with."""
        if self.config.class_dropout_prob == 0:
            return class_labels
        is_dropped = torch.rand(class_labels.shape, device=class_labels.device) < self.config.class_dropout_prob
        return class_labels.masked_fill(is_dropped, UNCONDITIONAL_LABEL)

    def _check_representations(self, input_ids: torch.Tensor, representations: torch.Tensor | None):
        if representations is None:
            return
        size = self.config.representation_size
        if size is None:
            raise ValueError(
                "`representations` were given to a model without them (`config.representation_size` is None). Leave "
                "them out, or load a model that was trained with representations."
            )
        expected = (input_ids.shape[0], size)
        if representations.shape != expected or not representations.is_floating_point():
            raise ValueError(
                f"`representations` must be floating point of shape {tuple(expected)}, got {representations.dtype} of "
                f"shape {tuple(representations.shape)}."
            )

    def _drop_representations(self, representations: torch.FloatTensor) -> torch.FloatTensor:
        """Replaces some by the empty one, so that guidance has something to contrast a representation with."""
        if self.config.representation_dropout_prob == 0:
            return representations
        shape = (representations.shape[0], 1)
        is_dropped = torch.rand(shape, device=representations.device) < self.config.representation_dropout_prob
        return representations.masked_fill(is_dropped, torch.nan)


def _not_below_float32(fn: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    def apply(tensor: torch.Tensor) -> torch.Tensor:
        result = fn(tensor)
        is_rounded = result.is_floating_point() and result.element_size() < 4
        return tensor.to(result.device) if is_rounded else result

    return apply


def kept_positions_of(
    bool_dropped_pos: torch.BoolTensor | None, num_dropped: int | None = None
) -> torch.LongTensor | None:
    """(batch_size, num_kept) indices of the positions that the encoder sees, in order; None where it sees all."""
    if bool_dropped_pos is None:
        if num_dropped:
            raise ValueError(f"`num_dropped` is {num_dropped}, but `bool_dropped_pos`, which says where, is missing.")
        return None
    length = bool_dropped_pos.shape[1]
    if num_dropped is not None and not torch.compiler.is_compiling():
        num_dropped = whole_number("num_dropped", num_dropped, least=0)
    if num_dropped is None or _is_on_host(bool_dropped_pos):
        num_dropped = _count_dropped(bool_dropped_pos, num_dropped)
    elif not 0 <= num_dropped <= length:
        raise ValueError(f"`num_dropped` must be from 0 to {length}, the number of positions, got {num_dropped}.")
    return bool_dropped_pos.byte().argsort(dim=1, stable=True)[:, : length - num_dropped]


def _count_dropped(bool_dropped_pos: torch.Tensor, num_dropped: int | None) -> int:
    if torch.compiler.is_compiling():
        raise ValueError(
            "`num_dropped` is missing: compiled and exported models need it along with `bool_dropped_pos`, as sizes "
            "must not depend on values. `sample_masks` gives both."
        )
    counts = bool_dropped_pos.sum(dim=1)
    expected = int(counts[0]) if num_dropped is None else num_dropped
    if (counts != expected).any():
        wanted = "the same number of" if num_dropped is None else f"`num_dropped` = {num_dropped}"
        raise ValueError(
            f"`bool_dropped_pos` must drop {wanted} positions in every image, got between {int(counts.min())} and "
            f"{int(counts.max())}."
        )
    return expected


class _ParameterName(str):
    """A parameter's name that says itself whether it is a label, which transformers asks by `"label" in name`."""

    is_label: bool

    def __contains__(self, part: object) -> bool:
        return self.is_label if part == "label" else str.__contains__(self, str(part))


def _labels_are(*labels: str) -> Callable[[Callable], Callable]:
    """
    Tells transformers' `Trainer` which inputs come with a loss. It takes those with "label" in their names, here
    `class_labels` (an input) instead of `bool_masked_pos`, and would evaluate without a loss.
    """

    def mark(forward: Callable) -> Callable:
        signature, parameters = inspect.signature(forward), []
        for parameter in signature.parameters.values():
            name = _ParameterName(parameter.name)
            name.is_label = parameter.name in labels
            parameters.append(parameter.replace(name=name))
        setattr(forward, "__signature__", signature.replace(parameters=parameters))  # noqa: B010
        return forward

    return mark


class MageForMaskedImageModeling(MagePreTrainedModel):
    """The whole of MAGE: the encoder, the decoder and the head that predicts the codes of hidden positions."""

    def __init__(self, config: MageConfig):
        super().__init__(config)
        self.mage = MageModel(config)
        self.decoder = MageDecoder(config)
        self.head = MageHead(config)
        self.post_init()

    @apply_forward_hook
    def get_image_tokens(self, pixel_values: torch.FloatTensor) -> torch.LongTensor:
        """See [`MageModel.get_image_tokens`]."""
        return self.mage.get_image_tokens(pixel_values)

    @apply_forward_hook
    def decode_image_tokens(self, image_tokens: torch.LongTensor) -> torch.FloatTensor:
        """See [`MageModel.decode_image_tokens`]."""
        return self.mage.decode_image_tokens(image_tokens)

    @_labels_are("bool_masked_pos")
    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        bool_masked_pos: torch.BoolTensor | None = None,
        bool_dropped_pos: torch.BoolTensor | None = None,
        class_labels: torch.LongTensor | None = None,
        representations: torch.FloatTensor | None = None,
        num_dropped: int | None = None,
        num_masked: int | None = None,
        max_masked: int | None = None,
        read_positions: torch.LongTensor | None = None,
        context_positions: torch.LongTensor | None = None,
        context_key_values: Sequence[KeyValues] | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MageMaskedImageModelingOutput:
        r"""
        Args:
            pixel_values, input_ids, bool_dropped_pos, class_labels, representations, num_dropped,
            interpolate_pos_encoding:
                see [`MageModel.forward`].
            bool_masked_pos (`torch.BoolTensor` of shape `(batch_size, sequence_length)`):
                positions to hide and predict; with them comes a loss. Positions that hold `config.mask_token_id` in
                `input_ids` are predicted too, but have no label.
            num_masked (`int`): masked positions in the whole batch. It spares the device a synchronisation.
            max_masked (`int`): most masked positions of an image. While training it spares the last layer the others.
            read_positions (`torch.LongTensor` of shape `(batch_size, num_read)`):
                positions whose scores are wanted, where these are not all; not together with `bool_masked_pos`.
            context_positions (`torch.LongTensor` of shape `(batch_size, num_context)`):
                positions, in order, whose keys and values are returned, for later calls. They must not be dropped.
            context_key_values (`Sequence[tuple[torch.FloatTensor, torch.FloatTensor]]`):
                those of an earlier call, instead of computing anything there; see [`MageModel.forward`].
                `read_positions` must be among the others.

        Returns:
            [`MageMaskedImageModelingOutput`]

        Examples:

        ```python
        >>> masks = sample_masks(model.config, batch_size=len(pixel_values), device=model.device)
        >>> loss = model(pixel_values, **masks.as_kwargs()).loss
        ```
        """
        num_encoder_layers = self.config.num_hidden_layers
        if context_key_values is not None and read_positions is None:
            raise ValueError("`context_key_values` leave nothing to read at their positions: pass `read_positions`.")
        encoded: MageModelOutput = self.mage(
            pixel_values,
            input_ids,
            bool_masked_pos=bool_masked_pos,
            bool_dropped_pos=bool_dropped_pos,
            class_labels=class_labels,
            representations=representations,
            num_dropped=num_dropped,
            context_positions=context_positions,
            context_key_values=None if context_key_values is None else context_key_values[:num_encoder_layers],
            interpolate_pos_encoding=interpolate_pos_encoding,
            return_dict=True,
            **kwargs,
        )
        image_tokens: Any = encoded.image_tokens
        grid, tokens = tuple(image_tokens.shape[1:]), image_tokens.flatten(1)
        is_masked = tokens == self.config.mask_token_id
        bool_masked_pos = _as_bool_mask("bool_masked_pos", bool_masked_pos, tokens.shape)
        if bool_masked_pos is not None:
            _check_labels(is_masked, bool_masked_pos)
            is_masked = is_masked | bool_masked_pos
            if read_positions is not None:
                raise ValueError(
                    "`read_positions` are for predictions; with `bool_masked_pos` the masked ones are read."
                )
        if self.training and bool_masked_pos is not None and max_masked is not None:
            read_positions = _masked_first(bool_masked_pos, max_masked)
            tokens, bool_masked_pos = (values.gather(1, read_positions) for values in (tokens, bool_masked_pos))
        context = keep_context(
            context_positions, None if context_key_values is None else context_key_values[num_encoder_layers:]
        )
        decoded = self.decoder(
            encoded.last_hidden_state, is_masked, grid, encoded.kept_positions, read_positions, context, **kwargs
        )
        return MageMaskedImageModelingOutput(
            **self._predict(decoded, tokens, bool_masked_pos, num_masked),
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_pooler_output=encoded.pooler_output,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
            context_key_values=_joined(encoded.context_key_values, None if context is None else context.recorded),
        )

    def _predict(
        self,
        decoded: torch.Tensor,
        tokens: torch.LongTensor,
        bool_masked_pos: torch.BoolTensor | None,
        num_masked: int | None,
    ) -> dict[str, torch.Tensor | None]:
        """Logits where they are read: at masked positions while training, at all others as well otherwise."""
        codes = self._code_embeddings(decoded.device)
        if bool_masked_pos is None:
            return {"logits": self.head(decoded, codes)}
        rows = _masked_rows(bool_masked_pos, num_masked)
        labels = tokens.flatten()[rows]
        if self.training:
            logits, masked_logits = None, self.head(decoded.flatten(0, 1)[rows], codes)
        else:
            logits = self.head(decoded, codes)
            masked_logits = logits.flatten(0, 1)[rows]
        return {
            "loss": self._masked_loss(masked_logits, labels, bool_masked_pos.sum()),
            "logits": logits,
            "masked_logits": masked_logits,
            "masked_labels": labels,
        }

    def _masked_loss(
        self, masked_logits: torch.Tensor, labels: torch.LongTensor, num_masked: torch.Tensor
    ) -> torch.Tensor:
        """Mean over the masked positions; 0, with a way back, where none is: such a batch teaches nothing."""
        smoothing = self.config.label_smoothing
        # Written out, since exporters cannot take PyTorch's own apart while the number of rows is unknown.
        log_likelihoods = masked_logits.log_softmax(dim=1, dtype=torch.float32)
        of_labels = log_likelihoods.gather(1, labels[:, None]).sum()
        total = (smoothing - 1) * of_labels - smoothing * log_likelihoods.mean(dim=1).sum()
        return total / num_masked.clamp(min=1)

    @torch.no_grad()
    def _code_embeddings(self, device: torch.device) -> torch.Tensor:
        """(codebook_size, hidden_size), looked up: offloaded or sharded weights are there only in their own module."""
        return self.mage.embeddings.word_embeddings(torch.arange(self.config.codebook_size, device=device))


class MageForImageClassification(MagePreTrainedModel):
    """
    A classifier over the encoder: of the mean feature before the final norm, or of the class token after it
    (appendix B). For linear probing a batch norm without affine parameters comes before the linear layer.

    Its encoder can be loaded from the folder of any MAGE model:
    `MageForImageClassification.from_pretrained(folder, num_labels=10)`.
    """

    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^head\.", r"^mage\.layernorm\."]
    _may_be_missing = ("classifier.", "fc_norm.", "batch_norm.", "mage.layernorm.")

    def __init__(self, config: MageConfig):
        super().__init__(config)
        self.num_labels = num_labels = config.num_labels or 0
        pools_mean = config.classifier_pooling == "mean"
        self.mage = MageModel(config, add_final_layernorm=not pools_mean)
        width = config.hidden_size
        self.fc_norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if pools_mean else nn.Identity()
        probes = config.classifier_batch_norm
        self.batch_norm = nn.BatchNorm1d(width, affine=False, eps=1e-6) if probes else nn.Identity()
        self.classifier = nn.Linear(width, num_labels) if num_labels > 0 else nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        r"""
        Args:
            pixel_values, input_ids, interpolate_pos_encoding: see [`MageModel.forward`].
            labels (`torch.LongTensor` of shape `(batch_size,)` or `torch.FloatTensor` of shape
                `(batch_size, num_labels)`):
                for a loss. Integers are classes, smoothed by `config.classifier_label_smoothing` while training, and
                those equal to -100 do not count. What floats are depends on `config.problem_type`: shares of each
                class (`"single_label_classification"`, as after mixup), classes that may hold together
                (`"multi_label_classification"`, the default for floats) or targets (`"regression"`, the default for
                one label).

        Returns:
            [`ImageClassifierOutput`]: `logits` of shape `(batch_size, num_labels)`.
        """
        outputs: MageModelOutput = self.mage(
            pixel_values, input_ids, interpolate_pos_encoding=interpolate_pos_encoding, return_dict=True, **kwargs
        )
        pools_mean = self.config.classifier_pooling == "mean"
        last_hidden_state: Any = outputs.last_hidden_state
        pooled = outputs.pooler_output if pools_mean else last_hidden_state[:, 0]
        logits = self.classifier(self.batch_norm(self.fc_norm(pooled)))
        return ImageClassifierOutput(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """transformers' loss for `config.problem_type`, and what it lacks: smoothed classes and shares of classes."""
        are_ids = not labels.is_floating_point() and self.num_labels > 1
        problem_type = self.config.problem_type or ("single_label_classification" if are_ids else None)
        if problem_type != "single_label_classification":
            return self.loss_function(labels, logits, self.config)
        if are_ids:
            self._check_class_ids(labels)
        smoothing = self.config.classifier_label_smoothing if self.training and are_ids else 0.0
        return F.cross_entropy(logits.float(), labels.to(logits.device), label_smoothing=smoothing)

    def _check_class_ids(self, labels: torch.Tensor):
        is_wrong = ((labels < 0) & (labels != -100)) | (labels >= self.num_labels)
        if _is_on_host(labels) and is_wrong.any():
            raise ValueError(
                f"`labels` must be classes from 0 to {self.num_labels - 1}, or -100, which does not count, got "
                f"{int(labels[is_wrong][0])}. Load the model with as many labels: `num_labels=N`."
            )


def _joined(
    encoder: tuple[KeyValues, ...] | None, decoder: tuple[KeyValues, ...] | None
) -> tuple[KeyValues, ...] | None:
    return None if encoder is None or decoder is None else encoder + decoder


def _masked_first(bool_masked_pos: torch.BoolTensor, max_masked: int) -> torch.LongTensor:
    """(batch_size, max_masked) positions: the masked ones of each image in order, then some that are not."""
    if not 0 <= max_masked <= bool_masked_pos.shape[1]:
        raise ValueError(
            f"`max_masked` must be from 0 to {bool_masked_pos.shape[1]}, the number of positions, got {max_masked}."
        )
    if _is_on_host(bool_masked_pos) and (most := int(bool_masked_pos.sum(dim=1).max())) > max_masked:
        raise ValueError(f"`max_masked` is {max_masked}, but `bool_masked_pos` masks {most} positions of an image.")
    return bool_masked_pos.byte().argsort(dim=1, descending=True, stable=True)[:, :max_masked]


def _masked_rows(bool_masked_pos: torch.BoolTensor, num_masked: int | None) -> torch.LongTensor:
    """(num_masked,) indices of the masked positions in the flattened batch."""
    flat = bool_masked_pos.flatten()
    if num_masked is None:
        return flat.nonzero().squeeze(1)
    if not 0 <= num_masked <= flat.shape[0]:
        raise ValueError(f"`num_masked` must be from 0 to {flat.shape[0]} (all positions), got {num_masked}.")
    if _is_on_host(flat) and (count := int(flat.sum())) != num_masked:
        raise ValueError(f"`num_masked` is {num_masked}, but `bool_masked_pos` masks {count} positions in the batch.")
    return torch.nonzero_static(flat, size=num_masked).squeeze(1)


def _is_on_host(tensor: torch.Tensor) -> bool:
    """Whether values can be looked at without stopping an accelerator, a compilation or a recording."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def _as_bool_mask(name: str, mask: torch.Tensor | None, shape: torch.Size) -> torch.BoolTensor | None:
    """Integer masks are as good as bool ones."""
    if mask is None:
        return None
    is_integer = not (mask.is_floating_point() or mask.is_complex())
    if mask.shape != shape or not is_integer:
        raise ValueError(
            f"`{name}` must be a bool tensor, or one of the integers 0 and 1, of shape {tuple(shape)}, got "
            f"{mask.dtype} of shape {tuple(mask.shape)}."
        )
    if mask.dtype == torch.bool:
        return mask
    is_wrong = (mask != 0) & (mask != 1)
    if _is_on_host(mask) and is_wrong.any():
        raise ValueError(f"`{name}` must hold 0 and 1 only, got {int(mask[is_wrong][0])}.")
    return mask.bool()


def _check_image_tokens(image_tokens: torch.Tensor, codebook_size: int, mask_token_id: int | None = None):
    if image_tokens.ndim not in (2, 3) or not image_tokens.numel():
        raise ValueError(
            "Tokens must have shape (batch_size, sequence_length) or (batch_size, rows, columns) and not be empty, "
            f"got {tuple(image_tokens.shape)}."
        )
    if image_tokens.is_floating_point() or image_tokens.dtype == torch.bool:
        raise ValueError(f"Tokens must be integers, got {image_tokens.dtype}.")
    if not _is_on_host(image_tokens):
        return
    is_code = (image_tokens >= 0) & (image_tokens < codebook_size)
    is_known = is_code if mask_token_id is None else is_code | (image_tokens == mask_token_id)
    if not is_known.all():
        allowed = f"codes from 0 to {codebook_size - 1}"
        allowed += "" if mask_token_id is None else f" or the mask token {mask_token_id}"
        raise ValueError(f"Tokens must be {allowed}, got {int(image_tokens[~is_known][0])}.")


def _check_labels(is_unknown: torch.BoolTensor, bool_masked_pos: torch.BoolTensor):
    if _is_on_host(is_unknown) and (is_unknown & bool_masked_pos).any():
        raise ValueError(
            "`bool_masked_pos` marks positions whose code is unknown (`input_ids` holds the mask token there), so "
            "there is no label to learn from. Leave `bool_masked_pos` out to predict them."
        )


__all__ = [
    "MageForImageClassification",
    "MageForMaskedImageModeling",
    "MageMaskedImageModelingOutput",
    "MageModel",
    "MagePreTrainedModel",
    "check_weights",
]
