"""Names of classes from text and JSON files."""

import json

import pytest

from transformers_mage.conversion.class_names import read_class_names
from transformers_mage.conversion.reading import CheckpointError

NAMES = {0: "tench", 1: "goldfish", 2: "great white shark"}


@pytest.mark.parametrize(
    "text", ["tench\ngoldfish\ngreat white shark\n", json.dumps(list(NAMES.values())), json.dumps(NAMES)]
)
def test_formats(text, tmp_path):
    (tmp_path / "labels").write_text(text)

    assert read_class_names(tmp_path / "labels", 3) == NAMES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tench\ngoldfish", "3 classes, but .* names 2"),
        ('{"0": "tench", "1": "goldfish", "3": "shark"}', "names 3: from 0 to 3"),
        ('{"0": ', "a name a line, or a JSON list"),
    ],
)
def test_other_files(text, message, tmp_path):
    (tmp_path / "labels").write_text(text)

    with pytest.raises(CheckpointError, match=message):
        read_class_names(tmp_path / "labels", 3)
