import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import load_from_disk
from safetensors.torch import load_file
from transformers import pipeline

from tests.in_process import load_script

Script = Callable[[list[str]], None]


@pytest.fixture(scope="module")
def finetune() -> Script:
    return load_script("finetune")


@pytest.fixture
def flags(colours: Path, mage_folder: Path) -> list[str]:
    flags = ["--dataset_name", colours, "--model_name_or_path", mage_folder, "--validation_split", "test"]
    flags += ["--train_batch_size", "12", "--learning_rate", "0.01", "--warmup_steps", "2"]
    return [*flags, "--report_to", "none", "--crop_scale_min", "1", "--rand_augment_magnitude", "0"]


def test_classes_are_learned_and_the_best_model_is_kept(finetune: Script, flags, colours: Path, tmp_path: Path):
    finetune([*flags, "--output_dir", tmp_path, "--max_train_steps", "30", "--validation_epochs", "5"])

    [result] = json.loads((tmp_path / "results.json").read_text())
    assert (result["accuracy"], result["num_train"], result["num_images"]) == (1.0, 24, 8)
    assert result["classifier"] == "fine-tuned, mean"
    test = load_from_disk(colours)["test"]
    for folder in (tmp_path, tmp_path / "best"):
        predictions = pipeline("image-classification", model=str(folder))(test["image"][:])
        assert [likeliest[0]["label"] for likeliest in predictions] == ["red", "blue"] * 4
    with pytest.raises(SystemExit, match=r"holds a run already .*, or give another `--output_dir`"):
        finetune([*flags, "--output_dir", tmp_path])


def test_the_whole_recipe_resumes_to_the_same_bits(finetune: Script, flags: list[str], tmp_path: Path):
    flags = [*flags, "--rand_augment_magnitude", "9", "--do_normalize", "--use_ema", "--crop_scale_min", "0.5"]
    flags += ["--max_train_steps", "6", "--checkpointing_steps", "4", "--layer_decay", "0.5"]
    finetune([*flags, "--output_dir", tmp_path / "once"])
    checkpoint = tmp_path / "once" / "checkpoint-4"
    finetune([*flags, "--output_dir", tmp_path / "twice", "--resume_from_checkpoint", checkpoint])

    once, twice = (load_file(tmp_path / run / "model.safetensors") for run in ("once", "twice"))
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_shots_and_seeds(finetune: Script, flags: list[str], tmp_path: Path):
    flags = [*flags, "--shots_per_class", "1", "2", "--num_seeds", "2", "--classifier_pooling", "cls"]
    finetune([*flags, "--max_train_steps", "1", "--output_dir", tmp_path])

    rows = json.loads((tmp_path / "results.json").read_text())
    assert [(row["subset"], row["seed"], row["num_train"]) for row in rows] == [
        ("1 shot", 0, 2),
        ("1 shot", 1, 2),
        ("2 shots", 0, 4),
        ("2 shots", 1, 4),
    ]
    assert "| fine-tuned, cls |" in (tmp_path / "results.md").read_text()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--shots_per_class", "13"], "13 images of each class are asked for, but class 0 has 12"),
        (["--model_name_or_path", "no/such/model"], "No model can be loaded from no/such/model"),
        (["--label_column", "image"], 'The column "image" must hold classes, integers or strings'),
    ],
)
def test_what_cannot_be_done_is_said(finetune: Script, flags, tmp_path, extra: list[str], message: str):
    with pytest.raises(SystemExit, match=message):
        finetune([*flags, *extra, "--output_dir", tmp_path])


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--layer_decay", "1.5"], "`--layer_decay` must be at least 0 and at most 1, got 1.5"),
        (["--rand_augment_magnitude", "30"], "must be at least 0 and at most 10, got 30"),
        (["--mixup_alpha", "-1"], "`--mixup_alpha` must be at least 0, got -1"),
    ],
)
def test_impossible_recipes_are_refused(finetune: Script, flags, capsys, extra: list[str], message: str):
    with pytest.raises(SystemExit):
        finetune([*flags, *extra])
    assert message in capsys.readouterr().err
