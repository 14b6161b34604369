"""Whatever is asked of the Hub and cannot be had is told in a line, by every door, and nothing is left half done."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline
from huggingface_hub import constants

from transformers_mage import MagePipeline
from transformers_mage.data.batches import DataError
from transformers_mage.data.loading import DatasetSpec, load_images
from transformers_mage.data.tokenization import load_tokenizer
from transformers_mage.representation import load_classifier, load_encoder
from transformers_mage.training.conditional import load_for_training

from .server import HubServer

DOORS: dict[str, Callable[[str], object]] = {
    "pipeline": MagePipeline.from_pretrained,
    "tokenizer": load_tokenizer,
    "encoder": load_encoder,
    "classifier": lambda name: load_classifier(name, ["a", "b"]),
    "training": lambda name: load_for_training(name, {}),
    "data": lambda name: load_images(DatasetSpec(name, split="train", streaming=True)),
}
FAULTS = {
    "no network": ("org/model", "[Tt]he Hub cannot be reached"),
    "wrong name": ("org/modle", "is neither a folder here nor a (model|dataset) on the Hub"),
    "private": ("org/private", "if it is private, log in"),
    "gated": ("org/gated", "is gated: ask for access at http"),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_read(hub: HubServer, saved: Path, monkeypatch: pytest.MonkeyPatch, fault: str, door: str):
    kind = "dataset" if door == "data" else "model"
    for name, how in (("org/model", {}), ("org/private", {"private": True}), ("org/gated", {"gated": True})):
        hub.hub.create(name, saved, kind=kind, **how)
    if fault == "no network":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", "http://127.0.0.1:9")
    name, message = FAULTS[fault]

    with pytest.raises((OSError, ValueError, DataError), match=message) as caught:
        DOORS[door](name)

    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_half_an_upload(logged_in: HubServer, small_pipeline: MagePipeline, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    for _ in range(20):
        logged_in.cut(r"PUT ", after=1000)

    with pytest.raises(OSError, match="The upload to org/model broke off, and nothing there has changed") as caught:
        small_pipeline.push_to_hub("org/model")

    assert "\n" not in str(caught.value)
    assert not logged_in.hub.repositories["model", "org/model"].files
    logged_in.cuts.clear()


@pytest.mark.slow
@pytest.mark.parametrize("place", ["folder", "name"])
def test_code_of_others(hub: HubServer, saved: Path, tmp_path: Path, place: str):
    evil = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\nclass MagePipeline: pass\n"
    for path in ("pipeline.py", "modeling_mage.py", "model/load_from_root.py", "scheduler/entry.py"):
        (saved / path).parent.mkdir(exist_ok=True)
        (saved / path).write_text(evil)
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "modeling_mage.MageModel"}}))
    index = {"_class_name": ["pipeline", "MagePipeline"], "model": ["load_from_root", "MageModelFromRoot"]}
    (saved / "model_index.json").write_text(json.dumps({**index, "scheduler": ["entry", "MageScheduler"]}))
    hub.hub.create("org/model", saved)
    name = str(saved) if place == "folder" else "org/model"

    for door, load in DOORS.items():
        if door != "data":
            load(name)
    with pytest.raises(ValueError, match=re.escape("trust_remote_code=True")):
        DiffusionPipeline.from_pretrained(name)
    assert not (tmp_path / "ran").exists()
