"""Accuracies of classifiers."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from datasets import Features, List, Value
from torch import Tensor

from .statistics import SumStatistics
from .streaming_metric import StreamingMetric


class _ClassCounts(SumStatistics):
    """Sums a class, which get longer when a larger label comes."""

    def _sum(self, total: Tensor, value: Tensor, name: str) -> Tensor:
        size = max(len(total), len(value))
        return F.pad(total, (0, size - len(total))) + F.pad(value.to(total.device), (0, size - len(value)))


class _ClassificationMetric(StreamingMetric):
    top_k: ClassVar[int] = 1
    inputs: ClassVar[list[Features]] = [
        Features({"predictions": List(Value("float32")), "references": Value("int64")}),
        Features({"predictions": List(Value("int64")), "references": Value("int64")}),
        Features({"predictions": Value("int64"), "references": Value("int64")}),
    ]

    def __init__(self, ignore_index: int = -100, **kwargs: Any):
        self.ignore_index = ignore_index
        super().__init__(**kwargs)

    def new_statistics(self) -> dict[str, SumStatistics]:
        return {"classes": _ClassCounts(), "invalid": SumStatistics()}

    def update(self, predictions: Any, references: Any) -> None:
        if predictions is None or references is None:
            raise ValueError(f"{self.name} needs `predictions` and `references` together.")
        predictions = torch.as_tensor(predictions)
        labels = torch.as_tensor(references, device=predictions.device)
        self._check(predictions, labels)
        if not len(labels):
            return
        ranked, num_classes = self._ranked(predictions, labels)
        known = labels != self.ignore_index
        # Bad input is counted here and raised in `compute`: to look at it now would make an accelerator wait.
        wrong_label = known & ((labels < 0) | (labels >= num_classes))
        not_a_number = known & predictions.reshape(len(labels), -1).isnan().any(dim=1)
        counted = known & ~wrong_label & ~not_a_number
        labels = torch.where(counted, labels, 0).long()
        correct = counted & (ranked == labels[:, None]).any(dim=1)
        zeros = labels.new_zeros(num_classes)
        self.statistics["classes"].add(
            correct=zeros.index_add(0, labels, correct.long()), total=zeros.index_add(0, labels, counted.long())
        )
        self.statistics["invalid"].add(labels=wrong_label.sum(), scores=not_a_number.sum())

    def _check(self, predictions: Tensor, labels: Tensor) -> None:
        if labels.ndim != 1 or labels.is_floating_point():
            raise ValueError(
                f"`references` should be integers of shape (N,); got {labels.dtype}, {tuple(labels.shape)}."
            )
        fits = predictions.ndim in (1, 2) and len(predictions) == len(labels)
        width = predictions.shape[1] if predictions.ndim == 2 else 1
        if not fits or (predictions.ndim == 1 if predictions.is_floating_point() else width < self.top_k):
            raise ValueError(
                f"`predictions` should be scores of shape ({len(labels)}, num_classes), or {self.top_k} or more "
                f"integer class ids a sample, best first; got {predictions.dtype} of shape {tuple(predictions.shape)}."
            )

    def _ranked(self, predictions: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        """The `top_k` most likely class ids, `(N, k)`, and the number of classes as far as it is known."""
        if predictions.is_floating_point():
            num_classes = predictions.shape[1]
            return predictions.topk(min(self.top_k, num_classes), dim=1).indices, num_classes
        return predictions.reshape(len(labels), -1)[:, : self.top_k], max(int(labels.max()) + 1, 1)

    def _counts(self, classes: SumStatistics, invalid: SumStatistics) -> tuple[Tensor, Tensor]:
        if not classes.sums:
            raise ValueError(f"{self.name} has seen no samples; call `add_batch` before `compute`.")
        wrong_labels, wrong_scores = int(invalid.sums["labels"]), int(invalid.sums["scores"])
        if wrong_labels:
            raise ValueError(
                f"{wrong_labels} of the `references` are negative or not a class of the model; "
                f"mark samples that should not count with {self.ignore_index}."
            )
        if wrong_scores:
            raise ValueError(f"{wrong_scores} of the `predictions` hold NaN.")
        correct, total = classes.sums["correct"].double(), classes.sums["total"].double()
        if not total.sum():
            raise ValueError(f"All `references` are {self.ignore_index}: there is nothing to score.")
        return correct, total


class Accuracy(_ClassificationMetric):
    """Top-1 accuracy: the share of samples whose most likely class is their label.

    Inputs of `add_batch` and `compute`, as tensors, arrays or lists:
        predictions: scores (logits or probabilities) of shape `(N, num_classes)`, floating; or class ids of shape
            `(N,)`, or `(N, k)` with the most likely first, integer.
        references: labels of shape `(N,)`; those equal to `ignore_index` do not count.

    `compute` returns `{"accuracy": share}`, a number between 0 and 1.

    Args:
        ignore_index (`int`, *optional*, defaults to -100): the label of samples that do not count, as padding.
        kwargs: those of [`StreamingMetric`].
    """

    description = "Top-1 accuracy"

    def score(self, classes: SumStatistics, invalid: SumStatistics) -> dict[str, float]:
        correct, total = self._counts(classes, invalid)
        return {"accuracy": float(correct.sum() / total.sum())}


class Top5Accuracy(_ClassificationMetric):
    """Top-5 accuracy: the share of samples whose label is among their five most likely classes.

    Takes what [`Accuracy`] takes, but class ids only as `(N, k)` with k of at least 5. With five classes or fewer, it
    is 1 by definition. `compute` returns `{"top_5_accuracy": share}`.
    """

    description = "Top-5 accuracy"
    top_k: ClassVar[int] = 5

    def score(self, classes: SumStatistics, invalid: SumStatistics) -> dict[str, float]:
        correct, total = self._counts(classes, invalid)
        return {"top_5_accuracy": float(correct.sum() / total.sum())}


class MeanPerClassAccuracy(_ClassificationMetric):
    """Mean over the classes of the share of their samples that are recognised: every class counts the same.

    Takes what [`Accuracy`] takes. Classes without samples are left out of the mean. `compute` returns
    `{"mean_per_class_accuracy": share}`. Usual for unbalanced transfer sets such as Caltech-101 and Oxford Pets
    (Kornblith et al., arXiv 1805.08974, section 3).
    """

    description = "Mean per-class accuracy"

    def score(self, classes: SumStatistics, invalid: SumStatistics) -> dict[str, float]:
        correct, total = self._counts(classes, invalid)
        present = total > 0
        return {"mean_per_class_accuracy": float((correct[present] / total[present]).mean())}
