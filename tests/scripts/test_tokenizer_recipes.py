"""The recipes of tokenizers are what they are said to be."""

from pathlib import Path

import pytest
import torch
from diffusers import VQModel

from tests.in_process import ROOT, load_module
from transformers_mage import MageConfig, MageForMaskedImageModeling
from transformers_mage.command_line import parse_arguments

RECIPES = sorted(Path(ROOT, "configs").glob("vqgan_*.yaml"))


def read(name: str, script: str = "train_vqgan", arguments: str = "VQGANArguments", extra: tuple[str, ...] = ()):
    words = ["--config", str(ROOT / "configs" / f"{name}.yaml"), "--dataset_name", "x", *extra]
    return parse_arguments(getattr(load_module(script), arguments), "", words)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_can_be_read(recipe: Path):
    decoder_only = ("--pretrained_model_name_or_path", "x") if "freeze_encoder" in recipe.read_text() else ()
    arguments = read(recipe.stem, extra=decoder_only)
    if not decoder_only:
        levels = len(arguments.vq_config["block_out_channels"])
        assert arguments.image_size % 2 ** (levels - 1) == 0
        with torch.device("meta"):
            VQModel(**arguments.vq_config)


def test_imagenet_has_the_losses_of_maskbit_and_the_sizes_of_mage():
    recipe = read("vqgan_imagenet")
    assert (recipe.l1_share, recipe.reconstruction_weight, recipe.commitment_weight) == (0, 4, 0.25)
    assert (recipe.perceptual_network, recipe.perceptual_compared) == ("torchvision:resnet50", "logits")
    assert (recipe.perceptual_weight, recipe.adversarial_weight, recipe.adversarial_loss) == (0.1, 0.02, "hinge")
    assert (recipe.adversarial_start_step, recipe.adaptive_adversarial_weight) == (20_000, False)
    assert (recipe.lecam_weight, recipe.max_train_steps, recipe.warmup_steps) == (0.001, 1_350_000, 5000)
    assert (recipe.learning_rate, recipe.weight_decay, recipe.max_grad_norm) == (1e-4, 1e-4, 1)
    assert (recipe.adam_beta1, recipe.adam_beta2, recipe.ema_decay) == (0.9, 0.999, 0.999)
    sizes = recipe.vq_config
    assert sizes["block_out_channels"] == [128 * width for width in (1, 1, 2, 2, 4)]
    assert (sizes["num_vq_embeddings"], sizes["latent_channels"], sizes["layers_per_block"]) == (1024, 256, 2)


def test_the_weak_tokenizer_differs_in_its_crops_alone():
    strong, weak = vars(read("vqgan_imagenet")), vars(read("vqgan_imagenet_weak"))
    different = {name for name in strong if strong[name] != weak[name]}
    assert different == {"crop_scale_min", "output_dir"}
    assert (strong["crop_scale_min"], weak["crop_scale_min"]) == (0.2, 0.8)


def test_512_pixels_make_1024_tokens():
    recipe = read("mage_vit_base_512", "train_mage", "MageArguments", ("--pretrained_model_name_or_path", "x"))
    config = MageConfig(**recipe.model)
    assert config.grid_size == (32, 32)
    with torch.device("meta"):
        model = MageForMaskedImageModeling(config)
    assert model.mage.embeddings.position_embeddings.shape == (1, 1025, 768)
