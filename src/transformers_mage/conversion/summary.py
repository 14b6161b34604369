"""What a conversion says: what went where, and what to type next."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from ..modeling_mage import MagePreTrainedModel
from .reading import OriginalCheckpoint
from .sizes import Convertible

# Our prefix, and the original's names that go there; the first that fits counts.
_PARTS = {
    "mage.vqvae.": "vqgan.*",
    "mage.embeddings.representation_embeddings.": "latent_prior_proj.*, fake_latent",
    "mage.": "token_emb.*, blocks.*, norm.*",
    "decoder.": "decoder_*",
    "head.": "mlm_layer.*",
    "fc_norm.": "fc_norm.*",
    "batch_norm.": "head.0.*",
    "classifier.": "head.*",
}
# Where the components of a pipeline that is led by representations come from.
_PART_SOURCES = {"representation_model": "model.diffusion_model.*", "representation_encoder": "pretrained_encoder.*"}
_USAGE = {
    "pretraining": """from transformers_mage import MagePipeline

pipe = MagePipeline.from_pretrained("{name}")
pipe(num_images=4).images[0].save("image.png")

from transformers import AutoImageProcessor, AutoModel

processor, model = AutoImageProcessor.from_pretrained("{name}"), AutoModel.from_pretrained("{name}")
features = model(**processor(pipe().images, return_tensors="pt")).pooler_output""",
    "classifier": """import transformers_mage
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

processor = AutoImageProcessor.from_pretrained("{name}")
model = AutoModelForImageClassification.from_pretrained("{name}")
logits = model(**processor(Image.open("image.png"), return_tensors="pt")).logits
print(model.config.id2label[logits.argmax().item()])""",
    "tokenizer": """from diffusers import VQModel

vqvae = VQModel.from_pretrained("{name}")  # images in [0, 1]
latents = vqvae.encode(pixel_values).latents
pixel_values = vqvae.decode(latents).sample""",
    "representation_diffusion": """from transformers_mage import RepresentationDiffusionModel
from transformers_mage.representation_diffusion import draw_representations

model = RepresentationDiffusionModel.from_pretrained("{name}")
representations = draw_representations(model, 4)""",
    "tokens only": """import transformers_mage
from transformers import AutoModel

model = AutoModel.from_pretrained("{name}")  # without a tokenizer it takes tokens
features = model(input_ids=image_tokens).pooler_output""",
}


def usage(checkpoint: OriginalCheckpoint, name: str) -> str:
    """Code that uses the folder or repository `name`."""
    kind = "classifier" if checkpoint.kind == "probe" else checkpoint.kind
    if checkpoint.tokenizer is None and kind != "representation_diffusion":
        kind = "tokens only"
    return _USAGE[kind].format(name=name)


def table(model: Convertible, checkpoint: OriginalCheckpoint, parts: Mapping[str, nn.Module]) -> str:
    """Where the tensors went, how many there are, and what was left out."""
    rows = [("original", "here", "tensors", "parameters", "precision"), *_part_rows(model)]
    rows += [_row(_PART_SOURCES[name], f"{name}/", list(part.state_dict().values())) for name, part in parts.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += ["", *_left_out(checkpoint, parts)]
    return "\n".join(lines).rstrip()


def next_steps(checkpoint: OriginalCheckpoint, out: Path, has_labels: bool) -> str:
    """What is still missing, and code to start with."""
    code = "\n".join(f"    {line}".rstrip() for line in usage(checkpoint, str(out)).splitlines())
    hints = ""
    if checkpoint.tokenizer is None and checkpoint.kind != "representation_diffusion":
        hints += (
            "\nThe checkpoint has no tokenizer inside; to work on images, convert it again with "
            "`--tokenizer vqgan_jax_strongaug.ckpt`.\n"
        )
    if checkpoint.kind in ("classifier", "probe") and not has_labels:
        hints += "\nThe classes have numbers for names; `--labels FILE` with a name a line gives them theirs.\n"
    return f"{hints}\nNext:\n\n{code}"


def _part_rows(model: Convertible) -> list[tuple[str, ...]]:
    parts = _PARTS if isinstance(model, MagePreTrainedModel) else {"": "*"}
    state = model.state_dict()
    rows: list[tuple[str, ...]] = []
    for prefix, original in parts.items():
        names = [name for name in state if name.startswith(prefix)]
        weights = [state.pop(name) for name in names]
        if weights:
            rows.append(_row(original, f"{prefix}*", weights))
    return rows


def _row(original: str, here: str, weights: Sequence[torch.Tensor]) -> tuple[str, ...]:
    millions = sum(weight.numel() for weight in weights) / 1e6
    precision = str(weights[0].dtype).removeprefix("torch.")
    return original, here, str(len(weights)), f"{millions:.2f} M", precision


def _left_out(checkpoint: OriginalCheckpoint, parts: Mapping[str, nn.Module]) -> list[str]:
    lines = []
    if checkpoint.representation_encoder and "representation_encoder" not in parts:
        lines.append(
            "Left out, an encoder that the model is not led by, or that is not MoCo v3's: pretrained_encoder.*."
        )
    if checkpoint.unused:
        lines.append(f"Left out, as the original never reads them: {', '.join(checkpoint.unused)}.")
    if checkpoint.projection_head:
        lines.append(f"Left out, the projection head of MAGE-C: {', '.join(checkpoint.projection_head)}.")
    if checkpoint.training_state:
        lines.append(f"Left out, training state: {', '.join(checkpoint.training_state)}.")
    return lines
