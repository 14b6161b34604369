"""LoRA and eight-bit weights. Skipped without peft and torchao (the extra `deployment`)."""

import pytest
import torch
from diffusers import PipelineQuantizationConfig
from torch import nn
from transformers import TorchAoConfig

from transformers_mage import MageForMaskedImageModeling, MagePipeline, MageScheduler

TOKENS = torch.arange(2 * 64).view(2, 64) % 16
MASK = TOKENS % 3 == 0


def test_lora_learns_and_merges(small_model: MageForMaskedImageModeling, pixel_values, tmp_path):
    peft = pytest.importorskip("peft")
    before = small_model(input_ids=TOKENS).logits.detach()
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj", "fc1"], modules_to_save=["head"], r=4)
    model = peft.get_peft_model(small_model, config)
    assert torch.allclose(model(input_ids=TOKENS).logits, before, atol=1e-6)

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        loss = model(pixel_values, bool_masked_pos=MASK).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]

    adapted = model.eval()(input_ids=TOKENS).logits.detach()
    assert not torch.allclose(adapted, before, atol=1e-3)
    merged = model.merge_and_unload()
    assert isinstance(merged, MageForMaskedImageModeling)
    torch.testing.assert_close(merged(input_ids=TOKENS).logits, adapted, rtol=1e-4, atol=1e-5)
    merged.save_pretrained(tmp_path)
    loaded = MageForMaskedImageModeling.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(input_ids=TOKENS).logits, adapted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_weights_of_eight_bits(small_model: MageForMaskedImageModeling, pixel_values):
    quantization = pytest.importorskip("torchao.quantization")
    tokens, expected = small_model.get_image_tokens(pixel_values), small_model(input_ids=TOKENS).logits
    size = _size(small_model)

    quantization.quantize_(
        small_model,
        quantization.Int8WeightOnlyConfig(),
        filter_fn=lambda module, name: isinstance(module, nn.Linear) and "vqvae" not in name,
    )

    logits = small_model(input_ids=TOKENS).logits
    assert _size(small_model) < 0.5 * size
    assert (logits - expected).norm() / expected.norm() < 0.05
    assert torch.equal(small_model.get_image_tokens(pixel_values), tokens)


@torch.no_grad()
def test_a_model_and_a_pipeline_are_loaded_in_eight_bits(small_model: MageForMaskedImageModeling, tmp_path):
    """As any other of transformers and of diffusers, and the model is saved so."""
    quantization = pytest.importorskip("torchao.quantization")
    MagePipeline(small_model, MageScheduler(small_model.config.mask_token_id)).save_pretrained(tmp_path / "whole")
    eight_bits = TorchAoConfig(quantization.Int8WeightOnlyConfig())

    model = MageForMaskedImageModeling.from_pretrained(tmp_path / "whole", quantization_config=eight_bits)
    expected = small_model(input_ids=TOKENS).logits
    assert (model(input_ids=TOKENS).logits - expected).norm() / expected.norm() < 0.05
    model.save_pretrained(tmp_path / "small")
    again = MageForMaskedImageModeling.from_pretrained(tmp_path / "small")
    assert torch.equal(again(input_ids=TOKENS).logits, model(input_ids=TOKENS).logits)

    config = PipelineQuantizationConfig(quant_mapping={"model": eight_bits})
    pipe = MagePipeline.from_pretrained(tmp_path / "whole", quantization_config=config)
    assert torch.equal(pipe.model(input_ids=TOKENS).logits, model(input_ids=TOKENS).logits)
    assert len(pipe(2, num_inference_steps=2).images) == 2


def _size(model: nn.Module) -> int:
    """Bytes of the encoder's and decoder's matrices."""
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    return sum(getattr(weight, "qdata", weight).nbytes for weight in weights)
