import argparse
import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from datasets import DatasetDict
from transformers import ViTMAEConfig, ViTMAEModel

from examples import compare_representations
from transformers_mage import MageForMaskedImageModeling
from transformers_mage.representation.results import Result, save_results

DIGITS = compare_representations.SETS["digits"]


def test_the_table_has_all_parts_and_goes_into_the_card(mage_folder: Path, tmp_path: Path, monkeypatch, capsys):
    module, calls = compare_representations, []

    def run_script(script: str, *flags: object):
        words = [str(word) for word in flags]
        calls.append((script, *words))
        folder = words[words.index("--output_dir") + 1]
        save_results([Result("data/digits", script, "5 shots", 0, 50, 0.25, 0.9, 0.25, 1.0, 360)], folder)

    monkeypatch.setattr(module, "run_script", run_script)
    monkeypatch.setitem(module.SETS, "digits", dataclasses.replace(module.SETS["digits"], shots=(5,)))
    monkeypatch.setattr(module, "NUM_SEEDS", 1)
    card = tmp_path / "README.md"
    card.write_text("Before.\n<!-- representations -->\nold\n<!-- /representations -->\nAfter.\n")
    flags = ["--model_name_or_path", mage_folder, "--output_dir", tmp_path / "out", "--card", card]
    flags += ["--other_models", "MAGE-C=contrastive"]
    monkeypatch.setattr(sys, "argv", ["compare_representations.py", "digits", *map(str, flags)])
    module.main()
    module.main()

    text = card.read_text()
    assert [call[0] for call in calls] == ["linear_probe", "linear_probe", "finetune", "linear_probe", "linear_probe"]
    assert "contrastive" in calls[-1]
    assert "| random encoder: linear_probe | 25.0 |" in text
    assert "| MAGE-C: linear_probe | 25.0 |" in text
    [pixels] = [line for line in text.splitlines() if line.startswith("| raw pixels: linear probe |")]
    assert 70 < float(pixels.split("|")[2]) < 95
    assert "old" not in text
    assert text.endswith("After.\n")


def test_only_the_tokenizer_of_the_random_model_has_learned(mage_folder: Path, tmp_path: Path):
    compare_representations.save_random_model(str(mage_folder), tmp_path)

    trained, random = (
        MageForMaskedImageModeling.from_pretrained(folder).state_dict() for folder in (mage_folder, tmp_path)
    )
    equal = {name for name in trained if torch.equal(trained[name], random[name])}
    assert {name for name in trained if "vqvae" in name} <= equal
    assert "mage.embeddings.word_embeddings.weight" not in equal
    assert (tmp_path / "preprocessor_config.json").exists()


def test_missing_images_are_said_to_be(tmp_path: Path):
    with pytest.raises(SystemExit, match=r"no emoji in .*nowhere: make them, and say where with `--dataset_name"):
        compare_representations.load_images("emoji", tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["MAGE-C", "=folder", "MAGE-C="])
def test_other_models_need_a_name_and_a_folder(text: str):
    name_and_folder = compare_representations.name_and_folder
    assert name_and_folder("MAGE-C=a=b") == ("MAGE-C", "a=b")
    with pytest.raises(argparse.ArgumentTypeError, match="NAME=FOLDER"):
        name_and_folder(text)


def test_results_of_one_model_do_not_pass_for_anothers(tmp_path: Path):
    keep_to_one_model = compare_representations.keep_to_one_model
    keep_to_one_model(tmp_path, "first")
    keep_to_one_model(tmp_path, "first")
    with pytest.raises(SystemExit, match="holds results of first, not of second"):
        keep_to_one_model(tmp_path, "second")


@pytest.mark.parametrize("names", [["features=a"], ["random encoder=a"], ["twice=a", "twice=b"]])
def test_other_models_need_names_of_their_own(mage_folder: Path, tmp_path: Path, monkeypatch, capsys, names):
    flags = ["--model_name_or_path", str(mage_folder), "--output_dir", str(tmp_path), "--other_models", *names]
    monkeypatch.setattr(sys, "argv", ["compare_representations.py", "digits", *flags])
    with pytest.raises(SystemExit):
        compare_representations.main()
    assert "need names of their own" in capsys.readouterr().err


def test_only_the_digits_come_with_a_model(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare_representations.py", "emoji"])
    with pytest.raises(SystemExit):
        compare_representations.main()
    assert "say which model to use for the emoji" in capsys.readouterr().err


def test_vit_mae_joins_with_features_of_whole_images(tmp_path: Path, monkeypatch):
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = ViTMAEModel(ViTMAEConfig(image_size=32, patch_size=8, num_channels=1, **size)).eval()
    model.save_pretrained(tmp_path)
    dataset = compare_representations.load_images("digits", None)
    dataset = DatasetDict({split: rows.select(range(200)) for split, rows in dataset.items()})
    monkeypatch.setitem(compare_representations.SETS, "digits", dataclasses.replace(DIGITS, shots=(1,)))

    results = compare_representations.probe_vit_mae(tmp_path, dataset, "digits")

    assert {result.classifier.split(":")[0] for result in results} == {"ViT-MAE, mean", "ViT-MAE, cls"}
    assert len(results) == 2 * 2 * compare_representations.NUM_SEEDS
    whole = ViTMAEModel.from_pretrained(tmp_path, mask_ratio=0.0).eval()
    features = compare_representations.vit_mae_features(whole, dataset["test"], batch_size=64)
    again = compare_representations.vit_mae_features(whole, dataset["test"], batch_size=200)
    # No token is hidden, so that only their order is random.
    torch.testing.assert_close(features, again, rtol=1e-4, atol=1e-5)
