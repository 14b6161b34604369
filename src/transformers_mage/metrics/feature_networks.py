"""Feature networks: what turns images into the features that generation metrics compare."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..image_networks import is_image_network, load_image_network
from .statistics import content_hash


@dataclass
class FeatureBatch:
    """Features of a batch of samples, ready for every generation metric.

    Attributes:
        features (`torch.Tensor` of shape `(N, D)`).
        logits (`torch.Tensor` of shape `(N, C)`, *optional*): class scores, for the Inception Score.
        hashes (`torch.Tensor` of shape `(N,)`): a number for each sample's content, by which subsets are drawn.
    """

    features: Tensor
    logits: Tensor | None
    hashes: Tensor

    def __len__(self) -> int:
        return len(self.features)


class FeatureNetwork:
    """Images, or features computed before, to a [`FeatureBatch`].

    Args:
        network (`str` or callable, *optional*, defaults to `"inception"`): `"inception"` is [`InceptionFeatures`],
            made when the first images come; a callable or module takes images of shape `(N, C, H, W)` and returns
            features `(N, D)`, a pair of features and logits, or an output of transformers, of which `pooler_output`
            and `logits` are taken. A single tensor is used as features and as logits. A module is put into
            evaluation mode, and gets the images on its own device.
    """

    def __init__(self, network: str | Callable[[Tensor], Any] = "inception"):
        if isinstance(network, str) and network != "inception":
            raise ValueError(f'`feature_network` should be "inception" or a callable; got "{network}".')
        if isinstance(network, nn.Module):
            network.eval()
        self.network = None if isinstance(network, str) else network

    @torch.no_grad()
    def __call__(self, inputs: Any) -> FeatureBatch:
        """Extract.

        Args:
            inputs: images of shape `(N, C, H, W)`, features (or, for the Inception Score, logits) of shape `(N, D)`,
                or a [`FeatureBatch`], which is returned unchanged.
        """
        if isinstance(inputs, FeatureBatch):
            return inputs
        inputs = torch.as_tensor(inputs)
        if inputs.ndim == 2:
            return FeatureBatch(inputs, inputs, content_hash(inputs))
        if inputs.ndim != 4:
            raise ValueError(f"Expected images (N, C, H, W) or features (N, D); got the shape {tuple(inputs.shape)}.")
        self.network = self.network or InceptionFeatures()
        features, logits = self._outputs(self.network, inputs)
        return FeatureBatch(features, logits, content_hash(inputs).to(features.device))

    def _outputs(self, network: Callable[[Tensor], Any], images: Tensor) -> tuple[Tensor, Tensor | None]:
        if isinstance(network, nn.Module):
            parameter = next(network.parameters(), None)
            images = images if parameter is None else images.to(parameter.device)
        outputs = network(images)
        if isinstance(outputs, Mapping):
            outputs = (outputs["pooler_output"], outputs.get("logits"))
        features, logits = outputs if isinstance(outputs, tuple | list) else (outputs, outputs)
        if features.ndim < 2 or len(features) != len(images):
            raise ValueError(f"Expected {len(images)} features (N, D) of the network; got {tuple(features.shape)}.")
        return features.flatten(1), logits


def to_uint8(images: Tensor) -> Tensor:
    """Images in [0, 1], or already uint8, as uint8 in [0, 255]."""
    return images if images.dtype == torch.uint8 else (images.float() * 255).round().clamp(0, 255).to(torch.uint8)


def _with_channels(images: Tensor, num_channels: int) -> Tensor:
    """uint8 images of one or three channels with as many as a network takes: grey repeated, or colours averaged."""
    if images.shape[1] == num_channels:
        return images
    if images.shape[1] == 1:
        return images.expand(-1, num_channels, -1, -1)
    return images.float().mean(dim=1, keepdim=True).round().to(torch.uint8).expand(-1, num_channels, -1, -1)


class InceptionFeatures(nn.Module):
    """The Inception network that published FID, IS and KID scores use, as torch-fidelity ported it from TensorFlow.

    Nothing is downloaded: the weights come from `weights_path`, or from where torch-fidelity itself would have put
    them.

    Args:
        weights_path (`str` or `Path`, *optional*): torch-fidelity's weights file.

    Raises:
        ImportError: when torch-fidelity, or the torchvision that it imports, is not usable.
        FileNotFoundError: when the weights are not there; the message says where to get them.
    """

    def __init__(self, weights_path: str | Path | None = None):
        super().__init__()
        try:
            from torch_fidelity import feature_extractor_inceptionv3 as inception
        except (ImportError, RuntimeError) as error:  # torchvision of another torch fails with a RuntimeError
            raise ImportError(
                "The Inception network needs torch-fidelity and a torchvision that fits the installed torch: "
                f"`pip install transformers-mage[inception]` ({error}). "
                "Any other feature network, or features computed before, work without them."
            ) from error
        path = Path(weights_path or _cached_weights(inception.URL_INCEPTION_V3))
        if not path.is_file():
            raise FileNotFoundError(
                f"The Inception weights are not at {path}. Download {inception.URL_INCEPTION_V3} to there, "
                "or give the file's place as `weights_path`."
            )
        self.network = inception.FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], str(path)
        )
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images `(N, 3 or 1, H, W)`, uint8 or floats in [0, 1], to features `(N, 2048)` and logits `(N, 1008)`."""
        return self.network(_with_channels(to_uint8(images), 3))


def load_feature_network(name: str, inception_weights: str | Path | None = None) -> nn.Module:
    """The feature network of a name.

    Args:
        name (`str`): `"inception"` ([`InceptionFeatures`]); `"efficientnet-lite0"`, `"torchvision:MODEL"`,
            `"timm:MODEL"` or `"transformers:MODEL"` ([`load_image_network`]); or else the folder or Hub name of a
            vision model ([`TransformersFeatures`]).
        inception_weights (`str` or `Path`, *optional*): see [`InceptionFeatures`].
    """
    if name == "inception":
        return InceptionFeatures(inception_weights)
    return load_image_network(name) if is_image_network(name) else TransformersFeatures(name)


def _cached_weights(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


class TransformersFeatures(nn.Module):
    """The pooled features of any vision model of transformers, MAGE among them, with the model's own preprocessing.

    Args:
        model_id (`str` or `Path`): a model folder, or the id of a Hub repository.

    Raises:
        OSError: in one line, where there is no such model, or it cannot be reached.
    """

    def __init__(self, model_id: str | Path):
        super().__init__()
        from transformers import AutoImageProcessor, AutoModel

        try:
            self.processor = AutoImageProcessor.from_pretrained(model_id)
            self.model = AutoModel.from_pretrained(model_id).eval()
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise OSError(f"No features can be had from {model_id}: {reason}") from error
        tokenizer = getattr(self.model.config, "vq_config", None) or {}
        self.num_channels = getattr(self.model.config, "num_channels", tokenizer.get("in_channels", 3))

    def forward(self, images: Tensor) -> tuple[Tensor, None]:
        """Images `(N, C, H, W)`, uint8 or floats in [0, 1], to features `(N, D)`; there are no logits."""
        pixel_values = self.processor(
            list(_with_channels(to_uint8(images), self.num_channels).cpu()), return_tensors="pt"
        )["pixel_values"]
        return self.model(pixel_values.to(self.model.device, self.model.dtype)).pooler_output.flatten(1), None
