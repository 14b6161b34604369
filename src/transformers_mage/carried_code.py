"""Puts the code of a model into its folder, so that it can be loaded where this package is not installed."""

import json
import os
import re
from pathlib import Path
from typing import Any

from .hub_folders import REPRESENTATION_PARTS

AUTO_MAP = {
    "AutoConfig": "configuration_mage.MageConfig",
    "AutoModel": "modeling_mage.MageModel",
    "AutoModelForMaskedImageModeling": "modeling_mage.MageForMaskedImageModeling",
    "AutoModelForImageClassification": "modeling_mage.MageForImageClassification",
}
# What a stand-in of load_from_root.py is called after the class that it loads.
_STAND_IN = "CodeFromRoot"
_STARTS = ("pipeline_mage", "modeling_mage", "load_from_root", "handler")
# Characters of a file that tell whose it is: its docstring's.
_TELLING = 40
# diffusers copies only the files that an entry file names, and keeps the modules of all folders under one name.
_ENTRY = '''"""Written with the folder by transformers_mage: where diffusers enters the code that lies here."""

import importlib.util
import sys
from pathlib import Path

# Another folder's code may have been imported and compiled under the same names.
for name in {names}:
    sys.modules.pop(f"{{__package__}}.{{name}}", None)
    Path(importlib.util.cache_from_source(Path(__file__).with_name(f"{{name}}.py"))).unlink(missing_ok=True)
importlib.invalidate_caches()

{imports}

__all__ = ["{class_name}"]
'''


def _read_sources() -> dict[str, str]:
    """
    The files that need nothing but each other; of a model that was loaded on its own, only those that it needs. Read
    at once where they were copied to: by the time they are needed, another folder's may lie there.
    """
    here, sources = Path(__file__).parent, {}
    waiting = [name for name in _STARTS if (here / f"{name}.py").exists()]
    while waiting:
        name = waiting.pop()
        if name not in sources:
            sources[name] = (here / f"{name}.py").read_text(encoding="utf-8")
            waiting += _imports(sources[name])
    return sources


def _imports(source: str) -> list[str]:
    return re.findall(r"^\s*from\s+\.\s*(\w+)\s+import", source, flags=re.MULTILINE)


def _unfollowed(source: str) -> str:
    """
    The same code, whose imports diffusers does not see. From the Hub it would fetch what a file imports again for
    every path that leads there, 180 times for these files; all that is needed stands in the entry file.
    """
    return re.sub(r"^(\s*from\s+\.)(\w+\s+import)", r"\1 \2", source, flags=re.MULTILINE)


# Code that was loaded from a folder is the only copy there is.
IS_INSTALLED = __package__ == "transformers_mage"
_LOADED_SOURCES = None if IS_INSTALLED else _read_sources()


def sources() -> dict[str, str]:
    """The files that a folder carries, by their modules' names."""
    return _LOADED_SOURCES or _read_sources()


def write_code(folder: str | os.PathLike):
    """
    Adds to a saved folder the code that loads it without this package: with `trust_remote_code=True`, the `AutoModel`
    classes take it from `auto_map` in `config.json`, diffusers from `pipeline.py`, and Inference Endpoints from
    `handler.py`. Nothing happens to a folder that needs none of it, as a tokenizer's.
    """
    folder = Path(folder)
    if not _is_mage(folder):
        return
    _edit_json(folder / "config.json", auto_map=AUTO_MAP)
    for path, text in _code_files(folder).items():
        # Somebody's own handler is what the folder shall be served with.
        if path != "handler.py" or not (folder / path).exists() or _is_ours(folder / path, text):
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    if (folder / "model_index.json").exists():
        entries = {"_class_name": ["pipeline", "MagePipeline"], "model": ["load_from_root", "MageModelFromRoot"]}
        parts = {name: ["load_from_root", found + _STAND_IN] for name, found in _own_parts(folder).items()}
        _edit_json(folder / "model_index.json", **entries, **parts, scheduler=["entry", "MageScheduler"])


def _own_parts(folder: Path) -> dict[str, str]:
    """Components, other than the model and the scheduler, of classes whose code a folder carries."""
    index = json.loads((folder / "model_index.json").read_text())
    entries = {name: entry for name, entry in index.items() if name in REPRESENTATION_PARTS}
    own = ("transformers_mage", "load_from_root")
    return {name: class_of_stand_in(found) for name, (library, found) in entries.items() if library in own}


def class_of_stand_in(name: str | None) -> str:
    """The class that an entry of `model_index.json` means, be it one of a folder that carries its code."""
    return (name or "").removesuffix(_STAND_IN)


def remove_code(folder: str | os.PathLike):
    """Takes out of a folder what [`write_code`] added to it, and no file of the same name that is somebody's own."""
    folder = Path(folder)
    places = ("", "model/", "scheduler/", *(f"{part}/" for part in REPRESENTATION_PARTS))
    files = {f"{place}{name}.py": text for name, text in sources().items() for place in places}
    files |= dict.fromkeys(("pipeline.py", "scheduler/entry.py"), _ENTRY)
    for path, text in files.items():
        if (folder / path).is_file() and _is_ours(folder / path, text):
            (folder / path).unlink()
    if (folder / "model").is_dir() and not any((folder / "model").iterdir()):
        (folder / "model").rmdir()
    if _is_mage(folder):
        _edit_json(folder / "config.json", auto_map=None)


def _is_ours(path: Path, text: str) -> bool:
    """Whether a file begins as ours does, whichever version wrote it."""
    return path.read_text(encoding="utf-8", errors="replace")[:_TELLING] == text[:_TELLING]


def _is_mage(folder: Path) -> bool:
    config = folder / "config.json"
    return config.exists() and json.loads(config.read_text()).get("model_type") == "mage"


def _code_files(folder: Path) -> dict[str, str]:
    """What goes where. transformers follows the imports of the models' files, once."""
    followed = _needed_by("modeling_mage")
    files = {f"{name}.py": text if name in followed else _unfollowed(text) for name, text in sources().items()}
    if not (folder / "model_index.json").exists() or "pipeline_mage.py" not in files:
        return files
    files["pipeline.py"] = _entry("pipeline_mage", "MagePipeline", list(sources()))
    for part in ("model", *_own_parts(folder)):
        files[f"{part}/load_from_root.py"] = sources()["load_from_root"]
    needed = _needed_by("scheduling_mage")
    files |= {f"scheduler/{name}.py": _unfollowed(sources()[name]) for name in needed}
    files["scheduler/entry.py"] = _entry("scheduling_mage", "MageScheduler", needed)
    return files


def _needed_by(module: str) -> list[str]:
    """A module and all that it imports, directly or not."""
    found: list[str] = []
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.append(name)
            waiting += _imports(sources()[name])
    return sorted(found)


def _entry(module: str, class_name: str, names: list[str]) -> str:
    names = sorted(names)
    imported = {name: class_name if name == module else f"__name__ as _{name}" for name in names}
    # No line here may begin as an import does: the libraries find those by their beginning.
    imports = "\n".join(f"from .{name} import {what}  # noqa: E402" for name, what in imported.items())
    return _ENTRY.format(names=names, imports=imports, class_name=class_name)


def _edit_json(path: Path, **values: Any):
    """Sets values, and removes those that are None."""
    content = json.loads(path.read_text()) | values
    content = {name: value for name, value in content.items() if value is not None or name not in values}
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


__all__ = ["AUTO_MAP", "IS_INSTALLED", "class_of_stand_in", "remove_code", "write_code"]
