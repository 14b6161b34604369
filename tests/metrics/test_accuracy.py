import evaluate
import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score

from transformers_mage.metrics import Accuracy, MeanPerClassAccuracy, Top5Accuracy

METRICS = [Accuracy, Top5Accuracy, MeanPerClassAccuracy]


@pytest.fixture
def batch(generator):
    logits = torch.randn(103, 7, generator=generator)
    return logits, torch.randint(7, (103,), generator=generator)


def test_worked_example():
    logits = torch.tensor([[0.1, 0.9, 0.0], [0.8, 0.1, 0.1], [0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
    labels = torch.tensor([1, 0, 0, 0])
    assert Accuracy().compute(predictions=logits, references=labels) == {"accuracy": 0.75}
    # Class 0: two of three; class 1: one of one; class 2 has no samples.
    assert MeanPerClassAccuracy().compute(predictions=logits, references=labels) == pytest.approx(
        {"mean_per_class_accuracy": (2 / 3 + 1) / 2}
    )


def test_agrees_with_scikit_learn(batch):
    logits, labels = batch
    predicted = logits.argmax(dim=1)
    assert Accuracy().compute(predictions=logits, references=labels)["accuracy"] == accuracy_score(labels, predicted)
    assert Top5Accuracy().compute(predictions=logits, references=labels)["top_5_accuracy"] == pytest.approx(
        top_k_accuracy_score(labels, logits, k=5)
    )
    assert MeanPerClassAccuracy().compute(predictions=logits, references=labels)[
        "mean_per_class_accuracy"
    ] == pytest.approx(balanced_accuracy_score(labels, predicted))


@pytest.mark.parametrize("metric_class", METRICS)
@pytest.mark.parametrize("form", [torch.Tensor.bfloat16, torch.Tensor.numpy, torch.Tensor.tolist])
def test_batches_and_forms_of_input(metric_class, form, batch):
    logits, labels = batch[0].bfloat16().float(), batch[1]
    whole = metric_class().compute(predictions=logits, references=labels)
    metric = metric_class()
    for start in range(0, len(labels), 10):
        rows = slice(start, start + 10)
        metric.add_batch(predictions=form(logits[rows]), references=labels[rows].tolist())
    assert len(metric) == len(labels)
    assert metric.compute() == whole
    assert len(metric) == 0


@pytest.mark.parametrize("metric_class", METRICS)
def test_ranked_class_ids_stand_for_scores(metric_class, batch):
    logits, labels = batch
    ranked = logits.argsort(dim=1, descending=True)
    expected = metric_class().compute(predictions=logits, references=labels)
    assert metric_class().compute(predictions=ranked[:, :5], references=labels) == pytest.approx(expected)
    if metric_class.top_k == 1:
        assert metric_class().compute(predictions=ranked[:, 0], references=labels) == pytest.approx(expected)


def test_class_ids_may_grow_from_batch_to_batch():
    metric = MeanPerClassAccuracy()
    metric.add_batch(predictions=[0, 1], references=[0, 0])
    metric.add_batch(predictions=[9, 9], references=[9, 9])
    metric.add(prediction=4, reference=3)
    assert metric.compute() == pytest.approx({"mean_per_class_accuracy": (0.5 + 1 + 0) / 3})


@pytest.mark.parametrize("metric_class", METRICS)
def test_ignored_labels_do_not_count(metric_class, batch):
    logits, labels = batch
    padded = torch.cat([logits, torch.full((5, 7), torch.nan)]), torch.cat([labels, torch.full((5,), -100)])
    expected = metric_class().compute(predictions=logits, references=labels)
    assert metric_class().compute(predictions=padded[0], references=padded[1]) == expected


def test_five_classes_or_fewer_are_always_among_the_top_five():
    assert Top5Accuracy().compute(predictions=torch.randn(4, 3), references=[0, 1, 2, 0]) == {"top_5_accuracy": 1.0}


def test_combines_as_every_evaluate_metric(batch):
    logits, labels = batch
    combined = evaluate.combine([metric_class() for metric_class in METRICS])
    combined.add_batch(predictions=logits, references=labels)
    assert set(combined.compute()) == {"accuracy", "top_5_accuracy", "mean_per_class_accuracy"}


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (torch.zeros(2, 3), [0, 3], "1 of the `references` are negative or not a class"),
        (torch.zeros(2, 3), [-1, 0], "1 of the `references` are negative or not a class"),
        (torch.tensor([[0.0, torch.nan], [1.0, 0.0]]), [0, 0], "1 of the `predictions` hold NaN"),
        (torch.zeros(2, 3), [-100, -100], "nothing to score"),
        (torch.zeros(2, 3), [0, 1, 2], r"scores of shape \(3, num_classes\)"),
        (torch.zeros(2), [0, 1], "got torch.float32 of shape"),
        (torch.zeros(2, 3), np.zeros(2), "should be integers of shape"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), "has seen no samples"),
    ],
)
def test_bad_input(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        Accuracy().compute(predictions=predictions, references=references)


def test_top_5_needs_a_ranking():
    with pytest.raises(ValueError, match="5 or more integer class ids"):
        Top5Accuracy().add_batch(predictions=[1, 2], references=[1, 2])


def test_both_sides_are_needed():
    with pytest.raises(ValueError, match="together"):
        Accuracy().add_batch(predictions=[1, 2])
