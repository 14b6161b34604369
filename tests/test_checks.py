"""Numbers of Python, NumPy and PyTorch."""

import math

import numpy as np
import pytest
import torch

from transformers_mage.checks import finite_number, is_whole_number, share, whole_number


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor(3).byte()])
def test_whole_numbers_of_every_library(value):
    number = whole_number("num_images", value, least=1)
    assert (number, type(number)) == (3, int)


@pytest.mark.parametrize(
    "value",
    [True, np.True_, torch.tensor(True), 3.0, np.float32(3), torch.tensor(3.0), "3", None, [3], np.array([3]),
     torch.tensor([3])],
)  # fmt: skip
def test_what_is_not_a_whole_number(value):
    assert not is_whole_number(value)
    with pytest.raises(ValueError, match="`num_images` must be a whole number of at least 0, got "):
        whole_number("num_images", value, least=0)


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int64(2), torch.tensor(2.0)])
def test_finite_numbers_of_every_library(value):
    assert finite_number("temperature", value) == 2.0


@pytest.mark.parametrize("value", [-1, math.inf, math.nan, np.nan, torch.tensor(math.nan), "2", None, True, [1, 2]])
def test_what_is_not_a_finite_number(value):
    with pytest.raises(ValueError, match="`temperature` must be 0 or more and finite, got "):
        finite_number("temperature", value)


def test_shares():
    assert [share("top_p", value) for value in (1, 0.5, np.float64(0.25))] == [1.0, 0.5, 0.25]
    for value in (0, 1.5, math.nan, "0.5", None, True):
        with pytest.raises(ValueError, match="`top_p` must lie above 0 and be at most 1, got "):
            share("top_p", value)
