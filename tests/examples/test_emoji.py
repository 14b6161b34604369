from pathlib import Path

import pytest
from datasets import load_from_disk

from examples.emoji import make_dataset

EMOJI_TEST = """# emoji-test.txt

# group: Smileys & Emotion
# subgroup: face-smiling
1F600                                                  ; fully-qualified     # 😀 E1.0 grinning face
263A FE0F                                              ; fully-qualified     # ☺️ E0.6 smiling face
263A                                                   ; unqualified         # ☺ E0.6 smiling face
1F636 200D 1F32B FE0F                                  ; fully-qualified     # 😶‍🌫️ E13.1 face in clouds
# group: Component
1F3FB                                                  ; component           # 🏻 E1.0 light skin tone
# group: Animals & Nature
1F412                                                  ; fully-qualified     # 🐒 E0.6 monkey
"""


def test_emoji_of_one_code_point_are_read_once_with_their_groups():
    assert [(item.character, item.name, item.group) for item in make_dataset.read_emoji(EMOJI_TEST)] == [
        ("\U0001f600", "grinning face", "Smileys & Emotion"),
        ("\u263a", "smiling face", "Smileys & Emotion"),
        ("\U0001f412", "monkey", "Animals & Nature"),
    ]


def test_missing_files_are_named_with_their_packages(tmp_path: Path):
    with pytest.raises(SystemExit, match=r"No such file .*none.txt.* Install the packages fonts-noto-color-emoji"):
        make_dataset.main(["--emoji_test", str(tmp_path / "none.txt")])


def test_dataset(tmp_path: Path):
    if not (make_dataset.FONT.exists() and make_dataset.EMOJI.exists()):
        pytest.skip(f"{make_dataset.FONT} or {make_dataset.EMOJI} is not there")
    make_dataset.main(["--output_dir", str(tmp_path), "--image_size", "24"])

    dataset = load_from_disk(tmp_path)
    labels = dataset["train"].features["label"]
    assert len(dataset["train"]) + len(dataset["test"]) > 1000
    assert labels.num_classes == 9
    assert dataset["test"][0]["image"].size == (24, 24)
    assert not set(dataset["train"]["name"]) & set(dataset["test"]["name"])
