import pytest
import torch
from torch import nn

from transformers_mage.representation.lars import LARS


def test_two_steps_by_hand():
    """|w| = 5, |g| = 1: the first step is 0.001 x 5 along g. The second adds 0.9 of it, with |w| = 4.995."""
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    optimizer = LARS([weight], lr=1.0, momentum=0.9, trust_coefficient=0.001)
    direction = torch.tensor([[0.6, 0.8]])

    weight.grad = direction.clone()
    optimizer.step()
    assert torch.allclose(weight, 4.995 * direction)

    weight.grad = direction.clone()
    optimizer.step()
    assert torch.allclose(weight, (4.995 - (0.9 * 0.005 + 0.004995)) * direction)


def test_step_of_a_matrix_does_not_depend_on_the_size_of_its_gradient():
    weights = [nn.Parameter(torch.ones(2, 2)) for _ in range(2)]
    optimizer = LARS(weights, lr=0.1)
    for weight, scale in zip(weights, (1.0, 1000.0), strict=True):
        weight.grad = scale * torch.tensor([[1.0, 2.0], [3.0, 4.0]])

    optimizer.step()

    assert torch.allclose(*weights)
    assert (weights[0] - 1).norm().item() == pytest.approx(0.1 * 0.001 * 2, rel=1e-3)


def test_biases_are_neither_scaled_nor_decayed():
    bias = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = LARS([bias], lr=0.5, weight_decay=0.1)
    bias.grad = torch.tensor([0.2, -0.4])

    optimizer.step()

    assert torch.allclose(bias, torch.tensor([0.9, 2.2]))


def test_weight_decay_is_part_of_the_gradient_that_is_scaled():
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    optimizer = LARS([weight], lr=1.0, weight_decay=0.2)
    weight.grad = torch.zeros(1, 2)

    optimizer.step()

    assert torch.allclose(weight, torch.tensor([[3.0, 4.0]]) * (1 - 0.001))


def test_weights_that_are_zero_still_move():
    weight = nn.Parameter(torch.zeros(1, 2))
    optimizer = LARS([weight], lr=1.0)
    weight.grad = torch.tensor([[1.0, 0.0]])

    optimizer.step()

    assert torch.equal(weight, torch.tensor([[-1.0, 0.0]]))


def test_momentum_survives_saving():
    def steps(number: int, optimizer: LARS, weight: nn.Parameter):
        for _ in range(number):
            weight.grad = weight.detach() + 1
            optimizer.step()

    whole, halves = (nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    steps(4, LARS([whole], lr=10.0), whole)
    first = LARS([halves], lr=10.0)
    steps(2, first, halves)
    second = LARS([halves], lr=1.0)
    second.load_state_dict(first.state_dict())
    steps(2, second, halves)

    assert torch.equal(whole, halves)


def test_negative_values_are_refused():
    with pytest.raises(ValueError, match=r"`momentum` must be 0 or more, got -0.9"):
        LARS([nn.Parameter(torch.ones(1))], lr=0.1, momentum=-0.9)
