"""The models that are started from, and what makes their images."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from transformers_mage import MageConfig, MageForImageClassification, MageForMaskedImageModeling
from transformers_mage.data.labelled_images import LabelledImages
from transformers_mage.data.labels import Classes
from transformers_mage.data.loading import Columns
from transformers_mage.files import FolderError
from transformers_mage.representation import load_classifier, load_encoder
from transformers_mage.representation.classifiers import image_shape, processor_of

NAMES = [str(i) for i in range(50)]


def labelled(dataset: Dataset) -> LabelledImages:
    return LabelledImages(dataset, Columns(), Classes(dict(enumerate(NAMES)), NAMES))


@pytest.fixture
def folder(small_model: MageForMaskedImageModeling, tmp_path: Path) -> Path:
    small_model.save_pretrained(tmp_path)
    return tmp_path


def test_a_classifier_starts_from_any_mage_folder(folder, small_model, pixel_values):
    model = load_classifier(str(folder), ["cat", "dog"], drop_path_rate=0.1)

    assert model.config.id2label == {0: "cat", 1: "dog"}
    assert model.config.drop_path_rate == 0.1
    assert torch.equal(model.mage(pixel_values).pooler_output, small_model.mage(pixel_values).pooler_output)
    assert model.classifier.weight.abs().max() < 1e-4


def test_a_classifier_of_the_same_classes_keeps_its_head_and_of_others_does_not(small_config, tmp_path):
    MageForImageClassification(MageConfig(**{**small_config.to_dict(), "id2label": {0: "a", 1: "b"}})).save_pretrained(
        tmp_path
    )
    saved = load_file(tmp_path / "model.safetensors")["classifier.weight"]

    assert torch.equal(load_classifier(str(tmp_path), ["x", "y"]).classifier.weight, saved)
    assert load_classifier(str(tmp_path), ["x", "y", "z"]).classifier.weight.shape == (3, 32)


@pytest.mark.parametrize("load", [load_encoder, lambda folder: load_classifier(folder, ["cat", "dog"])])
def test_a_checkpoint_of_another_size_is_refused(folder, load):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))

    with pytest.raises(FolderError, match=r"another size than the configuration says: .* \(\d+ such\)"):
        load(str(folder))


def test_weights_that_are_not_there_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "layers.1" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})

    with pytest.raises(FolderError, match=r"lacks \d+ of the weights of .*mage.layers.1"):
        load_classifier(str(folder), ["cat", "dog"])


@pytest.mark.slow
@pytest.mark.parametrize("load", [load_encoder, lambda name: load_classifier(name, ["cat", "dog"])])
def test_weights_that_are_not_finite_are_refused(folder, load):
    weights = load_file(folder / "model.safetensors")
    weights["mage.layers.0.mlp.fc1.bias"][3] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})

    with pytest.raises(FolderError, match=r"not finite numbers .*layers.0.mlp.fc1.bias"):
        load(str(folder))


@pytest.mark.parametrize("load", [load_encoder, lambda name: load_classifier(name, ["cat", "dog"])])
def test_no_model_and_no_tokenizer_are_refused(small_config, tmp_path, load):
    with pytest.raises(FolderError, match="No model can be loaded from"):
        load(str(tmp_path))
    config = MageConfig(**{**small_config.to_dict(), "vq_config": None})
    MageForMaskedImageModeling(config).save_pretrained(tmp_path)
    with pytest.raises(FolderError, match="has no tokenizer, so it takes no images"):
        load(str(tmp_path))


def test_other_image_sizes_must_make_whole_tokens(small_config):
    assert image_shape(small_config) == (3, 32, 32)
    assert image_shape(small_config, 48) == (3, 48, 48)
    with pytest.raises(ValueError, match="must be a multiple of 4, got 50"):
        image_shape(small_config, 50)


def test_the_processor_makes_the_crops_that_were_evaluated(small_config, numbered_images):
    """Images as large as the model's are taken whole; others, 4 x 4 here, are resized to 36 and cropped."""
    same_size = labelled(numbered_images.take(2))
    small = processor_of(same_size, MageConfig(**{**small_config.to_dict(), "image_size": 4}))
    large = processor_of(same_size, small_config, normalize=True)

    assert (small.do_center_crop, small.do_normalize) == (False, False)
    assert (large.do_center_crop, large.size["shortest_edge"], large.crop_size["height"]) == (True, 36, 32)
    assert large.image_mean == pytest.approx([0.485, 0.456, 0.406])
