"""Files that are complete or not there, and what folders were made with."""

import errno

import pytest
import torch

from tests.in_process import in_child
from transformers_mage.files import (
    FolderError,
    check_inside,
    check_note,
    damaged_files,
    describe_files,
    explains_full_disk,
    fingerprint,
    locked,
    locked_beside,
    write_json,
)


def test_a_fingerprint_is_of_the_weights():
    model = torch.nn.Linear(3, 2)
    before = fingerprint(model)
    assert fingerprint(model) == before
    assert fingerprint(model.half()) != before
    same = torch.nn.Linear(3, 2)
    same.load_state_dict(model.float().state_dict())
    assert fingerprint(same) == fingerprint(model)
    with torch.no_grad():
        model.bias[0] += 1
    assert fingerprint(model) != fingerprint(same)


def test_a_note_says_what_a_folder_was_made_with(tmp_path):
    note = tmp_path / "note.json"
    assert not check_note(note, "features", {"seed": 0}, is_first=True)
    write_json(note, {"seed": 0})
    assert check_note(note, "features", {"seed": 0}, is_first=False)
    with pytest.raises(ValueError, match=r"holds other features \(seed was 0 there and is 1 now\)"):
        check_note(note, "features", {"seed": 1}, is_first=False)


def test_a_note_that_a_full_disk_left_empty_counts_only_where_something_was_made(tmp_path):
    note = tmp_path / "note.json"
    note.touch()
    assert not check_note(note, "features", {"seed": 0}, is_first=True)
    with pytest.raises(ValueError, match=r"note\.json is damaged"):
        check_note(note, "features", {"seed": 0}, is_first=False)


def test_a_full_disk_is_explained():
    message = r"no room left in out.*run the same command again"
    with pytest.raises(RuntimeError, match=message), explains_full_disk("out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PermissionError), explains_full_disk("out"):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_damaged_files_are_named(tmp_path):
    for name in ("whole", "cut", "gone", "changed"):
        (tmp_path / name).write_text("content")
    described = describe_files(tmp_path)
    assert damaged_files(tmp_path, described) == {}
    (tmp_path / "cut").write_text("cont")
    (tmp_path / "gone").unlink()
    (tmp_path / "changed").write_text("contend")
    assert damaged_files(tmp_path, described) == {
        "cut": "has 4 bytes instead of 7",
        "gone": "is missing",
        "changed": "has been changed or damaged",
    }
    assert damaged_files(tmp_path, described, read=False).keys() == {"cut", "gone"}
    assert damaged_files(tmp_path, {"changed": 7}) == {}


def expect_lock(folder):
    with pytest.raises(FolderError, match=r"is in use by process \d+ on"), locked(folder):
        pass


def lock(folder):
    with locked(folder):
        pass


def test_a_folder_is_locked_for_other_processes(tmp_path):
    with locked(tmp_path):
        assert in_child(expect_lock, tmp_path) == 0
    assert in_child(lock, tmp_path) == 0


def expect_lock_beside(path):
    with pytest.raises(FolderError, match=rf"^{path} is in use by process \d+ on"), locked_beside(path):
        pass


def test_a_file_that_is_not_there_yet_is_locked_too(tmp_path):
    with locked_beside(tmp_path / "model.pth"):
        assert in_child(expect_lock_beside, tmp_path / "model.pth") == 0
        with locked_beside(tmp_path / "other.pth"):
            pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../train", "/elsewhere/train", "a/b", "..", "."])
def test_a_name_stays_in_its_folder(tmp_path, name):
    with pytest.raises(ValueError, match="`--train_split` must be a plain name"):
        check_inside(tmp_path, name, "--train_split")
    assert check_inside(tmp_path, "train", "--train_split") == tmp_path / "train"
