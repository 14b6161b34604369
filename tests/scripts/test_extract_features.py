from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset, load_from_disk
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel

from tests.in_process import load_script

Script = Callable[[list[str]], None]


@pytest.fixture(scope="module")
def extract_features() -> Script:
    return load_script("extract_features")


@pytest.fixture
def flags(colours: Path, mage_folder: Path, tmp_path: Path) -> list[str]:
    return ["--dataset_name", colours, "--model_name_or_path", mage_folder, "--output_dir", tmp_path]


@torch.no_grad()
def test_features_are_those_of_auto_model(extract_features: Script, flags, colours, mage_folder, tmp_path):
    extract_features([*flags, "--splits", "train", "test", "--batch_size", "5", "--poolings", "mean", "tokens"])

    model, processor = AutoModel.from_pretrained(mage_folder), AutoImageProcessor.from_pretrained(mage_folder)
    source = load_from_disk(colours)["test"]
    expected = model(**processor(source["image"][:], return_tensors="pt"))
    features = Dataset.from_parquet(str(tmp_path / "test-00000-of-00001.parquet"), keep_in_memory=True)
    assert features.features["label"].names == ["red", "blue"]
    columns = features.with_format("torch")[:]
    assert torch.allclose(columns["layer_1_mean"], expected.pooler_output, atol=1e-5)
    assert torch.allclose(model.layernorm(columns["layer_1_tokens"]), expected.last_hidden_state[:, 1:], atol=1e-5)
    assert torch.equal(columns["label"], torch.tensor(source["label"][:]))
    assert (tmp_path / "train-00000-of-00001.parquet").exists()


def test_half_precision_safetensors_at_another_size(extract_features: Script, flags: list[str], tmp_path: Path):
    flags = [*flags, "--dtype", "float16", "--output_format", "safetensors", "--image_size", "12"]
    extract_features([*flags, "--max_samples", "6", "--layers", "0", "1"])

    columns = load_file(tmp_path / "train-00000-of-00001.safetensors")
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in columns.items()} == {
        "layer_0_mean": ((6, 16), torch.float16),
        "layer_1_mean": ((6, 16), torch.float16),
        "index": ((6,), torch.int64),
        "label": ((6,), torch.int64),
    }


def test_an_interrupted_run_goes_on_and_says_how_fast(extract_features: Script, flags, tmp_path: Path, capsys):
    flags = [*flags, "--images_per_shard", "10"]
    extract_features(flags)
    assert "train: 24 images in" in capsys.readouterr().out
    (tmp_path / "train-00001-of-00003.parquet").unlink()

    extract_features(flags)

    assert "train: 10 images in" in capsys.readouterr().out
    assert len(list(tmp_path.glob("*.parquet"))) == 3


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--image_size", "9"], "multiple of 2, got 9"),
        (["--layers", "5"], "between 0 .* and 1, got 5"),
        (["--splits", "val"], 'The split "val"'),
        (["--image_column", "label"], 'The column "label" holds no images that can be decoded'),
    ],
)
def test_what_cannot_be_done_is_said(extract_features: Script, flags: list[str], extra: list[str], message: str):
    with pytest.raises(SystemExit, match=message):
        extract_features([*flags, *extra])
