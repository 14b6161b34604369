"""A folder that carries its code is loaded by people who have not installed this package: same bits."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from transformers import AutoModel, ViTImageProcessorPil

from transformers_mage import (
    MageConfig,
    MageForImageClassification,
    MageForMaskedImageModeling,
    MageModel,
    MagePipeline,
    RepresentationDiffusionModel,
    carried_code,
)

from .conftest import CARDS
from .server import HubServer

SITE_PACKAGES = str(Path(torch.__file__).parents[1])
PIPELINES = ("mage-digits", "mage-digits-conditional")
# What an interpreter without this package does with a folder or name; it prints what came of each step.
STRANGER = """
import importlib.util, json, sys
from pathlib import Path
sys.path.append({site_packages!r})
sys.path.insert(0, {folder!r} + "/mage-digits")
assert importlib.util.find_spec("transformers_mage") is None

import torch
from diffusers import DiffusionPipeline
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForMaskedImageModeling, pipeline
from transformers.utils import logging
from PIL import Image

trusted = {{"trust_remote_code": True}}
folder = Path({folder!r})
pixels = torch.load(folder / "pixels.pt")
photo = Image.open(folder / "photo.png")

def generate(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe(num_images=2, generator=torch.Generator().manual_seed(0), output_type="pt").images

def encode(name):
    return AutoModel.from_pretrained(name, **trusted)(pixels).pooler_output

def predict(name):
    return AutoModelForMaskedImageModeling.from_pretrained(name, **trusted)(pixels).logits

def load_classifier(name):
    return AutoModelForImageClassification.from_pretrained(name, **trusted)

def save_again(loaded, target):
    loaded.save_pretrained(folder / target)
    return str(folder / target)

results = {{}}
with torch.no_grad():
{steps}
torch.save(results, folder / "results.pt")
"""


SIDE_BY_SIDE = """
load = DiffusionPipeline.from_pretrained
light, dark = (load(str(folder / name), **trusted) for name in ("light", "dark"))
results["folders side by side"] = light.shade(), dark.shade()
again = str(folder / "again")
light.save_pretrained(again)
results["saved beside another"] = load(again, **trusted).shade()
light, dark = (load("org/" + name, **trusted) for name in ("light", "dark"))
results["names side by side"] = light.shade(), dark.shade()
"""
ENDPOINT = """
import handler
results["endpoint"] = handler.EndpointHandler(sys.path[0])({"parameters": {"num_images": 2, "seed": 0}})
"""


REPRESENTATIONS = """
def led(pipe):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    images = pipe(like=photo, generator=generator, output_type="pt").images
    return images, pipe.draw_representations(generator=generator)

for place, name in (("folder", str(folder / "led")), ("name", "org/led")):
    pipe = DiffusionPipeline.from_pretrained(name, **trusted)
    results["led", place] = led(pipe)
    again = save_again(pipe, "again-led-" + place)
    results["led", place, "again"] = led(DiffusionPipeline.from_pretrained(again, **trusted))
"""


def run_stranger(folder: Path, server: HubServer, steps: str):
    """Runs steps where this package is not installed, with an empty cache."""
    steps = "\n".join(f"    {line}" for line in steps.splitlines())
    script = STRANGER.format(site_packages=SITE_PACKAGES, folder=str(folder), steps=steps)
    # What tells PyTorch how to compute stays as it is here, for the same bits.
    ours = ("HF_", "PYTHON", "TRANSFORMERS_", "DIFFUSERS_", "XDG_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment = kept | server.environment(HF_HOME=str(folder / "home"), HOME=str(folder))
    command = [sys.executable, "-I", "-S", "-c", script]
    result = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return torch.load(folder / "results.pt"), result.stderr


def generate(pipe: MagePipeline) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe(num_images=2, generator=torch.Generator().manual_seed(0), output_type="pt").images


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory, server: HubServer) -> tuple[dict, str, dict]:
    """What it computed, what it was told on the way, and what this package computes."""
    folder = tmp_path_factory.mktemp("stranger")
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.save(pixels, folder / "pixels.pt")
    expected, steps = {}, []
    for card in PIPELINES:
        expected[card] = publish_pipeline(card, folder, server, pixels)
        for place, name in (("folder", str(folder / card)), ("name", f"org/{card}")):
            steps += pipeline_steps(card, place, name)
    expected["classifier"] = publish_classifier(folder, server, pixels)
    for place, name in (("folder", str(folder / "classifier")), ("name", "org/classifier")):
        steps += classifier_steps(place, name)
    publish_versions(folder, server)
    expected["led"] = publish_led_pipeline(folder, server)
    results, told = run_stranger(folder, server, "\n".join(steps) + SIDE_BY_SIDE + ENDPOINT + REPRESENTATIONS)
    return results, told, expected


def publish_pipeline(card: str, folder: Path, server: HubServer, pixels: torch.Tensor) -> list[torch.Tensor]:
    pipe = MagePipeline.from_pretrained(CARDS / card)
    pipe.save_pretrained(folder / card, with_code=True)
    server.hub.create(f"org/{card}", folder / card)
    pipe.set_progress_bar_config(disable=True)
    pipe(generator=torch.Generator().manual_seed(1)).images[0].save(folder / "photo.png")
    with torch.no_grad():
        return [generate(pipe), pipe.model(pixels).logits, pipe.model.mage(pixels).pooler_output]


def publish_classifier(folder: Path, server: HubServer, pixels: torch.Tensor) -> torch.Tensor:
    classifier = MageForImageClassification.from_pretrained(CARDS / "mage-digits", num_labels=10).eval()
    classifier.save_pretrained(folder / "classifier", with_code=True)
    ViTImageProcessorPil.from_pretrained(CARDS / "mage-digits").save_pretrained(folder / "classifier")
    server.hub.create("org/classifier", folder / "classifier")
    with torch.no_grad():
        return classifier(pixels).logits


def publish_led_pipeline(folder: Path, server: HubServer) -> tuple[torch.Tensor, torch.Tensor]:
    """The digits' model, led by its own features, and untrained for that."""
    plain = MagePipeline.from_pretrained(CARDS / "mage-digits")
    source = {"model_name_or_path": "org/mage-digits"}
    config = MageConfig.from_pretrained(
        CARDS / "mage-digits", representation_size=plain.model.config.hidden_size, representation_source=source
    )
    model = MageForMaskedImageModeling(config).eval()
    model.mage.vqvae.load_state_dict(plain.vqvae.state_dict())
    drawing = RepresentationDiffusionModel(config.representation_size, 16, bottleneck_size=8, num_blocks=1).eval()
    torch.nn.init.normal_(drawing.linear_out.weight)
    encoder = MageModel.from_pretrained(CARDS / "mage-digits", vq_config=None)
    pipe = MagePipeline(model, plain.scheduler, representation_model=drawing, representation_encoder=encoder)
    pipe.save_pretrained(folder / "led", with_code=True)
    server.hub.create("org/led", folder / "led")
    pipe = MagePipeline.from_pretrained(folder / "led")
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    images = pipe(like=Image.open(folder / "photo.png"), generator=generator, output_type="pt").images
    return images, pipe.draw_representations(generator=generator)


def publish_versions(folder: Path, server: HubServer):
    """Two folders whose code differs, though not in length: Python tells compiled files by time and length."""
    for name, shade in (("light", 0.75), ("dark", 0.25)):
        shutil.copytree(folder / "mage-digits", folder / name)
        file = folder / name / "pipeline_mage.py"
        file.write_text(file.read_text() + f"\nSHADE = {shade}\nMagePipeline.shade = lambda self: SHADE\n")
        server.hub.create(f"org/{name}", folder / name)


def pipeline_steps(card: str, place: str, name: str) -> list[str]:
    load = "DiffusionPipeline.from_pretrained"
    return [
        f"pipe = {load}({name!r}, **trusted)",
        f"results[{card!r}, {place!r}] = generate(pipe), predict({name!r}), encode({name!r})",
        f"again = save_again(pipe, 'again-{card}-{place}')",
        f"results[{card!r}, {place!r}, 'again'] = generate({load}(again, **trusted)), predict(again), encode(again)",
    ]


def classifier_steps(place: str, name: str) -> list[str]:
    return [
        f"classifier = load_classifier({name!r})",
        f"results['classifier', {place!r}] = classifier(pixels).logits",
        f"again = save_again(classifier, 'again-{place}')",
        f"results['classifier', {place!r}, 'again'] = load_classifier(again)(pixels).logits",
        f"results['labels', {place!r}] = pipeline('image-classification', {name!r}, **trusted)(photo)",
        f"features = pipeline('image-feature-extraction', {name!r}, **trusted)(photo)",
        f"results['features', {place!r}] = torch.tensor(features)",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("how", [(), ("again",)], ids=["loaded", "saved again"])
@pytest.mark.parametrize("place", ["folder", "name"])
@pytest.mark.parametrize("card", PIPELINES)
def test_pipeline_without_the_package(stranger, card: str, place: str, how: tuple[str, ...]):
    results, _, expected = stranger

    for got, wanted in zip(results[card, place, *how], expected[card], strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("how", [(), ("again",)], ids=["loaded", "saved again"])
@pytest.mark.parametrize("place", ["folder", "name"])
def test_led_pipeline_without_the_package(stranger, place: str, how: tuple[str, ...]):
    results, _, expected = stranger

    for got, wanted in zip(results["led", place, *how], expected["led"], strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("how", [(), ("again",)], ids=["loaded", "saved again"])
@pytest.mark.parametrize("place", ["folder", "name"])
def test_classifier_without_the_package(stranger, place: str, how: tuple[str, ...]):
    results, _, expected = stranger

    assert torch.equal(results["classifier", place, *how], expected["classifier"])


@pytest.mark.slow
@pytest.mark.parametrize("place", ["folder", "name"])
def test_task_pipelines_without_the_package(stranger, place: str):
    results, _, _ = stranger

    assert len(results["labels", place]) == 5
    assert results["features", place].shape == (1, 65, 96)


@pytest.mark.slow
def test_nothing_to_worry_about_is_said(stranger):
    _, told, _ = stranger

    assert "Expected types" not in told
    assert "not expected" not in told
    assert "could not be" not in told.lower()


@pytest.mark.slow
def test_repositories_do_not_disturb_each_other(stranger):
    """Of another version, or changed by hand: each runs its own code, in whichever order they are loaded."""
    results, _, _ = stranger

    assert results["folders side by side"] == (0.75, 0.25)
    assert results["names side by side"] == (0.75, 0.25)
    assert results["saved beside another"] == 0.75


@pytest.mark.slow
def test_endpoint_without_the_package(stranger):
    results, _, expected = stranger

    assert results["endpoint"]["seed"] == 0
    png = base64.b64decode(results["endpoint"]["images"][1])
    image = to_tensor(Image.open(io.BytesIO(png)))
    assert torch.equal(image, (expected["mage-digits"][0][1] * 255).round() / 255)


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255


def test_code_is_the_packages_own(small_pipeline: MagePipeline, tmp_path: Path):
    """Nothing is kept twice: what a folder carries is read from the files that run here."""
    small_pipeline.save_pretrained(tmp_path, with_code=True)

    package = Path(carried_code.__file__).parent
    carried = [path for path in tmp_path.rglob("*.py") if path.name not in ("pipeline.py", "entry.py")]
    assert {"modeling_mage.py", "handler.py", "scheduling_mage.py"} <= {path.name for path in carried}
    for path in carried:
        # What only diffusers reads says `from . name import`, so that it does not follow each of these lines.
        assert path.read_text().replace("from . ", "from .") == (package / path.name).read_text()
    assert "\nfrom .checks import" in (tmp_path / "modeling_mage.py").read_text()
    assert "\nfrom . checks import" in (tmp_path / "pipeline_mage.py").read_text()


@pytest.mark.slow
def test_a_load_by_name_asks_for_few_things(stranger, server: HubServer):
    """diffusers asks which version is the newest for each file, and again for each that it sees imported there."""
    asked = server.requests.count("GET /api/models/org/light/revision/main")

    assert asked < 2 * len(carried_code.sources())


def test_carried_files_need_nothing_but_each_other():
    for source in carried_code.sources().values():
        assert "from .." not in source
        assert not re.search(r"^\s*(from|import) transformers_mage", source, re.MULTILINE)
        assert set(carried_code._imports(source)) <= set(carried_code.sources())


def test_index_and_configuration(small_pipeline: MagePipeline, tmp_path: Path):
    small_pipeline.save_pretrained(tmp_path, with_code=True)

    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "MagePipeline"]
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert set(auto_map) == {
        "AutoConfig",
        "AutoModel",
        "AutoModelForMaskedImageModeling",
        "AutoModelForImageClassification",
    }


def test_with_the_package_no_code_of_a_folder_runs(small_pipeline: MagePipeline, tmp_path: Path):
    small_pipeline.save_pretrained(tmp_path, with_code=True)

    assert type(MagePipeline.from_pretrained(tmp_path)) is MagePipeline
    assert type(MagePipeline.from_pretrained(tmp_path).model) is MageForMaskedImageModeling
    assert AutoModel.from_pretrained(tmp_path).__module__.startswith("transformers_mage")
    assert not isinstance(DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True), MagePipeline)


def test_folder_of_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"_class_name": "VQModel"}')

    carried_code.write_code(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
