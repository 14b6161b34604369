"""MAGE model configuration."""

import math
from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

# The vocabulary of the JAX original: the codes, a thousand class tokens that MAGE never trained, and the mask token.
CLASS_TOKENS = 1000
UNCONDITIONAL_CLASS = 76


@strict
class MageConfig(PreTrainedConfig):
    r"""
    Configuration of [`MageModel`] and of the models built on it. The defaults are the published ViT-B without a
    tokenizer (MAGE, arXiv 2211.09117, section 4 and appendix).

    Args:
        codebook_size (`int`, *optional*, defaults to 1024):
            Number of codes K of the tokenizer. The vocabulary is the K codes, then 1000 class tokens of the JAX
            original, of which only the "unconditional" one (id K + 76) is used, then the mask token (id K + 1000).
        image_size (`int` or `tuple[int, int]`, *optional*, defaults to 256):
            Height and width, in pixels, of the images that the model was trained on.
        patch_size (`int`, *optional*, defaults to 16):
            Side, in pixels, of the square that one token stands for: the tokenizer's downsampling factor.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size (`int`):
            Width, depth, heads and MLP width of the encoder. `intermediate_size` defaults to 4 times the width.
        decoder_hidden_size, decoder_num_hidden_layers, decoder_num_attention_heads, decoder_intermediate_size (`int`):
            The same of the decoder.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the MLPs and of the prediction head.
        hidden_dropout_prob (`float`, *optional*, defaults to 0.1):
            Dropout after the embeddings, the attention projection and both MLP layers, while training.
        attention_probs_dropout_prob (`float`, *optional*, defaults to 0.1):
            Dropout on the attention probabilities, while training.
        drop_path_rate (`float`, *optional*, defaults to 0.0):
            Stochastic depth of the encoder, rising linearly over its layers to this rate (fine-tuning).
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the embeddings at initialisation.
        layer_norm_eps (`float`, *optional*, defaults to 1e-6):
            Epsilon of the layer norms. The prediction head's is always 1e-5, as in the original.
        qkv_bias (`bool`, *optional*, defaults to `True`):
            Whether queries, keys and values have a bias.
        mask_ratio_mean, mask_ratio_std, mask_ratio_min, mask_ratio_max (`float`):
            The variable masking ratio (section 3.2): a normal distribution (0.55, 0.25) truncated to [0.5, 1].
        drop_ratio (`float`, *optional*):
            Share of the tokens that the encoder never sees while training, at most `mask_ratio_min`, which is the
            default.
        label_smoothing (`float`, *optional*, defaults to 0.1):
            Label smoothing of the training losses.
        num_classes (`int`, *optional*, defaults to 0):
            Number of classes that generation can be conditioned on; 0 is the unconditional model. `id2label` names
            them, and has as many entries unless it is given.
        class_dropout_prob (`float`, *optional*, defaults to 0.1):
            Probability that a training image's class is replaced by the unconditional token, for guidance.
        class_embedding_is_normalized (`bool`, *optional*, defaults to `True`):
            Whether a class's vector takes the place of the unconditional token's before the position is added and the
            layer norm is applied, or that of their result (as RCG's class-conditional models).
        representation_size (`int`, *optional*):
            Numbers in a representation that generation is conditioned on (RCG, arXiv 2312.03701); `None` for models
            without.
        representation_source (`dict`, *optional*):
            Where these representations come from: the values of a [`RepresentationSource`].
        representation_dropout_prob (`float`, *optional*, defaults to 0.1):
            Probability that a training image's representation is replaced by the learned empty one, for guidance.
        classifier_pooling (`str`, *optional*, defaults to `"mean"`):
            What [`MageForImageClassification`] classifies: `"mean"`, the image tokens' mean before the final norm (the
            paper's choice), or `"cls"`, the class token after it.
        classifier_batch_norm (`bool`, *optional*, defaults to `False`):
            Whether a batch norm without affine parameters precedes the classifier's linear layer (linear probing).
        classifier_label_smoothing (`float`, *optional*, defaults to 0.0):
            Label smoothing of the classifier's loss while training; 0.1 in the paper's fine-tuning.
        vq_config (`dict`, *optional*):
            Configuration of the tokenizer, a diffusers `VQModel`. Without it the model takes `input_ids` only. Its
            entry `_pixel_range` is what black and white are to the tokenizer, [0, 1] where it is missing.

    Raises:
        ValueError: for a value that makes no model; the message says which values would do.

    Example:

    ```python
    >>> from transformers_mage import MageConfig, MageModel

    >>> model = MageModel(MageConfig())  # ViT-B with random weights, taking input_ids
    ```
    """

    model_type = "mage"

    if TYPE_CHECKING:
        # Set in any case by then, with numbers for keys.
        id2label: dict[int, str]

    codebook_size: int = 1024
    image_size: int | list[int] | tuple[int, int] = 256
    patch_size: int = 16
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int | None = None
    decoder_hidden_size: int = 768
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int | None = None
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    drop_path_rate: float | int = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    mask_ratio_mean: float | int = 0.55
    mask_ratio_std: float | int = 0.25
    mask_ratio_min: float | int = 0.5
    mask_ratio_max: float | int = 1.0
    drop_ratio: float | int | None = None
    label_smoothing: float | int = 0.1
    num_classes: int = 0
    class_dropout_prob: float | int = 0.1
    class_embedding_is_normalized: bool = True
    representation_size: int | None = None
    representation_source: dict[str, Any] | None = None
    representation_dropout_prob: float | int = 0.1
    classifier_pooling: str = "mean"
    classifier_batch_norm: bool = False
    classifier_label_smoothing: float | int = 0.0
    vq_config: dict[str, Any] | None = None

    def __post_init__(self, **kwargs):
        self.intermediate_size = self.intermediate_size or 4 * self.hidden_size
        self.decoder_intermediate_size = self.decoder_intermediate_size or 4 * self.decoder_hidden_size
        self.drop_ratio = self.mask_ratio_min if self.drop_ratio is None else self.drop_ratio
        if self.num_classes > 0 and self.id2label is None:
            kwargs.setdefault("num_labels", self.num_classes)
        super().__post_init__(**kwargs)

    @property
    def vocab_size(self) -> int:
        """K codes, 1000 class tokens, 1 mask token."""
        return self.codebook_size + CLASS_TOKENS + 1

    @property
    def mask_token_id(self) -> int:
        return self.codebook_size + CLASS_TOKENS

    @property
    def unconditional_token_id(self) -> int:
        return self.codebook_size + UNCONDITIONAL_CLASS

    @property
    def image_height_width(self) -> tuple[int, int]:
        """Height and width, in pixels, of the images that the model was trained on."""
        return _height_and_width(self.image_size)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of tokens that an image of `image_size` has."""
        height, width = self.image_height_width
        return height // self.patch_size, width // self.patch_size

    @property
    def sequence_length(self) -> int:
        """Tokens an image L, without the class token."""
        rows, columns = self.grid_size
        return rows * columns

    @property
    def num_channels(self) -> int:
        """Colours of the images, as the tokenizer takes them: 3, or 1 for grey ones."""
        return 3 if self.vq_config is None else self.vq_config.get("in_channels", 3)

    def validate_sizes(self):
        layers = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        for name in ("codebook_size", "patch_size", *layers, *(f"decoder_{layer}" for layer in layers)):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.representation_size is not None and self.representation_size < 1:
            raise ValueError(f"`representation_size` must be at least 1, or None, got {self.representation_size}.")
        if self.num_classes < 0:
            raise ValueError(f"`num_classes` must be 0 (unconditional) or more, got {self.num_classes}.")
        for side in _height_and_width(self.image_size):
            if side < 1 or side % self.patch_size:
                raise ValueError(
                    f"`image_size` must be a multiple of `patch_size` ({self.patch_size}), got {self.image_size}."
                )

    def validate_heads(self):
        for prefix in ("", "decoder_"):
            width, heads = getattr(self, prefix + "hidden_size"), getattr(self, prefix + "num_attention_heads")
            if heads > 0 and width % heads:
                divisors = [n for n in range(1, min(width, 32) + 1) if width % n == 0]
                raise ValueError(
                    f"`{prefix}num_attention_heads` must divide `{prefix}hidden_size` ({width}), got {heads}. "
                    f"Any of {divisors} would do."
                )

    def validate_layers(self):
        # Needs torch, as configurations do not.
        from transformers.activations import ACT2FN

        if self.hidden_act not in ACT2FN:
            raise ValueError(f"`hidden_act` must be one of {sorted(ACT2FN)}, got {self.hidden_act!r}.")
        if not 0 < self.layer_norm_eps < math.inf:
            raise ValueError(f"`layer_norm_eps` must be above 0 and finite, got {self.layer_norm_eps}.")
        if not 0 <= self.initializer_range < math.inf:
            raise ValueError(f"`initializer_range` must be 0 or more and finite, got {self.initializer_range}.")

    def validate_masking(self):
        low, high, mean, std = self.mask_ratio_min, self.mask_ratio_max, self.mask_ratio_mean, self.mask_ratio_std
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"The mask ratios must satisfy 0 < `mask_ratio_min` <= `mask_ratio_max` <= 1, got {low} and {high}."
            )
        if not 0 <= std < math.inf:
            raise ValueError(f"`mask_ratio_std` must be 0 (a fixed ratio) or more and finite, got {std}.")
        # Farther out the distribution that is cut to the range has no mass that numbers could hold.
        if not low - 6 * std <= mean <= high + 6 * std:
            raise ValueError(
                f"`mask_ratio_mean` must lie between `mask_ratio_min` ({low}) and `mask_ratio_max` ({high}), or at "
                f"most 6 `mask_ratio_std` ({std}) outside, got {mean}."
            )
        if self.drop_ratio is not None and not 0 <= self.drop_ratio <= low:
            raise ValueError(
                "Only masked tokens can be dropped: `drop_ratio` must lie between 0 and `mask_ratio_min` "
                f"({low}), got {self.drop_ratio}."
            )

    def validate_probabilities(self):
        names = (
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "drop_path_rate",
            "class_dropout_prob",
            "representation_dropout_prob",
            "label_smoothing",
            "classifier_label_smoothing",
        )
        for name in names:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must lie between 0 and 1, got {getattr(self, name)}.")

    def validate_classifier(self):
        if self.classifier_pooling not in ("mean", "cls"):
            raise ValueError(f'`classifier_pooling` must be "mean" or "cls", got "{self.classifier_pooling}".')

    def validate_tokenizer(self):
        if self.vq_config is None:
            return
        codes = self.vq_config.get("num_vq_embeddings", 256)
        if codes != self.codebook_size:
            raise ValueError(
                f"`codebook_size` is {self.codebook_size} but the tokenizer of `vq_config` has {codes} codes "
                f"(`num_vq_embeddings`). Pass `codebook_size={codes}`."
            )
        factor = 2 ** (len(self.vq_config.get("block_out_channels", (64,))) - 1)
        if factor != self.patch_size:
            raise ValueError(
                f"`patch_size` is {self.patch_size} but the tokenizer of `vq_config` makes one token of "
                f"{factor} x {factor} pixels. Pass `patch_size={factor}`."
            )


def _height_and_width(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    if not isinstance(size, int) and len(size) != 2:
        raise ValueError(f"`image_size` must be a side, or a height and a width, got {size}.")
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


__all__ = ["MageConfig"]
