"""LARS (arXiv 1708.03888), as linear probing uses it: each weight matrix moves in proportion to its own size."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class LARS(torch.optim.Optimizer):
    """
    Stochastic gradient descent with momentum, whose gradients are scaled to the norm of what they change:
    `trust_coefficient * |w| / |g|`. Biases and other parameters of one dimension are neither scaled nor decayed.

    Args:
        params (`Iterable`): parameters, or groups of them.
        lr (`float`): learning rate.
        momentum (`float`): decay of the sum of past gradients.
        weight_decay (`float`): added to the gradient before it is scaled, times the weight.
        trust_coefficient (`float`): size of a step, in shares of the weight's norm, at a learning rate of 1.

    Raises:
        ValueError: for a negative value.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
    ):
        values = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust_coefficient": trust_coefficient}
        for name, value in values.items():
            if not value >= 0:
                raise ValueError(f"`{name}` must be 0 or more, got {value}.")
        super().__init__(params, values)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update; `closure`, a function without arguments, is called for the loss first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: nn.Parameter, gradient: torch.Tensor, group: dict[str, Any]):
        if parameter.ndim > 1:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
            weight_norm, gradient_norm = parameter.norm(), gradient.norm()
            ratio = group["trust_coefficient"] * weight_norm / gradient_norm
            gradient = gradient * torch.where((weight_norm > 0) & (gradient_norm > 0), ratio, 1.0)
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        velocity = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        parameter.add_(velocity, alpha=-group["lr"])
