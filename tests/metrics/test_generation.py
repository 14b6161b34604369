import itertools

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import torch
from torch import nn

from transformers_mage.metrics import (
    FeatureBatch,
    FrechetInceptionDistance,
    InceptionScore,
    KernelInceptionDistance,
    PrecisionRecall,
)
from transformers_mage.metrics.generation import polynomial_mmd
from transformers_mage.metrics.statistics import content_hash, scramble

TWO_SIDED = [FrechetInceptionDistance, KernelInceptionDistance, PrecisionRecall]


def gaussian(count, mean, std, generator):
    mean, std = torch.as_tensor(mean, dtype=torch.float64), torch.as_tensor(std, dtype=torch.float64)
    return mean + std * torch.randn(count, len(mean), generator=generator, dtype=torch.float64)


def exactly_gaussian(count, mean, std, generator):
    """Samples whose sample mean and covariance are exactly those asked for."""
    samples = gaussian(count, torch.zeros(len(mean)), torch.ones(len(mean)), generator)
    samples = samples - samples.mean(0)
    whitening = torch.linalg.inv(torch.linalg.cholesky(torch.cov(samples.T)))
    return torch.as_tensor(mean) + (samples @ whitening.T) * torch.as_tensor(std)


@pytest.fixture
def two_sides(generator):
    return (
        gaussian(120, [0.0, 1.0, 2.0, 0.0], [1.0, 2.0, 0.5, 1.0], generator).float(),
        gaussian(90, [0.5, 0.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0], generator).float(),
    )


class TestFrechetInceptionDistance:
    def test_closed_form_of_two_gaussians(self, generator):
        mean, std = [0.0, 1.0, -2.0], [1.0, 2.0, 0.5]
        other_mean, other_std = [1.0, 1.0, 2.0], [3.0, 2.0, 1.5]
        result = FrechetInceptionDistance().compute(
            predictions=exactly_gaussian(50, mean, std, generator),
            references=exactly_gaussian(40, other_mean, other_std, generator),
        )
        # Equal axes: the squared distances of the means and of the standard deviations.
        assert result == pytest.approx({"fid": (1 + 0 + 16) + (4 + 0 + 1)}, rel=1e-9)

    def test_agrees_with_scipy(self, two_sides):
        x, y = (side.double().numpy() for side in two_sides)
        root = scipy.linalg.sqrtm(np.cov(x, rowvar=False) @ np.cov(y, rowvar=False))
        expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(
            np.cov(x, rowvar=False) + np.cov(y, rowvar=False) - 2 * np.real(root)
        )
        result = FrechetInceptionDistance().compute(predictions=two_sides[0], references=two_sides[1])
        assert result["fid"] == pytest.approx(expected, rel=1e-9)

    @pytest.mark.slow
    def test_two_halves_of_the_same_data_show_the_known_bias(self, generator):
        """To first order in 1 / N, E[FID] = 2 tr(S) / N + sum_ij l_i l_j (1 + d_ij) / ((l_i + l_j) (N - 1))."""
        count, variances = 500, torch.tensor([4.0, 2.0, 1.0, 1.0, 0.5, 0.25], dtype=torch.float64)
        pairs = variances[:, None] * variances / (variances[:, None] + variances)
        bias = 2 * variances.sum() / count + (pairs.sum() + pairs.diagonal().sum()) / (count - 1)
        metric = FrechetInceptionDistance()
        scores = []
        for _ in range(1000):
            first, second = gaussian(2 * count, torch.zeros(6), variances.sqrt(), generator).split(count)
            scores.append(metric.compute(predictions=first, references=second)["fid"])
        error = np.std(scores) / np.sqrt(len(scores))
        assert error < 0.02 * bias
        assert np.mean(scores) == pytest.approx(bias.item(), abs=3 * error)

    def test_equal_sides_have_no_distance_even_when_singular(self, generator):
        features = torch.randn(5, 8, generator=generator)
        metric = FrechetInceptionDistance()
        with pytest.warns(UserWarning, match="rank deficient"):
            assert abs(metric.compute(predictions=features, references=features)["fid"]) < 1e-6

    def test_too_few_samples_are_told(self, generator):
        features = torch.randn(8, 8, generator=generator)
        with pytest.warns(UserWarning, match="8 references are too few for features of 8 numbers"):
            FrechetInceptionDistance().compute(predictions=torch.randn(9, 8, generator=generator), references=features)

    def test_statistics_from_npz(self, tmp_path, two_sides):
        np.savez(tmp_path / "s.npz", mu=two_sides[1].mean(0), sigma=np.cov(two_sides[1].double(), rowvar=False))
        metric = FrechetInceptionDistance()
        expected = metric.compute(predictions=two_sides[0], references=two_sides[1])
        metric.load_statistics(tmp_path / "s.npz")
        for _ in range(2):  # they stay for the next evaluation
            assert metric.compute(predictions=two_sides[0]) == pytest.approx(expected, rel=1e-6)

    def test_npz_is_not_enough_for_others(self, tmp_path):
        np.savez(tmp_path / "s.npz", mu=np.zeros(3), sigma=np.eye(3))
        with pytest.raises(ValueError, match=r"statistics for \['fid'\], not for kid"):
            KernelInceptionDistance().load_statistics(tmp_path / "s.npz")


class TestKernelInceptionDistance:
    def test_closed_form_of_two_gaussians(self, generator):
        """The kernel's expectation follows from the first three moments of the Gaussians."""
        means, stds = ([0.0, 1.0], [1.0, 0.5]), ([1.0, 0.5], [0.5, 1.0])
        first, second, third = zip(*(self._moments(*parameters) for parameters in (means, stds)), strict=True)
        expected = 0.0
        for sign, i, j in ((1, 0, 0), (1, 1, 1), (-2, 0, 1)):
            products = [np.sum(moments[i] * moments[j]) / 2**n for n, moments in enumerate((first, second, third), 1)]
            expected += sign * (1 + 3 * products[0] + 3 * products[1] + products[2])
        metric = KernelInceptionDistance(num_subsets=1)
        scores = [
            metric.compute(predictions=gaussian(200, *means, generator), references=gaussian(300, *stds, generator))[
                "kid"
            ]
            for _ in range(200)
        ]
        error = np.std(scores) / np.sqrt(len(scores))
        assert error < 0.03 * expected
        assert np.mean(scores) == pytest.approx(expected, abs=3 * error)

    @staticmethod
    def _moments(mean, std):
        m, s = np.array(mean), np.diag(np.square(std))
        symmetric = sum(np.einsum(f"{a},{b}->ijk", m, s) for a, b in (("i", "jk"), ("j", "ik"), ("k", "ij")))
        return m, s + np.outer(m, m), np.einsum("i,j,k->ijk", m, m, m) + symmetric

    def test_agrees_with_pairs_in_numpy(self, two_sides):
        x, y = (side.double().numpy() for side in two_sides)

        def mean_kernel(a, b, pairs):
            return np.mean([(a[i] @ b[j] / 4 + 1) ** 3 for i, j in pairs])

        expected = (
            mean_kernel(x, x, itertools.permutations(range(len(x)), 2))
            + mean_kernel(y, y, itertools.permutations(range(len(y)), 2))
            - 2 * mean_kernel(x, y, itertools.product(range(len(x)), range(len(y))))
        )
        result = KernelInceptionDistance(num_subsets=1).compute(predictions=two_sides[0], references=two_sides[1])
        assert result["kid"] == pytest.approx(expected, rel=1e-9)

    @pytest.mark.slow
    def test_mean_over_subsets_approaches_it(self, two_sides):
        x, y = (side.double() for side in two_sides)
        generator = torch.Generator().manual_seed(1)
        subsets = torch.stack(
            [
                polynomial_mmd(*(side[torch.randperm(len(side), generator=generator)[:45]] for side in (x, y)))
                for _ in range(1000)
            ]
        )
        result = KernelInceptionDistance(subset_size=45, num_subsets=1000).compute(predictions=x, references=y)
        assert abs(result["kid"] - subsets.mean()) < 3 * subsets.std() / 1000**0.5
        assert result["kid_std"] == pytest.approx(subsets.std().item(), rel=0.1)

    def test_seed_chooses_the_kept_samples(self, generator):
        sides = {"predictions": torch.randn(300, 3, generator=generator), "references": torch.randn(300, 3)}
        first, again, other = (
            KernelInceptionDistance(max_samples=50, num_subsets=1, seed=seed).compute(**sides) for seed in (0, 0, 1)
        )
        assert first == again != other


class TestPrecisionRecall:
    def test_worked_on_a_line(self):
        real = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
        generated = torch.tensor([[0.5], [2.5], [4.0], [30.0]])
        # With k = 1 the real radii are 1, 1, 1, 8 and the generated ones 2, 1.5, 1.5, 26.
        result = PrecisionRecall(num_neighbors=1).compute(predictions=generated, references=real)
        assert result == {"precision": 0.75, "recall": 1.0}

    @pytest.mark.parametrize("k", [1, 3])
    def test_agrees_with_scipy(self, k, two_sides):
        generated, real = (scipy.spatial.KDTree(side.double()) for side in two_sides)

        def share(points, manifold):
            radii = manifold.query(manifold.data, k=k + 1)[0][:, -1]
            return np.mean((scipy.spatial.distance.cdist(points.data, manifold.data) <= radii).any(axis=1))

        result = PrecisionRecall(num_neighbors=k).compute(predictions=two_sides[0], references=two_sides[1])
        assert result == {"precision": share(generated, real), "recall": share(real, generated)}

    def test_two_gaussians(self, generator):
        real = gaussian(1000, [0.0, 0.0], [1.0, 1.0], generator)
        far = gaussian(1000, [100.0, 0.0], [1.0, 1.0], generator)
        narrow = gaussian(1000, [0.0, 0.0], [0.1, 0.1], generator)
        assert PrecisionRecall().compute(predictions=far, references=real) == {"precision": 0.0, "recall": 0.0}
        result = PrecisionRecall().compute(predictions=narrow, references=real)
        assert result["precision"] > 0.99
        # A generated manifold of radius r covers 1 - exp(-r^2 / 2) of the real Gaussian; its samples end near 0.37.
        radius = narrow.norm(dim=1).max()
        assert result["recall"] == pytest.approx(1 - torch.exp(-(radius**2) / 2).item(), abs=0.03)

    def test_equal_neighbours_count(self):
        collapsed = torch.zeros(10, 2)
        assert PrecisionRecall().compute(predictions=collapsed, references=torch.ones(10, 2)) == {
            "precision": 0.0,
            "recall": 0.0,
        }
        assert PrecisionRecall().compute(predictions=collapsed, references=torch.zeros(10, 2)) == {
            "precision": 1.0,
            "recall": 1.0,
        }


class TestInceptionScore:
    def test_sure_and_varied_samples_score_their_number_of_classes(self):
        logits = 100 * torch.eye(5).repeat(40, 1)
        result = InceptionScore(num_splits=1).compute(predictions=logits)
        assert result == pytest.approx({"inception_score": 5.0, "inception_score_std": 0.0}, abs=1e-9)

    def test_unsure_samples_score_one(self, generator):
        logits = torch.randn(1, 5, generator=generator).expand(40, -1)
        assert InceptionScore().compute(predictions=logits)["inception_score"] == pytest.approx(1.0)

    def test_agrees_with_numpy_on_each_part(self, generator):
        logits = 2 * torch.randn(2000, 6, generator=generator)
        parts = [InceptionScore(num_splits=1) for _ in range(4)]
        split = (scramble(content_hash(logits), seed=0) >> 33) % 4
        expected = []
        for i in range(len(parts)):
            p = logits[split == i].double().softmax(1).numpy()
            expected.append(np.exp(np.mean(np.sum(p * np.log(p / p.mean(0)), axis=1))))
            assert 400 < len(p) < 600
        result = InceptionScore(num_splits=4).compute(predictions=logits)
        assert result["inception_score"] == pytest.approx(np.mean(expected))
        assert result["inception_score_std"] == pytest.approx(np.std(expected))


class TinyNetwork(nn.Module):
    """Images to features and logits, with a dropout that would show if it were not in evaluation mode."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features, self.head = nn.Conv2d(3, 6, 4), nn.Linear(6, 5)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images):
        features = self.dropout(self.features(images.float() / 255).amax(dim=(2, 3)))
        return features, self.head(features)


def images(count, generator, high=256):
    return torch.randint(high, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)


@pytest.fixture
def image_sides(generator):
    return {"predictions": images(101, generator), "references": images(83, generator, high=200)}


def all_metrics(network, **kwargs):
    return [
        FrechetInceptionDistance(network, **kwargs),
        InceptionScore(network, num_splits=3, **kwargs),
        KernelInceptionDistance(network, max_samples=40, num_subsets=5, **kwargs),
        PrecisionRecall(network, **kwargs),
    ]


def test_streaming_equals_all_at_once(image_sides):
    network = TinyNetwork()
    for whole, streamed in zip(all_metrics(network), all_metrics(network), strict=True):
        sides = {side: image_sides[side] for side in whole.features}
        for side, samples in sides.items():
            for batch in samples.flip(0).split(7):
                streamed.add_batch(**{side: batch})
        result = streamed.compute()
        assert result == pytest.approx(whole.compute(**sides), rel=1e-6)
        assert all(np.isfinite(value) for value in result.values())


def kept_bytes(metric):
    return sum(tensor.nbytes for item in metric.gather().values() for tensor in item.state_dict().values())


def test_memory_does_not_grow_but_for_precision_and_recall(generator):
    for metric in all_metrics(lambda x: (x.float().mean((2, 3)), x.float().amax((2, 3)))):
        sizes = []
        for _ in range(10):
            for side in metric.features:
                metric.add_batch(**{side: images(50, generator)})
            sizes.append(kept_bytes(metric))
        grows = isinstance(metric, PrecisionRecall)
        assert sizes[-1] == (10 if grows else 1) * sizes[0]


def test_one_extraction_serves_every_metric(image_sides):
    network = TinyNetwork()
    metrics = all_metrics(network)
    extracted = {side: metrics[0].feature_network(samples) for side, samples in image_sides.items()}
    assert isinstance(extracted["predictions"], FeatureBatch)
    for metric, other in zip(metrics, all_metrics(network), strict=True):
        names = metric.features
        result = metric.compute(**{side: extracted[side] for side in names})
        assert result == other.compute(**{side: image_sides[side] for side in names})


@pytest.mark.parametrize("metric_class", TWO_SIDED)
def test_own_statistics_file(metric_class, two_sides, tmp_path):
    metric = metric_class()
    metric.add_batch(predictions=two_sides[0], references=two_sides[1])
    metric.save_statistics(tmp_path / "s.safetensors")
    expected = metric.compute()
    metric.load_statistics(tmp_path / "s.safetensors")
    assert metric.compute(predictions=two_sides[0]) == expected
    with pytest.raises(ValueError, match="loaded from a file"):
        metric.add_batch(references=two_sides[1])


@pytest.mark.parametrize("metric_class", TWO_SIDED)
def test_bad_features(metric_class, two_sides):
    with pytest.raises(ValueError, match="sizes 4 and 3"):
        metric_class().compute(predictions=two_sides[0], references=two_sides[1][:, :3])
    metric = metric_class()
    metric.add_batch(predictions=two_sides[0])
    with pytest.raises(ValueError, match="numbers so far"):
        metric.add_batch(predictions=two_sides[0][:, :3])
    with pytest.raises(ValueError, match="needs at least"):
        metric_class().compute(predictions=two_sides[0], references=two_sides[1][:1])
    with pytest.raises(ValueError, match="NaN or infinity"):
        metric_class().compute(predictions=two_sides[0] / 0, references=two_sides[1])
    with pytest.raises(ValueError, match=r"Expected images \(N, C, H, W\) or features \(N, D\)"):
        metric_class().add_batch(predictions=two_sides[0][0])


def test_inception_score_takes_no_references_and_needs_logits(generator):
    with pytest.raises(ValueError, match="takes no `references`"):
        InceptionScore().add_batch(references=torch.zeros(3, 2))
    with pytest.raises(ValueError, match="the feature network gives none"):
        InceptionScore(lambda x: (x.float().mean((2, 3)), None)).add_batch(predictions=images(3, generator))
