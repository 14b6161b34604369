"""Files that are whole or not there, fingerprints of what they were made of, and what a folder was made with."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import VQModel
from torch import nn

from .image_tokens import vq_config_of

NOT_THERE = object()
LOCK = ".lock"


class FolderError(ValueError):
    """A folder that holds something else than what is to be read from it or written to it."""


@contextmanager
def written_aside(path: str | Path) -> Iterator[Path]:
    """
    A path next to `path` to write a file or a folder to. It takes the place of `path` when all went well, and is
    removed when not, so that whatever happens `path` is whole or as it was.

    Args:
        path (`str` or `Path`): where the file or folder shall be; its parents are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    remove(aside)
    try:
        yield aside
        for file in [aside] if aside.is_file() else aside.rglob("*"):
            if file.is_file():
                sync(file)
        replace(aside, path)
    finally:
        remove(aside)


@contextmanager
def filled_aside(folder: str | Path) -> Iterator[Path]:
    """
    A folder to write a model to, the files of which go to `folder` when all of them are there: what is in `folder`
    is at no time half a model. Files of other names in it stay.
    """
    folder = Path(folder)
    aside = folder / ".model.partial"
    remove(aside)
    aside.mkdir(parents=True)
    try:
        yield aside
        files = [path for path in sorted(aside.rglob("*")) if path.is_file()]
        for file in files:
            sync(file)
        # What tells a loader that there is a model comes last.
        for file in sorted(files, key=lambda file: file.suffix == ".json"):
            target = folder / file.relative_to(aside)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
        sync(folder)
    finally:
        remove(aside)


def replace(new: Path, old: Path):
    """Renames `new` to `old`, whatever `old` is. A folder, which cannot be replaced at once, is moved away first."""
    if old.is_dir() and not old.is_symlink():
        doomed = old.with_name(f".{old.name}.removed")
        remove(doomed)
        old.rename(doomed)
        new.rename(old)
        remove(doomed)
    else:
        new.replace(old)
    sync(old.parent)


def remove(path: Path):
    """Removes a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path):
    """Makes the disk, and not only the operating system, hold a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: str | Path, text: str):
    """Writes a text file aside."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any):
    """Writes a JSON file aside. What JSON does not know is written as its `str`."""
    write_text(path, json.dumps(value, indent=1, default=str) + "\n")


def read_json(path: str | Path) -> Any:
    """
    Reads a JSON file.

    Raises:
        FolderError: if it is damaged, as a full disk or a crash may leave it.
        FileNotFoundError: if there is none.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise FolderError(f"{path} is damaged ({error}). Remove it, or take another folder.") from error


def fingerprint(model: nn.Module) -> str:
    """A hash of a model's weights and, if it has one, of its configuration, wherever it was loaded from."""
    digest = hashlib.sha256()
    config = getattr(model, "config", None)
    if isinstance(config, Mapping):
        values = vq_config_of(model) if isinstance(model, VQModel) else _public(config)
        digest.update(json.dumps(values, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if not name.startswith("_")}


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between two sets of values, in terms of JSON, as {name: (then, now)}; None where one has it not."""
    then, now = (json.loads(json.dumps(dict(values), default=str)) for values in (then, now))
    names = [name for name in {**then, **now} if then.get(name, NOT_THERE) != now.get(name, NOT_THERE)]
    return {name: (then.get(name), now.get(name)) for name in names}


def check_same(folder: Path, what: str, then: Mapping[str, Any], now: Mapping[str, Any]):
    """
    Refuses to mix what was made with different values.

    Args:
        folder (`Path`): where it is.
        what (`str`): what the folder holds, as in "features".
        then, now (`Mapping`): the values it was made with, and those of now.

    Raises:
        FolderError: naming each value that differs.
    """
    different = differences(then, now)
    if different:
        said = "; ".join(f"{name} was {a!r} there and is {b!r} now" for name, (a, b) in different.items())
        raise FolderError(f"{folder} holds other {what} ({said}). Use the same values, or another folder.")


def check_note(
    note: Path, what: str, settings: Mapping[str, Any], is_first: bool, earlier: Mapping[str, Any] | None = None
) -> bool:
    """
    Whether a note in a folder says that it was made with these settings; not where there is none yet.

    Args:
        note (`Path`): a JSON file of settings.
        what (`str`): what the folder holds, as in "features".
        is_first (`bool`): whether the folder holds nothing but the note. One that is damaged, as a full disk leaves
            it, then says nothing either.
        earlier (`dict`, *optional*): what was done before there were settings that the note may therefore lack.

    Raises:
        FolderError: if it was made with others, or the note is damaged.
    """
    if not note.exists():
        return False
    try:
        then = read_json(note)
    except FolderError:
        if is_first:
            return False
        raise
    check_same(note.parent, what, {**(earlier or {}), **then}, settings)
    return True


@contextmanager
def explains_full_disk(folder: str | Path) -> Iterator[None]:
    """
    For commands that can simply be run again: says so when the disk is full.

    Raises:
        RuntimeError: where the disk, or the user's share of it, is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RuntimeError(
            f"There is no room left in {folder}. What was written is complete: make room, and run the same command "
            "again to continue."
        ) from error


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and hash of every file in a folder, by its path in it, for [`damaged_files`]."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    # Hashing lets other threads run meanwhile.
    with ThreadPoolExecutor(max_workers=4) as pool:
        hashes = list(pool.map(file_hash, paths))
    described = zip(paths, hashes, strict=True)
    return {str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": sha} for path, sha in described}


def damaged_files(folder: Path, described: Mapping[str, Any], *, read: bool = True) -> dict[str, str]:
    """
    What is wrong with the files in a folder, by their path in it.

    Args:
        described (`Mapping`): what [`describe_files`] said of them when they were whole, or their sizes alone.
        read (`bool`): compare their hashes too, for which all of them are read.
    """
    wrong = {}
    for name, known in described.items():
        path, known = folder / name, known if isinstance(known, Mapping) else {"size": known}
        if not path.is_file():
            wrong[name] = "is missing"
        elif path.stat().st_size != known["size"]:
            wrong[name] = f"has {path.stat().st_size} bytes instead of {known['size']}"
        elif read and "sha256" in known and file_hash(path) != known["sha256"]:
            wrong[name] = "has been changed or damaged"
    return wrong


@contextmanager
def locked(folder: Path, meant: Path | None = None) -> Iterator[None]:
    """
    Keeps a folder to this process. The lock ends with the process, whatever ends it.

    Args:
        folder (`Path`): where the lock lies.
        meant (`Path`, *optional*): what is kept; the folder by default.

    Raises:
        FolderError: if another process has the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Opened without truncation: another process's name must stay readable.
    with open(folder / LOCK, "a+", encoding="utf-8") as file:
        try:
            # Not `flock`, whose lock forked loading processes would share, and hold on to after this one was killed.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise FolderError(
                f"{meant or folder} is in use by {owner}. Wait for its end, or take another folder."
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


@contextmanager
def locked_beside(path: Path) -> Iterator[None]:
    """
    Keeps a file or folder, which need not be there yet, to this process, with a lock that lies beside it meanwhile.

    Raises:
        FolderError: if another process has it.
    """
    beside = path.with_name(f".{path.name}{LOCK}")
    with locked(beside, path):
        try:
            yield
        finally:
            remove(beside)


def check_inside(folder: str | Path, name: str, flag: str) -> Path:
    """
    The path of `name` in a folder.

    Raises:
        ValueError: if it lies outside of the folder, naming the `flag` it comes from.
    """
    path = Path(folder, name)
    if Path(os.path.abspath(path)).parent != Path(os.path.abspath(folder)):
        raise ValueError(f"`{flag}` must be a plain name, without a path, got {name!r}.")
    return path
