"""The fronts of the rooms: packages that hand out names of their modules, imported when somebody asks for them."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy_front(package: str, names: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], Any], list[str]]:
    """
    Args:
        package (`str`): the package's `__name__`.
        names (`Mapping[str, Sequence[str]]`): the names that each of its modules gives.

    Returns:
        The package's `__getattr__` and `__all__`.
    """
    module_of = {name: module for module, its_names in names.items() for name in its_names}

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)

    return get, sorted(module_of)
