"""Which representations lead a model, and what they are taken of."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import VQModel

from tests.conftest import SMALL_VQ_CONFIG
from transformers_mage import MageConfig, MageForMaskedImageModeling, MageModel
from transformers_mage.data.batches import Batch
from transformers_mage.data.tokenization import BatchTokenizer, tokenize
from transformers_mage.data.views import Crops, RandomViews
from transformers_mage.files import FolderError
from transformers_mage.representations import RepresentationEncoder, RepresentationSource
from transformers_mage.training.representations.encoding import (
    BatchEncoder,
    RepresentationArguments,
    cached_representations,
    load_representation_encoder,
    representation_values,
    share_tokenizer,
)

WHOLE = RandomViews((32, 32), Crops(scale_min=1, flip=False))


@pytest.fixture
def earlier(small_model: MageForMaskedImageModeling) -> RepresentationEncoder:
    return RepresentationEncoder(small_model.mage, RepresentationSource("earlier"))


def encoder_of(encoder: RepresentationEncoder | None, tokenizer: VQModel) -> BatchEncoder:
    return BatchEncoder(Accelerator(cpu=True), BatchTokenizer(tokenizer, WHOLE), encoder)


def test_a_mage_of_the_same_tokenizer_reads_its_tokens(earlier: RepresentationEncoder):
    tokenizer = earlier.model.vqvae
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    of_pixels = earlier(images / 255)

    share_tokenizer(earlier, tokenizer)

    assert earlier.reads_tokens
    assert earlier.model.config.vq_config is None
    tokens, of_tokens = encoder_of(earlier, tokenizer)(Batch(images))
    torch.testing.assert_close(of_tokens, of_pixels)
    torch.testing.assert_close(encoder_of(earlier, tokenizer).representations_of(Batch(input_ids=tokens)), of_pixels)


def test_a_mage_of_another_tokenizer_reads_pixels(earlier: RepresentationEncoder):
    """Of cached tokens it is shown what they stand for."""
    other = VQModel(**SMALL_VQ_CONFIG).eval()
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)

    share_tokenizer(earlier, other)
    encode = encoder_of(earlier, other)
    tokens, representations = encode(Batch(images))

    assert not earlier.reads_tokens
    torch.testing.assert_close(representations, earlier(images / 255))
    assert torch.equal(tokens, tokenize(other, images / 255))
    assert encode.represent(tokens).shape == representations.shape


def test_without_an_encoder_there_are_tokens_alone(small_model: MageForMaskedImageModeling):
    tokens = torch.randint(16, (2, 64))

    batch = encoder_of(None, small_model.mage.vqvae)(Batch(input_ids=tokens))

    assert batch[0] is tokens
    assert batch[1] is None


def test_the_configuration_says_whose_they_are_and_not_where_they_lay(small_model, tmp_path):
    small_model.save_pretrained(tmp_path / "earlier")
    arguments = RepresentationArguments(str(tmp_path / "earlier"), representation_layer=1)

    encoder = load_representation_encoder(arguments, small_model.mage.vqvae, reads_tokens_only=True)
    values = representation_values(encoder)

    assert values["representation_size"] == 32
    assert values["representation_source"]["model_name_or_path"] == "earlier"
    assert values["representation_source"]["layer"] == 1
    assert MageModel(MageConfig(**values)).embeddings.representation_embeddings is not None
    assert representation_values(None) == {}


def test_what_cannot_be_read_is_told(small_model, tmp_path):
    small_model.save_pretrained(tmp_path)
    other = VQModel(**SMALL_VQ_CONFIG).eval()

    with pytest.raises(ValueError, match="reads pixels, and a token cache has none"):
        load_representation_encoder(RepresentationArguments(str(tmp_path)), other, reads_tokens_only=True)
    with pytest.raises(FolderError, match="There is no model in /no/such/folder to take representations with"):
        load_representation_encoder(RepresentationArguments("/no/such/folder"), other, reads_tokens_only=False)


@pytest.mark.parametrize("batch_size", [2, 64])
def test_all_views_of_a_cache_are_represented_once(earlier: RepresentationEncoder, batch_size: int):
    tokenizer = earlier.model.vqvae
    share_tokenizer(earlier, tokenizer)
    tokens = np.random.default_rng(0).integers(0, 16, (5, 2, 64))

    class Cache(list):
        def all_views(self, indices: list[int]) -> np.ndarray:
            return tokens[indices]

    taken = cached_representations(Cache(range(5)), encoder_of(earlier, tokenizer), batch_size)

    assert taken.shape == (5, 2, 32)
    torch.testing.assert_close(taken[3, 1], earlier(input_ids=torch.from_numpy(tokens[3:4, 1]))[0])
