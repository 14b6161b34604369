"""The folder of a run of sampling: what it was made with, and where the images in it are."""

from pathlib import Path
from typing import Any

from ..files import FolderError, check_note, write_json

MANIFEST = "generation.json"


def check_folder(folder: Path, settings: dict[str, Any], earlier: dict[str, Any] | None = None) -> bool:
    """
    Whether `folder` holds a run with these settings, to resume; an empty or missing folder holds none.

    Args:
        settings (`dict`): whatever decides what the images are, as JSON can hold it.
        earlier (`dict`, *optional*): what was done before there were settings that a folder may therefore not name.

    Raises:
        FolderError: for a folder of another run, or of something else.
    """
    manifest = folder / MANIFEST
    # What a kill leaves of a file that was being written has a name with a dot.
    others = [path for path in folder.glob("[!.]*") if path != manifest]
    if others and not manifest.exists():
        raise FolderError(
            f"{folder} is not empty and holds no earlier run ({MANIFEST} is missing). Use another folder."
        )
    return check_note(manifest, "samples", settings, is_first=not others, earlier=earlier)


def write_manifest(folder: Path, settings: dict[str, Any]):
    """Makes the folder that of a run with these settings."""
    write_json(folder / MANIFEST, settings)


def samples_path(path: str | Path) -> Path:
    """Where the images are: in the output folder of a run, which has a picture of some of them too, or at `path`."""
    path = Path(path)
    places = (path / "images", path / "samples.npz") if (path / MANIFEST).is_file() else ()
    return next((place for place in places if place.exists()), path)
