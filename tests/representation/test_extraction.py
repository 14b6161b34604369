from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from datasets import ClassLabel, Dataset, Image, load_dataset

from tests.in_process import in_child
from transformers_mage import MageConfig, MageModel
from transformers_mage.data.batches import Loading
from transformers_mage.data.labelled_images import EvaluationImages
from transformers_mage.data.loading import Columns
from transformers_mage.files import FolderError, locked
from transformers_mage.representation import FeatureExtractor, FeatureStore, extract_features

MADE_OF = {"model": "abc", "features": ["layer_2_mean"]}


@pytest.fixture
def encoder(small_config: MageConfig) -> MageModel:
    return MageModel(small_config).eval()


@pytest.fixture
def images(numbered_images: Dataset) -> EvaluationImages:
    """Ten images of one value each, as large as the model's."""
    return EvaluationImages(numbered_images.take(10), Columns(), (3, 32, 32))


def store(folder: Path, file_format: str = "safetensors", **kwargs) -> FeatureStore:
    values = {"folder": folder, "split": "train", "num_images": 10, "made_of": MADE_OF, "images_per_shard": 4}
    return FeatureStore(**values | kwargs, file_format=file_format)


# Features


@torch.no_grad()
def test_features_are_those_of_the_model(encoder, pixel_values):
    features = FeatureExtractor(encoder, [0, -1], ["mean", "cls", "tokens"])(pixel_values)

    outputs = encoder(pixel_values, output_hidden_states=True)
    assert list(features) == [f"layer_{i}_{pooling}" for i in (0, 2) for pooling in ("mean", "cls", "tokens")]
    assert torch.equal(features["layer_2_mean"], outputs.pooler_output)
    assert torch.equal(features["layer_2_cls"], outputs.hidden_states[2][:, 0])
    assert torch.equal(features["layer_0_tokens"], outputs.hidden_states[0][:, 1:])


def test_other_resolutions_interpolate_and_the_trained_one_does_not(encoder):
    extractor = FeatureExtractor(encoder)

    assert extractor(torch.rand(2, 3, 48, 40))["layer_2_mean"].shape == (2, 32)
    trained = torch.rand(2, 3, 32, 32)
    assert torch.equal(extractor(trained)["layer_2_mean"], encoder(trained).pooler_output)


@pytest.mark.parametrize(
    ("layers", "poolings", "message"),
    [([3], ["mean"], r"between 0 \(embeddings\) and 2, got 3"), ([1], ["max"], 'mean, cls, tokens, got "max"')],
)
def test_what_does_not_exist_is_refused(encoder, layers, poolings, message):
    with pytest.raises(ValueError, match=message):
        FeatureExtractor(encoder, layers, poolings)


# Stores


@pytest.mark.parametrize("file_format", ["parquet", "safetensors"])
def test_every_image_is_there_once_in_order(encoder, images, tmp_path, file_format):
    extractor = FeatureExtractor(encoder, [-1], ["mean", "tokens"])
    report = extract_features(extractor, images, store(tmp_path, file_format), Accelerator(), Loading(3))

    columns = store(tmp_path, file_format).load()
    expected = extractor(images.__getitems__(list(range(10)))["pixel_values"] / 255)
    assert (report.num_images, report.num_broken) == (10, 0)
    assert columns["index"].tolist() == columns["label"].tolist() == list(range(10))
    assert torch.allclose(columns["layer_2_mean"], expected["layer_2_mean"], atol=1e-5)
    assert torch.allclose(columns["layer_2_tokens"], expected["layer_2_tokens"], atol=1e-5)


def test_datasets_loads_the_folder(encoder, images, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    names = [str(i) for i in range(50)]
    folder = tmp_path / "features"
    extract_features(
        FeatureExtractor(encoder), images, store(folder, "parquet", class_names=names), Accelerator(), Loading(4)
    )

    dataset = load_dataset(str(folder), split="train")

    assert dataset.column_names == ["layer_2_mean", "label", "index"]
    assert dataset.features["label"] == ClassLabel(names=names)
    assert len(dataset) == 10


def test_an_interrupted_extraction_is_resumed(encoder, images, tmp_path):
    extract_features(FeatureExtractor(encoder), images, store(tmp_path), Accelerator(), Loading(64))
    whole = store(tmp_path).load()
    store(tmp_path).path(1).unlink()
    with pytest.raises(FolderError, match="only 2 of 3 shards"):
        store(tmp_path).load()

    report = extract_features(FeatureExtractor(encoder), images, store(tmp_path), Accelerator(), Loading(64))

    assert report.num_images == 4
    assert torch.allclose(store(tmp_path).load()["layer_2_mean"], whole["layer_2_mean"], atol=1e-6)
    assert not list(tmp_path.glob("*.partial"))


def test_features_of_another_model_are_not_mixed_in(encoder, images, tmp_path):
    extract_features(FeatureExtractor(encoder), images, store(tmp_path), Accelerator(), Loading(64))

    with pytest.raises(FolderError, match=r"holds other features \(model was 'abc' there and is 'xyz' now\)"):
        store(tmp_path, made_of={**MADE_OF, "model": "xyz"}).open()


def test_broken_images_are_left_out_and_counted(encoder, numbered_images, tmp_path):
    rows = numbered_images.take(10).to_list()
    rows[5]["image"]["bytes"] = b"no image"
    dataset = Dataset.from_list(rows, features=numbered_images.features).cast_column("image", Image(decode=False))
    images = EvaluationImages(dataset, Columns(label=None), (3, 32, 32))

    report = extract_features(FeatureExtractor(encoder), images, store(tmp_path), Accelerator(), Loading(64))

    columns = store(tmp_path).load()
    assert report.num_broken == 1
    assert columns["index"].tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert set(columns) == {"layer_2_mean", "index"}


def test_a_note_that_a_full_disk_left_empty_stops_nobody(encoder, images, tmp_path):
    (tmp_path / ".train.json").touch()

    extract_features(FeatureExtractor(encoder), images, store(tmp_path), Accelerator(), Loading(64))

    assert len(store(tmp_path).load()["index"]) == 10


def test_features_that_are_not_finite_are_not_kept(encoder, images, tmp_path):
    torch.nn.init.constant_(encoder.layers[1].mlp.fc2.bias, torch.nan)

    with pytest.raises(ValueError, match="layer_2_mean holds NaN or infinity"):
        extract_features(FeatureExtractor(encoder), images, store(tmp_path), Accelerator(), Loading(64))

    assert not list(tmp_path.glob("*.safetensors"))


def test_a_split_stays_in_its_folder(tmp_path):
    with pytest.raises(ValueError, match=r"must be a plain name, without a path, got '\.\./train'"):
        store(tmp_path, split="../train")


def expect_refusal(folder: Path):
    with pytest.raises(FolderError, match="in use by process"), locked(folder / ".train"):
        pass


def test_a_split_is_made_by_one_run_at_a_time(encoder, images, tmp_path, monkeypatch):
    refused = []
    monkeypatch.setattr(FeatureStore, "missing", lambda self: refused.append(in_child(expect_refusal, tmp_path)) or [])
    extract_features(FeatureExtractor(encoder), images, store(tmp_path), Accelerator(), Loading(64))
    assert refused == [0]
