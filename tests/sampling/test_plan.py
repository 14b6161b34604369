"""Which images are made where, from what randomness, of which classes."""

import itertools

import pytest
import torch

from transformers_mage import MageConfig
from transformers_mage.sampling import ClassPlan, batches_of, generator_of

NAMED = MageConfig(num_classes=3, id2label={0: "cat", 1: "dog", 2: "snow leopard"})


def noise(seed: int, index: int) -> tuple[float, ...]:
    return tuple(torch.rand(4, generator=generator_of(seed, index)).tolist())


def test_randomness_is_that_of_the_seed_and_the_image():
    assert noise(3, 5) == noise(3, 5)
    every = [noise(seed, index) for seed, index in itertools.product(range(4), range(500))]
    assert len(set(every)) == len(every)
    assert noise(0, 2**32 + 7) == noise(0, 7)  # the limit that the docstring states


@pytest.mark.parametrize("num_processes", [1, 2, 3])
@pytest.mark.parametrize(("batch_size", "unit_size"), [(4, 4), (4, 10), (16, 5), (7, 40)])
def test_every_image_is_made_once(num_processes: int, batch_size: int, unit_size: int):
    made = []
    for process_index in range(num_processes):
        for indices, num_kept in batches_of(37, batch_size, unit_size, process_index, num_processes):
            assert len(indices) == batch_size
            kept = indices[:num_kept]
            assert {index // unit_size % num_processes for index in kept} == {process_index}
            made += kept
    assert sorted(made) == list(range(37))


def test_batches_are_the_same_on_any_number_of_processes():
    alone = {tuple(indices) for indices, _ in batches_of(100, 8, 20)}
    shared = {tuple(indices) for process in range(3) for indices, _ in batches_of(100, 8, 20, process, 3)}
    assert alone == shared


def test_classes_can_be_said_one_by_one():
    plan = ClassPlan.of(NAMED, [1, 1, 0])

    assert plan[[0, 1, 2, 3]] == [1, 1, 0, 1]
    with pytest.raises(ValueError, match="class"):
        ClassPlan.of(MageConfig(), [0])


def test_balanced_classes_take_turns():
    plan = ClassPlan(NAMED, None, num_images=5)
    assert plan[range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert plan.describe() == ClassPlan(NAMED, "balanced", 5).describe() == "balanced"


def test_no_classes():
    for plan in (ClassPlan(MageConfig(), None, 5), ClassPlan(NAMED, "none", 5)):
        assert plan[range(5)] is None
        assert plan.describe() is None


def test_classes_from_a_file(tmp_path):
    file = tmp_path / "classes.txt"
    file.write_text("2\nsnow leopard\n cat \n1\n0\n")
    plan = ClassPlan(NAMED, str(file), num_images=4)
    assert plan[[0, 1, 2, 3]] == [2, 2, 0, 1]
    assert plan[[4]] == [2]  # a batch may go beyond the last image
    same, other = (ClassPlan(NAMED, str(file), num_images=n).describe() for n in (4, 5))
    assert plan.describe() == same != other


@pytest.mark.parametrize(
    ("config", "lines", "message"),
    [
        (NAMED, "0\n1\n", "has 2 lines, a class each, for 3 images"),
        (NAMED, "0\n1\n7\n", "line 3: `class_labels` must lie between 0 and 2, got 7"),
        (NAMED, "0\n-1\n2\n", "line 2: .* got -1"),
        (NAMED, "cat\ndgo\ndog\n", "line 2: No class is called 'dgo'"),
        (NAMED, "cat\n\ndog\n", "line 2: No class is called ''"),
        (MageConfig(), "0\n0\n0\n", "line 1: `class_labels` asks an unconditional model"),
    ],
)
def test_wrong_files_of_classes_are_refused(tmp_path, config: MageConfig, lines: str, message: str):
    file = tmp_path / "classes.txt"
    file.write_text(lines)
    with pytest.raises(ValueError, match=message):
        ClassPlan(config, str(file), num_images=3)


def test_classes_that_are_neither_a_word_nor_a_file_are_refused():
    with pytest.raises(ValueError, match="`balanced`, `none` or a file"):
        ClassPlan(NAMED, "balnced", num_images=3)
    with pytest.raises(ValueError, match="unconditional model"):
        ClassPlan(MageConfig(), "balanced", num_images=3)
