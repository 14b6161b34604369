"""The folder of a run of sampling."""

import json

import pytest

from transformers_mage.sampling import check_folder, samples_path, write_manifest

SETTINGS = {"seed": 0, "num_images": 10, "class_labels": None}


def test_a_folder_is_that_of_one_run(tmp_path):
    folder = tmp_path / "samples"
    assert not check_folder(folder, SETTINGS)
    write_manifest(folder, SETTINGS)
    assert check_folder(folder, SETTINGS)
    assert json.loads((folder / "generation.json").read_text()) == SETTINGS
    with pytest.raises(ValueError, match=r"holds other samples \(seed was 0 there and is 1 now\)"):
        check_folder(folder, SETTINGS | {"seed": 1})


def test_a_folder_of_before_a_setting_was_one_is_that_of_how_it_was_then(tmp_path):
    write_manifest(tmp_path, SETTINGS)
    earlier = {"full_steps": 1}
    assert check_folder(tmp_path, SETTINGS | {"full_steps": 1}, earlier)
    with pytest.raises(ValueError, match="full_steps was 1 there and is 2 now"):
        check_folder(tmp_path, SETTINGS | {"full_steps": 2}, earlier)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="is not empty and holds no earlier run"):
        check_folder(tmp_path, SETTINGS)


@pytest.mark.parametrize("left", ["generation.json", ".generation.json.partial"])
def test_what_a_full_disk_or_a_kill_left_at_the_beginning_stops_nobody(tmp_path, left: str):
    (tmp_path / left).touch()
    assert not check_folder(tmp_path, SETTINGS)


def test_where_the_samples_are(tmp_path):
    (tmp_path / "images").mkdir()
    assert samples_path(tmp_path) == tmp_path
    write_manifest(tmp_path, SETTINGS)
    assert samples_path(tmp_path) == tmp_path / "images"
