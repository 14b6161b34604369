"""Generation led by a representation (RCG), held against numbers recorded from the original implementation."""

import pytest
import torch

from tests.reference import RCG, relative_error
from transformers_mage import MageConfig, MageForMaskedImageModeling, MageModel

SMALL = {"codebook_size": 16, "image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1}
SMALL |= {"num_attention_heads": 2, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1}
SMALL |= {"decoder_num_attention_heads": 2}


@pytest.fixture(scope="module")
def original() -> MageForMaskedImageModeling:
    return RCG.model()


@pytest.fixture
def small() -> MageForMaskedImageModeling:
    torch.manual_seed(0)
    return MageForMaskedImageModeling(MageConfig(**SMALL, representation_size=6)).eval()


@torch.no_grad()
def test_masked_image_modeling_by_a_representation(original: MageForMaskedImageModeling):
    recorded = RCG.recorded
    masks = {"bool_masked_pos": recorded["mim.masked"], "bool_dropped_pos": recorded["mim.dropped"]}

    outputs = original(RCG.pixel_values, representations=recorded["representation"], **masks)

    columns = range(0, original.config.codebook_size, 7)
    assert relative_error(outputs.logits[:, 15::16, columns], recorded["mim.logits"][:, 1:, : len(columns)]) < 1e-5
    assert relative_error(outputs.loss, recorded["mim.loss"][0]) < 1e-5


@pytest.mark.parametrize("kind", ["conditional", "unconditional"])
@torch.no_grad()
def test_generation_with_and_without_a_representation(original: MageForMaskedImageModeling, kind: str):
    blank = torch.full((2, original.config.sequence_length), original.config.mask_token_id)
    representations = RCG.recorded["representation"] if kind == "conditional" else None

    logits = original(input_ids=blank, representations=representations).logits

    assert relative_error(logits[:, ::16, ::7], RCG.recorded[f"generation.{kind}_logits"]) < 1e-5


@torch.no_grad()
def test_rows_of_nan_have_no_representation(small: MageForMaskedImageModeling):
    tokens = torch.randint(16, (3, 16))
    representations = torch.rand(3, 6)
    representations[1] = torch.nan

    mixed = small(input_ids=tokens, representations=representations).logits

    torch.testing.assert_close(mixed[1:2], small(input_ids=tokens[1:2]).logits)
    torch.testing.assert_close(mixed[:1], small(input_ids=tokens[:1], representations=representations[:1]).logits)
    assert not torch.allclose(mixed[0], small(input_ids=tokens[:1]).logits[0])


def test_a_share_of_the_representations_is_dropped_while_training(small: MageForMaskedImageModeling):
    dropped = small.mage._drop_representations(torch.zeros(4000, 6)).isnan()

    assert (dropped.all(dim=1) == dropped.any(dim=1)).all()
    # A binomial's deviation is 0.005 here.
    assert abs(dropped[:, 0].float().mean() - 0.1) < 0.025


def test_empty_representations_learn_and_leave_no_nan(small: MageForMaskedImageModeling):
    tokens, masked = torch.randint(16, (2, 16)), torch.ones(2, 16, dtype=torch.bool)
    representations = torch.stack([torch.rand(6), torch.full((6,), torch.nan)])

    small(input_ids=tokens, bool_masked_pos=masked, representations=representations).loss.backward()

    embeddings = small.mage.embeddings.representation_embeddings
    assert embeddings.empty.grad.abs().sum() > 0
    assert all(parameter.grad.isfinite().all() for parameter in embeddings.parameters())


@torch.no_grad()
def test_classes_and_representations_go_together():
    model = MageModel(MageConfig(**SMALL, representation_size=6, num_classes=3)).eval()
    tokens, representations = torch.randint(16, (2, 16)), torch.rand(2, 6)

    one, other = (
        model(input_ids=tokens, representations=representations, class_labels=torch.tensor([0, label])).pooler_output
        for label in (1, 2)
    )

    assert torch.equal(one[0], other[0])
    assert not torch.allclose(one[1], other[1])


@torch.no_grad()
def test_a_class_may_take_the_place_after_the_norm():
    config = MageConfig(**SMALL, num_classes=3, class_embedding_is_normalized=False)
    model = MageModel(config).eval()
    tokens = torch.randint(16, (1, 16))

    embedded = model.embeddings(tokens, (4, 4), class_labels=torch.tensor([2]))
    without = model.embeddings(tokens, (4, 4), class_labels=torch.tensor([-1]))

    torch.testing.assert_close(embedded[0, 0], model.embeddings.class_embeddings.weight[2])
    assert torch.equal(without, model.embeddings(tokens, (4, 4)))


@pytest.mark.parametrize(
    ("size", "representations", "message"),
    [
        (None, torch.rand(2, 6), "a model without them"),
        (6, torch.rand(2, 5), r"of shape \(2, 6\), got torch.float32 of shape \(2, 5\)"),
        (6, torch.zeros(2, 6, dtype=torch.long), "must be floating point"),
    ],
)
def test_what_does_not_fit_is_refused(size, representations, message):
    model = MageModel(MageConfig(**SMALL, representation_size=size))
    with pytest.raises(ValueError, match=message):
        model(input_ids=torch.zeros(2, 16, dtype=torch.long), representations=representations)


def test_a_saved_model_is_the_same(small: MageForMaskedImageModeling, tmp_path):
    small.save_pretrained(tmp_path)
    loaded = MageForMaskedImageModeling.from_pretrained(tmp_path)

    inputs = {"input_ids": torch.randint(16, (2, 16)), "representations": torch.rand(2, 6)}
    assert torch.equal(loaded(**inputs).logits, small(**inputs).logits)
