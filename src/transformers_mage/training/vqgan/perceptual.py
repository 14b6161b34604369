"""How different two images look: distances between what a trained network makes of them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...image_networks import ImageNetwork, load_image_network

COMPARED = ("features", "logits")


class PerceptualDistance:
    """
    The distance of reconstructions to their originals as a frozen network sees it.

    By features: the squared distance of the maps of each resolution, their channels normalised to length one, averaged
    over space and resolutions (LPIPS of arXiv 1801.03924, without learned weights). By logits: the mean squared
    difference of the class scores (MaskGIT, arXiv 2202.04200). It is always computed in float32.

    It is not a module: its weights are no part of a model's or of a checkpoint.

    Args:
        network ([`ImageNetwork`]): what sees.
        compared (`str`): `"features"` or `"logits"`.
        image_size (`int`, *optional*): images are resized to this first; by default they are taken as they are.
        num_stages (`int`, *optional*): how many resolutions to compare, the finest first; by default all.
    """

    def __init__(
        self,
        network: ImageNetwork,
        compared: str = "features",
        image_size: int | None = None,
        num_stages: int | None = None,
    ):
        if compared not in COMPARED:
            raise ValueError(f'Networks are compared by {" or ".join(COMPARED)}, got "{compared}".')
        self.network = network
        self.compared = compared
        self.image_size = image_size
        self.num_stages = num_stages

    def __call__(self, reconstructions: Tensor, originals: Tensor) -> Tensor:
        """
        Args:
            reconstructions, originals (`torch.Tensor` of shape `(batch_size, 1 or 3, height, width)`): in [0, 1]. Only
                the reconstructions get gradients.

        Returns:
            `torch.Tensor` of shape `(batch_size,)`.
        """
        # The network is where the images are, wherever Accelerate has put them.
        self.network.to(originals.device)
        with torch.autocast(originals.device.type, enabled=False):
            with torch.no_grad():
                seen = self._see(originals)
            return self._distance(self._see(reconstructions), seen)

    def _see(self, images: Tensor) -> list[Tensor]:
        images = images.float()
        if self.image_size:
            size = (self.image_size, self.image_size)
            images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        if self.compared == "logits":
            return [self.network(images)[1]]
        return [F.normalize(map_, dim=1) for map_ in self.network.feature_maps(images, self.num_stages)]

    def _distance(self, first: list[Tensor], second: list[Tensor]) -> Tensor:
        if self.compared == "logits":
            return (first[0] - second[0]).square().mean(dim=1)
        distances = [(a - b).square().sum(dim=1).mean(dim=(1, 2)) for a, b in zip(first, second, strict=True)]
        return torch.stack(distances).mean(dim=0)


class LearnedPerceptualDistance:
    """
    LPIPS with its learned weights, as the package `lpips` has it.

    Args:
        backbone (`str`): `"vgg"`, `"alex"` or `"squeeze"`.
        image_size (`int`, *optional*): images are resized to this first.

    Raises:
        ImportError: where `lpips`, or the torchvision that it needs, is not installed.
    """

    def __init__(self, backbone: str = "vgg", image_size: int | None = None):
        try:
            import lpips
        except (ImportError, RuntimeError) as error:
            raise ImportError(
                f"The network lpips:{backbone} needs `pip install lpips torchvision` ({error})."
            ) from error
        self.network: nn.Module = lpips.LPIPS(net=backbone, verbose=False).requires_grad_(False).eval()
        self.image_size = image_size

    def __call__(self, reconstructions: Tensor, originals: Tensor) -> Tensor:
        """See [`PerceptualDistance`]."""
        self.network.to(originals.device)
        images = [reconstructions.float(), originals.float()]
        if self.image_size:
            size = (self.image_size, self.image_size)
            images = [F.interpolate(i, size, mode="bilinear", antialias=True, align_corners=False) for i in images]
        with torch.autocast(originals.device.type, enabled=False):
            return self.network(*(image.expand(-1, 3, -1, -1) for image in images), normalize=True).flatten()


def perceptual_distance(
    name: str, compared: str = "features", image_size: int | None = None, num_stages: int | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """
    The distance that a network's name stands for: those of [`load_image_network`], and `lpips:vgg`, `lpips:alex`,
    `lpips:squeeze`.

    Raises:
        ValueError, ImportError: for a name that does not exist or needs what is not installed.
    """
    library, _, backbone = name.partition(":")
    if library == "lpips":
        return LearnedPerceptualDistance(backbone or "vgg", image_size)
    return PerceptualDistance(load_image_network(name), compared, image_size, num_stages)
