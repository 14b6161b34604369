"""The model card of a converted checkpoint: what it is, how to use it, what was published about it, whose it is."""

import re
from dataclasses import dataclass

from huggingface_hub import ModelCard, ModelCardData

from ..configuration_mage import MageConfig
from ..hub.model_card import CITATION, PAPER, RCG_PAPER
from .reading import OriginalCheckpoint

ORIGINAL = "https://github.com/LTH14/mage"
RCG = "https://github.com/LTH14/rcg"
RCG_CITATION = """@inproceedings{li2024return,
  title     = {Return of Unconditional Generation: A Self-supervised Representation Generation Method},
  author    = {Li, Tianhong and Katabi, Dina and He, Kaiming},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2024}
}"""
MASKGIT_PAPER = "https://arxiv.org/abs/2202.04200"
MASKGIT = "https://github.com/google-research/maskgit"
_PIPELINE_TAGS = {
    "pretraining": "unconditional-image-generation",
    "classifier": "image-classification",
    "probe": "image-classification",
    "tokenizer": "image-to-image",
    "representation_diffusion": None,
}
_TITLES = {
    "pretraining": "{family} {size}",
    "classifier": "{family} {size}, fine-tuned as a classifier",
    "probe": "{family} {size}, linear probe",
    "tokenizer": "Image tokenizer of MAGE",
    "representation_diffusion": "Diffusion of representations of RCG",
}


@dataclass(frozen=True)
class PublishedResults:
    """What the paper reports on ImageNet-1k at 256 x 256; accuracies are top-1 in per cent."""

    fid: float
    inception_score: float
    probe: float
    contrastive_probe: float
    fine_tuned: float


_PUBLISHED_RESULTS = {
    "ViT-B": PublishedResults(11.1, 81.2, probe=74.7, contrastive_probe=78.2, fine_tuned=82.5),
    "ViT-L": PublishedResults(9.10, 105.1, probe=78.9, contrastive_probe=80.9, fine_tuned=83.9),
}
_GENERATION_NOTES = {
    "ViT-B": " FID and Inception Score are over 50,000 samples of 20 steps at temperature 6.0.",
    "ViT-L": (
        " FID and Inception Score are over 50,000 samples, whose temperature was found by a grid search for this "
        "size; the scheduler here starts from that of ViT-B, 20 steps at 6.0."
    ),
}
_PUBLISHED_SIZES = {(12, 768, 1024, 256): "ViT-B", (24, 1024, 1024, 256): "ViT-L"}


def published_size(config: MageConfig) -> str | None:
    """`"ViT-B"` or `"ViT-L"`, where a model has the depth, width, codebook and image size of that published one."""
    sizes = (config.num_hidden_layers, config.hidden_size, config.codebook_size, max(config.image_height_width))
    return _PUBLISHED_SIZES.get(sizes)


def is_contrastive(checkpoint: OriginalCheckpoint) -> bool:
    """Whether a checkpoint is MAGE-C's, which its projection head tells, or else only the file's name."""
    return bool(checkpoint.projection_head or re.search(r"mage[-_]?c(?![a-z])", checkpoint.path.stem.lower()))


def is_rcg(checkpoint: OriginalCheckpoint) -> bool:
    """Whether a checkpoint is one of RCG's, of MAGE's first author."""
    return checkpoint.kind == "representation_diffusion" or any(
        name.startswith(("latent_prior_proj.", "class_emb.")) for name in checkpoint.model
    )


def title(checkpoint: OriginalCheckpoint, config: MageConfig | None) -> str:
    """What a checkpoint is, in a line; a tokenizer has no `config`."""
    size = published_size(config) if config else None
    if checkpoint.is_maskgit:
        return "Image tokenizer of MaskGIT"
    if is_rcg(checkpoint) and checkpoint.kind == "pretraining":
        by = "a representation" if config is not None and config.representation_size else "a class"
        return f"MAGE {size or 'of another size'}, led by {by} (RCG)"
    family = "MAGE-C" if is_contrastive(checkpoint) else "MAGE"
    return _TITLES[checkpoint.kind].format(family=family, size=size or "of another size")


def model_card(checkpoint: OriginalCheckpoint, config: MageConfig | None, usage: str) -> ModelCard:
    """
    The card of the folder that `checkpoint` becomes.

    Args:
        checkpoint ([`OriginalCheckpoint`]): what was converted.
        config ([`MageConfig`], *optional*): its model's; a tokenizer has none.
        usage (`str`): a code example.
    """
    size = published_size(config) if config else None
    data = ModelCardData(
        license="apache-2.0" if checkpoint.is_maskgit else "mit",
        library_name="transformers" if checkpoint.kind in ("classifier", "probe") else "diffusers",
        pipeline_tag=_PIPELINE_TAGS[checkpoint.kind],
        datasets=["ILSVRC/imagenet-1k"] if size else None,
        tags=["mage", "masked-image-modeling", "vqgan"],
    )
    sections = [
        f"# {title(checkpoint, config)}",
        _description(checkpoint, config),
        f"## Use\n\n```python\n{usage}\n```",
        _results(checkpoint, size),
        _provenance(checkpoint),
        f"## Citation\n\n```bibtex\n{RCG_CITATION if is_rcg(checkpoint) else CITATION}\n```",
    ]
    text = "\n\n".join(section for section in sections if section)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n")


def _description(checkpoint: OriginalCheckpoint, config: MageConfig | None) -> str:
    if checkpoint.kind == "representation_diffusion":
        return (
            f"What draws representations of images that do not exist, for [RCG]({RCG_PAPER}): a MAGE that is led by "
            "representations makes images of them."
        )
    if config is None:
        model = f"[MaskGIT]({MASKGIT_PAPER})" if checkpoint.is_maskgit else f"[MAGE]({PAPER})"
        return (
            f"The VQGAN whose codes {model} models, as a stock `VQModel` of diffusers. It turns RGB images in "
            "[0, 1] into a grid of codes and back."
        )
    does = {
        "pretraining": f"generates images by iterative decoding{_led_by(config)} and gives features of images",
        "classifier": f"sorts images into {config.num_labels} classes",
        "probe": f"sorts images into {config.num_labels} classes by a linear layer over frozen features",
    }[checkpoint.kind]
    rows, columns = config.grid_size
    tokenizer = "with its tokenizer inside" if config.vq_config else "without a tokenizer: it takes and gives tokens"
    return (
        f"[MAGE]({PAPER}) is a masked generative encoder: one model, trained once by masked image modelling over the "
        f"tokens of a VQGAN, for generation and representation. This one {does}.\n\n"
        f"Encoder of {config.num_hidden_layers} layers of width {config.hidden_size} with "
        f"{config.num_attention_heads} heads; {rows} x {columns} tokens out of {config.codebook_size} codes for an "
        f"image of {config.image_size} x {config.image_size} pixels; {tokenizer}."
    )


def _led_by(config: MageConfig) -> str:
    if config.representation_size is not None:
        return f", led by a representation of {config.representation_size} numbers ([RCG]({RCG_PAPER})),"
    return f" of {config.num_classes} classes" if config.num_classes else ""


def _results(checkpoint: OriginalCheckpoint, size: str | None) -> str:
    if size is None or is_rcg(checkpoint):
        return ""
    rows, notes = _published_rows(checkpoint.kind, size, is_contrastive(checkpoint))
    if not rows:
        return ""
    family = "MAGE-C" if is_contrastive(checkpoint) else "MAGE"
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return (
        f"## Published results\n\nWhat the paper reports for its {family} {size} after 1600 epochs on ImageNet-1k at "
        f"256 x 256; they were not measured again on these weights.{notes}\n\n| | {size} |\n| --- | --- |\n{table}"
    )


def _published_rows(kind: str, size: str, contrastive: bool) -> tuple[list[tuple[str, float]], str]:
    """Rows of the table, and what has to be said of them."""
    published = _PUBLISHED_RESULTS[size]
    probe = ("linear probe, top-1 (%)", published.contrastive_probe if contrastive else published.probe)
    fine_tuned = ("fine-tuned, top-1 (%)", published.fine_tuned)
    if kind == "probe":
        return [probe], ""
    if kind == "classifier":
        return ([] if contrastive else [fine_tuned]), ""
    if contrastive:
        return [probe], ""
    generation = [("FID, unconditional", published.fid), ("Inception Score", published.inception_score)]
    return [*generation, probe, fine_tuned], _GENERATION_NOTES[size]


def _provenance(checkpoint: OriginalCheckpoint) -> str:
    original, licence = (MASKGIT, "Apache-2.0") if checkpoint.is_maskgit else (ORIGINAL, "MIT")
    original = RCG if is_rcg(checkpoint) else original
    epoch = f" It was saved after epoch {checkpoint.epoch + 1}." if checkpoint.epoch is not None else ""
    return (
        f"## Where it comes from\n\nConverted from `{checkpoint.path.name}` by "
        f"`python -m transformers_mage.convert_original_checkpoint`, which compared a forward pass before and after."
        f"{epoch} The original implementation and its weights are at {original}, under the {licence} licence."
    )
