"""The suite runs where other plugins of pytest are installed: no fixture takes the place of one of theirs."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
FIXTURE = re.compile(r"@pytest\.fixture.*?\ndef (\w+)", re.DOTALL)
# pytest's own, and those of pytest-benchmark, which ends the run at another's, -mock, -playwright, -flask, -django,
# -datadir, -httpserver, -freezer, -subtests, Faker, syrupy and requests-mock.
TAKEN = {
    *("cache", "capsys", "capfd", "caplog", "monkeypatch", "pytestconfig", "recwarn", "tmp_path", "tmpdir"),
    *("benchmark", "benchmark_weave", "mocker", "browser", "context", "page", "playwright", "app", "client", "config"),
    *("db", "rf", "settings", "datadir", "httpserver", "freezer", "subtests", "faker", "snapshot", "requests_mock"),
}


def test_no_fixture_has_the_name_of_a_plugins():
    fixtures = {name for file in TESTS.rglob("*.py") for name in FIXTURE.findall(file.read_text())}

    assert len(fixtures) > 100
    assert fixtures & TAKEN == set()
