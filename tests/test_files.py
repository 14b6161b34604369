"""Files that are complete or not there, and what folders were made with."""

import errno

import pytest
import torch

from transformers_mage.files import check_note, explains_full_disk, fingerprint, write_json


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
