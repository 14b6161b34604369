import pytest
import torch
from diffusers import VQModel

from transformers_mage import MageConfig, MageForMaskedImageModeling, sample_masks
from transformers_mage.data.batches import Batch
from transformers_mage.data.tokenization import BatchTokenizer, tokenize, tokenize_views
from transformers_mage.data.views import Crops, RandomViews
from transformers_mage.training.pretraining import MageForPreTraining, build_model

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16}
SIZES |= {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}


@pytest.fixture
def tiny_config() -> MageConfig:
    return MageConfig(codebook_size=8, patch_size=2, **SIZES)


def test_the_tokenizer_decides_what_it_can(tokenizer: VQModel):
    model = build_model(SIZES, tokenizer)
    assert (model.config.codebook_size, model.config.patch_size) == (8, 2)
    assert model.config.vq_config["num_vq_embeddings"] == 8
    assert model.mage.vqvae is None
    with pytest.raises(ValueError, match="makes no model"):
        build_model({"nosuch": 1, "codebook_size": 9}, tokenizer)


def test_tokens_of_a_batch_come_from_whatever_it_holds(tokenizer: VQModel):
    images = torch.randint(256, (3, 1, 4, 4), dtype=torch.uint8)
    tokens_of = BatchTokenizer(tokenizer, RandomViews((4, 4), Crops(scale_min=1, flip=False), num_views=2))
    twice = tokenize(tokenizer, images / 255).repeat(2, 1)
    assert torch.equal(tokens_of(Batch(images)), twice)
    assert torch.equal(tokens_of(Batch(images.repeat(2, 1, 1, 1), are_views=True)), twice)
    assert torch.equal(tokens_of(Batch(input_ids=twice)), twice)


def test_views_are_encoded_once(tokenizer: VQModel):
    images = torch.randint(256, (5, 1, 4, 4), dtype=torch.uint8)
    views = RandomViews((4, 4), Crops(scale_min=1, flip=False))
    tokens = tokenize_views(tokenizer, images, views, num_views=2, batch_size=2)
    assert tokens.shape == (5, 2, 4)
    assert torch.equal(tokens[:, 1].long(), tokenize(tokenizer, images / 255))


def test_the_contrastive_loss_is_weighted_and_only_for_training(tiny_config: MageConfig):
    torch.manual_seed(0)
    model = MageForPreTraining(MageForMaskedImageModeling(tiny_config), contrastive_weight=0.5)
    input_ids, masks = torch.randint(8, (6, 64)), sample_masks(tiny_config, 6)
    loss, metrics = model(input_ids, masks)
    torch.testing.assert_close(loss, metrics["reconstruction_loss"] + 0.5 * metrics["contrastive_loss"])
    loss.backward()
    assert model.projection.fc1.weight.grad.abs().sum() > 0
    loss, metrics = model.eval()(input_ids, masks)
    assert "contrastive_loss" not in metrics
    assert torch.equal(loss, metrics["reconstruction_loss"])


@pytest.mark.slow
def test_the_model_compiles_to_one_graph_for_all_ratios(tiny_config: MageConfig):
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> torch.nn.Module:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    model = MageForMaskedImageModeling(tiny_config)
    model.compile(backend=backend, fullgraph=True)
    for seed in range(4):
        masks = sample_masks(tiny_config, 4, generator=torch.Generator().manual_seed(seed))
        model(input_ids=torch.randint(8, (4, 64)), **masks.as_kwargs()).loss.backward()
    # The second ratio makes the number of masked tokens a variable of the graph.
    assert len(graphs) == 2
