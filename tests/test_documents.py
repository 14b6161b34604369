"""The documents refer to what exists: links lead to files, and linked names are defined in the file they lead to."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("model_cards/*/README.md")])


def links(document: Path) -> list[tuple[str, Path]]:
    """Texts and targets of the links to files."""
    found = LINK.findall(document.read_text())
    return [
        (text, document.parent / target.partition("#")[0])
        for text, target in found
        if not target.startswith(("http", "#"))
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    missing = [str(target) for _, target in links(document) if not target.exists()]

    assert not missing


def defines(file: Path, name: str) -> bool:
    return re.search(rf"^\s*(def|class) {name}\b|^{name}\b", file.read_text(), re.MULTILINE) is not None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_linked_names_are_defined_there(document):
    names = [(text.strip("`"), file) for text, file in links(document) if re.fullmatch(r"`\w+`", text)]
    missing = [name for name, file in names if file.suffix == ".py" and not defines(file, name)]

    assert not missing


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110


def test_every_document_is_indexed():
    index = (ROOT / "docs" / "README.md").read_text()

    assert [path.name for path in ROOT.glob("docs/*.md") if path.name != "README.md" and path.name not in index] == []
