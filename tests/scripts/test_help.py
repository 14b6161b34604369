"""Every script says what it can be told."""

import sys

import pytest

from tests.in_process import ROOT, load_module

SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_names_the_flags(name: str, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as end:
        load_module(name).main()
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert load_module(name).__doc__.strip().splitlines()[0] in shown
    assert shown.count("\n  --") > 1
