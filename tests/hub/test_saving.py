"""What is saved is what is loaded, and what is pushed goes where it was asked to go."""

from operator import attrgetter
from pathlib import Path

import pytest
import torch
from transformers import ViTImageProcessorPil

from transformers_mage import MageConfig, MageForImageClassification, MagePipeline, MageScheduler

from .server import HubServer
from .test_by_name import tokens, weights


def change(pipe: MagePipeline) -> torch.Tensor:
    with torch.no_grad():
        pipe.model.head.dense.weight += 1
    return weights(pipe).clone()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("model*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [("150KB", "5GB"), ("5GB", "150KB"), ("150KB", "300KB")])
@pytest.mark.parametrize("what", ["pipeline", "model"])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_saving_again_leaves_what_was_saved_last(small_pipeline, tmp_path, what, variant, first, second):
    saved = small_pipeline if what == "pipeline" else small_pipeline.model
    small_pipeline.save_pretrained(tmp_path, variant=variant, max_shard_size=first)
    expected = change(small_pipeline)

    saved.save_pretrained(tmp_path, variant=variant, max_shard_size=second)

    assert torch.equal(weights(MagePipeline.from_pretrained(tmp_path, variant=variant)), expected)
    saved.save_pretrained(tmp_path / "alone", variant=variant, max_shard_size=second)
    assert names(tmp_path) - {"model_index.json"} == names(tmp_path / "alone") - {"model_index.json"}


def test_variants_lie_side_by_side(small_pipeline: MagePipeline, tmp_path: Path):
    """As diffusers' do: each save replaces its own."""
    expected = weights(small_pipeline).clone()
    small_pipeline.save_pretrained(tmp_path)
    changed = change(small_pipeline)
    small_pipeline.save_pretrained(tmp_path, variant="ema")

    assert names(tmp_path) == {"model.safetensors", "model.ema.safetensors", "model_index.json"}
    assert torch.equal(weights(MagePipeline.from_pretrained(tmp_path)), expected)
    assert torch.equal(weights(MagePipeline.from_pretrained(tmp_path, variant="ema")), changed)
    with pytest.raises(ValueError, match=r"`variant=fp16`, and .* holds none"):
        MagePipeline.from_pretrained(tmp_path, variant="fp16")


def test_nothing_of_an_earlier_pipeline_is_left(small_pipeline: MagePipeline, tmp_path: Path):
    small_pipeline.image_processor = ViTImageProcessorPil()
    small_pipeline.save_pretrained(tmp_path, with_code=True)
    small_pipeline.image_processor = None

    small_pipeline.save_pretrained(tmp_path)

    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "model_index.json",
        "scheduler",
    }
    assert [path.name for path in (tmp_path / "scheduler").iterdir()] == ["scheduler_config.json"]
    assert "auto_map" not in (tmp_path / "config.json").read_text()


def test_other_peoples_files_are_kept(small_pipeline: MagePipeline, tmp_path: Path):
    """Saving into a folder of sources must not take those that are called as ours are."""
    for name in ("handler.py", "masking.py", "pipeline.py"):
        (tmp_path / name).write_text("print('mine')")

    small_pipeline.save_pretrained(tmp_path)

    assert (tmp_path / "masking.py").read_text() == (tmp_path / "pipeline.py").read_text() == "print('mine')"
    small_pipeline.save_pretrained(tmp_path, with_code=True)
    assert (tmp_path / "handler.py").read_text() == "print('mine')"


def test_card_is_kept(small_pipeline: MagePipeline, tmp_path: Path):
    (tmp_path / "README.md").write_text("# Mine")

    small_pipeline.save_pretrained(tmp_path)

    assert (tmp_path / "README.md").read_text() == "# Mine"


@pytest.mark.parametrize("what", ["save_pretrained", "push_to_hub", "model.save_pretrained"])
def test_unknown_arguments_are_refused(hub: HubServer, small_pipeline: MagePipeline, tmp_path: Path, what: str):
    save = attrgetter(what)(small_pipeline)

    with pytest.raises(TypeError, match="max_shard_sise"):
        save(str(tmp_path), max_shard_sise="1GB")

    assert not any(tmp_path.glob("*.safetensors"))


def test_a_file_is_not_a_folder(small_pipeline: MagePipeline, tmp_path: Path):
    (tmp_path / "file").touch()

    with pytest.raises(NotADirectoryError, match="must be a folder"):
        small_pipeline.save_pretrained(tmp_path / "file")


@pytest.mark.parametrize("how", ["push_to_hub", "save_pretrained"])
def test_push(logged_in: HubServer, small_pipeline: MagePipeline, tmp_path: Path, how: str):
    if how == "push_to_hub":
        small_pipeline.push_to_hub("org/model", private=True, commit_message="Mine")
    else:
        arguments = {"repo_id": "org/model", "private": True, "commit_message": "Mine"}
        small_pipeline.save_pretrained(tmp_path / "model", push_to_hub=True, **arguments)

    repository = logged_in.hub.repositories["model", "org/model"]
    assert repository.private
    assert repository.at("main").title == "Mine"
    assert "pipeline.py" in repository.files
    assert b"DiffusionPipeline.from_pretrained" in repository.files["README.md"]
    assert torch.equal(tokens(MagePipeline.from_pretrained("org/model")), tokens(small_pipeline))


def test_push_under_the_folders_name(logged_in: HubServer, small_pipeline: MagePipeline, tmp_path: Path):
    small_pipeline.save_pretrained(tmp_path / "my-model", push_to_hub=True)

    assert ("model", "org/my-model") in logged_in.hub.repositories


def test_pull_request(logged_in: HubServer, small_pipeline: MagePipeline, tmp_path: Path):
    repository = logged_in.hub.create("org/model", {"README.md": b"# Theirs"})

    address = small_pipeline.push_to_hub("org/model", create_pr=True)

    assert address.endswith("/discussions/1")
    assert set(repository.files) == {"README.md"}
    assert "model.safetensors" in repository.at("refs/pr/1").files
    assert repository.at("refs/pr/1").files["README.md"] == b"# Theirs"
    loaded = MagePipeline.from_pretrained("org/model", revision="refs/pr/1")
    assert torch.equal(tokens(loaded), tokens(small_pipeline))


def test_push_to_a_branch_with_a_token(hub: HubServer, small_pipeline: MagePipeline, tmp_path: Path):
    small_pipeline.save_pretrained(
        tmp_path / "model", push_to_hub=True, repo_id="org/model", token="hf_right", revision="v2", variant="fp16"
    )

    repository = hub.hub.repositories["model", "org/model"]
    assert not repository.files
    assert "model.fp16.safetensors" in repository.at("v2").files


def test_push_replaces_the_weights_of_its_variant(logged_in: HubServer, small_pipeline: MagePipeline):
    small_pipeline.push_to_hub("org/model", max_shard_size="200KB")
    small_pipeline.push_to_hub("org/model", variant="ema")
    expected = change(small_pipeline)

    small_pipeline.push_to_hub("org/model")

    files = logged_in.hub.repositories["model", "org/model"].files
    assert {name for name in files if "safetensors" in name} == {"model.safetensors", "model.ema.safetensors"}
    assert torch.equal(weights(MagePipeline.from_pretrained("org/model")), expected)


def test_push_of_a_model(logged_in: HubServer, small_config: MageConfig):
    model = MageForImageClassification(small_config)

    model.push_to_hub("org/classifier", tags=["clothes"])

    files = logged_in.hub.repositories["model", "org/classifier"].files
    assert "modeling_mage.py" in files
    assert b"clothes" in files["README.md"]
    loaded = MageForImageClassification.from_pretrained("org/classifier")
    assert torch.equal(loaded.classifier.weight, model.classifier.weight)


def test_only_the_model_of_a_training_folder_is_pushed(
    logged_in: HubServer, saved: Path, small_pipeline: MagePipeline
):
    for name in (
        "checkpoint-10/model.safetensors",
        "logs/events",
        "metrics.jsonl",
        "pictures/samples.png",
        ".eval_results/clothes.yaml",
    ):
        (saved / name).parent.mkdir(exist_ok=True)
        (saved / name).write_bytes(b"x")

    small_pipeline.save_pretrained(saved, push_to_hub=True, repo_id="org/model")

    files = logged_in.hub.repositories["model", "org/model"].files
    assert {"pictures/samples.png", ".eval_results/clothes.yaml"} <= set(files)
    assert not [name for name in files if name.startswith(("checkpoint", "logs", "metrics"))]


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        ("org/model", None, "needs a token that may write: log in"),
        ("org/model", "hf_wrong", "does not know the token"),
        ("others/model", "hf_right", "The token may not change others/model"),
        ("a/b/c", "hf_right", "cannot be the name of a repository"),
    ],
)
def test_a_push_that_cannot_be_says_so_before_anything_is_saved(
    hub: HubServer, small_pipeline: MagePipeline, tmp_path: Path, name: str, token: str | None, message: str
):
    with pytest.raises(OSError, match=message) as caught:
        small_pipeline.save_pretrained(tmp_path / "model", push_to_hub=True, repo_id=name, token=token)

    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_an_interrupted_push_sends_the_rest(
    logged_in: HubServer, small_pipeline: MagePipeline, monkeypatch: pytest.MonkeyPatch
):
    small_pipeline.push_to_hub("org/empty", max_shard_size="200KB")
    large = [request for request in logged_in.requests if request.startswith("PUT")]
    logged_in.hub.large_files.clear()
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    for _ in range(10):
        logged_in.cut(large[-1], after=1000)

    with pytest.raises(OSError, match="The upload to org/model broke off"):
        small_pipeline.push_to_hub("org/model", max_shard_size="200KB")
    repository = logged_in.hub.repositories["model", "org/model"]
    assert not repository.files
    logged_in.cuts.clear()
    logged_in.requests.clear()
    small_pipeline.push_to_hub("org/model", max_shard_size="200KB")

    assert [request for request in logged_in.requests if request.startswith("PUT")] == [large[-1]]
    assert torch.equal(tokens(MagePipeline.from_pretrained("org/model")), tokens(small_pipeline))


def test_pickles_are_not_written(small_pipeline: MagePipeline, tmp_path: Path):
    small_pipeline.save_pretrained(tmp_path, safe_serialization=False)

    assert (tmp_path / "model.safetensors").exists()
    assert not list(tmp_path.rglob("*.bin"))


def test_index_names_the_components_that_there_are(small_pipeline: MagePipeline, tmp_path: Path):
    small_pipeline.image_processor = ViTImageProcessorPil()
    small_pipeline.scheduler = MageScheduler.from_config(small_pipeline.scheduler.config)

    small_pipeline.save_pretrained(tmp_path)

    config = MagePipeline.from_pretrained(tmp_path)._index()
    assert config["scheduler"] == ["transformers_mage", "MageScheduler"]
    assert config["image_processor"] == ["transformers", "ViTImageProcessorPil"]
