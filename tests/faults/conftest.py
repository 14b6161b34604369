"""The table at the end of `make test-faults`."""

import pytest

from .table import ANSWERS, GROWTH, ROWS, answers_as_markdown, as_markdown, growth_as_markdown


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter):
    for title, rows, lines in (
        ("what was injected", ROWS, as_markdown()),
        ("wrong values", ANSWERS, answers_as_markdown()),
        ("growth", GROWTH, growth_as_markdown()),
    ):
        if rows:
            terminalreporter.section(title)
            terminalreporter.write("\n".join(["", *lines, ""]))
