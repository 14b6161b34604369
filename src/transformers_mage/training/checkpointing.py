"""Checkpoints that are either whole or not there: written aside, renamed when complete, the last few kept."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from safetensors import SafetensorError

from ..files import FolderError, differences, read_json, remove, replace, sync, write_json

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
    """

    step: int = 0
    samples_seen: int = 0
    num_skipped: int = 0

    def state_dict(self) -> dict[str, int]:
        return dataclasses.asdict(self)

    def load_state_dict(self, state: dict[str, int]):
        vars(self).update(state)


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The whole checkpoints in `output_dir`, oldest first."""
    found = [path for path in Path(output_dir).glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(filter(is_whole, found), key=lambda path: int(path.name.removeprefix(PREFIX)))


def is_whole(checkpoint: Path) -> bool:
    """Whether every file that was written is there, in its full length."""
    try:
        sizes = read_json(checkpoint / MANIFEST)["files"]
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


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
        own_state (`Any`, *optional*): what this process alone knows; see [`load_states`].

    Returns:
        `bool`: whether it worked. Otherwise the reason is logged, and the checkpoints before are still there.
    """
    # All processes write to one folder aside, so `files.written_aside`, which knows of one process, would not do. It
    # takes its place only after all of them said that they are done: a failure anywhere leaves what was there before.
    aside, final = Path(output_dir, f".{PREFIX}{step}.partial"), Path(output_dir, f"{PREFIX}{step}")
    if accelerator.is_main_process:
        remove(aside)
    accelerator.wait_for_everyone()
    failed = torch.zeros(1, device=accelerator.device)
    try:
        accelerator.save_state(str(aside))
        if own_state is not None:
            torch.save(own_state, aside / f"process_{accelerator.process_index:05d}.pt")
    except (OSError, RuntimeError, SafetensorError) as error:
        failed += 1
        _report(aside, error)
    if not accelerator.reduce(failed, "sum").item() and accelerator.is_main_process:
        try:
            _finish(aside, settings)
        except OSError as error:
            failed += 1
            _report(aside, error)
    if accelerator.reduce(failed, "sum").item():
        if accelerator.is_main_process:
            remove(aside)
        return False
    if accelerator.is_main_process:
        replace(aside, final)
        _remove_old(output_dir, limit)
    accelerator.wait_for_everyone()
    return True


def _finish(folder: Path, settings: dict[str, Any]):
    files = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    for name in files:
        sync(folder / name)
    write_json(folder / MANIFEST, {"settings": settings, "files": files})


def _remove_old(output_dir: str | Path, limit: int):
    for path in checkpoints(output_dir)[:-limit]:
        _remove(path)


def _remove(checkpoint: Path):
    """Renames first, so that a checkpoint is never seen in part."""
    doomed = checkpoint.with_name(f".{checkpoint.name}.removed")
    remove(doomed)
    checkpoint.rename(doomed)
    remove(doomed)


def _report(folder: Path, error: Exception):
    existing = next(path for path in folder.parents if path.exists())
    free = shutil.disk_usage(existing).free / 1e6
    logger.error(
        f"The checkpoint {folder} could not be written: {error}. {free:.0f} MB are free there. The checkpoints before "
        "it are untouched; training continues and tries again at the next one.",
        main_process_only=False,
    )


def find_checkpoint(resume_from_checkpoint: str, output_dir: str | Path) -> Path | None:
    """
    The checkpoint to resume from: the folder that is named, or for "latest" the newest whole one of `output_dir`, if
    there is any.

    Raises:
        FolderError: if the folder that is named is not a whole checkpoint.
    """
    if resume_from_checkpoint == "latest":
        return next(reversed(checkpoints(output_dir)), None)
    path = Path(resume_from_checkpoint)
    if not is_whole(path):
        whole = [str(path) for path in checkpoints(output_dir)]
        raise FolderError(f"{path} is not a whole checkpoint. Those of {output_dir} are {whole}.")
    return path


def load_states(checkpoint: Path) -> list[Any]:
    """What each of the processes that there were saved for itself."""
    files = sorted(checkpoint.glob("process_*.pt"))
    return [torch.load(file, weights_only=True) for file in files]


def changed_settings(checkpoint: Path, settings: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Values that differ between a checkpoint and now, as {name: (then, now)}."""
    changed = differences(read_json(checkpoint / MANIFEST)["settings"], settings)
    return {name: (then, now) for name, (then, now) in changed.items() if then != now}
