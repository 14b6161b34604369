import pytest
from torch import nn

from transformers_mage.training.arguments import TrainingArguments
from transformers_mage.training.optimization import create_optimizer, create_scheduler, num_updates


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))


def test_the_learning_rate_grows_with_the_batch(model: nn.Module):
    rate = create_optimizer(model, TrainingArguments(base_learning_rate=1.5e-4), 4096).param_groups[0]["lr"]
    assert rate == pytest.approx(2.4e-3)
    assert create_optimizer(model, TrainingArguments(learning_rate=1.0), 4096).param_groups[0]["lr"] == 1.0


def test_biases_and_norms_are_not_decayed(model: nn.Module):
    decayed, others = create_optimizer(model, TrainingArguments(), 256).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 4)]
    assert [tuple(p.shape) for p in others["params"]] == [(4,), (4,), (4,)]


def test_warm_up_then_cosine_by_update(model: nn.Module):
    arguments = TrainingArguments(learning_rate=2.0, num_train_epochs=10, warmup_epochs=2)
    optimizer = create_optimizer(model, arguments, 8)
    scheduler = create_scheduler(optimizer, arguments, num_samples=40, batch_size=8)
    rates = []
    for _ in range(num_updates(arguments, 40, 8) + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert len(rates) == 51
    assert rates[:11] == pytest.approx([0.2 * i for i in range(11)])
    assert rates[30] == pytest.approx(1.0)
    assert rates[50] == pytest.approx(0.0)


def test_a_stream_of_unknown_length_needs_to_be_told():
    with pytest.raises(ValueError, match="--num_train_samples"):
        num_updates(TrainingArguments(), None, 8)
    assert num_updates(TrainingArguments(num_train_samples=40), None, 8) == 5
