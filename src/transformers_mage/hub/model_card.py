"""Model cards: what a model is, what it makes, how to use it, how it came about and what it reached."""

import json
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeGuard

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from PIL import Image

from ..configuration_mage import MageConfig
from .cards import markdown_table

Task = Literal["generation", "classification", "tokenization"]

logger = logging.getLogger(__name__)

# What a card ends with that the next training may replace: whoever edits it takes this out.
MARK = "<!-- Written by transformers_mage: without this line it is kept. -->"
PAPER = "https://arxiv.org/abs/2211.09117"
RCG_PAPER = "https://arxiv.org/abs/2312.03701"
CITATION = """@inproceedings{li2023mage,
  title     = {{MAGE}: {MAsked} {Generative} {Encoder} to Unify Representation Learning and Image Synthesis},
  author    = {Li, Tianhong and Chang, Huiwen and Mishra, Shlok Kumar and Zhang, Han and Katabi, Dina and
               Krishnan, Dilip},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2023}
}"""
_LIMITS = {
    "generation": (
        "It makes images of the kind that it was trained on and of no other, with the biases of that data. What it "
        "paints into the gaps of an image is plausible, not true."
    ),
    "classification": (
        "It knows the classes above and sorts every image into one of them, whatever it shows. It was measured on "
        "images like those that it was trained on."
    ),
    "tokenization": (
        "It reconstructs images of the kind that it was trained on; details smaller than a token are lost."
    ),
}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Sample:
    """
    A picture for the gallery.

    Attributes:
        image (`PIL.Image.Image`): what is shown; small ones are enlarged.
        text (`str`): what it was asked for, as the class's name; for a classifier, what stands below.
        predictions (`dict[str, float]`, *optional*): for a classifier, probabilities by the names of the classes.
    """

    image: Image.Image
    text: str
    predictions: dict[str, float] | None = None


@dataclass
class CardFacts:
    """
    What a card tells.

    Attributes:
        name (`str`): of the repository, `org/name` or only `name`.
        task (`str`): `"generation"`, `"classification"` or `"tokenization"`.
        config ([`MageConfig`], *optional*): the model's; a tokenizer has none.
        dataset_name (`str`, *optional*): what it was trained on.
        base_model (`str`, *optional*): what it was trained from.
        license (`str`, *optional*): of the weights, as the Hub calls it.
        recipe (`dict`): the values that it was trained with.
        metrics_file (`Path`, *optional*): `metrics.jsonl` of the training.
        results (`list[EvalResult]`): what was measured.
        samples (`list[Sample]`): for the gallery.
        carries_code (`bool`): whether the folder holds the code that loads it.
    """

    name: str
    task: Task
    config: MageConfig | None = None
    dataset_name: str | None = None
    base_model: str | None = None
    license: str | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    metrics_file: Path | None = None
    results: list[EvalResult] = field(default_factory=list)
    samples: Sequence[Sample] = ()
    carries_code: bool = False

    @property
    def is_conditional(self) -> bool:
        return self.config is not None and self.config.num_classes > 0 and self.task == "generation"


def write_card(folder: str | Path, facts: CardFacts):
    """Writes `README.md` and its pictures into a model's folder, unless somebody has written another one there."""
    folder, path = Path(folder), Path(folder, "README.md")
    if path.exists() and MARK not in path.read_text(encoding="utf-8"):
        logger.info("%s is kept: it was not written by a training.", path)
        return
    facts = replace(facts, results=[_of_public_data(result) for result in facts.results])
    widget = save_samples(folder, facts.samples)
    curve = draw_training_curve(facts.metrics_file, folder / "pictures" / "training.png")
    sections = [
        f"# {escape(facts.name.split('/')[-1])}",
        _description(facts),
        "<Gallery />" if widget else "",
        _usage(facts),
        _training(facts, "![Training curve](pictures/training.png)" if curve else ""),
        _results(facts),
        f"## Limits\n\n{_LIMITS[facts.task]}",
        f"## Licence\n\n{escape(facts.license)}" if facts.license else "",
        f"## Citation\n\n```bibtex\n{CITATION}\n```",
    ]
    text = "\n\n".join(section for section in [*sections, MARK] if section)
    ModelCard(f"---\n{card_data(facts, widget).to_yaml()}\n---\n\n{text}\n").save(path)


def card_data(facts: CardFacts, widget: list[dict[str, Any]]) -> ModelCardData:
    """
    The header. The library is the one whose snippet, which the Hub shows, works: diffusers' calls `pipe(prompt)` with
    the widget's text, so only a pipeline that takes the name of a class says that it is one of diffusers.
    """
    tags = ["mage", "masked-image-modeling"]
    tags += {
        "generation": ["diffusers:MagePipeline", "image-feature-extraction"],
        "classification": [],
        "tokenization": ["vqgan"],
    }[facts.task]
    return ModelCardData(
        library_name="diffusers" if facts.is_conditional or facts.task == "tokenization" else "transformers",
        pipeline_tag=pipeline_tag(facts),
        license=facts.license,
        datasets=[facts.dataset_name] if is_hub_name(facts.dataset_name) else None,
        base_model=facts.base_model if is_hub_name(facts.base_model) else None,
        tags=tags + (["custom_code"] if facts.carries_code else []),
        model_name=facts.name.split("/")[-1] if facts.results else None,
        eval_results=facts.results or None,
        widget=widget or None,
        inference=False if facts.task == "tokenization" else None,
    )


def pipeline_tag(facts: CardFacts) -> str:
    if facts.task == "generation":
        return "text-to-image" if facts.is_conditional else "unconditional-image-generation"
    return "image-classification" if facts.task == "classification" else "image-to-image"


def is_hub_name(name: str | None) -> TypeGuard[str]:
    """Whether it names a repository rather than a folder."""
    return name is not None and _HUB_NAME.fullmatch(name) is not None and not Path(name).exists()


def save_samples(folder: Path, samples: Iterable[Sample]) -> list[dict[str, Any]]:
    """Writes pictures for the gallery, and gives what the card's header says about them."""
    widget: list[dict[str, Any]] = []
    for number, sample in enumerate(samples):
        path = Path("pictures", f"sample-{number}.png")
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        enlarge(sample.image).save(folder / path)
        if sample.predictions is None:
            widget.append({"text": sample.text, "output": {"url": path.as_posix()}})
        else:
            scores = [{"label": label, "score": round(score, 4)} for label, score in sample.predictions.items()]
            widget.append({"src": path.as_posix(), "example_title": sample.text, "output": scores})
    return widget


def add_gallery(card: Path, samples: Sequence[Sample]):
    """
    Gives an existing card a gallery: pictures beside it, `widget` in its header, and `<Gallery />` before its first
    picture or section, unless it has one.

    Args:
        card (`Path`): a `README.md`.
        samples (`Sequence[Sample]`): the pictures, in place of those that an earlier call wrote.
    """
    loaded = ModelCard.load(card)
    loaded.data.widget = save_samples(card.parent, samples)
    if "<Gallery />" not in loaded.text:
        start = re.search(r"^(!\[|## |```)", loaded.text, flags=re.MULTILINE)
        position = start.start() if start else len(loaded.text)
        loaded.text = f"{loaded.text[:position].rstrip()}\n\n<Gallery />\n\n{loaded.text[position:]}"
    loaded.save(card)


def enlarge(image: Image.Image, least: int = 256) -> Image.Image:
    """The image, in whole multiples of its size, so that browsers do not blur it."""
    factor = max(1, -(-least // max(image.size)))
    return image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)


def draw_training_curve(metrics_file: Path | None, target: Path) -> bool:
    """Draws the losses of `metrics.jsonl`; returns whether there was anything to draw."""
    curves = read_curves(metrics_file)
    if not any(len(steps) > 1 for steps, _ in curves.values()):
        return False
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for name, (steps, values) in curves.items():
        axes.plot(steps, values, label=name)
    axes.set(xlabel="updates", ylabel="loss")
    axes.legend()
    target.parent.mkdir(parents=True, exist_ok=True)
    # Without the version of what drew it, which would make another file of the same curve.
    figure.savefig(target, dpi=120, metadata={"Software": None})
    return True


def read_curves(metrics_file: Path | None) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of the losses; lines that are cut, as a full disk leaves them, are passed over."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for line in metrics_file.read_text().splitlines() if metrics_file and metrics_file.exists() else []:
        try:
            metrics = json.loads(line)
        except json.JSONDecodeError:
            continue
        for name in ("loss", "validation_loss", "validation/loss"):
            if name in metrics:
                steps, values = curves.setdefault(name, ([], []))
                steps.append(metrics["step"])
                values.append(metrics[name])
    return curves


def escape(text: object) -> str:
    """Text that Markdown, its tables and HTML show as it is."""
    text = str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", " ".join(text.split()))


def _description(facts: CardFacts) -> str:
    if facts.config is None:
        return f"An image tokenizer (VQGAN) whose codes [MAGE]({PAPER}) models, as a stock `VQModel` of diffusers."
    config, does = facts.config, "generates images by iterative decoding and gives features of images"
    if facts.task == "classification":
        does = f"sorts images into {config.num_labels} classes"
    elif facts.is_conditional:
        does = f"generates images of {config.num_classes} classes by iterative decoding and gives features of images"
    rows, columns = config.grid_size
    height, width = (rows * config.patch_size, columns * config.patch_size)
    text = (
        f"[MAGE]({PAPER}) is a masked generative encoder: one model for generation and representation, trained by "
        f"masked image modelling over the tokens of a VQGAN. This one {does}.\n\n"
        f"Encoder of {config.num_hidden_layers} layers of width {config.hidden_size}; {rows} x {columns} tokens out "
        f"of {config.codebook_size} codes for an image of {height} x {width} pixels."
    )
    text += _led_by(config) if facts.task == "generation" else ""
    has_classes = facts.is_conditional or facts.task == "classification"
    names = [config.id2label[label] for label in sorted(config.id2label)] if has_classes else []
    return text + (f"\n\nClasses: {_few(names)}." if names else "")


def _led_by(config: MageConfig) -> str:
    """What says to a model what its images shall be, where that is a representation."""
    if config.representation_size is None:
        return ""
    source = config.representation_source or {}
    name = source.get("model_name_or_path")
    link = f"[{escape(name)}](https://huggingface.co/{name})" if is_hub_name(name) else escape(name)
    whose = f" of {link}" if name else ""
    return (
        f"\n\nIts images are led by representations{whose}, of {config.representation_size} numbers "
        f"([RCG]({RCG_PAPER})): drawn by a diffusion model where one is in the folder, or those of given images."
    )


def _few(names: Sequence[str], limit: int = 20) -> str:
    shown = ", ".join(escape(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _usage(facts: CardFacts) -> str:
    with_package, without = _snippets(facts)
    text = f"## Use\n\nWith `pip install transformers-mage`:\n\n```python\n{with_package}\n```"
    if facts.task == "tokenization":
        return f"## Use\n\n```python\n{with_package}\n```"
    if not facts.carries_code:
        return text
    return f"{text}\n\nWithout it, running the code that lies in this repository:\n\n```python\n{without}\n```"


def _snippets(facts: CardFacts) -> tuple[str, str]:
    name = json.dumps(facts.name)
    if facts.task == "tokenization":
        load = f"from diffusers import VQModel\n\nvqvae = VQModel.from_pretrained({name})  # images in [0, 1]"
        return load, load
    if facts.task == "classification":
        call = 'classify = pipeline("image-classification", {name}{trust})\nclassify("image.png")'
        load = "from transformers import pipeline\n\n" + call
        return "import transformers_mage\n" + load.format(name=name, trust=""), load.format(name=name, trust=_TRUST)
    config = facts.config if facts.is_conditional else None
    first = "" if config is None else json.dumps(config.id2label[0], ensure_ascii=False)
    guidance = ", guidance_scale=2.0" if config is not None and config.class_dropout_prob > 0 else ""
    call = f"pipe({first}{guidance}).images[0]"
    if facts.config is not None and facts.config.representation_size is not None:
        call += "\npipe(like=photo).images[0]  # an image like this one"
    features = (
        "\n\nprocessor = AutoImageProcessor.from_pretrained({name})\n"
        "model = AutoModel.from_pretrained({name}{trust})\n"
        'features = model(**processor(images, return_tensors="pt")).pooler_output'
    )
    doors = "from transformers import AutoImageProcessor, AutoModel\n"
    package = (
        f"{doors}from transformers_mage import MagePipeline\n\npipe = MagePipeline.from_pretrained({name})\n{call}"
    )
    stranger = (
        f"from diffusers import DiffusionPipeline\n{doors}\n"
        f"pipe = DiffusionPipeline.from_pretrained({name}{_TRUST})\n{call}"
    )
    return package + features.format(name=name, trust=""), stranger + features.format(name=name, trust=_TRUST)


_TRUST = ", trust_remote_code=True"


def _training(facts: CardFacts, curve: str) -> str:
    lines = []
    if facts.dataset_name:
        name = escape(_public(facts.dataset_name))
        known = f"[{name}](https://huggingface.co/datasets/{facts.dataset_name})"
        lines.append(f"Trained on {known if is_hub_name(facts.dataset_name) else name}.")
    if facts.base_model:
        lines.append(f"It started from {escape(_public(facts.base_model))}.")
    parts = [" ".join(lines), curve]
    if facts.recipe:
        values = {key: _public(value) for key, value in facts.recipe.items()}
        recipe = yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip()
        # A longer fence than any in the values, which may come from anywhere.
        fence = "`" * (max((len(run) for run in re.findall(r"`+", recipe)), default=2) + 1)
        parts.append(f"<details><summary>Recipe</summary>\n\n{fence}yaml\n{recipe}\n{fence}\n\n</details>")
    text = "\n\n".join(part for part in parts if part)
    return f"## Training\n\n{text}" if text else ""


def _public(value: Any) -> Any:
    """Of a path, its last name: a card is read where nobody has that folder, and need not tell who lives where."""
    if isinstance(value, dict):
        return {key: _public(item) for key, item in value.items()}
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _of_public_data(result: EvalResult) -> EvalResult:
    return replace(result, dataset_name=_public(result.dataset_name), dataset_type=_public(result.dataset_type))


def _results(facts: CardFacts) -> str:
    if not facts.results:
        return ""
    rows = [
        (
            escape(result.dataset_name),
            escape(result.dataset_split or ""),
            escape(result.metric_name),
            result.metric_value,
        )
        for result in facts.results
    ]
    return "## Results\n\n" + markdown_table(("data", "split", "measure", "value"), rows)


__all__ = ["CardFacts", "Sample", "add_gallery", "card_data", "escape", "write_card"]
