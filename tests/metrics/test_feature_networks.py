import builtins
import sys
import types

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from transformers_mage.metrics import FeatureNetwork, FrechetInceptionDistance, InceptionFeatures
from transformers_mage.metrics.feature_networks import to_uint8


@pytest.fixture
def images(generator):
    return torch.rand(4, 3, 8, 8, generator=generator)


def test_outputs_of_a_network(images):
    pooled = images.mean((2, 3))
    for network in (
        lambda x: x.mean((2, 3)),
        lambda x: (x.mean((2, 3)), None),
        lambda x: BaseModelOutputWithPooling(pooler_output=x.mean((2, 3), keepdim=True)),
    ):
        assert torch.equal(FeatureNetwork(network)(images).features, pooled)


def test_modules_are_evaluated_without_gradients(images):
    network = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(192, 2))
    features = FeatureNetwork(network)(images).features
    assert not network.training
    assert not features.requires_grad


def test_networks_that_do_not_fit(images):
    with pytest.raises(ValueError, match='got "resnet"'):
        FeatureNetwork("resnet")
    with pytest.raises(ValueError, match=r"Expected 4 features \(N, D\) of the network; got \(4,\)"):
        FeatureNetwork(lambda x: x.mean((1, 2, 3)))(images)


def test_to_uint8_rounds():
    assert to_uint8(torch.tensor([0.0, 0.9999, 1.0, 127.6 / 255])).tolist() == [0, 255, 255, 128]


def test_without_torch_fidelity_the_error_says_what_to_install(images, monkeypatch):
    real_import = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("torch_fidelity"):
            raise ImportError("no torch_fidelity here")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install transformers-mage\[inception\]"):
        FrechetInceptionDistance().add_batch(predictions=images)


class FakeInception(nn.Module):
    def __init__(self, name, features_list, feature_extractor_weights_path):
        super().__init__()
        assert (name, features_list) == ("inception-v3-compat", ["2048", "logits_unbiased"])
        self.path = feature_extractor_weights_path

    def forward(self, x):
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        return x.flatten(1).float(), x.flatten(1).float()[:, :8]


@pytest.fixture
def fake_torch_fidelity(monkeypatch, tmp_path):
    inception = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    inception.URL_INCEPTION_V3 = "https://example.org/inception.pth"
    inception.FeatureExtractorInceptionV3 = FakeInception
    package = types.ModuleType("torch_fidelity")
    package.feature_extractor_inceptionv3 = inception
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    monkeypatch.setitem(sys.modules, inception.__name__, inception)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return tmp_path / "checkpoints" / "inception.pth"


@pytest.mark.usefixtures("fake_torch_fidelity")
def test_missing_weights_are_not_downloaded_but_asked_for():
    with pytest.raises(
        FileNotFoundError, match=r"checkpoints/inception.pth. Download https://example.org/inception.pth"
    ):
        InceptionFeatures()
    with pytest.raises(FileNotFoundError, match=r"are not at elsewhere\.pth"):
        InceptionFeatures("elsewhere.pth")


@pytest.mark.parametrize("channels", [1, 3])
def test_inception_is_the_default_network(fake_torch_fidelity, images, channels):
    fake_torch_fidelity.parent.mkdir()
    fake_torch_fidelity.touch()
    batch = FeatureNetwork()(images[:, :channels])
    assert batch.features.shape == (4, 192)
    assert batch.logits.shape == (4, 8)
    assert batch.features[:, :64].eq(to_uint8(images[:, 0]).flatten(1)).all()
