import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PilImage

from transformers_mage.data.batches import DataError
from transformers_mage.data.labelled_images import EvaluationImages, LabelledImages
from transformers_mage.data.labels import IGNORED_LABEL, Classes
from transformers_mage.data.loading import Columns, find_columns

PICTURES = [PilImage.fromarray(np.full((4, 4), 10 * i, np.uint8)) for i in range(6)]


def dataset_of(labels: list, feature=None, label_column: str = "label", image_column: str = "image") -> Dataset:
    columns = {image_column: PICTURES[: len(labels)], label_column: labels}
    features = feature and Features({image_column: Image(), label_column: feature})
    return Dataset.from_dict(columns, features=features or None).cast_column(image_column, Image())


def labelled(dataset: Dataset, classes: Classes | None = None) -> LabelledImages:
    return LabelledImages.of(dataset, Columns(), classes or Classes.of(dataset, "label"))


@pytest.mark.parametrize(
    ("labels", "feature", "names", "numbers"),
    [
        ([0, 1, 1], ClassLabel(names=["cat", "dog", "fox"]), ["cat", "dog", "fox"], [0, 1, 1]),
        (["b", "a", "b"], None, ["a", "b"], [1, 0, 1]),
        ([7, 3, 12], None, ["3", "7", "12"], [1, 0, 2]),
        ([True, False, True], None, ["False", "True"], [1, 0, 1]),
    ],
    ids=["names", "strings", "gaps", "booleans"],
)
def test_classes_are_numbered_from_0(labels, feature, names, numbers):
    images = labelled(dataset_of(labels, feature))

    assert images.classes.names == names
    assert images.labels.tolist() == numbers


@pytest.mark.parametrize(
    ("labels", "feature", "message"),
    [
        ([1, 1, 1], None, r"two classes or more; the column \"label\" holds only \['1'\]"),
        ([0, None, 1], Value("int64"), "no label in the column"),
        ([0.5, 1.0, 2.0], None, r"integers or strings; it holds \['float'\]"),
        ([[0], [1], [0]], None, "integers or strings; it holds List"),
        ([0, -1, 1], ClassLabel(names=["a", "b"]), r"holds \[-1\], .* none of the 2 classes of training \(-1 usually"),
    ],
    ids=["one class", "missing", "numbers", "several", "unlabelled"],
)
def test_labels_that_are_no_classes_are_refused(labels, feature, message):
    with pytest.raises(DataError, match=message):
        labelled(dataset_of(labels, feature))


def test_validation_may_not_hold_other_classes():
    train, validation = dataset_of(["a", "b", "b"]), dataset_of(["a", "c"])

    with pytest.raises(DataError, match=r"holds \['c'\]"):
        labelled(validation, Classes.of(train, "label"))


def test_columns_are_found():
    dataset = dataset_of([0, 1], ClassLabel(names=["a", "b"]), label_column="species", image_column="img")

    assert find_columns(dataset) == Columns("img", "species")
    assert find_columns(dataset_of(["a", "b"], label_column="class")) == Columns("image", "class")
    assert find_columns(dataset.remove_columns("species")) == Columns("img", None)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns(image="photo"), r"no column \"photo\" but \['image', 'label'\]: say `--image_column NAME`"),
        (Columns(label="kind"), r"no column \"kind\" but \['image', 'label'\]: say `--label_column NAME`"),
    ],
)
def test_a_column_that_was_asked_for_is_not_replaced_by_another(columns: Columns, message: str):
    with pytest.raises(DataError, match=message):
        find_columns(dataset_of([0, 1]), columns)


def test_a_data_set_without_images_is_refused():
    with pytest.raises(DataError, match=r"no column \"image\" but \['label'\]"):
        find_columns(dataset_of([0, 1]).remove_columns("image"))


@pytest.mark.parametrize("column", [[1, 2, 3], ["no/such/file.png"] * 3, [b"no image"] * 3])
def test_a_column_that_does_not_decode_is_refused(column):
    dataset = Dataset.from_dict({"image": column, "label": [0, 1, 0]})

    with pytest.raises(DataError, match='The column "image" holds no images that can be decoded'):
        labelled(dataset)


def test_fewer_images_than_shots_are_refused():
    with pytest.raises(ValueError, match="3 images of each class are asked for, but class 0 has 2"):
        labelled(dataset_of([0, 1, 1, 1, 0])).draw(shots_per_class=3, label_fraction=None, seed=0)


def test_evaluation_images_are_crops_with_labels_and_a_broken_one_does_not_count():
    dataset = dataset_of([0, 1, 1]).cast_column("image", Image(decode=False))
    rows = dataset.to_list()
    rows[1]["image"] = {"bytes": rows[1]["image"]["bytes"][:20], "path": None}
    images = labelled(Dataset.from_list(rows, features=dataset.features))

    batch = EvaluationImages.of(images, shape=(1, 4, 4)).__getitems__([2, 1, 0])

    assert batch["labels"].tolist() == [1, IGNORED_LABEL, 0]
    assert torch.equal(batch["pixel_values"][:, 0, 0, 0], torch.tensor([20, 0, 0], dtype=torch.uint8))
