"""A converted checkpoint goes to the Hub as a trained one does."""

from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from tests.original_files import original_weights, save_original
from tests.test_convert_original_checkpoint import convert
from transformers_mage import MagePipeline, convert_original_checkpoint
from transformers_mage.hub.gallery import sample_gallery
from transformers_mage.hub.model_card import enlarge

from .server import HubServer


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_original(tmp_path / "mage.pth", original_weights())


@pytest.mark.slow
def test_push(logged_in: HubServer, checkpoint: Path, tmp_path: Path):
    folder = convert(checkpoint, tmp_path / "out", "--push_to_hub", "mage-tiny")

    files = logged_in.hub.repositories["model", "org/mage-tiny"].files
    assert {"README.md", "pipeline.py", "handler.py", "model.safetensors"} <= set(files)
    assert 'from_pretrained("org/mage-tiny")' in (folder / "README.md").read_text()
    loaded, written = MagePipeline.from_pretrained("org/mage-tiny"), MagePipeline.from_pretrained(folder)
    assert torch.equal(loaded.model.head.dense.weight, written.model.head.dense.weight)


@pytest.mark.slow
def test_gallery(checkpoint: Path, tmp_path: Path):
    folder = convert(checkpoint, tmp_path / "out", "--num_samples", "2")

    card = ModelCard.load(folder / "README.md")
    shown = [sample["output"]["url"] for sample in card.data.widget]
    assert shown == ["pictures/sample-0.png", "pictures/sample-1.png"]
    assert "<Gallery />" in card.text
    sample = sample_gallery(MagePipeline.from_pretrained(folder), 2)[1]
    picture = Image.open(folder / shown[1])
    assert np.array_equal(np.asarray(picture), np.asarray(enlarge(sample.image)))


@pytest.mark.parametrize("kind", ["classifier", "model"])
def test_samples_of_what_makes_none(kind: str, tmp_path: Path):
    checkpoint = save_original(tmp_path / "mage.pth", original_weights(kind, tokenizer=kind == "classifier"))

    with pytest.raises(SystemExit, match="`--num_samples` are of models that make images, with their tokenizer"):
        convert(checkpoint, tmp_path / "out", "--num_samples", "2")

    assert not (tmp_path / "out").exists()


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
