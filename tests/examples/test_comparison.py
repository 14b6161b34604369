"""Runs of several variants and seeds, and their table."""

from pathlib import Path

import pytest

from examples.comparison import Column, Comparison


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    return Comparison(tmp_path, {"fd": Column("FD", decimals=2), "sure": Column("sure, %", 100)})


def test_what_is_there_is_not_made_again(comparison):
    made = []

    def make(variant, seed, folder):
        made.append((variant, seed, folder.name))
        return {"fd": 1.0}

    for _ in range(2):
        comparison.complete("fixed ratio", 0, make)

    assert made == [("fixed ratio", 0, "fixed-ratio-0")]


def test_table_tells_mean_and_spread_of_the_seeds(comparison):
    for seed, sure in enumerate((0.5, 0.7)):
        comparison.complete("a ratio", seed, lambda *_, sure=sure: {"fd": 2.0, "sure": sure})
    # Another variant whose name begins alike, without samples to score.
    comparison.complete("a ratio, fixed", 0, lambda *_: {"fd": 3.0})

    assert comparison.table(["a ratio", "a ratio, fixed", "not made"]).splitlines()[2:] == [
        "| a ratio | 2 | 2.00 ± 0.00 | 60.0 ± 10.0 |",
        "| a ratio, fixed | 1 | 3.00 ± 0.00 | - |",
    ]
