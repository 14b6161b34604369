"""A converted checkpoint goes to the Hub as a trained one does."""

from pathlib import Path

import pytest
import torch

from tests.original_files import original_weights, save_original
from tests.test_convert_original_checkpoint import convert
from transformers_mage import MagePipeline, convert_original_checkpoint

from .server import HubServer


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_original(tmp_path / "mage.pth", original_weights())


def test_push(logged_in: HubServer, checkpoint: Path, tmp_path: Path):
    folder = convert(checkpoint, tmp_path / "out", "--push_to_hub", "mage-tiny")

    files = logged_in.hub.repositories["model", "org/mage-tiny"].files
    assert {"README.md", "pipeline.py", "handler.py", "model.safetensors"} <= set(files)
    assert 'from_pretrained("org/mage-tiny")' in (folder / "README.md").read_text()
    loaded, written = MagePipeline.from_pretrained("org/mage-tiny"), MagePipeline.from_pretrained(folder)
    assert torch.equal(loaded.model.head.dense.weight, written.model.head.dense.weight)


def test_folder_with_code(checkpoint: Path, tmp_path: Path):
    assert (convert(checkpoint, tmp_path / "out", "--with_code") / "pipeline.py").is_file()


@pytest.mark.parametrize(("token", "message"), [(None, "hf auth login"), ("hf_wrong", "does not know the token")])
def test_a_push_that_cannot_be_is_refused_early(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, message: str
):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)

    with pytest.raises(SystemExit, match=message):
        convert(tmp_path / "not-even-looked-at.pth", tmp_path / "out", "--push_to_hub", "mage-tiny")


def test_failed_upload_keeps_the_folder(
    logged_in: HubServer, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*args, **kwargs):
        raise OSError("the line is cut")

    monkeypatch.setattr(convert_original_checkpoint, "push_folder", refuse)

    with pytest.raises(SystemExit, match="is written, but could not be uploaded to org/mage-tiny: the line is cut"):
        convert(checkpoint, tmp_path / "out", "--push_to_hub", "mage-tiny")

    assert (tmp_path / "out" / "model.safetensors").is_file()
