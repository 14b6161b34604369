import pytest
import torch
from diffusers import VQModel

from transformers_mage.image_tokens import encode_images
from transformers_mage.training.vqgan.reducing import latents_of, reduce_codes, with_codes


def test_fewer_codes_leave_all_else_as_it_is(tokenizer: VQModel):
    codes = torch.randn(3, tokenizer.config.latent_channels)

    reduced = with_codes(tokenizer, codes)

    assert reduced.config.num_vq_embeddings == 3
    kept = {name: value for name, value in tokenizer.state_dict().items() if name != "quantize.embedding.weight"}
    torch.testing.assert_close({name: reduced.state_dict()[name] for name in kept}, kept)
    images = torch.randint(0, 256, (5, 1, 4, 4)).to(torch.uint8)
    assert latents_of(tokenizer, images, batch_size=2).shape == (20, tokenizer.config.latent_channels)
    assert encode_images(reduced, images.float() / 255).max() < 3


def test_codes_are_where_the_latents_are(tokenizer: VQModel):
    images = torch.randint(0, 256, (20, 1, 4, 4), dtype=torch.uint8)
    first, second = (reduce_codes(tokenizer, images, 3, seed=0) for _ in range(2))

    latents = latents_of(tokenizer, images)
    before = torch.cdist(latents, tokenizer.quantize.embedding.weight).min(dim=1).values.mean()
    assert torch.cdist(latents, first.quantize.embedding.weight).min(dim=1).values.mean() < before
    assert torch.equal(first.quantize.embedding.weight, second.quantize.embedding.weight)
    with pytest.raises(ValueError, match="100 codes need as many tokens or more, and the images have 80"):
        reduce_codes(tokenizer, images, 100)
