import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import load_from_disk
from transformers import AutoModelForImageClassification, pipeline

from tests.in_process import load_script

Script = Callable[[list[str]], None]


@pytest.fixture(scope="module")
def linear_probe() -> Script:
    return load_script("linear_probe")


@pytest.fixture
def flags(colours: Path, mage_folder: Path) -> list[str]:
    flags = ["--dataset_name", colours, "--model_name_or_path", mage_folder, "--report_to", "none"]
    return [*flags, "--validation_split", "test", "--crop_scale_min", "1", "--horizontal_flip", "false"]


def results_in(folder: Path) -> dict[str, list[dict]]:
    """By the classifiers' names."""
    results = {}
    for row in json.loads((folder / "results.json").read_text()):
        results.setdefault(row["classifier"], []).append(row)
    return results


def test_papers_protocol(linear_probe: Script, flags: list[str], tmp_path: Path):
    flags = [
        *flags,
        "--layers",
        "1",
        "--poolings",
        "mean",
        "cls",
        "--learning_rate",
        "1",
        "--trust_coefficient",
        "0.02",
    ]
    schedule = ["--train_batch_size", "12", "--num_train_epochs", "60", "--warmup_epochs", "1"]
    linear_probe([*flags, *schedule, "--output_dir", tmp_path])

    results = results_in(tmp_path)
    assert set(results) == {"linear probe by LARS, layer_1_mean", "linear probe by LARS, layer_1_cls"}
    assert max(row["accuracy"] for [row] in results.values()) == 1.0
    assert all((row["num_train"], row["num_images"]) == (24, 8) for [row] in results.values())
    model = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert model.config.id2label == {0: "red", 1: "blue"}
    assert isinstance(model.batch_norm, torch.nn.BatchNorm1d)


def test_cached_features_over_shots_and_seeds(linear_probe: Script, flags: list[str], colours, tmp_path: Path):
    flags = [*flags, "--cached_features", "--shots_per_class", "1", "10", "--num_seeds", "2"]
    linear_probe([*flags, "--output_dir", tmp_path])

    results = results_in(tmp_path)
    assert set(results) == {"linear probe, layer_1_mean", "k-NN, layer_1_mean"}
    probe = results["linear probe, layer_1_mean"]
    assert [(row["subset"], row["seed"], row["num_train"]) for row in probe] == [
        ("1 shot", 0, 2),
        ("1 shot", 1, 2),
        ("10 shots", 0, 20),
        ("10 shots", 1, 20),
    ]
    assert probe[-1]["accuracy"] == 1.0
    assert "| linear probe, layer_1_mean |" in (tmp_path / "results.md").read_text()

    classifier = pipeline("image-classification", model=str(tmp_path / colours.name / "10-shots" / "seed-0"))
    test = load_from_disk(colours)["test"]
    assert [predictions[0]["label"] for predictions in classifier(test["image"][:])] == ["red", "blue"] * 4


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--shots_per_class", "13"], "13 images of each class are asked for, but class 0 has 12"),
        (["--layers", "2"], r"between 0 \(embeddings\) and 1, got 2"),
        (["--validation_split", "val"], 'The split "val" of .* cannot be loaded'),
    ],
)
def test_what_cannot_be_done_is_said(linear_probe: Script, flags, tmp_path, extra: list[str], message: str):
    with pytest.raises(SystemExit, match=message):
        linear_probe([*flags, *extra, "--cached_features", "--output_dir", tmp_path])


def test_wrong_flags_are_refused(linear_probe: Script, flags, capsys):
    for extra, message in (
        (["--label_fraction", "2"], "must be more than 0 and at most 1, got 2.0"),
        (["--penalty", "-1"], "`--penalty` must be at least 0, got -1.0"),
        (["--penalty", "nan"], "`--penalty` must be a finite number, got nan"),
        (["--num_neighbours", "0"], "`--num_neighbours` must be at least 1, got 0"),
    ):
        with pytest.raises(SystemExit):
            linear_probe([*flags, *extra])
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("extra", [[], ["--cached_features"]], ids=["lars", "cached"])
def test_what_was_trained_on_is_not_evaluated_on_by_mistake(linear_probe: Script, flags, colours, tmp_path, extra):
    """A data set that was saved alone has one split."""
    load_from_disk(colours)["train"].save_to_disk(tmp_path / "alone")
    with pytest.raises(SystemExit, match=r'The split "nope" of .*alone cannot be loaded: it has the splits'):
        linear_probe([*flags, *extra, "--dataset_name", tmp_path / "alone", "--validation_split", "nope"])
