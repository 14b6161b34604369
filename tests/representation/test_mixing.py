import numpy as np
import pytest
import torch

from transformers_mage.representation.mixing import Mixup, cutmix


@pytest.fixture
def images() -> torch.Tensor:
    """Four images, each of one value: 0, 1, 2 and 3."""
    return torch.arange(4.0)[:, None, None, None].expand(4, 3, 32, 32)


LABELS = torch.tensor([0, 1, 2, 3])


def test_smoothed_labels():
    targets = Mixup(num_classes=4, label_smoothing=0.1).smooth(LABELS)

    assert torch.allclose(targets[1], torch.tensor([0.025, 0.925, 0.025, 0.025]))


def test_mixup_mixes_images_and_labels_in_the_same_ratio(images):
    mixup = Mixup(4, mixup_alpha=0.8, cutmix_alpha=0.0, label_smoothing=0.0)
    mixed, targets = mixup(images, LABELS, np.random.default_rng(0))

    values = mixed[:, 0, 0, 0]
    assert (mixed == values[:, None, None, None]).all()
    assert 0 < values[0] < 3
    assert torch.allclose(targets @ torch.arange(4.0), values)
    assert torch.allclose(targets.sum(dim=1), torch.ones(4))


def test_cutmix_labels_are_the_shares_of_the_area(images):
    mixup = Mixup(4, mixup_alpha=0.0, cutmix_alpha=1.0, label_smoothing=0.0)
    for seed in range(20):
        mixed, targets = mixup(images, LABELS, np.random.default_rng(seed))
        assert torch.allclose(targets @ torch.arange(4.0), mixed.mean(dim=(1, 2, 3)), atol=1e-5)
        assert set(mixed[0].unique().tolist()) <= {0.0, 3.0}


def test_cutmix_pastes_one_box(images):
    mixed, share = cutmix(images, 0.75, np.random.default_rng(1))

    rows, columns = torch.nonzero(mixed[0, 0] == 3, as_tuple=True)
    assert len(rows) == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    assert share == 1 - len(rows) / 32**2
    assert (images[0] == 0).all()


def test_half_of_the_batches_are_cut(images):
    mixup, random = Mixup(4), np.random.default_rng(0)
    is_cut = [len(mixup(images, LABELS, random)[0][0].unique()) == 2 for _ in range(400)]

    assert np.mean(is_cut) == pytest.approx(0.5, abs=0.08)


def test_without_mixing_labels_are_only_smoothed(images):
    mixed, targets = Mixup(4, 0.0, 0.0)(images, LABELS, np.random.default_rng(0))

    assert torch.equal(mixed, images)
    assert torch.allclose(targets.diagonal(), torch.full((4,), 0.925))
