"""Every recorded number of the original implementation (tests/fixtures/README.md), held against this one."""

import subprocess
import sys

import pytest
import torch
from diffusers import VQModel
from safetensors.torch import save_file

from tests.reference import ReferenceCase, relative_error
from transformers_mage import MageForMaskedImageModeling, MageScheduler
from transformers_mage.convert_original_checkpoint import convert_model, tokenizer_config


@pytest.fixture(scope="module")
def model(reference: ReferenceCase) -> MageForMaskedImageModeling:
    return reference.model()


@pytest.fixture(params=["sdpa", "eager"])
def attention(request: pytest.FixtureRequest, model: MageForMaskedImageModeling) -> str:
    model.set_attn_implementation(request.param)
    return request.param


@torch.no_grad()
def test_tokenizer_reads_the_same_tokens(reference, model):
    latents = model.mage.vqvae.encode(reference.pixel_values).latents
    tokens = model.get_image_tokens(reference.pixel_values)

    assert relative_error(latents[:, ::8, ::4, ::4], reference.recorded["tokenizer.latents"]) < 1e-5
    assert torch.equal(tokens.flatten(1), reference.recorded["tokenizer.token_ids"])


@torch.no_grad()
def test_tokens_do_not_depend_on_the_memory_order_of_the_pixels(reference, model):
    tokens = model.get_image_tokens(reference.pixel_values.contiguous())

    assert torch.equal(tokens.flatten(1), reference.recorded["tokenizer.token_ids"])


def test_tokenizer_makes_the_same_pixels(reference, model):
    pixels = model.decode_image_tokens(reference.recorded["tokenizer.token_ids"])

    assert relative_error(pixels[:, :, ::4, ::4], reference.recorded["tokenizer.reconstruction"]) < 1e-5


@pytest.mark.usefixtures("attention")
@torch.no_grad()
def test_features(reference, model):
    outputs = model.mage(reference.pixel_values)

    recorded = reference.recorded
    assert relative_error(outputs.pooler_output, recorded["encoder.before_norm_mean"]) < 1e-5
    assert relative_error(outputs.last_hidden_state[:, ::16], recorded["encoder.last_hidden_state"]) < 1e-5


@pytest.mark.usefixtures("attention")
def test_masked_image_modeling(reference, model):
    recorded = reference.recorded
    masks = {"bool_masked_pos": recorded["mim.masked"], "bool_dropped_pos": recorded["mim.dropped"]}

    model.zero_grad()
    outputs = model(reference.pixel_values, **masks)
    outputs.loss.backward()

    # Recorded: every 16th of class token + tokens, every 7th of the whole vocabulary. Ours: tokens and codes alone.
    columns = range(0, model.config.codebook_size, 7)
    logits = outputs.logits[:, 15::16, columns]
    assert relative_error(logits, recorded["mim.logits"][:, 1:, : len(columns)]) < 1e-5
    assert relative_error(outputs.loss, recorded["mim.loss"][0]) < 1e-5
    compared = _compare_gradient_norms(reference, model)
    assert len(compared) == sum(name.startswith("mim.grad_norm.") for name in recorded)
    assert max(compared.values()) < 1e-4


def _compare_gradient_norms(reference: ReferenceCase, model: MageForMaskedImageModeling) -> dict[str, float]:
    """Relative error of each recorded norm. They were summed in float32, which is off by 2e-4 for large matrices."""
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    weights, errors = reference.weights(), {}
    for name in (key.removeprefix("mim.grad_norm.") for key in reference.recorded if "grad_norm" in key):
        ours = convert_model({name: weights[name]})
        norm = torch.cat([gradients[key].flatten() for key in ours]).norm()
        errors[name] = relative_error(norm, reference.recorded[f"mim.grad_norm.{name}"].squeeze())
    return errors


def test_training_mode_computes_the_same_loss_on_masked_positions_alone(reference):
    recorded = reference.recorded
    model = reference.model().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    masks = {"bool_masked_pos": recorded["mim.masked"], "bool_dropped_pos": recorded["mim.dropped"]}

    outputs = model(reference.pixel_values, **masks, num_dropped=128, num_masked=2 * 180)

    assert outputs.logits is None
    assert outputs.masked_logits.shape == (2 * 180, model.config.codebook_size)
    assert relative_error(outputs.loss, recorded["mim.loss"][0]) < 1e-5


def test_decoding_steps(reference, model):
    """Each step, from the recorded tokens, samples and noise, leaves the recorded tokens; the last masks one, too."""
    recorded = reference.recorded
    scheduler = MageScheduler(model.config.mask_token_id, temperature=4.5)
    scheduler.set_timesteps(8)
    for step in range(8):
        tokens, sampled = recorded["decode.tokens_in"][step], recorded["decode.sampled"][step]
        logits = _logits(model, tokens)
        if step in (0, 4):
            recorded_logits = recorded["decode.logits"][step // 4]
            assert relative_error(logits[:, ::16, ::7], recorded_logits) < 1e-5

        log_probability = logits.log_softmax(dim=-1).gather(-1, sampled[..., None]).squeeze(-1)
        is_masked = tokens == model.config.mask_token_id
        scheduler._num_masked_at_start = torch.full((2,), 256)
        kept = scheduler.mask_least_confident(
            sampled, log_probability, recorded["decode.gumbel"][step], is_masked, step
        )

        assert torch.equal(kept, recorded["decode.tokens_out"][step])


@torch.no_grad()
def _logits(model: MageForMaskedImageModeling, tokens: torch.Tensor) -> torch.Tensor:
    return model(input_ids=tokens).logits


def test_decoded_sample(reference, model):
    pixels = model.decode_image_tokens(reference.recorded["decode.sampled"][-1])

    assert relative_error(pixels[:, :, ::4, ::4], reference.recorded["decode.image"]) < 1e-5


@pytest.mark.parametrize("kind", ["classifier", "probe"])
@torch.no_grad()
def test_classifier_and_probe(reference, kind):
    logits = reference.classifier(kind)(reference.pixel_values).logits

    assert relative_error(logits, reference.recorded[f"{kind}.logits"]) < 1e-5


@pytest.mark.slow
def test_plain_diffusers_loads_the_exported_tokenizer(reference, tmp_path):
    """A fresh interpreter without this package: the stock `VQModel` has the recorded tokens and pixels."""
    vqvae = VQModel(**tokenizer_config(reference.tokenizer_weights))
    vqvae.load_state_dict(reference.converted_tokenizer)
    vqvae.save_pretrained(tmp_path)
    names = ("pixel_values", "tokenizer.token_ids", "tokenizer.reconstruction")
    save_file({name: reference.recorded[name] for name in names}, tmp_path / "recorded.safetensors")
    script = """
import sys, torch
from diffusers import VQModel
from safetensors.torch import load_file
folder = sys.argv[1]
vqvae, recorded = VQModel.from_pretrained(folder), load_file(folder + "/recorded.safetensors")
with torch.no_grad():
    _, _, (_, _, tokens) = vqvae.quantize(vqvae.encode(recorded["pixel_values"]).latents)
    shape = (2, 16, 16, vqvae.config.latent_channels)
    pixels = vqvae.decode(recorded["tokenizer.token_ids"], force_not_quantize=True, shape=shape).sample
assert "transformers_mage" not in sys.modules
assert torch.equal(tokens.view(2, -1), recorded["tokenizer.token_ids"])
reconstruction = recorded["tokenizer.reconstruction"]
assert (pixels[:, :, ::4, ::4] - reconstruction).norm() / reconstruction.norm() < 1e-5
"""
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr
