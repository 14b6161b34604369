"""Random views of training images: resized crops and mirroring (appendix A), on whole batches."""

import kornia.augmentation as augmentation
import torch
from torch import nn


class RandomViews(nn.Module):
    """
    Draws a random resized crop and a mirroring for every image of a batch, from torch's global generator.

    Args:
        image_size (`tuple[int, int]`): height and width of the views.
        crop_scale_min (`float`): least share of the area that is kept; 1 does not crop.
        crop_ratio_max (`float`): largest ratio of the crop's sides.
        horizontal_flip (`bool`): whether half of the images are mirrored.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        crop_scale_min: float = 0.2,
        crop_ratio_max: float = 4 / 3,
        horizontal_flip: bool = True,
    ):
        super().__init__()
        steps = []
        if crop_scale_min < 1:
            ratio = (1 / crop_ratio_max, crop_ratio_max)
            crop = augmentation.RandomResizedCrop(
                tuple(image_size), (crop_scale_min, 1.0), ratio, resample="BICUBIC", cropping_mode="resample"
            )
            steps.append(crop)
        if horizontal_flip:
            steps.append(augmentation.RandomHorizontalFlip())
        self.steps = nn.ModuleList(steps)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """
        Args:
            images (`torch.Tensor` of shape `(batch_size, channels, height, width)`): uint8, or floats in [0, 1].

        Returns:
            `torch.Tensor` of the same shape with the views' size, float32 in [0, 1].
        """
        views = images.float() / 255 if images.dtype == torch.uint8 else images
        for step in self.steps:
            views = step(views)
        return views.clamp(0, 1)
