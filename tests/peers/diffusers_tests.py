"""diffusers' own tests as a package, from a checkout of its repository: its releases do not hold them."""

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

NAME = "diffusers_tests"
# Where `make test-peers` puts the checkout, unless the environment names another one.
CHECKOUT = Path(os.environ.get("DIFFUSERS_CHECKOUT", Path(__file__).parents[2] / "build" / "peers" / "diffusers"))


def load(module: str) -> ModuleType:
    """A module of the tests; the whole test module that asks for it is skipped where there is no checkout."""
    folder = CHECKOUT / "tests"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: run `make test-peers`", allow_module_level=True)
    if NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        sys.modules[NAME] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[NAME])
    return importlib.import_module(f"{NAME}.{module}")
