"""Linear probes and nearest neighbours: how much of the classes frozen features tell."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..data.labels import hold_out
from ..progress import progress_bar
from .feature_store import FeatureStore

# Regularisation to choose from: the penalty on the weights' squared norm, for a loss that is a mean over the images.
PENALTIES = tuple(10.0**exponent for exponent in range(-6, 1))


class ProbeHead(nn.Module):
    """
    A linear layer on normalised features (appendix B): a layer norm and a batch norm, neither with parameters, and the
    layer.

    Args:
        hidden_size (`int`): width of the features.
        num_labels (`int`): number of classes.
    """

    def __init__(self, hidden_size: int, num_labels: int):
        super().__init__()
        self.fc_norm = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.batch_norm = nn.BatchNorm1d(hidden_size, affine=False, eps=1e-6)
        self.classifier = nn.Linear(hidden_size, num_labels)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.batch_norm(self.fc_norm(features)))


class ProbeHeads(nn.Module):
    """
    Probes of several features of the same images, trained together. Their losses are added, and an optimizer treats
    each parameter for itself, so each is trained as it would be alone.

    Args:
        names (`Sequence[str]`): of the features.
        hidden_size, num_labels (`int`): see [`ProbeHead`].
    """

    def __init__(self, names: Sequence[str], hidden_size: int, num_labels: int):
        super().__init__()
        self.heads = nn.ModuleDict({name: ProbeHead(hidden_size, num_labels) for name in names})

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Scores of shape `(batch_size, num_labels)` by the features' names."""
        return {name: head(features[name].float()) for name, head in self.heads.items()}


@dataclass
class LinearProbe:
    """
    A linear classifier of standardised features.

    Attributes:
        mean, scale (`torch.Tensor` of shape `(hidden_size,)`): of the features it was fitted to.
        weight (`torch.Tensor` of shape `(num_labels, hidden_size)`).
        bias (`torch.Tensor` of shape `(num_labels,)`).
        penalty (`float`): on the squared norm of the weight.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    penalty: float

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """(num_images, num_labels) scores of features (num_images, hidden_size)."""
        return F.linear((features.float() - self.mean) / self.scale, self.weight, self.bias)

    def as_head(self) -> ProbeHead:
        """The same as a head, whose batch norm standardises."""
        head = ProbeHead(self.weight.shape[1], self.weight.shape[0]).eval()
        variance = self.scale**2 - head.batch_norm.eps
        head.batch_norm.load_state_dict({"running_mean": self.mean, "running_var": variance}, strict=False)
        head.classifier.load_state_dict({"weight": self.weight, "bias": self.bias})
        return head


def normalize(features: torch.Tensor) -> torch.Tensor:
    """A layer norm without parameters: what every probe here sees of features (num_images, hidden_size)."""
    return F.layer_norm(features.float(), features.shape[-1:], eps=1e-6)


def fit_linear_probe(
    features: torch.Tensor,
    labels: torch.LongTensor,
    num_labels: int,
    penalty: float = 1e-3,
    start: LinearProbe | None = None,
    max_iterations: int = 200,
) -> LinearProbe:
    """
    The optimum of multinomial logistic regression on standardised features: mean cross-entropy plus
    `penalty / 2 * |weight|^2`. Found by L-BFGS over all images at once, wherever the features are.

    Args:
        features (`torch.Tensor` of shape `(num_images, hidden_size)`): frozen features.
        labels (`torch.LongTensor` of shape `(num_images,)`): classes.
        num_labels (`int`): number of classes.
        penalty (`float`): 1 / (C x num_images), with scikit-learn's C.
        start ([`LinearProbe`], *optional*): a solution for another penalty, to start from.
    """
    features = features.float()
    mean, scale = features.mean(dim=0), features.std(dim=0, correction=0)
    scale = torch.where(scale > 1e-3, scale, 1.0)
    features = (features - mean) / scale
    shape = (num_labels, features.shape[1])
    weight = features.new_zeros(shape) if start is None else start.weight.clone()
    bias = features.new_zeros(num_labels) if start is None else start.bias.clone()
    optimizer = torch.optim.LBFGS(
        [weight.requires_grad_(), bias.requires_grad_()],
        max_iter=max_iterations,
        history_size=20,
        tolerance_grad=1e-5,
        line_search_fn="strong_wolfe",
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(features, weight, bias), labels) + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return LinearProbe(mean, scale, weight.detach(), bias.detach(), penalty)


def choose_penalty(
    features: torch.Tensor,
    labels: torch.LongTensor,
    num_labels: int,
    held_out: tuple[torch.Tensor, torch.LongTensor],
    penalties: Sequence[float] = PENALTIES,
) -> float:
    """
    The penalty whose probe is best on images held out from training; of equals, the one with the lower loss there.

    Args:
        features, labels: to train on; see [`fit_linear_probe`].
        held_out: features and labels to choose by.
    """
    scores, probe = {}, None
    for penalty in progress_bar(sorted(penalties, reverse=True), desc="Choosing the penalty", leave=False):
        probe = fit_linear_probe(features, labels, num_labels, penalty, start=probe)
        logits = probe(held_out[0])
        accuracy = (logits.argmax(dim=1) == held_out[1]).float().mean()
        scores[penalty] = (accuracy.item(), -F.cross_entropy(logits, held_out[1]).item())
    return max(scores, key=scores.__getitem__)


@torch.no_grad()
def nearest_neighbour_scores(
    train_features: torch.Tensor,
    train_labels: torch.LongTensor,
    features: torch.Tensor,
    num_labels: int,
    num_neighbours: int = 20,
    temperature: float = 0.07,
    batch_size: int = 1024,
) -> torch.Tensor:
    """
    Weighted nearest neighbours (arXiv 1805.01978): each of the most similar training images votes for its class with
    `exp(cosine / temperature)`.

    Args:
        train_features (`torch.Tensor` of shape `(num_train, hidden_size)`), train_labels: what is known.
        features (`torch.Tensor` of shape `(num_images, hidden_size)`): what to classify.
        num_neighbours (`int`): at most this many vote.

    Returns:
        `torch.Tensor` of shape `(num_images, num_labels)`: the logarithm of each class's share of the votes.
    """
    known = F.normalize(train_features.float(), dim=1)
    num_neighbours = min(num_neighbours, len(known))
    scores = []
    for batch in features.float().split(batch_size):
        similarity, nearest = (F.normalize(batch, dim=1) @ known.T).topk(num_neighbours, dim=1)
        votes = (similarity / temperature).softmax(dim=1)
        empty = votes.new_zeros(len(batch), num_labels)
        scores.append(empty.scatter_add(1, train_labels[nearest], votes))
    return torch.cat(scores).clamp(min=1e-9).log()


@dataclass
class FrozenFeatures:
    """
    Features of labelled images that were computed once.

    Attributes:
        features (`dict[str, torch.Tensor]`): (num_images, hidden_size) each, normalised, by name.
        labels (`torch.LongTensor` of shape `(num_images,)`): classes.
        index (`torch.LongTensor` of shape `(num_images,)`): rows of the split that they belong to.
    """

    features: dict[str, torch.Tensor]
    labels: torch.LongTensor
    index: torch.LongTensor

    @classmethod
    def of(cls, store: FeatureStore, device: torch.device | str = "cpu") -> "FrozenFeatures":
        columns = {name: values.to(device) for name, values in store.load().items()}
        labels, index = columns.pop("label"), columns.pop("index")
        return cls({name: normalize(values) for name, values in columns.items()}, labels, index)

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, indices: np.ndarray) -> "FrozenFeatures":
        """Those of some rows of the split."""
        kept = torch.isin(self.index, torch.as_tensor(indices, device=self.index.device))
        return FrozenFeatures({k: v[kept] for k, v in self.features.items()}, self.labels[kept], self.index[kept])


def fit_best_probe(
    features: torch.Tensor, labels: torch.LongTensor, num_labels: int, penalty: float | None = None, seed: int = 0
) -> LinearProbe:
    """
    [`fit_linear_probe`] with the penalty that is best on a fifth of each class's images, and then fitted to all. With
    fewer than ten images of a class there are too few to choose by, and it is 1 / num_images, scikit-learn's default.

    Args:
        penalty (`float`, *optional*): one to use without choosing.
    """
    if penalty is None:
        counts = torch.bincount(labels, minlength=num_labels)
        penalty = 1 / len(labels)
        if counts[counts > 0].min() >= 10:
            split = hold_out(labels.tolist(), 0.2, seed)
            kept, held_out = (torch.from_numpy(rows).to(labels.device) for rows in split)
            penalty = choose_penalty(features[kept], labels[kept], num_labels, (features[held_out], labels[held_out]))
    return fit_linear_probe(features, labels, num_labels, penalty)
