"""Makes models of original checkpoints, writes them as folders and holds what was written against what was meant."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import VQModel
from transformers import CLIPImageProcessorPil, PreTrainedModel

from ..configuration_mage import MageConfig
from ..data.images import evaluation_processor
from ..modeling_mage import MageForImageClassification, MageForMaskedImageModeling, MagePreTrainedModel
from ..pipeline_mage import MagePipeline
from ..representation_diffusion import RepresentationDiffusionModel
from ..representation_encoders import ViTWithProjection
from ..scheduling_mage import MageScheduler
from ..vq_shortcuts import skip_noop_layers
from .names import convert_model, convert_tokenizer
from .reading import CheckpointError, OriginalCheckpoint
from .representation_diffusion import convert_representation_diffusion
from .representation_encoder import (
    convert_representation_encoder,
    has_projection,
    representation_encoder_config,
    representation_source,
)
from .sizes import Convertible, build_empty, check_names_and_shapes, read_diffusion_config

PAPER_STEPS, PAPER_TEMPERATURE = 20, 6.0
# The same weights compute the same up to the order in which sums are taken.
_TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def fill_model(model: Convertible, checkpoint: OriginalCheckpoint, dtype: torch.dtype = torch.float32) -> Convertible:
    """
    Gives an empty model the weights of `checkpoint`, which in float32 stay where they are. The tokenizer's stay in
    float32 in any case: fewer digits would change tokens.
    """
    is_diffusion = isinstance(model, RepresentationDiffusionModel)
    converted = (convert_representation_diffusion if is_diffusion else convert_model)(checkpoint.model)
    weights = {name: _cast(weight, dtype) for name, weight in converted.items()}
    if checkpoint.tokenizer is not None:
        prefix = "" if checkpoint.kind == "tokenizer" else "mage.vqvae."
        tokenizer = convert_tokenizer(
            {name: _cast(weight, torch.float32) for name, weight in checkpoint.tokenizer.items()}
        )
        weights |= {prefix + name: weight for name, weight in tokenizer.items()}
    model.load_state_dict(weights, assign=True)
    vqvae = tokenizer_of(model)
    if vqvae is not None:
        skip_noop_layers(vqvae.requires_grad_(False))
    return model.eval()


def tokenizer_of(model: Convertible) -> VQModel | None:
    if isinstance(model, RepresentationDiffusionModel):
        return None
    return model if isinstance(model, VQModel) else model.base_model.vqvae


def image_processor(config: MageConfig, kind: str) -> CLIPImageProcessorPil:
    """
    The paper's evaluation crop. Fine-tuning normalised the pixels that enter the tokenizer, nothing else did.
    """
    channels = config.num_channels
    return evaluation_processor(config.image_height_width, channels, normalize=kind == "classifier" and channels == 3)


def write_model(model: Convertible, kind: str, folder: Path, parts: Mapping[str, Any] = MappingProxyType({})):
    """
    Writes everything that loads: weights, configuration, processor, and what makes it a pipeline, with the `parts` of
    one that is led by representations.
    """
    if isinstance(model, (VQModel, RepresentationDiffusionModel)):
        model.save_pretrained(folder)
        return
    processor = image_processor(model.config, kind)
    if isinstance(model, MageForMaskedImageModeling):
        scheduler = MageScheduler(
            model.config.mask_token_id, temperature=PAPER_TEMPERATURE, num_inference_steps=PAPER_STEPS
        )
        MagePipeline(model, scheduler, processor, **parts).save_pretrained(folder)
        return
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def read_model(folder: Path, model_class: Any) -> Convertible:
    """The model of a class that has `from_pretrained`, as a user would load it."""
    model = model_class.from_pretrained(folder)
    if isinstance(model, VQModel):
        skip_noop_layers(model.requires_grad_(False))
    return model.eval()


@torch.no_grad()
def forward_pass(model: Convertible | PreTrainedModel) -> dict[str, torch.Tensor]:
    """What a model computes from fixed random inputs: every weight of it takes part."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(model, RepresentationDiffusionModel):
        return _diffusion_pass(model, generator)
    if isinstance(model, ViTWithProjection):
        side = model.config.image_size
        return {"representations": model(torch.rand(1, 3, side, side, generator=generator)).pooler_output}
    assert isinstance(model, (VQModel, MagePreTrainedModel))
    outputs = _tokenizer_pass(tokenizer_of(model), generator)
    if isinstance(model, VQModel):
        return outputs
    config = model.config
    tokens = torch.randint(config.codebook_size, (1, config.sequence_length), generator=generator)
    if isinstance(model, MageForImageClassification):
        return outputs | {"logits": model(input_ids=tokens).logits}
    tokens[:, ::2] = config.mask_token_id
    features = model.base_model(input_ids=tokens).pooler_output
    outputs |= {"features": features, "logits": model(input_ids=tokens).logits}
    if config.representation_size is None:
        return outputs
    representations = torch.rand(1, config.representation_size, generator=generator).to(model.dtype)
    return outputs | {"led logits": model(input_ids=tokens, representations=representations).logits}


def _diffusion_pass(model: RepresentationDiffusionModel, generator: torch.Generator) -> dict[str, torch.Tensor]:
    noise = torch.rand(2, model.config.representation_size, generator=generator).to(model.dtype)
    classes = None if model.config.num_classes is None else torch.tensor([0, model.config.num_classes - 1])
    return {"prediction": model(noise, torch.tensor([1, 500]), classes).sample}


def compare_passes(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
    """
    The largest relative difference between two forward passes.

    Raises:
        CheckpointError: where it is more than rounding.
    """
    worst = 0.0
    for name, expected in before.items():
        error = ((after[name].double() - expected.double()).norm() / expected.double().norm()).item()
        # The other way round, so that numbers that are none fail too.
        if not error <= _TOLERANCE[expected.dtype] or after[name].dtype != expected.dtype:
            raise CheckpointError(
                f"The written folder computes other {name} than the model that was written: relative difference "
                f"{error:.1e}, {after[name].dtype} instead of {expected.dtype}."
            )
        worst = max(worst, error)
    return worst


def representation_parts(
    checkpoint: OriginalCheckpoint, config: MageConfig, diffusion: OriginalCheckpoint | None, dtype: torch.dtype
) -> dict[str, Any]:
    """
    What a model that is led by representations needs besides itself, as components of its pipeline: the encoder in its
    checkpoint, of which `config` is told, and the diffusion of a second one.

    Raises:
        CheckpointError: where the diffusion draws representations for another model, or there is no such model.
    """
    parts: dict[str, Any] = {}
    if diffusion is not None:
        sizes = read_diffusion_config(diffusion)
        if sizes["representation_size"] != config.representation_size:
            raise CheckpointError(
                f"{diffusion.path} draws representations of {sizes['representation_size']} numbers, and "
                f"{checkpoint.path} is led by "
                + (f"{config.representation_size}." if config.representation_size else "none.")
            )
        model = build_empty(diffusion, sizes)
        check_names_and_shapes(diffusion, model)
        parts["representation_model"] = fill_model(model, diffusion, dtype)
    encoder = checkpoint.representation_encoder
    if config.representation_size is None or not has_projection(encoder):
        return parts
    encoder_config = representation_encoder_config(encoder)
    if encoder_config.projection_size == config.representation_size:
        config.representation_source = representation_source(encoder_config).as_dict()
        converted: Any = convert_representation_encoder(encoder)
        parts["representation_encoder"] = converted.to(dtype)
    return parts


def check_free(out: Path):
    """Refuses to overwrite; the place may be an empty folder."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise CheckpointError(f"{out} exists already. Choose another place, or remove it first.")


def _cast(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return (weight.to(dtype) if weight.is_floating_point() else weight).contiguous()


def _tokenizer_pass(vqvae: VQModel | None, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Of an image of 4 x 4 tokens: the tokenizer is convolutional, so that a small image tells as much."""
    if vqvae is None:
        return {}
    side = 4 * 2 ** (len(vqvae.config.block_out_channels) - 1)
    pixels = torch.rand(1, vqvae.config.in_channels, side, side, generator=generator)
    codes = torch.randint(vqvae.config.num_vq_embeddings, (1, 4, 4), generator=generator)
    quantized = vqvae.quantize.embedding(codes).permute(0, 3, 1, 2).contiguous()
    decoded = vqvae.decoder(vqvae.post_quant_conv(quantized))
    return {"latents": vqvae.encode(pixels).latents, "pixels": decoded}
