"""Which precision is fast is measured where it is used."""

import pytest
import torch

from transformers_mage import precision
from transformers_mage.precision import bfloat16_slowdown, chosen_precision, has_fast_bfloat16

CPU = torch.device("cpu")


def test_the_speed_of_bfloat16_is_measured_without_drawing_random_numbers():
    state = torch.get_rng_state()
    assert bfloat16_slowdown(CPU) > 0
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("slowdown", "is_fast"), [(0.4, True), (13.1, False)])
def test_a_processor_is_judged_by_its_speed(slowdown: float, is_fast: bool, monkeypatch):
    monkeypatch.setattr(precision, "bfloat16_slowdown", lambda device: slowdown)
    assert has_fast_bfloat16(CPU) == is_fast


@pytest.mark.parametrize(("is_fast", "chosen"), [(True, "bf16"), (False, "no")])
def test_only_automatic_precision_is_chosen(is_fast: bool, chosen: str, monkeypatch):
    monkeypatch.setattr(precision, "has_fast_bfloat16", lambda device: is_fast)
    assert [chosen_precision(given) for given in (None, "no", "bf16", "auto")] == [None, "no", "bf16", chosen]
