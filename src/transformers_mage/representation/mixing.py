"""Mixed training images with mixed labels: mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899)."""

import numpy as np
import torch
import torch.nn.functional as F


class Mixup:
    """
    Mixes each image of a batch with its mirror image in the batch's order, all in the same ratio, as fine-tuning does
    (section 4.4): by CutMix with probability `switch_probability`, otherwise by mixup.

    Args:
        num_classes (`int`): number of classes.
        mixup_alpha, cutmix_alpha (`float`): both parameters of the Beta distribution of the ratio; 0 switches one off.
        label_smoothing (`float`): share of a label that is spread over all classes.
        switch_probability (`float`): of CutMix, where both are on.
    """

    def __init__(
        self,
        num_classes: int,
        mixup_alpha: float = 0.8,
        cutmix_alpha: float = 1.0,
        label_smoothing: float = 0.1,
        switch_probability: float = 0.5,
    ):
        self.num_classes = num_classes
        self.mixup_alpha = mixup_alpha
        self.cutmix_alpha = cutmix_alpha
        self.label_smoothing = label_smoothing
        self.switch_probability = switch_probability

    def __call__(
        self, images: torch.Tensor, labels: torch.LongTensor, random: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            images (`torch.Tensor` of shape `(batch_size, channels, height, width)`): floats.
            labels (`torch.LongTensor` of shape `(batch_size,)`): classes.
            random (`np.random.Generator`): where chance comes from, on the host: a device need not wait for it.

        Returns:
            Mixed images, and labels of shape `(batch_size, num_classes)`.
        """
        images, share = self._mix(images, random)
        targets = self.smooth(labels)
        return images, share * targets + (1 - share) * targets.flip(0)

    def smooth(self, labels: torch.LongTensor) -> torch.Tensor:
        """(batch_size, num_classes) shares of the classes."""
        one_hot = F.one_hot(labels, self.num_classes).float()
        return one_hot * (1 - self.label_smoothing) + self.label_smoothing / self.num_classes

    def _mix(self, images: torch.Tensor, random: np.random.Generator) -> tuple[torch.Tensor, float]:
        """Mixed images, and the share that each keeps of itself."""
        if self.mixup_alpha == 0 and self.cutmix_alpha == 0:
            return images, 1.0
        both = self.mixup_alpha > 0 and self.cutmix_alpha > 0
        if random.random() < self.switch_probability if both else self.cutmix_alpha > 0:
            return cutmix(images, random.beta(self.cutmix_alpha, self.cutmix_alpha), random)
        share = random.beta(self.mixup_alpha, self.mixup_alpha)
        return images.lerp(images.flip(0), 1 - share), share


def cutmix(images: torch.Tensor, share: float, random: np.random.Generator) -> tuple[torch.Tensor, float]:
    """
    Pastes a box of the images, in reverse order, into them. The box has the share `1 - share` of the area, unless it
    crosses the border.

    Returns:
        Mixed images, and the share that each really keeps.
    """
    height, width = images.shape[2:]
    half_height, half_width = (int(side * (1 - share) ** 0.5) // 2 for side in (height, width))
    row, column = random.integers(height), random.integers(width)
    top, bottom = max(int(row) - half_height, 0), min(int(row) + half_height, height)
    left, right = max(int(column) - half_width, 0), min(int(column) + half_width, width)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)
