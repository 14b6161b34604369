import pytest
import torch

from transformers_mage.benchmarking.measuring import (
    Measurement,
    interleave,
    measure_peak_memory,
    measure_product_rate,
    profile_table,
)

CPU = torch.device("cpu")


def test_calls_take_turns_at_being_first_and_warm_up():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in ("fast", "plain")}

    seconds = interleave(runs, CPU, warmup=1, repetitions=2)

    assert calls == ["fast", "plain", "plain", "fast", "fast", "plain"]
    assert {name: len(times) for name, times in seconds.items()} == {"fast": 2, "plain": 2}


def test_peak_memory_is_that_of_what_lives_at_the_same_time():
    def run():
        first = torch.ones(1000, 1000)
        del first
        second = torch.ones(1000, 1000)
        return second + 1

    assert measure_peak_memory(run, CPU) == pytest.approx(8e6, rel=0.01)


def test_rates():
    measured = Measurement("train", "fast", 4, [3.0, 1.0, 2.0], flops_per_image=10.0, product_rate=80.0)

    assert measured.median == 2
    assert measured.images_per_second == 2
    assert measured.achieved_flops == 20
    assert measured.share == 0.25
    assert Measurement("load-tokens", "fast", 4, [1.0]).share is None


def test_product_rate_is_one_of_a_computer():
    assert 1e6 < measure_product_rate(CPU, torch.float32, repetitions=1) < 1e16


def test_profile_names_what_takes_the_time():
    first = torch.rand(300, 300)

    assert "`aten::mm`" in profile_table(lambda: first @ first, CPU).splitlines()[2]
