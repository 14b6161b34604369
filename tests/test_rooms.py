"""Who may import whom: the model's files know nothing of the rooms, and no room knows one that stands on it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.in_process import ROOT

PACKAGE = "transformers_mage"
SOURCE = ROOT / "src" / PACKAGE
# The house's foundations; what else lies flat in the package's top is the model.
FOUNDATIONS = ("command_line", "files", "image_networks", "lazy", "precision", "processes", "progress")
MODEL = {"model", "files", "lazy", "processes", "progress"}
BELOW = {
    "command_line": {"files", "processes", "progress"},
    # Fingerprints know what of a tokenizer's configuration counts.
    "files": {"model"},
    "image_networks": set(),
    "lazy": set(),
    "precision": set(),
    "processes": set(),
    "progress": set(),
    "model": set(),
    "data": {*MODEL, "command_line"},
    "sampling": {*MODEL, "command_line", "data"},
    "metrics": {*MODEL, "data", "image_networks"},
    "hub": {*MODEL, "command_line", "data"},
    "training": {*MODEL, "command_line", "data", "image_networks", "metrics", "hub", "precision"},
    "representation": {*MODEL, "command_line", "data", "metrics", "training", "hub"},
    "conversion": {*MODEL, "command_line", "data", "hub"},
    "quickstart": {
        *MODEL,
        *("command_line", "image_networks", "data", "sampling", "metrics", "hub", "training", "representation"),
        "benchmarking",
    },
    "benchmarking": {*MODEL, "command_line", "data", "metrics", "representation", "sampling", "training"},
}
# The command `python -m transformers_mage.convert_original_checkpoint` is the door of a room.
DOORS = {"convert_original_checkpoint": "conversion"}
FILES = sorted(SOURCE.rglob("*.py"))


def room_of(parts: tuple[str, ...]) -> str:
    """The room of a module, given as the names that lead to it from the package."""
    if parts and (SOURCE / parts[0]).is_dir():
        return parts[0]
    name = parts[0] if parts else ""
    return name if name in FOUNDATIONS else DOORS.get(name, "model")


def imported_modules(file: Path) -> Iterator[tuple[str, ...]]:
    """What a file imports of the package, inside functions too, as names from the package on."""
    here = (PACKAGE, *file.relative_to(SOURCE).parent.parts)
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else ()
            names = (
                [(*base, *(node.module or "").split("."))] if node.module else [(*base, a.name) for a in node.names]
            )
        elif isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        yield from (name[1:] for name in names if name[0] == PACKAGE)


def outside_imports(file: Path) -> set[str]:
    nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    modules += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return {module.partition(".")[0] for module in modules}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_a_file_imports_its_own_room_and_those_below(file: Path):
    room = room_of(file.relative_to(SOURCE).with_suffix("").parts)
    above = {room_of(parts) for parts in imported_modules(file)} - BELOW[room] - {room}
    assert not above, f"{room} may import {sorted(BELOW[room])}"
    assert not outside_imports(file) & {"scripts", "examples", "tests"}


def test_the_order_has_no_circle():
    standing, order = dict(BELOW), []
    while standing:
        free = [room for room, below in standing.items() if not below & standing.keys()]
        assert free, f"these import one another: {sorted(standing)}"
        order += free
        standing = {room: below for room, below in standing.items() if room not in free}
    assert len(order) == len(BELOW)


def test_no_room_is_a_drawer():
    """
    A dozen files at most (a room within a room is a room), and no more than a quarter of all lines. The model is not a
    room: what folders on the Hub carry as code has to lie flat.
    """
    lines, files = {}, {}
    for file in FILES:
        room = room_of(file.relative_to(SOURCE).with_suffix("").parts)
        lines[room] = lines.get(room, 0) + len(file.read_text().splitlines())
        if room != "model" and file.name != "__init__.py":
            files[file.parent] = files.get(file.parent, 0) + 1
    total = sum(lines.values())
    assert {folder: count for folder, count in files.items() if count > 12} == {}
    shares = {room: count / total for room, count in lines.items() if room != "model"}
    assert {room: f"{share:.0%}" for room, share in shares.items() if share > 1 / 4} == {}
