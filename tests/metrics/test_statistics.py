import numpy as np
import pytest
import torch

from transformers_mage.metrics.statistics import (
    FeatureReservoir,
    GaussianStatistics,
    content_hash,
    load_statistics,
    save_statistics,
    scramble,
)


def gaussian(*batches):
    statistics = GaussianStatistics()
    for batch in batches:
        statistics.update(batch)
    return statistics


def test_gaussian_statistics_are_numpys(generator):
    features = torch.randn(200, 5, generator=generator) * 3 + 1
    statistics = gaussian(*features.split(7))
    assert statistics.count == 200
    np.testing.assert_allclose(statistics.mean, features.double().mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance, np.cov(features.double(), rowvar=False), rtol=1e-12)


def test_gaussian_statistics_do_not_cancel_far_from_zero(generator):
    features = torch.randn(1000, 3, generator=generator, dtype=torch.float64)
    near, far = gaussian(*features.split(10)), gaussian(*(features + 1e6).split(10))
    torch.testing.assert_close(far.covariance, near.covariance, rtol=1e-8, atol=1e-8)


def test_merging_takes_part_in_any_order(generator):
    parts = torch.randn(60, 4, generator=generator).split([10, 49, 1])
    forwards, backwards = GaussianStatistics(), GaussianStatistics()
    for part in parts:
        forwards.merge(gaussian(part))
    for part in reversed(parts):
        backwards.merge(gaussian(part))
    backwards.merge(GaussianStatistics())
    torch.testing.assert_close(forwards.covariance, backwards.covariance, rtol=1e-12, atol=1e-14)


def test_reservoir_keeps_the_same_samples_in_any_order(generator):
    features = torch.randn(500, 3, generator=generator)
    priorities = content_hash(features)
    expected = features[priorities.argsort()[:20]]
    reservoir = FeatureReservoir(max_samples=20)
    for rows in torch.randperm(500, generator=generator).split(9):
        reservoir.update(features[rows], priorities[rows])
        assert sum(map(len, reservoir._features)) <= 49
    assert torch.equal(reservoir.features, expected)


def test_reservoirs_of_two_streams_merge_into_that_of_both(generator):
    features = torch.randn(100, 3, generator=generator)
    whole, first, second = (FeatureReservoir(max_samples=10) for _ in range(3))
    for reservoir, rows in ((whole, slice(None)), (first, slice(0, 30)), (second, slice(30, None))):
        reservoir.update(features[rows], content_hash(features[rows]))
    second.merge(first)
    assert torch.equal(second.features, whole.features)


def test_content_hash_depends_on_content_only(generator):
    images = torch.randint(256, (40, 3, 4, 4), dtype=torch.uint8, generator=generator)
    hashes = content_hash(images)
    assert torch.equal(torch.cat([content_hash(part) for part in images.split(7)]), hashes)
    changed = images.clone()
    changed[:, 0, 0, 0] ^= 1
    assert len(torch.cat([hashes, content_hash(changed)]).unique()) == 80


def test_scrambled_hashes_are_uniform_and_unrelated(generator):
    hashes = content_hash(torch.arange(40_000)[:, None])
    first, second = (((scramble(hashes, seed) >> 33) % 10) for seed in (0, 1))
    counts = torch.bincount(10 * first + second, minlength=100).double()
    # Chi-squared with 99 degrees of freedom: mean 99, standard deviation 14.
    assert abs(((counts - 400) ** 2 / 400).sum() - 99) < 3 * 14


def test_statistics_file_round_trip(tmp_path, generator):
    fid = gaussian(torch.randn(20, 3, generator=generator))
    reservoir = FeatureReservoir()
    reservoir.update(torch.randn(5, 3, generator=generator), torch.arange(5))
    save_statistics(tmp_path / "s.safetensors", {"fid": fid, "kid": reservoir}, feature_network="inception")
    states, metadata = load_statistics(tmp_path / "s.safetensors")
    assert metadata == {"feature_network": "inception"}
    loaded = GaussianStatistics()
    loaded.load_state_dict(states["fid"])
    assert loaded.count == 20
    assert torch.equal(loaded.covariance, fid.covariance)
    assert torch.equal(states["kid"]["features"], reservoir.features)


def test_moments_from_npz(tmp_path):
    np.savez(tmp_path / "s.npz", mu=np.zeros(3, np.float32), sigma=np.eye(3))
    states, _ = load_statistics(tmp_path / "s.npz")
    assert states["fid"]["mean"].dtype == states["fid"]["scatter"].dtype == torch.float64


def test_files_that_hold_no_statistics(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros(3))
    with pytest.raises(ValueError, match=r"should hold `mu` and `sigma`; it holds \['images'\]"):
        load_statistics(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", mu=np.zeros(3), sigma=np.eye(4))
    with pytest.raises(ValueError, match=r"got \(3,\) and \(4, 4\)"):
        load_statistics(tmp_path / "b.npz")
    (tmp_path / "c.safetensors").write_text("no")
    with pytest.raises(ValueError, match="is not a statistics file"):
        load_statistics(tmp_path / "c.safetensors")
