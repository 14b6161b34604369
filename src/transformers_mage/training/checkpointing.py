"""Checkpoints that are either whole or not there: written aside, renamed when complete, the last few kept."""

import dataclasses
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import load
from safetensors import SafetensorError

from ..files import (
    FolderError,
    damaged_files,
    describe_files,
    differences,
    read_json,
    remove,
    replace,
    sync,
    write_json,
)

logger = get_logger(__name__)

PREFIX = "checkpoint-"
MANIFEST = "manifest.json"


@dataclasses.dataclass
class Progress:
    """
    Where a run is. It is saved in every checkpoint.

    Attributes:
        step (`int`): updates made.
        samples_seen (`int`): images drawn from the data, over all processes.
        num_skipped (`int`): images among them that could not be read.
        has_ended (`bool`): whether a look at the model said that it is good enough.
    """

    step: int = 0
    samples_seen: int = 0
    num_skipped: int = 0
    has_ended: bool = False

    def state_dict(self) -> dict[str, int]:
        return dataclasses.asdict(self)

    def load_state_dict(self, state: dict[str, int]):
        vars(self).update(state)


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoints in `output_dir` of which every file is there, in its full length, oldest first."""
    return [path for path in _folders(output_dir) if not _damage(path, read=False)]


def _folders(output_dir: str | Path) -> list[Path]:
    """All checkpoints, whole or not, oldest first."""
    found = [path for path in Path(output_dir).glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=_step_of)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(PREFIX))


def _damage(checkpoint: Path, *, read: bool) -> str:
    """What is wrong with a checkpoint; nothing, if it is whole."""
    try:
        described = read_json(checkpoint / MANIFEST)["files"]
        wrong = damaged_files(checkpoint, described, read=read)
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its {MANIFEST} cannot be read: {error}"
    return "; ".join(f"{name} {what}" for name, what in wrong.items())


def save_checkpoint(
    accelerator: Accelerator,
    output_dir: str | Path,
    step: int,
    settings: dict[str, Any],
    limit: int,
    own_state: Any = None,
) -> bool:
    """
    Saves all that `accelerator` has prepared or registered, in the folder `checkpoint-STEP`. All processes call it.

    Args:
        settings (`dict`): what a resumed run is compared with.
        limit (`int`): checkpoints to keep.
        own_state (`Any`, *optional*): what this process alone knows; see [`load_checkpoint`].

    Returns:
        `bool`: whether it worked. Otherwise the reason is logged, and the checkpoints before are still there.
    """
    # All processes write to one folder aside, so `files.written_aside`, which knows of one process, would not do. It
    # takes its place only after all of them said that they are done: a failure anywhere leaves what was there before.
    aside, final = Path(output_dir, f".{PREFIX}{step}.partial"), Path(output_dir, f"{PREFIX}{step}")
    is_main = accelerator.is_main_process
    if is_main:
        remove(aside)
    accelerator.wait_for_everyone()
    is_saved = _all_succeed(accelerator, aside, lambda: _write_states(accelerator, aside, own_state))
    if is_saved:
        is_saved = _all_succeed(accelerator, aside, lambda: _finish(aside, final, settings) if is_main else None)
    if is_main and is_saved:
        _remove_old(output_dir, limit)
    elif is_main:
        remove(aside)
    accelerator.wait_for_everyone()
    return is_saved


def _write_states(accelerator: Accelerator, aside: Path, own_state: Any):
    accelerator.save_state(str(aside))
    if own_state is not None:
        torch.save(own_state, aside / f"process_{accelerator.process_index:05d}.pt")


def _all_succeed(accelerator: Accelerator, folder: Path, write: Callable[[], None]) -> bool:
    """Whether writing worked in all processes; each that fails says why."""
    failed = torch.zeros(1, device=accelerator.device)
    try:
        write()
    except (OSError, RuntimeError, SafetensorError) as error:
        failed += 1
        existing = next(path for path in folder.parents if path.exists())
        free = shutil.disk_usage(existing).free / 1e6
        logger.error(
            f"The checkpoint {folder} could not be written: {error}. {free:.0f} MB are free there. The checkpoints "
            "before it are untouched.",
            main_process_only=False,
        )
    return not accelerator.reduce(failed, "sum").item()


def _finish(aside: Path, final: Path, settings: dict[str, Any]):
    described = describe_files(aside)
    for name in described:
        sync(aside / name)
    write_json(aside / MANIFEST, {"settings": settings, "files": described})
    replace(aside, final)


def _remove_old(output_dir: str | Path, limit: int):
    for path in checkpoints(output_dir)[:-limit]:
        _remove(path)


def _remove(checkpoint: Path):
    """Renames first, so that a checkpoint is never seen in part."""
    doomed = checkpoint.with_name(f".{checkpoint.name}.removed")
    remove(doomed)
    checkpoint.rename(doomed)
    remove(doomed)


def remove_leftovers(output_dir: str | Path):
    """Removes what runs that were killed while they wrote or removed a checkpoint have left behind."""
    for path in Path(output_dir).glob(f".{PREFIX}*"):
        if path.suffix in (".partial", ".removed"):
            remove(path)


def find_checkpoint(resume_from_checkpoint: str, output_dir: str | Path) -> Path | None:
    """
    The checkpoint to resume from: the folder that is named, or for "latest" the newest whole one of `output_dir`, if
    there is any. Every file is read and compared with its hash.

    Raises:
        FolderError: if the folder that is named is damaged, or if for "latest" all checkpoints are.
    """
    if resume_from_checkpoint != "latest":
        path = Path(resume_from_checkpoint)
        damage = _damage(path, read=True)
        if damage:
            whole = [str(path) for path in checkpoints(output_dir)]
            raise FolderError(f"{path} cannot be resumed from: {damage}. The checkpoints of {output_dir} are {whole}.")
        return path
    found = _folders(output_dir)
    for path in reversed(found):
        damage = _damage(path, read=True)
        if not damage:
            return path
        logger.warning(f"{path} is damaged ({damage}): looking for the one before it.")
    if found:
        raise FolderError(
            f"None of the {len(found)} checkpoints in {output_dir} is whole. Train anew in another folder, or "
            "restore one of them."
        )
    return None


def load_checkpoint(accelerator: Accelerator, checkpoint: Path) -> list[Any]:
    """
    Loads all that `accelerator` has prepared or registered. Nothing that the files hold is run.

    Returns:
        What each of the processes that there were saved for itself.

    Raises:
        FolderError: if a file holds more than values, or if the checkpoint is of another model.
    """
    # Accelerate reads registered objects with all that pickle can do, and everything else with `weights_only`. What
    # can be read with `weights_only` once is a plain value, however it is read afterwards.
    for file in checkpoint.glob("custom_checkpoint_*.pkl"):
        _load_values(file)
    states = [_load_values(file) for file in sorted(checkpoint.glob("process_*.pt"))]
    random_states = checkpoint / f"random_states_{accelerator.process_index}.pkl"
    random_state = _load_values(random_states)["torch_manual_seed"] if random_states.exists() else None
    try:
        accelerator.load_state(str(checkpoint))
    except (RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise FolderError(f"{checkpoint} cannot be loaded into this model: {_first_lines(error)}") from error
    # Accelerate only notes that random states could not be restored.
    if random_state is not None and not torch.equal(torch.get_rng_state(), random_state):
        raise FolderError(f"The random states of {random_states} cannot be restored on this machine.")
    return states


def _load_values(file: Path) -> Any:
    try:
        return load(file, map_location="cpu")
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise FolderError(
            f"{file} is not loaded: it is damaged, or holds more than plain values, which could run code "
            f"({_first_lines(error)})."
        ) from error


def _first_lines(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()[:3])


def changed_settings(checkpoint: Path, settings: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Values that differ between a checkpoint and now, as {name: (then, now)}."""
    changed = differences(read_json(checkpoint / MANIFEST)["settings"], settings)
    return {name: (then, now) for name, (then, now) in changed.items() if then != now}
