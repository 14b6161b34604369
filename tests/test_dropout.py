"""Dropout whose draws share random numbers is dropout all the same."""

import importlib.util

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from transformers_mage import MageConfig, MageForMaskedImageModeling, dropout, sample_masks
from transformers_mage.dropout import MageDropout, apply_dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_share_p_becomes_zero_and_the_rest_is_scaled(p: float, dtype: torch.dtype):
    count = 200_001
    dropped = apply_dropout(torch.ones(count, dtype=dtype), p)

    share = (dropped == 0).double().mean().item()
    assert abs(share - p) < 5 * (p * (1 - p) / count) ** 0.5
    assert dropped.dtype == dtype
    assert dropped.unique().tolist() == pytest.approx([0, 1 / (1 - p)], rel=4e-3 if dtype == torch.bfloat16 else 2e-4)


def test_draws_that_share_a_number_know_nothing_of_each_other():
    dropped = (apply_dropout(torch.ones(400_000), 0.3) == 0).double().view(-1, 4)
    correlations = torch.corrcoef(dropped.T) - torch.eye(4)
    assert correlations.abs().max() < 5 / len(dropped) ** 0.5


def test_gradients_are_those_of_what_was_kept():
    states = torch.randn(3, 5, 7, requires_grad=True)
    dropped = apply_dropout(states, 0.4)
    dropped.sum().backward()
    kept = dropped != 0
    assert 0 < kept.sum() < kept.numel()
    torch.testing.assert_close(states.grad, kept / 0.6, rtol=1e-4, atol=0)


def test_it_follows_torchs_seed():
    first, second = (torch.manual_seed(3) and apply_dropout(torch.ones(1000), 0.5) for _ in range(2))
    other = apply_dropout(torch.ones(1000), 0.5)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("p", "training"), [(0.5, False), (0.0, True)])
def test_without_training_or_probability_nothing_happens(p: float, training: bool):
    states = torch.randn(100)
    assert torch.equal(apply_dropout(states, p, training), states)


def test_compiled_code_draws_the_same():
    """Of the same seed, forward and backward, and anew for each of two dropouts of the same shape."""

    def drop_twice(states: torch.Tensor) -> torch.Tensor:
        return torch.stack([apply_dropout(states, 0.5), apply_dropout(states, 0.5)])

    results = []
    for function in (drop_twice, torch.compile(drop_twice, backend="aot_eager", fullgraph=True)):
        states = torch.ones(1000, requires_grad=True)
        torch.manual_seed(3)
        dropped = function(states)
        dropped.sum().backward()
        results.append((dropped, states.grad))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    assert not torch.equal(*results[1][0])


def test_shapes_are_known_without_drawing():
    """As tools ask for them that plan memory."""
    with FakeTensorMode():
        assert apply_dropout(torch.ones(2, 3, dtype=torch.bfloat16), 0.5).shape == (2, 3)


def test_a_copy_of_the_code_leaves_the_first_its_operation():
    """As models whose folders carry their code bring one: what is defined again is freed under those who call it."""
    defined = torch.ops.transformers_mage.draw_factors.default
    spec = importlib.util.spec_from_file_location("a_copy_of_dropout", dropout.__file__)
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)

    assert torch.ops.transformers_mage.draw_factors.default is defined
    dropped = []
    for function in (apply_dropout, copy.apply_dropout):
        torch.manual_seed(0)
        dropped.append(function(torch.ones(1000), 0.5))
    assert torch.equal(*dropped)


def test_all_can_be_dropped():
    assert not apply_dropout(torch.ones(10), 1.0).any()


def test_attention_with_dropout_trains_on_a_processor_whatever_the_implementation(small_config: MageConfig):
    """Where PyTorch has no fused kernel, both take the same steps and the same random numbers."""
    config = MageConfig.from_dict(small_config.to_dict() | {"attention_probs_dropout_prob": 0.3})
    losses = []
    for implementation in ("sdpa", "eager"):
        torch.manual_seed(0)
        model = MageForMaskedImageModeling._from_config(config, attn_implementation=implementation).train()
        masks = sample_masks(config, batch_size=2, device="cpu")
        length = (config.image_size // config.patch_size) ** 2
        losses.append(model(input_ids=torch.zeros(2, length, dtype=torch.long), **masks.as_kwargs()).loss.item())
    assert losses[0] == losses[1]


def test_the_model_has_no_other_dropout(small_config: MageConfig):
    model = MageForMaskedImageModeling(small_config)
    own = [module for name, module in model.named_modules() if "vqvae" not in name]
    assert any(isinstance(module, MageDropout) for module in own)
    assert not any(type(module) is nn.Dropout for module in own)
