"""RCG's checkpoints through the command: MAGE led by representations, what draws these, and their encoder."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.original_files import convert, original_weights, save_original
from tests.reference import RCG, TINY, relative_error
from transformers_mage import MagePipeline, RepresentationDiffusionModel, ViTWithProjection, standardize
from transformers_mage.conversion.representation_diffusion import AVERAGE_PREFIX, CLASS_EMBEDDING, NETWORK_PREFIX
from transformers_mage.conversion.representation_encoder import convert_representation_encoder
from transformers_mage.representations import RepresentationEncoder, RepresentationSource

WIDTH, HIDDEN, PATCH, SIZE = 128, 20, 8, 24


def encoder_weights() -> dict[str, torch.Tensor]:
    """An encoder of MoCo v3, of two layers and images of 16 pixels, in the original's naming."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, 5, WIDTH), "norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}
    shapes |= {"patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH), "patch_embed.proj.bias": (WIDTH,)}
    for layer in ("blocks.0", "blocks.1"):
        sizes = {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH)}
        sizes |= {"mlp.fc1": (2 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 2 * WIDTH)}
        for name, shape in sizes.items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            shapes |= {f"{layer}.{name}.weight": (WIDTH,), f"{layer}.{name}.bias": (WIDTH,)}
    widths = [WIDTH, HIDDEN, HIDDEN, SIZE]
    for number, linear in enumerate((0, 3, 6)):
        shapes[f"head.{linear}.weight"] = (widths[number + 1], widths[number])
        norms = ("running_mean", "running_var") + (("weight", "bias") if linear < 6 else ())
        shapes |= {f"head.{linear + 1}.{name}": (widths[number + 1],) for name in norms}
    weights = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    counted = {f"head.{number}.num_batches_tracked": torch.tensor(5) for number in (1, 4, 7)}
    return {name: weight.abs() + 0.1 if "var" in name else weight for name, weight in weights.items()} | counted


def encode(weights: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    """What the original computes with these weights, written out."""

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    def batch_norm(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        return F.batch_norm(x, mean, variance, weights.get(f"{name}.weight"), weights.get(f"{name}.bias"))

    x = F.conv2d(pixels, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=PATCH)
    x = torch.cat([weights["cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
    x = x + weights["pos_embed"]
    for layer in ("blocks.0", "blocks.1"):
        qkv = linear(norm(x, f"{layer}.norm1"), f"{layer}.attn.qkv").unflatten(-1, (3, 2, WIDTH // 2))
        attended = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4)).transpose(1, 2).flatten(2)
        x = x + linear(attended, f"{layer}.attn.proj")
        hidden = F.gelu(linear(norm(x, f"{layer}.norm2"), f"{layer}.mlp.fc1"))
        x = x + linear(hidden, f"{layer}.mlp.fc2")
    x = norm(x, "norm")[:, 0]
    x = F.relu(batch_norm(linear(x, "head.0"), "head.1"))
    x = F.relu(batch_norm(linear(x, "head.3"), "head.4"))
    return batch_norm(linear(x, "head.6"), "head.7")


def diffusion_weights(num_classes: int = 1) -> dict[str, torch.Tensor]:
    """As RCG saves it: the average is what it samples with, and there is always an embedding of classes."""
    network = RCG.weights("diffusion")
    weights = {NETWORK_PREFIX + name: torch.zeros_like(weight) for name, weight in network.items()}
    weights |= {AVERAGE_PREFIX + name.replace(".", ""): weight for name, weight in network.items()}
    constants = {
        "betas": torch.zeros(9),
        "model_ema.decay": torch.tensor(0.9),
        "model_ema.num_updates": torch.tensor(9),
    }
    embedding = {CLASS_EMBEDDING: torch.rand(num_classes, 5)}
    encoder = {f"pretrained_encoder.{name}": weight for name, weight in encoder_weights().items()}
    return weights | constants | embedding | encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small case: MAGE, with its encoder inside, and the diffusion of a second file."""
    folder = tmp_path_factory.mktemp("rcg")
    encoder = {f"pretrained_encoder.{name}": weight for name, weight in encoder_weights().items()}
    mage = save_original(folder / "mage.pth", original_weights(case=RCG) | encoder)
    diffusion = save_original(folder / "rdm.pth", diffusion_weights())
    return convert(mage, folder / "out", "--representation_diffusion", diffusion, case=RCG)


@torch.no_grad()
def test_the_model_computes_what_was_recorded(folder: Path):
    model, recorded = MagePipeline.from_pretrained(folder).model, RCG.recorded
    masks = {"bool_masked_pos": recorded["mim.masked"], "bool_dropped_pos": recorded["mim.dropped"]}
    blank = torch.full((2, model.config.sequence_length), model.config.mask_token_id)

    loss = model(RCG.pixel_values, representations=recorded["representation"], **masks).loss
    led = model(input_ids=blank, representations=recorded["representation"]).logits
    alone = model(input_ids=blank).logits

    assert relative_error(loss, recorded["mim.loss"][0]) < 1e-5
    assert relative_error(led[:, ::16, ::7], recorded["generation.conditional_logits"]) < 1e-5
    assert relative_error(alone[:, ::16, ::7], recorded["generation.unconditional_logits"]) < 1e-5


@torch.no_grad()
def test_the_diffusion_repeats_the_recorded_trace(folder: Path):
    pipe = MagePipeline.from_pretrained(folder)
    recorded = {name.removeprefix("diffusion."): value for name, value in RCG.recorded.items()}
    scheduler, sample = pipe.representation_scheduler, recorded["noise"]
    scheduler.set_timesteps(len(recorded["timesteps"]))

    for i, timestep in enumerate(scheduler.timesteps):
        prediction = pipe.representation_model(sample, timestep).sample
        noise = recorded["step_noise"][i]
        sample = scheduler.step(prediction, timestep, sample, eta=1.0, variance_noise=noise).prev_sample

        assert relative_error(prediction, recorded["predicted_start"][i]) < 1e-5
        assert relative_error(sample, recorded["trace"][i]) < 1e-5


@torch.no_grad()
def test_the_encoder_computes_what_the_original_does():
    weights = encoder_weights()
    model = convert_representation_encoder(weights)
    pixels = torch.rand(3, 3, 20, 20)
    source = {"image_mean": (0.5,) * 3, "image_std": (0.2,) * 3, "image_size": 16, "antialias": False}
    encoder = RepresentationEncoder(model, RepresentationSource("MoCo v3", pooling="pooler", **source))

    expected = encode(weights, F.interpolate((pixels - 0.5) / 0.2, 16, mode="bicubic"))

    torch.testing.assert_close(encoder(pixels), standardize(expected), rtol=1e-4, atol=1e-5)
    assert encoder.size == SIZE


def test_one_folder_makes_images_of_nothing_and_like_others(folder: Path):
    pipe = MagePipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)

    assert isinstance(pipe.representation_encoder, ViTWithProjection)
    assert pipe.model.config.representation_source["image_mean"] == [0.485, 0.456, 0.406]
    assert pipe.get_representations(RCG.pixel_values).shape == (2, SIZE)
    drawn = pipe(num_inference_steps=1, num_representation_steps=2, output_type="latent", guidance_scale=1.0)
    assert drawn.images.shape == (1, 16, 16)
    card = (folder / "README.md").read_text()
    assert "led by a representation of 24 numbers" in card
    assert "https://github.com/LTH14/rcg" in card


def test_a_model_of_classes_is_led_by_a_vector_each(tmp_path: Path):
    weights = original_weights(case=TINY) | {"class_emb.weight": torch.rand(3, 64), "fake_latent": torch.rand(1, 24)}
    out = convert(save_original(tmp_path / "mage.pth", weights), tmp_path / "out")

    pipe = MagePipeline.from_pretrained(out)
    pipe.set_progress_bar_config(disable=True)

    assert torch.equal(pipe.model.mage.embeddings.class_embeddings.weight, weights["class_emb.weight"])
    assert (pipe.model.config.num_classes, pipe.model.config.representation_size) == (3, None)
    assert pipe(class_labels=[2], num_inference_steps=1, output_type="latent").images.shape == (1, 16, 16)


@pytest.mark.parametrize("num_classes", [None, 7])
def test_a_diffusion_alone(tmp_path: Path, capsys: pytest.CaptureFixture, num_classes: int | None):
    weights = diffusion_weights(num_classes or 1)
    for i in range(3 if num_classes else 0):
        layer = f"res_blocks.{i}.context_layers.1"
        weights |= {
            f"{NETWORK_PREFIX}{layer}.weight": torch.rand(36, 5),
            f"{NETWORK_PREFIX}{layer}.bias": torch.rand(36),
        }

    out = convert(save_original(tmp_path / "rdm.pth", weights), tmp_path / "out")

    model = RepresentationDiffusionModel.from_pretrained(out)
    assert model.config.num_classes == num_classes
    assert torch.equal(model.linear_out.weight, RCG.weights("diffusion")["out.2.weight"])
    assert (
        "Left out, as the original never reads them: betas, model_ema, pretrained_encoder." in capsys.readouterr().out
    )
    assert json.loads((out / "config.json").read_text())["_class_name"] == "RepresentationDiffusionModel"


def test_what_does_not_go_together_is_refused(tmp_path: Path):
    led = save_original(tmp_path / "led.pth", original_weights(case=RCG, tokenizer=False))
    plain = save_original(tmp_path / "plain.pth", original_weights(tokenizer=False))
    diffusion = save_original(tmp_path / "rdm.pth", diffusion_weights())

    with pytest.raises(SystemExit, match="led by none"):
        convert(plain, tmp_path / "out", "--representation_diffusion", diffusion)
    with pytest.raises(SystemExit, match=r"plain\.pth is a pretraining file"):
        convert(led, tmp_path / "out", "--representation_diffusion", plain, case=RCG)
    torch.save({"model": {"res_blocks.0.in_layers.0.weight": torch.zeros(4)}}, tmp_path / "part.pth")
    with pytest.raises(SystemExit, match=r"The diffusion of representations in .*part\.pth is not RCG's"):
        convert(tmp_path / "part.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()
