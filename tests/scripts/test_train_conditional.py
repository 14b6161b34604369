"""scripts/train_mage.py --class_conditional: from scratch, and from an unconditional model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.in_process import MODEL_FLAGS
from transformers_mage import MagePipeline

pytestmark = pytest.mark.slow

Script = Callable[[list[str]], None]
CLASS_EMBEDDINGS = "mage.embeddings.class_embeddings.weight"


@pytest.fixture
def flags(image_folder: Path) -> list[str]:
    flags = ["--dataset_name", image_folder, "--learning_rate", "0.01", "--checkpointing_steps", "0"]
    return [*MODEL_FLAGS, *flags, "--max_train_steps", "4", "--logging_steps", "1"]


@pytest.fixture
def unconditional(train_mage: Script, flags: list[str], tokenizer_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "unconditional"
    train_mage([*flags, "--tokenizer_name_or_path", tokenizer_folder, "--output_dir", folder])
    return folder


def test_from_scratch(train_mage: Script, flags: list[str], tokenizer_folder: Path, tmp_path: Path):
    flags = [*flags, "--tokenizer_name_or_path", tokenizer_folder, "--class_conditional"]
    train_mage([*flags, "--output_dir", tmp_path])
    pipe = MagePipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    assert (pipe.model.config.num_classes, pipe.model.config.id2label) == (2, {0: "0", 1: "1"})
    images = pipe(class_labels=["0", 1], guidance_scale=1.0, num_inference_steps=2, output_type="pt").images
    assert images.shape == (2, 1, 8, 8)


@pytest.mark.parametrize("freeze", [False, True])
def test_from_an_unconditional_model(
    train_mage: Script, flags: list[str], unconditional: Path, tmp_path: Path, freeze: bool
):
    flags = [*flags, "--pretrained_model_name_or_path", unconditional, "--class_conditional"]
    train_mage([*flags, *(["--freeze_encoder"] if freeze else []), "--output_dir", tmp_path / "conditional"])
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("unconditional", "conditional"))
    assert after.keys() - before.keys() == {CLASS_EMBEDDINGS}
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == ({"decoder", "head"} if freeze else {"mage", "decoder", "head"})
    assert all(torch.equal(before[name], after[name]) for name in before if ".vqvae." in name)
    assert after[CLASS_EMBEDDINGS].abs().max() > 0.03  # they learn, at rate 0.01


def test_conditional_training_resumes_to_the_same_bits(
    train_mage: Script, flags: list[str], unconditional: Path, tmp_path: Path
):
    flags = [*flags, "--pretrained_model_name_or_path", unconditional, "--class_conditional", "--freeze_encoder"]
    flags = [*flags, "--max_train_steps", "6", "--checkpointing_steps", "4"]
    train_mage([*flags, "--output_dir", tmp_path / "once"])
    checkpoint = tmp_path / "once" / "checkpoint-4"
    train_mage([*flags, "--output_dir", tmp_path / "twice", "--resume_from_checkpoint", checkpoint])
    once, twice = (load_file(tmp_path / run / "model.safetensors") for run in ("once", "twice"))
    assert all(torch.equal(once[name], twice[name]) for name in once)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--class_conditional", "--label_column", "class"], 'no column "class"'),
        (["--freeze_encoder"], "--pretrained_model_name_or_path"),
        (["--pretrained_model_name_or_path", "/no/such/folder"], "/no/such/folder"),
    ],
)
def test_mistakes_end_with_a_message(
    train_mage: Script, flags: list[str], tokenizer_folder: Path, tmp_path: Path, capsys, more: list[str], message: str
):
    with pytest.raises(SystemExit) as stop:
        train_mage([*flags, "--tokenizer_name_or_path", tokenizer_folder, "--output_dir", tmp_path, *more])
    assert message in str(stop.value) + capsys.readouterr().err
