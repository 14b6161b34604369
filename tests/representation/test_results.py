import dataclasses
import json

from transformers_mage.representation.results import Result, save_results, table


def result(accuracy: float, seed: int = 0, subset: str = "10 shots", classifier: str = "k-NN", loss: float = 1.0):
    return Result("data/birds", classifier, subset, seed, 20, accuracy, 0.9, accuracy, loss, 100)


def test_table_has_means_and_deviations_over_seeds():
    results = [result(0.5, 0), result(0.7, 1), result(0.8, subset="all labels"), result(0.25, classifier="probe")]

    assert table(results).splitlines() == [
        "| top-1 accuracy, % | 10 shots | all labels |",
        "| --- | --- | --- |",
        "| k-NN | 60.0 ± 14.1 | 80.0 |",
        "| probe | 25.0 |  |",
    ]


def test_table_of_several_datasets_names_them():
    results = [result(0.5), dataclasses.replace(result(0.7), dataset="data/cars")]

    assert table(results).splitlines()[2:] == ["| birds | k-NN | 50.0 |", "| cars | k-NN | 70.0 |"]


def test_the_best_is_the_most_accurate_and_then_the_surest():
    results = [result(0.5), result(0.7, 1, loss=2.0), result(0.7, 2, loss=1.5)]

    assert max(results, key=lambda one: one.rank).seed == 2


def test_results_are_written_for_programs_and_people(tmp_path):
    save_results([result(0.5)], tmp_path / "new")

    assert json.loads((tmp_path / "new" / "results.json").read_text())[0]["accuracy"] == 0.5
    assert "50.0" in (tmp_path / "new" / "results.md").read_text()
