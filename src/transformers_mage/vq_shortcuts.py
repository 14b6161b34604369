"""
Runs a tokenizer at the cost of the original.

The tokenizer of MAGE loads exactly into the stock diffusers `VQModel`, at a price: residual blocks, shortcuts and
poolings that the original does not have or does more cheaply become layers with special weights (zeros, an average).
`skip_noop_layers` puts lean modules in the place of the stock ones. They hold the same layers under the same names, so
that nothing changes for whoever loads, saves, moves, offloads or shards the tokenizer, and skip what does nothing.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import VQModel
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from torch import nn


class LeanModule(nn.Module):
    """
    A module that looks at its weights once, and then skips what they make superfluous.

    It looks again when weights are loaded into it, and skips nothing from the moment that it is to learn.
    """

    def __init__(self, stock: nn.Module):
        super().__init__()
        self.training = stock.training
        self.skip_nothing()
        self.register_load_state_dict_post_hook(_look_again)

    def look_at_weights(self):
        """Finds out what can be skipped."""
        raise NotImplementedError

    def skip_nothing(self):
        raise NotImplementedError

    @property
    def skips(self) -> bool:
        raise NotImplementedError

    def train(self, mode: bool = True) -> "LeanModule":
        if mode and any(parameter.requires_grad for parameter in self.parameters()):
            self.skip_nothing()
        return super().train(mode)


def _look_again(module: LeanModule, incompatible_keys: Any):
    module.look_at_weights()


class LeanResnetBlock(LeanModule):
    """A residual block, to the bit, without a division by one and, where no gradients are recorded, in place."""

    def __init__(self, block: ResnetBlock2D):
        super().__init__(block)
        self.norm1, self.conv1 = block.norm1, block.conv1
        self.norm2, self.conv2 = block.norm2, block.conv2
        self.conv_shortcut = block.conv_shortcut

    def look_at_weights(self):
        self.branch_is_zero = self.conv_shortcut is None and _is_zero(self.conv2)
        self.shortcut_is_zero = self.conv_shortcut is not None and _is_zero(self.conv_shortcut)

    def skip_nothing(self):
        self.branch_is_zero = self.shortcut_is_zero = False

    @property
    def skips(self) -> bool:
        return self.branch_is_zero or self.shortcut_is_zero

    def forward(self, hidden_states: torch.Tensor, temb: None = None) -> torch.Tensor:
        if self.branch_is_zero:
            return hidden_states
        if self.shortcut_is_zero:
            return self.branch(hidden_states)
        shortcut = hidden_states if self.conv_shortcut is None else self.conv_shortcut(hidden_states)
        branch = self.branch(hidden_states)
        return branch + shortcut if torch.is_grad_enabled() else branch.add_(shortcut)

    def branch(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """What the block adds to its shortcut."""
        in_place = not torch.is_grad_enabled()
        hidden_states = F.silu(self.norm1(hidden_states), inplace=in_place)
        hidden_states = self.conv1(hidden_states)
        # A line each, so that what was there before is free when the next one needs memory.
        hidden_states = F.silu(self.norm2(hidden_states), inplace=in_place)
        return self.conv2(hidden_states)


class LeanDownsample(LeanModule):
    """A strided convolution, or the average over 2 x 2 pixels where that is what it computes."""

    def __init__(self, downsample: Downsample2D):
        super().__init__(downsample)
        self.conv = downsample.conv

    def look_at_weights(self):
        self.averages = _averages(self.conv)

    def skip_nothing(self):
        self.averages = False

    @property
    def skips(self) -> bool:
        return self.averages

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.averages:
            return F.avg_pool2d(hidden_states, kernel_size=2)
        return self.conv(F.pad(hidden_states, (0, 1, 0, 1)))


def average_pool_kernel(channels: int) -> torch.Tensor:
    """
    The stride-2 kernel, of shape `(channels, channels, 3, 3)`, that pools as the original does under the padding of
    diffusers' `Downsample2D`, which is one row below and one column to the right.
    """
    kernel = torch.zeros(channels, channels, 3, 3)
    kernel[torch.arange(channels), torch.arange(channels), :2, :2] = 0.25
    return kernel


@torch.no_grad()
def skip_noop_layers(vqvae: VQModel) -> int:
    """
    Puts lean modules in the place of the blocks of `vqvae`, unless they are there already, and lets them look at the
    weights. The outputs, the names of the layers and the `state_dict` stay the same.

    Call it before hooks are attached to the modules, and again where weights were changed by other means than
    `load_state_dict`. Weights that are not there (on the meta device) are taken to be needed.

    Returns:
        `int`: the number of modules that do nothing, or only average, and cost no more than that.
    """
    for parent in list(vqvae.modules()):
        for name, child in parent.named_children():
            if (lean := _lean_class_for(child)) is not None:
                setattr(parent, name, lean(child))
    modules = [module for module in vqvae.modules() if isinstance(module, LeanModule)]
    for module in modules:
        module.look_at_weights()
    return sum(module.skips for module in modules)


def _lean_class_for(module: nn.Module) -> type[LeanResnetBlock] | type[LeanDownsample] | None:
    if type(module) is ResnetBlock2D and _only_adds(module):
        return LeanResnetBlock
    if type(module) is Downsample2D and _only_strides(module):
        return LeanDownsample
    return None


def _only_adds(block: ResnetBlock2D) -> bool:
    """Whether the block is what all those of a `VQModel` are, of the many things that its class can be."""
    resizes = block.upsample is not None or block.downsample is not None
    is_conditioned = block.time_emb_proj is not None or block.time_embedding_norm == "scale_shift"
    scales = block.output_scale_factor != 1 or block.dropout.p > 0
    return isinstance(block.nonlinearity, nn.SiLU) and not (resizes or is_conditioned or scales)


def _only_strides(downsample: Downsample2D) -> bool:
    children = dict(downsample.named_children())
    return downsample.use_conv and downsample.padding == 0 and children.keys() == {"conv"}


def _is_zero(layer: nn.Module) -> bool:
    return not any(parameter.is_meta or parameter.any() for parameter in layer.parameters())


def _averages(conv: nn.Conv2d) -> bool:
    weight, bias = conv.weight, conv.bias
    if weight.is_meta or conv.in_channels != conv.out_channels or (bias is not None and bias.any()):
        return False
    kernel = average_pool_kernel(conv.out_channels).to(weight)
    return weight.shape == kernel.shape and torch.equal(weight, kernel)


__all__ = ["average_pool_kernel", "skip_noop_layers"]
