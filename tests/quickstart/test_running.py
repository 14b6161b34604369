"""From images to a repository, whatever comes between."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.in_process import load_script
from transformers_mage import MagePipeline
from transformers_mage.files import FolderError, read_json
from transformers_mage.quickstart import Quickstart
from transformers_mage.quickstart.choosing import plan_of
from transformers_mage.representation import load_classifier

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*are too few for features"),
]

Start = Callable[..., Quickstart]


@pytest.fixture(scope="module")
def made(arrows: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders that the tests of this module share."""
    return {"images": arrows, "undisturbed": tmp_path_factory.mktemp("quickstart") / "my-mage"}


def finished(start: Start, made: dict[str, Path]) -> Path:
    quickstart = start(made["images"], made["undisturbed"])
    quickstart.plan()
    quickstart.run()
    return made["undisturbed"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for name in ("model", "conditional/model", "probe/model", "tokenizer/diffusion_pytorch_model"):
        found |= {f"{name}.{key}": value for key, value in load_file(folder / f"{name}.safetensors").items()}
    return found


def test_a_folder_becomes_a_repository(start: Start, made: dict[str, Path], capsys):
    folder = finished(start, made)

    pipe = MagePipeline.from_pretrained(folder)
    assert pipe(num_images=2, num_inference_steps=2).images[0].size == (16, 16)
    assert MagePipeline.from_pretrained(folder / "conditional").model.config.id2label == {0: "short", 1: "long"}
    assert load_classifier(str(folder / "probe"), ["short", "long"]).config.num_labels == 2
    card = (folder / "README.md").read_text()
    for name in ("samples", "neighbours", "reconstructions", "inpaintings", "classes"):
        assert f"pictures/{name}.png" in card
        assert (folder / "pictures" / f"{name}.png").exists()
    assert "raw pixels: linear probe" in card
    assert "random encoder" in card
    assert list((folder / "pictures" / "mage").glob("samples-*.png"))
    scores = json.loads((folder / "runs" / "scores.json").read_text())
    assert scores["network"] == "a small network trained on their classes"
    assert scores["floor"] >= 0
    assert "is complete" in capsys.readouterr().out


def test_what_is_done_is_not_done_again(start: Start, made: dict[str, Path], capsys):
    folder = finished(start, made)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    finished(start, made)

    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert "Done already: data, tokenizer, codes" in capsys.readouterr().out


def test_another_plan_needs_another_folder(start: Start, made: dict[str, Path]):
    finished(start, made)

    with pytest.raises(FolderError, match=r"hours was 0\.0001 there and is 1\.0 now"):
        start(made["images"], made["undisturbed"], hours=1.0).plan()


def test_kills_change_nothing(start: Start, made: dict[str, Path], tmp_path: Path, monkeypatch):
    undisturbed = finished(start, made)
    disturbed = tmp_path / "my-mage"

    class Killed(BaseException):
        """What nobody catches."""

    for stage, where, call in (("tokenizer", torch.optim.AdamW, 3), ("mage", torch.optim.AdamW, 14)):
        calls = []

        def deadly(self, *args, original=where.step, calls=calls, call=call, stage=stage, **kwargs):
            calls.append(stage)
            if len(calls) == call:
                raise Killed(stage)
            return original(self, *args, **kwargs)

        quickstart = start(made["images"], disturbed)
        quickstart.plan()
        with monkeypatch.context() as patch:
            patch.setattr(where, "step", deadly)
            with pytest.raises(Killed):
                quickstart.run()
    quickstart = start(made["images"], disturbed)
    quickstart.plan()
    quickstart.run()

    expected, found = weights(undisturbed), weights(disturbed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    for name in ("samples", "reconstructions", "inpaintings"):
        assert (undisturbed / "pictures" / f"{name}.png").read_bytes() == (
            disturbed / "pictures" / f"{name}.png"
        ).read_bytes()


def test_a_single_command_gives_the_same_bits(start: Start, made: dict[str, Path], tmp_path: Path):
    folder = finished(start, made)
    recipe = folder / "recipes" / "tokenizer.yaml"
    assert yaml.safe_load(recipe.read_text())["output_dir"] == str(folder / "runs" / "tokenizer")
    load_script("train_vqgan")(["--config", recipe, "--output_dir", tmp_path / "tokenizer"])

    name = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "tokenizer" / name).read_bytes() == (folder / "runs" / "tokenizer" / name).read_bytes()


def test_what_an_hour_has_left_decides_on_what_comes_next(start: Start, made: dict[str, Path], tmp_path: Path):
    quickstart = start(made["images"], tmp_path / "my-mage", hours=0.05)
    quickstart.plan()
    planned = quickstart.chosen.updates["mage"]
    # As if everything before had taken all of the time but 60 seconds.
    quickstart.started -= 120
    quickstart._give("mage", ["mage", "conditional", "judge", "scores", "card"])
    given = quickstart.chosen

    assert 8 < given.updates["mage"] < planned
    assert (
        given.updates["tokenizer"]
        == plan_of(read_json(tmp_path / "my-mage/runs/plan.json")["plan"]).updates["tokenizer"]
    )
    recipe = yaml.safe_load((tmp_path / "my-mage" / "recipes" / "mage.yaml").read_text())
    assert recipe["max_train_steps"] == given.updates["mage"]

    again = start(made["images"], tmp_path / "my-mage", hours=0.05)
    again.plan()
    assert again.spent > 120
    again._give("mage", ["mage", "conditional", "judge", "scores", "card"])
    assert again.chosen == given


def test_an_edited_recipe_is_followed(start: Start, made: dict[str, Path], tmp_path: Path):
    quickstart = start(made["images"], tmp_path / "my-mage")
    quickstart.plan()
    recipe = tmp_path / "my-mage" / "recipes" / "tokenizer.yaml"
    recipe.write_text(recipe.read_text().replace("max_train_steps: 8", "max_train_steps: 6"))
    quickstart.run()

    assert "max_train_steps: 6" in recipe.read_text()
    checkpoint = json.loads((tmp_path / "my-mage/runs/tokenizer/metrics.jsonl").read_text().splitlines()[-1])
    assert checkpoint["step"] == 6
