"""
Runs a tokenizer at the cost of the original.

The tokenizer of MAGE loads exactly into the stock diffusers `VQModel`, at a price: residual blocks, shortcuts and
poolings that the original does not have or does more cheaply become layers with special weights (zeros, an average).
`skip_noop_layers` finds them and gives each a class of its own, with the same parameters under the same names, that
computes the same in the cheap way. All other residual blocks, which divide their sum by one, stop doing so.
"""

import torch
import torch.nn.functional as F
from diffusers import VQModel
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from torch import nn


class LeanResnetBlock(ResnetBlock2D):
    """A residual block, to the bit, without a division by one and, where no gradients are recorded, in place."""

    def forward(self, input_tensor: torch.Tensor, temb: torch.Tensor | None = None, *args, **kwargs) -> torch.Tensor:
        if torch.is_grad_enabled():
            return super().forward(input_tensor, temb, *args, **kwargs)
        shortcut = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        return self.branch(input_tensor).add_(shortcut)

    def branch(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """What the block adds to its shortcut."""
        in_place = not torch.is_grad_enabled()
        hidden_states = F.silu(self.norm1(hidden_states), inplace=in_place)
        hidden_states = self.conv1(hidden_states)
        # A line each, so that what was there before is free when the next one needs memory.
        hidden_states = F.silu(self.norm2(hidden_states), inplace=in_place)
        return self.conv2(hidden_states)


class _Shortcut(nn.Module):
    """Takes the short way as long as the weights are frozen, and forgets it when others are loaded."""

    general_class: type[nn.Module]

    def takes_short_way(self) -> bool:
        return not any(parameter.requires_grad for parameter in self.parameters())

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self.__class__ = self.general_class


class IdentityResnetBlock(_Shortcut, LeanResnetBlock):
    """A residual block whose branch is zero."""

    general_class = LeanResnetBlock

    def forward(self, input_tensor: torch.Tensor, temb: torch.Tensor | None = None, *args, **kwargs) -> torch.Tensor:
        if self.takes_short_way():
            return input_tensor
        return super().forward(input_tensor, temb, *args, **kwargs)


class BranchOnlyResnetBlock(_Shortcut, LeanResnetBlock):
    """A residual block whose shortcut is zero."""

    general_class = LeanResnetBlock

    def forward(self, input_tensor: torch.Tensor, temb: torch.Tensor | None = None, *args, **kwargs) -> torch.Tensor:
        if self.takes_short_way():
            return self.branch(input_tensor)
        return super().forward(input_tensor, temb, *args, **kwargs)


class AveragePoolDownsample(_Shortcut, Downsample2D):
    """A strided convolution that averages 2 x 2 pixels."""

    general_class = Downsample2D

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        if self.takes_short_way():
            return F.avg_pool2d(hidden_states, kernel_size=2)
        return super().forward(hidden_states, *args, **kwargs)


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
    Lets what the layers of `vqvae` do in vain, or could do more cheaply, cost nothing. The outputs, the modules' names
    and the `state_dict` stay the same.

    Returns:
        `int`: the number of layers that do nothing, or only average, and now take the short way.
    """
    found = 0
    for module in vqvae.modules():
        cheapest = _cheapest_class_for(module)
        if cheapest is not type(module):
            module.__class__ = cheapest
            found += issubclass(cheapest, _Shortcut)
    return found


def _cheapest_class_for(module: nn.Module) -> type[nn.Module]:
    if type(module) in (ResnetBlock2D, LeanResnetBlock) and _only_adds(module):
        if module.conv_shortcut is not None:
            return BranchOnlyResnetBlock if _is_zero(module.conv_shortcut) else LeanResnetBlock
        return IdentityResnetBlock if _is_zero(module.conv2) else LeanResnetBlock
    if type(module) is Downsample2D and _averages(module):
        return AveragePoolDownsample
    return type(module)


def _only_adds(block: ResnetBlock2D) -> bool:
    """Whether the block is what all those of a `VQModel` are, of the many things that its class can be."""
    resizes = block.upsample is not None or block.downsample is not None
    is_conditioned = block.time_emb_proj is not None or block.time_embedding_norm == "scale_shift"
    scales = block.output_scale_factor != 1 or block.dropout.p > 0
    return isinstance(block.nonlinearity, nn.SiLU) and not (resizes or is_conditioned or scales)


def _is_zero(layer: nn.Module) -> bool:
    return not any(parameter.is_meta or parameter.any() for parameter in layer.parameters())


def _averages(module: Downsample2D) -> bool:
    if not module.use_conv or module.padding != 0 or module.norm is not None or module.conv.weight.is_meta:
        return False
    weight, bias = module.conv.weight, module.conv.bias
    if weight.shape[0] != weight.shape[1] or (bias is not None and bias.any()):
        return False
    return torch.equal(weight, average_pool_kernel(weight.shape[0]).to(weight))


__all__ = ["average_pool_kernel", "skip_noop_layers"]
