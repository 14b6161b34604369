"""Scores of classifiers on a split, over any number of processes."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.utils.data import DataLoader

from ..data.batches import Loading
from ..data.labelled_images import EvaluationImages
from ..data.labels import IGNORED_LABEL
from ..metrics import Accuracy, MeanPerClassAccuracy, Top5Accuracy
from ..progress import progress_bar


def evaluation_loader(images: EvaluationImages, loading: Loading, accelerator: Accelerator) -> DataLoader:
    """Batches that `accelerator.gather_for_metrics` counts once, whatever the number of processes."""
    return accelerator.prepare(DataLoader(images, batch_size=loading.batch_size, **loading.options()))


class ClassificationScores:
    """Loss and accuracies of one classifier, summed over batches."""

    def __init__(self):
        self.metrics = (Accuracy(), Top5Accuracy(), MeanPerClassAccuracy())
        self.loss, self.num_images = torch.zeros(()), torch.zeros((), dtype=torch.long)

    def add(self, logits: torch.Tensor, labels: torch.LongTensor):
        """Scores of shape `(num_images, num_labels)`; classes, or -100 for what does not count."""
        logits = logits.float()
        self.loss = self.loss + F.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED_LABEL)
        self.num_images = self.num_images + (labels != IGNORED_LABEL).sum()
        for metric in self.metrics:
            metric.add_batch(predictions=logits, references=labels)

    def compute(self) -> dict[str, float]:
        """`accuracy`, `top_5_accuracy`, `mean_per_class_accuracy`, `loss` and `num_images`."""
        results = {"loss": float(self.loss / self.num_images), "num_images": int(self.num_images)}
        for metric in self.metrics:
            results |= metric.compute() or {}
        return results


def score(logits: torch.Tensor, labels: torch.LongTensor) -> dict[str, float]:
    """[`ClassificationScores`] of a whole split at once."""
    scores = ClassificationScores()
    scores.add(logits, labels)
    return scores.compute()


@torch.no_grad()
def evaluate(
    predict: Callable[[torch.Tensor], dict[str, torch.Tensor]], loader: DataLoader, accelerator: Accelerator
) -> dict[str, dict[str, float]]:
    """
    Scores classifiers on a split. Every process gets the same results.

    Args:
        predict (`Callable`): from pixels (batch_size, channels, height, width) in [0, 1] to scores
            (batch_size, num_labels) of each classifier, by its name.
        loader (`DataLoader`): from [`evaluation_loader`].

    Returns:
        What [`ClassificationScores`] computes, by the classifiers' names.
    """
    scores: dict[str, ClassificationScores] = {}
    progress = progress_bar(loader, desc="Evaluating", leave=False, disable=not accelerator.is_local_main_process)
    for batch in progress:
        with accelerator.autocast():
            logits = predict(batch["pixel_values"].float() / 255)
        logits, labels = accelerator.gather_for_metrics((logits, batch["labels"]))
        for name, values in logits.items():
            scores.setdefault(name, ClassificationScores()).add(values, labels)
    return {name: score.compute() for name, score in scores.items()}
