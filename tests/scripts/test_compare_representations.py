import json
from pathlib import Path

import pytest

from tests.in_process import load_script


def test_a_model_stands_next_to_pixels_and_chance(colours: Path, mage_folder: Path, tmp_path: Path, capsys):
    flags = ["--dataset_name", colours, "--model_name_or_path", mage_folder, "--validation_split", "test"]
    flags += ["--shots_per_class", 2, 0, "--other_models", f"twin={mage_folder}", "--output_dir", tmp_path]
    load_script("compare_representations")(flags)

    results = json.loads((tmp_path / "results.json").read_text())
    accuracy = {(row["classifier"], row["subset"]): row["accuracy"] for row in results}
    # Reddish and bluish noise.
    assert accuracy["raw pixels: linear probe", "all labels"] == 1
    assert accuracy["raw pixels: k-NN", "2 shots"] == 1
    names = ("the model, layer_1_mean", "random encoder, layer_1_mean", "twin, layer_1_mean")
    assert {row["classifier"].partition(":")[0] for row in results} == {"raw pixels", *names}
    assert accuracy[f"{names[0]}: k-NN", "all labels"] == accuracy[f"{names[2]}: k-NN", "all labels"]
    assert "raw pixels: linear probe" in capsys.readouterr().out


def test_a_model_without_a_name_is_refused(colours: Path, mage_folder: Path, capsys):
    flags = ["--dataset_name", colours, "--model_name_or_path", mage_folder, "--other_models", "folder"]
    with pytest.raises(SystemExit):
        load_script("compare_representations")(flags)
    assert "NAME=FOLDER; got folder" in capsys.readouterr().err


def test_a_set_that_cannot_be_read_costs_nothing_of_those_before(colours: Path, mage_folder: Path, tmp_path: Path):
    flags = ["--model_name_or_path", mage_folder, "--validation_split", "test", "--output_dir", tmp_path]
    with pytest.raises(SystemExit):
        load_script("compare_representations")([*flags, "--dataset_name", f"{colours},{tmp_path / 'nowhere'}"])
    results = json.loads((tmp_path / "results.json").read_text())
    assert {row["dataset"] for row in results} == {str(colours)}
