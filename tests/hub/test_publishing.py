"""From training over the Hub to somebody else's pictures."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.in_process import MODEL_FLAGS, load_script
from transformers_mage import MagePipeline
from transformers_mage.hub.publishing import Publication, Publisher

from .server import HubServer
from .test_by_name import tokens

pytestmark = pytest.mark.slow
Script = Callable[[list[str]], None]


@pytest.fixture
def flags(image_folder: Path, tokenizer_folder: Path) -> list[str]:
    flags = ["--dataset_name", image_folder, "--tokenizer_name_or_path", tokenizer_folder, "--logging_steps", "1"]
    return [*MODEL_FLAGS, *flags, "--learning_rate", "0.01"]


def test_round_trip(logged_in: HubServer, train_mage: Script, flags: list[str], tmp_path: Path):
    """Train, push, load by name elsewhere: the same pictures. Then go on from the name, and write with it."""
    train_mage([*flags, "--max_train_steps", "3", "--push_to_hub", "--output_dir", tmp_path / "mage-squares"])

    repository = logged_in.hub.repositories["model", "org/mage-squares"]
    assert {"README.md", "pipeline.py", "handler.py", "pictures/sample-7.png", "pictures/training.png"} <= set(
        repository.files
    )
    assert b"org/mage-squares" in repository.files["README.md"]
    loaded = MagePipeline.from_pretrained("org/mage-squares")
    assert torch.equal(tokens(loaded), tokens(MagePipeline.from_pretrained(tmp_path / "mage-squares")))

    name = ["--pretrained_model_name_or_path", "org/mage-squares"]
    at = flags.index("--tokenizer_name_or_path")
    by_name = [*flags[:at], "--tokenizer_name_or_path", "org/mage-squares", *flags[at + 2 :]]
    train_mage([*by_name[len(MODEL_FLAGS) - 4 :], *name, "--max_train_steps", "1", "--output_dir", tmp_path / "more"])
    assert "org/mage-squares" in (tmp_path / "more" / "README.md").read_text()
    made = ["--num_images", "2", "--num_inference_steps", "2", "--output_dir", tmp_path / "samples"]
    load_script("generate")([*name, *made])
    assert len(list((tmp_path / "samples" / "images").rglob("*.png"))) == 2


@pytest.mark.parametrize(
    ("strategy", "checkpoints"),
    [("end", set()), ("every_save", set()), ("checkpoint", {"checkpoint-2"}), ("all_checkpoints", {"checkpoint-2"})],
)
def test_strategies(
    logged_in: HubServer, train_mage: Script, flags: list[str], tmp_path: Path, strategy: str, checkpoints: set[str]
):
    pushing = ["--push_to_hub", "--hub_model_id", "org/model", "--hub_strategy", strategy]
    train_mage([*flags, "--max_train_steps", "3", "--checkpointing_steps", "2", *pushing, "--output_dir", tmp_path])

    repository = logged_in.hub.repositories["model", "org/model"]
    titles = [commit.title for commit in repository.commits.values()]
    assert titles.count("End of training") == 1
    assert ("Training in progress, step 2" in titles) == (strategy != "end")
    folders = {name.split("/")[0] for name in repository.files if name.startswith("checkpoint")}
    assert folders == checkpoints


def test_pushing_on_the_way_does_not_change_the_training(
    logged_in: HubServer, train_mage: Script, flags: list[str], tmp_path: Path
):
    flags = [*flags, "--max_train_steps", "4", "--checkpointing_steps", "2"]
    train_mage([*flags, "--output_dir", tmp_path / "quiet"])
    train_mage([*flags, "--push_to_hub", "--hub_strategy", "every_save", "--output_dir", tmp_path / "pushed"])

    quiet, pushed = (tmp_path / name / "model.safetensors" for name in ("quiet", "pushed"))
    assert quiet.read_bytes() == pushed.read_bytes()


@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_a_wrong_token_says_so_before_the_training(
    hub: HubServer, train_mage: Script, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str
):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)

    with pytest.raises(SystemExit) as caught:
        train_mage([*flags, "--max_train_steps", "3", "--push_to_hub", "--output_dir", tmp_path / "model"])

    assert "token" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_a_failed_push_does_not_stop_the_training(
    logged_in: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    publisher = Publisher(tmp_path, Publication("others/model", "every_save"))
    with caplog.at_level(logging.WARNING):
        publisher.publish_checkpoint(1, lambda folder: None)
        publisher._push.exception()
        publisher.publish_checkpoint(2, lambda folder: None)

    assert "The last push failed" in caplog.text
    publisher.write(lambda folder: (folder / "config.json").write_text("{}"))
    with pytest.raises(OSError, match="is written, but could not be pushed: The token may not change others/model"):
        publisher.push()
    assert (tmp_path / "config.json").exists()


def test_folder_with_code_that_goes_nowhere(train_mage: Script, flags: list[str], tmp_path: Path):
    train_mage([*flags, "--max_train_steps", "1", "--with_code", "--output_dir", tmp_path])

    assert (tmp_path / "pipeline.py").exists()
    assert "trust_remote_code=True" in (tmp_path / "README.md").read_text()
