import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from transformers_mage.files import FolderError
from transformers_mage.training import checkpointing
from transformers_mage.training.checkpointing import (
    Progress,
    changed_settings,
    checkpoints,
    find_checkpoint,
    load_checkpoint,
    remove_leftovers,
    save_checkpoint,
)


@pytest.fixture
def accelerator() -> Accelerator:
    accelerator = Accelerator(cpu=True)
    accelerator.register_for_checkpointing(Progress(step=7))
    accelerator.prepare(torch.nn.Linear(2, 2))
    return accelerator


def save(accelerator: Accelerator, folder: Path, step: int, limit: int = 9, **kwargs) -> bool:
    return save_checkpoint(accelerator, folder, step, {"seed": 1}, limit, **kwargs)


def test_the_last_few_are_kept(accelerator: Accelerator, tmp_path: Path):
    for step in (2, 10, 9, 11):
        assert save(accelerator, tmp_path, step, limit=2)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-10", "checkpoint-11"]


def test_latest_is_the_newest_whole_one(accelerator: Accelerator, tmp_path: Path):
    assert find_checkpoint("latest", tmp_path) is None
    for step in (1, 2, 3, 4, 5):
        save(accelerator, tmp_path, step)
    (tmp_path / "checkpoint-5" / "manifest.json").unlink()
    os.truncate(tmp_path / "checkpoint-4" / "model.safetensors", 10)
    (tmp_path / "checkpoint-3" / "custom_checkpoint_0.pkl").unlink()
    (tmp_path / "checkpoint-x").mkdir()
    assert find_checkpoint("latest", tmp_path).name == "checkpoint-2"
    with pytest.raises(FolderError, match=r"cannot be resumed from: model\.safetensors has 10 bytes instead of"):
        find_checkpoint(str(tmp_path / "checkpoint-4"), tmp_path)


@pytest.mark.parametrize("moment", ["_finish", "replace", "_remove_old"])
def test_killed_while_saving(accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str):
    """What there is when the process dies before that moment is whole, and does not hinder the next attempt."""
    save(accelerator, tmp_path, 1)

    def die(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(checkpointing, moment, die)
        with pytest.raises(KeyboardInterrupt):
            save(accelerator, tmp_path, 2)
    newest = "checkpoint-2" if moment == "_remove_old" else "checkpoint-1"
    assert find_checkpoint("latest", tmp_path).name == newest
    assert save(accelerator, tmp_path, 2)
    assert find_checkpoint("latest", tmp_path).name == "checkpoint-2"
    assert not list(tmp_path.glob(".*"))


def test_killed_while_removing(accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(accelerator, tmp_path, 1)

    def die_halfway(folder: Path, **kwargs):
        if folder.exists():
            (folder / "model.safetensors").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(shutil, "rmtree", die_halfway)
        with pytest.raises(KeyboardInterrupt):
            checkpointing._remove(tmp_path / "checkpoint-1")
    assert checkpoints(tmp_path) == []
    assert not (tmp_path / "checkpoint-1").exists()
    assert (tmp_path / ".checkpoint-1.removed").exists()

    remove_leftovers(tmp_path)

    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_reported_and_the_previous_checkpoint_loads(
    accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    save(accelerator, tmp_path, 1)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(accelerator, "save_state", full)
    assert not save(accelerator, tmp_path, 2)
    assert "No space left on device" in caplog.text
    assert os.listdir(tmp_path) == ["checkpoint-1"]
    accelerator.load_state(str(find_checkpoint("latest", tmp_path)))


def test_what_a_process_alone_knows_is_saved_too(accelerator: Accelerator, tmp_path: Path):
    save(accelerator, tmp_path, 1, own_state={"next": 3})
    assert load_checkpoint(accelerator, tmp_path / "checkpoint-1") == [{"next": 3}]


def test_changed_settings_are_named(accelerator: Accelerator, tmp_path: Path):
    save(accelerator, tmp_path, 1)
    assert changed_settings(tmp_path / "checkpoint-1", {"seed": 2, "new": None}) == {"seed": (1, 2)}


class Payload:
    """What a malicious file holds: reading it with all that pickle can do makes a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


PICKLED = ["custom_checkpoint_0.pkl", "process_00000.pt", "random_states_0.pkl", "optimizer.bin"]


@pytest.mark.parametrize("name", PICKLED)
def test_resuming_runs_nothing(tmp_path: Path, accelerator: Accelerator, name: str):
    accelerator.prepare(torch.optim.AdamW([torch.zeros(1, requires_grad=True)]))
    save(accelerator, tmp_path, 1, own_state={"next": 3})
    assert (tmp_path / "checkpoint-1" / name).exists()
    torch.save(Payload(tmp_path / "was run"), tmp_path / "checkpoint-1" / name)
    with pytest.raises(FolderError, match=r"is not loaded|cannot be loaded"):
        load_checkpoint(accelerator, tmp_path / "checkpoint-1")
    assert not (tmp_path / "was run").exists()


def files_of(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != "manifest.json")


def flip_a_byte(file: Path):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_flipped_byte_anywhere_is_found_and_the_checkpoint_before_is_taken(
    accelerator: Accelerator, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    save(accelerator, tmp_path, 1)
    save(accelerator, tmp_path, 2)
    names = [file.name for file in files_of(tmp_path / "checkpoint-2")]
    assert {"model.safetensors", "custom_checkpoint_0.pkl", "random_states_0.pkl"} <= set(names)
    for name in names:
        flip_a_byte(tmp_path / "checkpoint-2" / name)
        assert find_checkpoint("latest", tmp_path).name == "checkpoint-1"
        assert f"checkpoint-2 is damaged ({name} has been changed or damaged)" in caplog.text
        with pytest.raises(FolderError, match=f"cannot be resumed from: {name}"):
            find_checkpoint(str(tmp_path / "checkpoint-2"), tmp_path)
        flip_a_byte(tmp_path / "checkpoint-2" / name)
    assert find_checkpoint("latest", tmp_path).name == "checkpoint-2"


def test_damaged_checkpoints_alone_are_not_a_fresh_start(accelerator: Accelerator, tmp_path: Path):
    save(accelerator, tmp_path, 1)
    (tmp_path / "checkpoint-1" / "manifest.json").write_bytes(b"")
    with pytest.raises(FolderError, match="None of the 1 checkpoints"):
        find_checkpoint("latest", tmp_path)


def test_a_checkpoint_that_knows_sizes_only_is_still_read(accelerator: Accelerator, tmp_path: Path):
    save(accelerator, tmp_path, 1)
    manifest = tmp_path / "checkpoint-1" / "manifest.json"
    described = json.loads(manifest.read_text())
    described["files"] = {name: known["size"] for name, known in described["files"].items()}
    manifest.write_text(json.dumps(described))
    assert find_checkpoint("latest", tmp_path).name == "checkpoint-1"


def test_random_states_that_cannot_be_restored_are_an_error(accelerator: Accelerator, tmp_path: Path):
    save(accelerator, tmp_path, 1)
    file = tmp_path / "checkpoint-1" / "random_states_0.pkl"
    states = torch.load(file, weights_only=False)
    torch.save(states | {"random_state": None}, file)
    torch.manual_seed(5)
    with pytest.raises(FolderError, match=r"random states .* cannot be restored"):
        load_checkpoint(accelerator, tmp_path / "checkpoint-1")


def test_another_model_is_refused_in_words(accelerator: Accelerator, tmp_path: Path):
    save(accelerator, tmp_path, 1)
    accelerator._models = [torch.nn.Linear(3, 2)]
    with pytest.raises(FolderError, match=r"cannot be loaded into this model: .*size mismatch"):
        load_checkpoint(accelerator, tmp_path / "checkpoint-1")
