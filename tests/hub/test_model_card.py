"""Cards say what a model is, show what it makes, and hold a header that the Hub takes."""

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from PIL import Image

from transformers_mage import MageConfig, MageForMaskedImageModeling, MagePipeline, MageScheduler
from transformers_mage.hub.gallery import sample_gallery
from transformers_mage.hub.model_card import CardFacts, Sample, add_gallery, escape, write_card

from .conftest import CARDS
from .server import HubServer, header_errors

EVIL = 'a|b <script>alert(1)</script> *x* [y](z) `q`\n# "z": {w} 100%'
PICTURE = Image.new("L", (28, 28), 128)
RESULT = EvalResult(
    "image-classification", "org/clothes", EVIL, "accuracy", 91.5, metric_name="Top-1", dataset_split="test"
)


def named(config: MageConfig, names: list[str]) -> MageConfig:
    return MageConfig(**{**config.to_dict(), "id2label": dict(enumerate(names)), "num_classes": len(names)})


@pytest.fixture
def facts(small_config: MageConfig) -> CardFacts:
    config = named(small_config, ["three", EVIL])
    samples = [Sample(PICTURE, "three"), Sample(PICTURE, EVIL)]
    recipe = {"learning_rate": 0.1, "note": EVIL + "```"}
    return CardFacts(
        "org/model", "generation", config, "org/clothes", "org/base", "mit", recipe, None, [RESULT], samples
    )


def check_header(card: Path) -> ModelCardData:
    """By all that `huggingface_hub` knows about headers, without asking the Hub."""
    loaded = ModelCard.load(card)
    header = loaded.data.to_dict()
    assert not header_errors(card.read_text())
    assert ModelCardData(**header, ignore_metadata_errors=False).to_dict() == header
    if loaded.data.eval_results:
        index = eval_results_to_model_index(loaded.data.model_name, loaded.data.eval_results)
        assert model_index_to_eval_results(index)[1] == loaded.data.eval_results
    for entry in header.get("widget", []):
        path = entry.get("src") or entry["output"]["url"]
        assert (card.parent / path).is_file()
    return loaded.data


def test_generator_of_classes(facts: CardFacts, tmp_path: Path):
    """The snippet of the Hub calls diffusers' pipeline with the first widget's text."""
    facts.carries_code = True
    write_card(tmp_path, facts)

    data = check_header(tmp_path / "README.md")
    assert (data.library_name, data.pipeline_tag) == ("diffusers", "text-to-image")
    assert data.widget[0] == {"text": "three", "output": {"url": "pictures/sample-0.png"}}
    assert data.widget[1]["text"] == EVIL
    assert (data.base_model, data.datasets, data.license) == ("org/base", ["org/clothes"], "mit")
    assert "custom_code" in data.tags
    text = (tmp_path / "README.md").read_text()
    assert '\npipe("three", guidance_scale=2.0).images[0]' in text
    assert "<Gallery />" in text
    assert "trust_remote_code=True" in text
    assert Image.open(tmp_path / "pictures" / "sample-0.png").size == (280, 280)


def test_unconditional_generator(small_config: MageConfig, tmp_path: Path):
    write_card(tmp_path, CardFacts("model", "generation", small_config, samples=[Sample(PICTURE, "seed 0")]))

    data = check_header(tmp_path / "README.md")
    assert (data.library_name, data.pipeline_tag) == ("transformers", "unconditional-image-generation")
    text = (tmp_path / "README.md").read_text()
    assert "\npipe().images[0]" in text
    assert "trust_remote_code" not in text


def test_classifier(small_config: MageConfig, tmp_path: Path):
    config = MageConfig(**{**small_config.to_dict(), "id2label": {0: "shirt", 1: EVIL}})
    sample = Sample(PICTURE, "Image 1", {"shirt": 0.75, EVIL: 0.25})
    write_card(tmp_path, CardFacts("model", "classification", config, results=[RESULT], samples=[sample]))

    data = check_header(tmp_path / "README.md")
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-classification")
    assert data.widget[0]["output"][1] == {"label": EVIL, "score": 0.25}
    assert data.eval_results[0].metric_value == 91.5


def test_tokenizer(tmp_path: Path):
    write_card(tmp_path, CardFacts("org/tokenizer", "tokenization"))

    assert check_header(tmp_path / "README.md").pipeline_tag == "image-to-image"
    assert 'VQModel.from_pretrained("org/tokenizer")' in (tmp_path / "README.md").read_text()


def test_what_comes_from_outside_is_escaped(facts: CardFacts, tmp_path: Path):
    write_card(tmp_path, facts)

    body = (tmp_path / "README.md").read_text().split("---\n", 2)[2]
    body, recipe = re.sub(r"(`{3,})yaml\n.*?\n\1\n", "", body, flags=re.DOTALL), body
    assert "<script>" not in body
    assert re.search(r"(`{4,})yaml\n", recipe)
    rows = [line for line in body.splitlines() if line.startswith("| a")]
    assert [len(re.split(r"(?<!\\)\|", row)) for row in rows] == [6]
    assert escape("# a\n\nb_c") == r"\# a b\_c"


def test_training_curve(small_config: MageConfig, tmp_path: Path):
    """A line that a full disk cut is passed over."""
    lines = [json.dumps({"step": step, "loss": 1 / step, "validation_loss": 2 / step}) for step in range(1, 9)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 9, "lo']))
    facts = CardFacts("model", "generation", small_config, metrics_file=tmp_path / "metrics.jsonl")

    write_card(tmp_path, facts)
    first = (tmp_path / "pictures" / "training.png").read_bytes()
    write_card(tmp_path, facts)

    assert "![Training curve](pictures/training.png)" in (tmp_path / "README.md").read_text()
    assert (tmp_path / "pictures" / "training.png").read_bytes() == first


def test_somebodys_own_card_is_kept(small_config: MageConfig, tmp_path: Path):
    facts = CardFacts("model", "generation", small_config)
    write_card(tmp_path, facts)
    (tmp_path / "README.md").write_text("# Mine")

    write_card(tmp_path, facts)

    assert (tmp_path / "README.md").read_text() == "# Mine"


def test_local_names_are_not_linked(small_config: MageConfig, tmp_path: Path):
    write_card(tmp_path, CardFacts("model", "generation", small_config, str(tmp_path), base_model="./outputs/x"))

    data = check_header(tmp_path / "README.md")
    assert data.datasets is None
    assert data.base_model is None


def test_paths_of_a_machine_are_not_told(small_config: MageConfig, tmp_path: Path):
    folder = "/home/somebody/secret/run"
    recipe = {"token_cache": folder, "model": {"start": folder}, "learning_rate": 0.1, "report_to": "none"}
    result = EvalResult("unconditional-image-generation", folder, folder, "fid", 1.0, metric_name="FID")
    write_card(
        tmp_path, CardFacts("model", "generation", small_config, folder, folder, recipe=recipe, results=[result])
    )

    text = (tmp_path / "README.md").read_text()
    assert "somebody" not in text
    assert "It started from run." in text
    assert "token_cache: run" in text


def test_a_led_model_makes_images_like_one(small_config: MageConfig, tmp_path: Path):
    config = MageConfig(**{**small_config.to_dict(), "representation_size": 32})
    write_card(tmp_path, CardFacts("model", "generation", config))

    assert "pipe(like=photo).images[0]" in (tmp_path / "README.md").read_text()


def test_gallery_of_samples(small_pipeline: MagePipeline):
    samples = sample_gallery(small_pipeline, num_samples=2)

    assert [sample.text for sample in samples] == ["seed 0", "seed 1"]
    small_pipeline.model.base_model.vqvae = None
    assert sample_gallery(small_pipeline) == []


@pytest.mark.slow
@pytest.mark.parametrize(("num_classes", "num_samples"), [(3, 8), (10, 10), (1000, 8)])
def test_gallery_of_few_classes_shows_each(small_config: MageConfig, num_classes: int, num_samples: int):
    config = named(small_config, [f"class {number}" for number in range(num_classes)])
    pipe = MagePipeline(MageForMaskedImageModeling(config), MageScheduler(config.mask_token_id))

    samples = sample_gallery(pipe)

    assert len(samples) == num_samples
    assert [sample.text for sample in samples[:3]] == ["class 0", "class 1", "class 2"]


def test_existing_card_gets_a_gallery(tmp_path: Path):
    card = tmp_path / "README.md"
    card.write_text("---\nlicense: mit\n---\n\n# Mine\n\nWords.\n\n## More\n")

    add_gallery(card, [Sample(PICTURE, "three")])
    add_gallery(card, [Sample(PICTURE, "four")])

    assert card.read_text().count("<Gallery />") == 1
    assert card.read_text().index("Words.") < card.read_text().index("<Gallery />") < card.read_text().index("## More")
    assert [entry["text"] for entry in check_header(card).widget] == ["four"]


@pytest.mark.parametrize("name", sorted(path.parent.name for path in CARDS.glob("*/model_index.json")))
def test_cards_of_this_repository(name: str, hub: HubServer):
    """They have a gallery, and the Hub's own check (here the suite's) takes them."""
    card = CARDS / name / "README.md"

    data = check_header(card)

    assert data.widget
    assert data.eval_results
    assert data.library_name == ("diffusers" if data.pipeline_tag == "text-to-image" else "transformers")
    assert "<Gallery />" in card.read_text()
    ModelCard.load(card).validate()


@pytest.mark.parametrize("header", ["license: 3", "pipeline_tag: [a]"])
def test_headers_that_the_hub_refuses(hub: HubServer, header: str):
    with pytest.raises(ValueError, match="must be"):
        ModelCard(f"---\n{header}\n---\n").validate()
