"""The published recipes of probing and fine-tuning are those of the paper."""

from pathlib import Path

import pytest

from tests.in_process import ROOT, load_module
from transformers_mage.command_line import parse_arguments

RECIPES = sorted(
    path for name in ("linear_probe", "finetune") for path in Path(ROOT, "configs").glob(f"{name}_*.yaml")
)


def read(name: str):
    is_probe = name.startswith("linear_probe")
    arguments_class = (
        load_module("linear_probe").ProbeArguments if is_probe else load_module("finetune").FinetuneArguments
    )
    words = ["--config", str(ROOT / "configs" / f"{name}.yaml"), "--dataset_name", "x", "--model_name_or_path", "x"]
    return parse_arguments(arguments_class, "", words)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_can_be_read(recipe: Path):
    assert read(recipe.stem).output_dir.startswith("outputs/")


@pytest.mark.parametrize(("size", "base"), [("base", 0.1), ("large", 0.05)])
def test_linear_probe(size: str, base: float):
    recipe = read(f"linear_probe_vit_{size}")

    assert (recipe.total_batch_size, recipe.num_train_epochs, recipe.warmup_epochs) == (4096, 90, 10)
    assert (recipe.base_learning_rate, recipe.momentum, recipe.trust_coefficient) == (base, 0.9, 0.001)
    assert (recipe.weight_decay, recipe.max_grad_norm, recipe.min_learning_rate) == (0, 0, 0)


@pytest.mark.parametrize(
    ("size", "epochs", "layer_decay", "drop_path"), [("base", 100, 0.65, 0.1), ("large", 50, 0.75, 0.2)]
)
def test_finetuning(size: str, epochs: int, layer_decay: float, drop_path: float):
    recipe = read(f"finetune_vit_{size}")

    assert (recipe.total_batch_size, recipe.num_train_epochs, recipe.warmup_epochs) == (1024, epochs, 5)
    assert (recipe.base_learning_rate, recipe.min_learning_rate) == (2.5e-4, 1e-6)
    assert (recipe.layer_decay, recipe.drop_path_rate, recipe.weight_decay) == (layer_decay, drop_path, 0.05)
    assert (recipe.adam_beta1, recipe.adam_beta2, recipe.max_grad_norm) == (0.9, 0.999, 0)
    assert (recipe.mixup_alpha, recipe.cutmix_alpha, recipe.label_smoothing) == (0.8, 1.0, 0.1)
    assert (recipe.rand_augment_magnitude, recipe.rand_augment_std, recipe.do_normalize) == (9, 0.5, True)
    assert (recipe.crop_scale_min, recipe.horizontal_flip) == (0.2, True)


def read_training(script: str, name: str):
    """A recipe of a script in whose module there is one class of arguments of its own."""
    module = load_module(script)
    [arguments_class] = [
        value
        for key, value in vars(module).items()
        if key.endswith("Arguments") and getattr(value, "__module__", "") == script
    ]
    words = ["--config", str(ROOT / "configs" / f"{name}.yaml"), "--token_cache", "x"]
    return parse_arguments(arguments_class, "", words)


@pytest.mark.parametrize(("size", "width", "depth"), [("base", 768, 12), ("large", 1024, 24)])
def test_models_led_by_representations(size: str, width: int, depth: int):
    """RCG's, on MAGE's network."""
    recipe = read_training("train_mage", f"mage_representation_vit_{size}")

    assert (recipe.total_batch_size, recipe.num_train_epochs, recipe.warmup_epochs) == (4096, 200, 10)
    assert (recipe.base_learning_rate, recipe.weight_decay, recipe.max_grad_norm) == (1.5e-4, 0.05, 3.0)
    assert (recipe.model["hidden_size"], recipe.model["num_hidden_layers"]) == (width, depth)
    assert (recipe.model["decoder_hidden_size"], recipe.model["decoder_num_hidden_layers"]) == (width, 8)
    assert (recipe.model["mask_ratio_mean"], recipe.model["representation_dropout_prob"]) == (0.75, 0.1)


def test_diffusion_of_representations():
    recipe = read_training("train_representation_diffusion", "representation_diffusion")

    rate = recipe.base_learning_rate * recipe.total_batch_size / 256
    assert (rate, recipe.min_learning_rate) == (pytest.approx(1e-6 * 512), 1e-6 * 512)
    assert (recipe.total_batch_size, recipe.num_train_epochs, recipe.weight_decay) == (512, 200, 0.01)
    assert (recipe.adam_beta2, recipe.max_grad_norm, recipe.ema_decay) == (0.999, 0, 0.9999)


@pytest.mark.parametrize("script", ["train_mage", "train_representation_diffusion"])
def test_small_recipes_of_representations_can_be_read(script: str):
    name = "mage_representation_fashion" if script == "train_mage" else "representation_diffusion_fashion"
    assert read_training(script, name).output_dir.startswith("outputs/fashion/mage-representation")


def test_a_model_to_start_from_brings_its_tokenizer_in_place_of_the_recipes():
    arguments_class = load_module("train_mage").MageArguments
    words = ["--config", str(ROOT / "configs" / "mage_digits.yaml"), "--dataset_name", "x"]

    started = parse_arguments(arguments_class, "", [*words, "--pretrained_model_name_or_path", "a model"])

    assert parse_arguments(arguments_class, "", words).tokenizer_name_or_path == "outputs/vqgan-digits"
    assert started.tokenizer_name_or_path == "a model"
