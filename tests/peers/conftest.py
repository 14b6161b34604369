"""What the suites of other libraries expect of pytest."""

import re

import pytest

from tests.peers.diffusers_tests import CHECKOUT


def pytest_configure(config: pytest.Config):
    """Makes the marks of diffusers' tests known."""
    helpers = CHECKOUT / "tests" / "testing_utils.py"
    if helpers.is_file():
        for mark in sorted(set(re.findall(r"pytest\.mark\.(\w+)", helpers.read_text()))):
            config.addinivalue_line("markers", f"{mark}: of diffusers' tests")
