import numpy as np
import pytest

from transformers_mage.data.labels import draw_subset, hold_out

LABELS = np.repeat([0, 1, 2], [10, 20, 30])


def counts(indices: np.ndarray) -> list[int]:
    return np.bincount(LABELS[indices], minlength=3).tolist()


def test_shots_are_the_same_number_of_every_class():
    chosen = draw_subset(LABELS, shots_per_class=4, seed=3)

    assert counts(chosen) == [4, 4, 4]
    assert len(set(chosen)) == 12
    assert (np.diff(chosen) > 0).all()


def test_a_fraction_is_the_same_share_of_every_class_and_never_nothing():
    assert counts(draw_subset(LABELS, label_fraction=0.2)) == [2, 4, 6]
    assert counts(draw_subset(LABELS, label_fraction=0.01)) == [1, 1, 1]


def test_a_seed_fixes_the_subset_and_larger_ones_hold_it():
    few, again, other = (draw_subset(LABELS, 2, seed=seed) for seed in (0, 0, 1))

    assert np.array_equal(few, again)
    assert not np.array_equal(few, other)
    assert set(few) < set(draw_subset(LABELS, 5, seed=0))


def test_everything_without_a_limit():
    assert np.array_equal(draw_subset(LABELS), np.arange(60))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shots_per_class": 11}, "11 images of each class are asked for, but class 0 has 10. Ask for 10 or fewer"),
        ({"shots_per_class": 0}, "must be at least 1, got 0"),
        ({"label_fraction": 1.5}, r"must lie in \(0, 1\], got 1.5"),
        ({"shots_per_class": 1, "label_fraction": 0.1}, "either `shots_per_class` or `label_fraction`, got 1 and 0.1"),
    ],
)
def test_impossible_subsets_are_refused(values: dict, message: str):
    with pytest.raises(ValueError, match=message):
        draw_subset(LABELS, **values)


def test_held_out_images_are_a_share_of_each_class():
    kept, held_out = hold_out(LABELS, share=0.25, seed=0)

    assert counts(held_out) == [2, 5, 7]
    assert sorted([*kept, *held_out]) == list(range(60))
