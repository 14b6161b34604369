import pytest
import torch

from transformers_mage import MageConfig, MageForImageClassification
from transformers_mage.representation.finetuning import layer_decay_groups, layer_id
from transformers_mage.training.arguments import TrainingArguments
from transformers_mage.training.optimization import create_scheduler


@pytest.fixture
def groups(small_config: MageConfig) -> list[dict]:
    model = MageForImageClassification(small_config)
    model.mage.vqvae = None
    return layer_decay_groups(model, 2, learning_rate=1.0, layer_decay=0.5, weight_decay=0.05)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("mage.embeddings.word_embeddings.weight", 0),
        ("mage.layers.0.attention.q_proj.weight", 1),
        ("module.mage.layers.11.mlp.fc1.bias", 12),
        ("mage.layernorm.weight", 13),
        ("fc_norm.bias", 13),
        ("classifier.weight", 13),
    ],
)
def test_layers_of_vit_base(name: str, number: int):
    assert layer_id(name, num_hidden_layers=12) == number


def test_learning_rates_halve_from_layer_to_layer(groups):
    """Two layers: the embeddings are three steps from the head, with 1 / 8 of its learning rate."""
    rates = {group["layer_id"]: group["lr"] for group in groups}

    assert rates == {0: 0.125, 1: 0.25, 2: 0.5, 3: 1.0}


def test_only_matrices_decay(groups):
    for group in groups:
        expected = 0.05 if group["params"][0].ndim > 1 else 0.0
        assert group["weight_decay"] == expected
        assert len({parameter.ndim > 1 for parameter in group["params"]}) == 1


def test_every_parameter_is_in_one_group(small_config):
    model = MageForImageClassification(small_config)
    model.classifier.bias.requires_grad_(False)
    groups = layer_decay_groups(model, 2, 1.0, 0.65, 0.05)

    ids = [id(parameter) for group in groups for parameter in group["params"]]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(parameter) for parameter in trained}


def test_schedule_moves_all_layers_in_proportion(groups):
    """Two updates of warm-up, then a cosine over four to a tenth of each layer's rate."""
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    arguments = TrainingArguments(max_train_steps=6, warmup_steps=2, min_learning_rate=0.1)
    scheduler = create_scheduler(optimizer, arguments, num_samples=100, batch_size=10)
    head, embeddings = [], []
    for _ in range(7):
        rates = {group["layer_id"]: group["lr"] for group in optimizer.param_groups}
        head.append(rates[3])
        embeddings.append(rates[0])
        optimizer.step()
        scheduler.step()

    half = 0.1 + 0.9 * (1 + 2**-0.5) / 2, 0.1 + 0.9 * (1 - 2**-0.5) / 2
    assert head == pytest.approx([0.0, 0.5, 1.0, half[0], 0.55, half[1], 0.1])
    assert embeddings == pytest.approx([0.125 * rate for rate in head])
