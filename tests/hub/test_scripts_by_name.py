"""Every script's `--…name_or_path` takes a name on the Hub, and tells in a line what it cannot find there."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import ViTImageProcessorPil

from tests.in_process import MODEL_FLAGS, ROOT, load_script
from transformers_mage import MageForMaskedImageModeling, MagePipeline, MageScheduler

from .server import HubServer

TRAINING = ["--max_train_steps", "1", "--train_batch_size", "8", "--report_to", "none", "--checkpointing_steps", "0"]
VALIDATION = ["--validation_split", "test", "--crop_scale_min", "1"]
# By the script and the flag that takes the name: what else it needs.
CALLS = {
    ("cache_tokens", "tokenizer_name_or_path"): ["--views", "1"],
    ("compare_representations", "model_name_or_path"): VALIDATION,
    ("evaluate_generation", "feature_network"): ["--samples", "{pictures}", "--references", "{pictures}"],
    ("evaluate_generation", "tokenizer"): ["--references", "{pictures}", "--feature_network", "{folder}"],
    ("evaluate_reconstruction", "tokenizers"): ["--references", "{pictures}", "--feature_networks", "{folder}"],
    ("export", "model_name_or_path"): [],
    ("extract_features", "model_name_or_path"): ["--max_samples", "4"],
    ("finetune", "model_name_or_path"): [*TRAINING, *VALIDATION],
    ("generate", "pretrained_model_name_or_path"): ["--num_images", "2", "--num_inference_steps", "2"],
    ("linear_probe", "model_name_or_path"): [*TRAINING, *VALIDATION],
    ("reduce_codes", "tokenizer_name_or_path"): ["--image_size", "8", "--codebook_size", "4"],
    ("tune_sampling", "model_name_or_path"): [
        *("--references", "{pictures}", "--feature_network", "{folder}", "--num_images", "4"),
        *("--num_inference_steps", "2", "--temperature", "6", "--encoder_keep_share", "1"),
    ],
    ("train_mage", "tokenizer_name_or_path"): [*MODEL_FLAGS, *TRAINING],
    ("train_mage", "pretrained_model_name_or_path"): TRAINING,
    ("train_vqgan", "pretrained_model_name_or_path"): TRAINING,
}
# Of a model of a kind of its own: one that representations lead.
LED = ("train_representation_diffusion", "model_name_or_path")
WITHOUT_DATA = ("evaluate_generation", "evaluate_reconstruction", "export", "generate", "tune_sampling")
EVERY_CALL = pytest.mark.parametrize(("script", "flag"), CALLS)


@pytest.fixture
def name(tmp_path: Path) -> str:
    """Another one in each test: a process remembers which commit a name stood for."""
    return f"org/{tmp_path.name}"


@pytest.fixture
def run(
    hub: HubServer, name: str, mage_folder: Path, colours: Path, tmp_path: Path
) -> Callable[[str, str, str], Path]:
    """Runs a script with a name in place of a folder, and gives the folder that it wrote."""
    saved = tmp_path / "saved"
    model = MageForMaskedImageModeling.from_pretrained(mage_folder)
    processor = ViTImageProcessorPil.from_pretrained(mage_folder)
    MagePipeline(model, MageScheduler(model.config.mask_token_id), processor).save_pretrained(saved)
    hub.hub.create(name, saved)
    (tmp_path / "pictures").mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number}.png")

    def run(script: str, flag: str, name: str) -> Path:
        data = [] if script in WITHOUT_DATA else ["--dataset_name", colours]
        others = [word.format(pictures=tmp_path / "pictures", folder=saved) for word in CALLS[script, flag]]
        load_script(script)([f"--{flag}", name, *data, *others, "--output_dir", tmp_path / "out"])
        return tmp_path / "out"

    return run


def test_no_script_is_forgotten():
    flags = {
        (path.stem, flag)
        for path in (ROOT / "scripts").glob("*.py")
        for flag in re.findall(r"\.(\w*name_or_path)\b", path.read_text())
    }
    assert flags <= {*CALLS, LED}


def test_a_model_that_no_representations_lead_is_told_by_its_name(
    hub: HubServer, name: str, saved: Path, colours: Path
):
    hub.hub.create(name, saved)

    with pytest.raises(SystemExit, match=f"{name} is not led by representations"):
        load_script(LED[0])([f"--{LED[1]}", name, "--dataset_name", colours])


@pytest.mark.slow
@EVERY_CALL
def test_a_name_in_place_of_a_folder(run, hub: HubServer, name: str, script: str, flag: str):
    if script == "export":
        pytest.importorskip("onnxscript")

    folder = run(script, flag, name)

    assert any(folder.iterdir())
    assert [request for request in hub.requests if re.search(rf"GET .*{name}/resolve/.*/model\.safetensors", request)]


@EVERY_CALL
def test_a_name_that_is_not_there(run, tmp_path: Path, script: str, flag: str):
    with pytest.raises(SystemExit) as caught:
        run(script, flag, "org/nothing")

    assert "org/nothing" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
