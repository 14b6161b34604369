"""What the scripts that learn from labels are told."""

import pytest

from transformers_mage.representation import ClassificationArguments


def test_one_run_for_each_dataset_number_of_shots_and_seed():
    arguments = ClassificationArguments(
        dataset_name="data/birds,cars", shots_per_class=[1, 5], seed=3, num_seeds=2, output_dir="out"
    )
    runs = arguments.runs()

    assert [(run.dataset_name, run.shots, run.seed) for run in runs[:3]] == [
        ("data/birds", 1, 3),
        ("data/birds", 1, 4),
        ("data/birds", 5, 3),
    ]
    assert len(runs) == 8
    assert runs[2].output_dir == "out/birds/5-shots/seed-3"
    assert ClassificationArguments(dataset_name="birds", output_dir="out").runs()[0].output_dir == "out"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "Say which model to start from"),
        ({"model_name_or_path": "m", "streaming": True}, "leave `--streaming` out"),
        ({"model_name_or_path": "m", "num_seeds": 0}, "`--num_seeds` must be at least 1, got 0"),
        ({"model_name_or_path": "m", "max_eval_samples": 0}, "`--max_eval_samples` must be at least 1, got 0"),
        ({"model_name_or_path": "m", "shots_per_class": [5, -1]}, r"must be 0 or more, got \[5, -1\]"),
        ({"model_name_or_path": "m", "label_fraction": float("nan")}, "must be more than 0 and at most 1, got nan"),
        ({"model_name_or_path": "m", "label_fraction": 0.1, "shots_per_class": [5]}, "Say either"),
    ],
)
def test_impossible_runs_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ClassificationArguments(dataset_name="birds", **values).check()
