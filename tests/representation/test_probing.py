import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from transformers_mage import MageConfig, MageModel
from transformers_mage.representation import Feature, FeatureExtractor, probe_as_classifier
from transformers_mage.representation.lars import LARS
from transformers_mage.representation.probing import (
    ProbeHead,
    ProbeHeads,
    choose_penalty,
    fit_best_probe,
    fit_linear_probe,
    nearest_neighbour_scores,
    normalize,
)

LABELS = torch.arange(120) % 4


@pytest.fixture
def features() -> torch.Tensor:
    """Four overlapping classes in eight dimensions, on another scale in each."""
    centres = torch.randn(4, 8)
    return (centres[LABELS] + torch.randn(120, 8)) * torch.logspace(-2, 2, 8) + 5


def test_the_linear_probe_is_scikit_learns_optimum(features):
    probe = fit_linear_probe(features, LABELS, 4, penalty=0.01)

    scaled = StandardScaler().fit_transform(features.numpy())
    reference = LogisticRegression(C=1 / (0.01 * 120), tol=1e-8, max_iter=1000).fit(scaled, LABELS.numpy())
    expected = torch.from_numpy(reference.predict_proba(scaled)).float()
    assert torch.allclose(probe(features).softmax(dim=1), expected, atol=1e-3)


def test_a_start_changes_the_way_and_not_the_optimum(features):
    other = fit_linear_probe(features, LABELS, 4, penalty=1.0)

    warm, cold = (fit_linear_probe(features, LABELS, 4, 0.01, start) for start in (other, None))

    assert torch.allclose(warm(features), cold(features), atol=1e-2)


def test_the_penalty_is_the_one_that_is_best_on_held_out_images(features):
    held_out = (features[100:], LABELS[100:])
    penalty = choose_penalty(features[:20], LABELS[:20], 4, held_out, penalties=(1e-6, 1e-2, 1e2))

    accuracies = {}
    for candidate in (1e-6, 1e-2, 1e2):
        probe = fit_linear_probe(features[:20], LABELS[:20], 4, candidate)
        accuracies[candidate] = (probe(held_out[0]).argmax(dim=1) == held_out[1]).float().mean().item()
    assert accuracies[penalty] == max(accuracies.values())


def test_few_images_leave_nothing_to_choose_by(features):
    assert fit_best_probe(features[:12], LABELS[:12], 4).penalty == 1 / 12
    assert fit_best_probe(features[:12], LABELS[:12], 4, penalty=0.5).penalty == 0.5


def test_constant_features_do_no_harm(features):
    features[:, 0] = 3.0

    assert fit_linear_probe(features, LABELS, 4)(features).isfinite().all()


def test_neighbours_vote_with_their_similarity():
    """Three known directions; the image is 30 degrees from the first and 60 from the second, which share a class."""
    known = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    image = torch.tensor([[3**0.5, 1.0]])

    scores = nearest_neighbour_scores(known, torch.tensor([1, 0, 1]), image, 3, num_neighbours=2, temperature=0.5)

    votes = torch.tensor([0.5, 3**0.5 / 2]) / 0.5
    expected = votes.softmax(dim=0)
    assert torch.allclose(scores.exp()[0, :2], expected, atol=1e-6)
    assert scores[0, 2] < -20


def test_more_neighbours_than_images_are_all_images(features):
    assert nearest_neighbour_scores(features[:5], LABELS[:5], features, 4, num_neighbours=20).shape == (120, 4)


def test_probes_trained_together_are_those_trained_alone(features):
    inputs = {"a": features, "b": features.flip(1)}

    def train(names: list[str]) -> ProbeHeads:
        torch.manual_seed(0)
        heads = ProbeHeads(["a", "b"], 8, 4)
        optimizer = LARS(heads.parameters(), lr=10.0)
        for _ in range(3):
            logits = heads(inputs)
            sum(torch.nn.functional.cross_entropy(logits[name], LABELS) for name in names).backward()
            optimizer.step()
            optimizer.zero_grad()
        return heads

    together, alone = train(["a", "b"]), train(["b"])
    assert torch.equal(together.heads["b"].classifier.weight, alone.heads["b"].classifier.weight)
    assert not torch.equal(together.heads["a"].classifier.weight, alone.heads["a"].classifier.weight)


@pytest.mark.parametrize("feature", [Feature(1, "mean"), Feature(2, "mean"), Feature(2, "cls")], ids=str)
def test_a_probe_becomes_a_classifier_of_the_same_scores(small_config: MageConfig, pixel_values, feature: Feature):
    encoder = MageModel(small_config).eval()
    torch.nn.init.normal_(encoder.layernorm.weight)
    features = FeatureExtractor(encoder, [1, 2], ["mean", "cls"])(pixel_values)[str(feature)]
    head = ProbeHead(32, 3)
    head.train()(torch.randn(8, 32))
    head.eval()

    model = probe_as_classifier(encoder, feature, head, ["a", "b", "c"])

    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert len(model.mage.layers) == feature.layer
    assert torch.allclose(model(pixel_values).logits, head(features), atol=1e-5)


def test_an_optimum_becomes_a_head_of_the_same_scores(features):
    probe = fit_linear_probe(normalize(features), LABELS, 4)

    assert torch.allclose(probe.as_head()(features), probe(normalize(features)), atol=1e-4)
