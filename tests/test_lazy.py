"""The fronts of the rooms."""

import importlib

import pytest


@pytest.mark.parametrize("room", ["data", "training"])
def test_a_front_hands_out_what_it_names(room: str):
    package = importlib.import_module(f"transformers_mage.{room}")
    assert package.__doc__
    for name in package.__all__:
        assert getattr(package, name).__module__.startswith(package.__name__)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    package = importlib.import_module("transformers_mage.data")
    with pytest.raises(AttributeError, match=r"module 'transformers_mage\.data' has no attribute 'Bach'"):
        package.Bach  # noqa: B018
