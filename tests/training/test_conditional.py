"""Classes from a dataset, and the start from an unconditional model."""

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from transformers.testing_utils import CaptureLogger
from transformers.utils.logging import get_logger

from transformers_mage import MageForMaskedImageModeling
from transformers_mage.data.batches import DataError
from transformers_mage.files import FolderError
from transformers_mage.training.conditional import class_settings, freeze_encoder, load_for_training


def labelled(feature, labels: list) -> Dataset:
    return Dataset.from_dict({"label": labels}, features=Features({"label": feature}))


def test_named_classes():
    dataset = labelled(ClassLabel(names=["cat", "dog", "snow leopard"]), [0, 1, 0])
    expected = {"num_classes": 3, "id2label": {0: "cat", 1: "dog", 2: "snow leopard"}}
    assert class_settings(dataset, "label") == expected
    assert class_settings(dataset.to_iterable_dataset(), "label") == expected


def test_classes_that_are_numbers():
    assert class_settings(labelled(Value("int64"), [0, 4, 2]), "label") == {"num_classes": 5}


@pytest.mark.parametrize(
    ("dataset", "column", "message"),
    [
        (labelled(Value("int64"), [0]), "class", r'no column "class" but \[.label.\].*--label_column'),
        (labelled(Value("int64"), [0]), None, "no column"),
        (labelled(Value("string"), ["cat"]), "label", "must hold classes .*class_encode_column"),
        (labelled(Value("int64"), [-1, 3]), "label", "from 0 on, got -1"),
    ],
)
def test_labels_that_are_not_classes_are_refused(dataset: Dataset, column: str | None, message: str):
    with pytest.raises(DataError, match=message):
        class_settings(dataset, column)


def test_training_continues_from_an_unconditional_model(small_model: MageForMaskedImageModeling, tmp_path):
    small_model.save_pretrained(tmp_path)
    model = load_for_training(str(tmp_path), {"num_classes": 3, "id2label": {0: "a", 1: "b", 2: "c"}})
    assert model.mage.vqvae is None
    assert (model.config.num_classes, model.config.id2label[2]) == (3, "c")
    assert model.mage.embeddings.class_embeddings.weight.std().item() == pytest.approx(0.02, abs=0.01)
    theirs = small_model.state_dict()
    ours = {name: weight for name, weight in model.state_dict().items() if "class_embeddings" not in name}
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


def test_new_embeddings_are_no_warning(small_model: MageForMaskedImageModeling, tmp_path):
    """Whoever asks for classes knows that they are new; to anybody else transformers still says so."""
    small_model.save_pretrained(tmp_path)
    with CaptureLogger(get_logger("transformers.modeling_utils")) as captured:
        load_for_training(str(tmp_path), {"num_classes": 3})
    assert captured.out == ""
    with CaptureLogger(get_logger("transformers.modeling_utils")) as captured:
        MageForMaskedImageModeling.from_pretrained(tmp_path, num_classes=3)
    assert "class_embeddings" in captured.out


@torch.no_grad()
def test_a_larger_grid_starts_from_interpolated_positions(small_model: MageForMaskedImageModeling, tmp_path):
    """The same as interpolating in each forward pass; all other weights are the trained ones."""
    small_model.save_pretrained(tmp_path)
    model = load_for_training(str(tmp_path), {"image_size": 64}).eval()
    assert model.config.grid_size == (16, 16)
    tokens = torch.randint(16, (2, 256))
    expected = small_model(input_ids=tokens.view(2, 16, 16), interpolate_pos_encoding=True).logits
    torch.testing.assert_close(model(input_ids=tokens).logits, expected)


def test_without_names_there_are_as_many_labels_as_classes(small_model: MageForMaskedImageModeling, tmp_path):
    small_model.save_pretrained(tmp_path)
    assert load_for_training(str(tmp_path), {"num_classes": 5}).config.num_labels == 5


def test_another_model_is_refused(small_model: MageForMaskedImageModeling, tmp_path):
    small_model.save_pretrained(tmp_path)
    with pytest.raises(FolderError, match=r"\(.*\) as \(.*64.*\) for one. Leave out what it decides itself"):
        load_for_training(str(tmp_path), {"hidden_size": 64})
    with pytest.raises(FolderError, match=r"cannot be trained further: .* lacks \d+ of the weights"):
        load_for_training(str(tmp_path), {"num_hidden_layers": 3})
    with pytest.raises(FolderError, match="/no/such/folder cannot be trained further"):
        load_for_training("/no/such/folder", {})


def test_a_frozen_encoder_leaves_the_decoder_and_the_classes(small_config):
    model = MageForMaskedImageModeling(type(small_config)(**small_config.to_dict() | {"num_classes": 3}))
    freeze_encoder(model)
    trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    encoder = {name for name, parameter in model.mage.named_parameters() if parameter.requires_grad}
    assert trained == {"mage", "decoder", "head"}
    assert encoder == {"embeddings.class_embeddings.weight"}
