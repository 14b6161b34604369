"""The plain path computes the same as the fast one, and does more for it."""

from pathlib import Path

import pytest
import torch

from tests.in_process import ROOT
from transformers_mage import MageForMaskedImageModeling, sample_masks
from transformers_mage.benchmarking import build_model, count_flops, plain_copy
from transformers_mage.benchmarking.workloads import Setting, decode, encode, features, generate

# Others start from a model.
RECIPES = [path for path in sorted(Path(ROOT, "configs").glob("mage_*.yaml")) if "\nmodel:" in path.read_text()]
# GFLOP an image, counted on the original.
ORIGINAL_GFLOPS = {
    "vit-base": {"train": 164, "train-pixels": 293, "features": 175, "generate": 1751, "encode": 129, "decode": 187},
    "vit-large": {"train": 407, "train-pixels": 536, "features": 290, "generate": 4542, "encode": 129, "decode": 187},
}


@pytest.fixture(scope="module")
def fast() -> MageForMaskedImageModeling:
    return build_model("small")


@pytest.fixture(scope="module")
def plain(fast: MageForMaskedImageModeling) -> MageForMaskedImageModeling:
    return plain_copy(fast)


@pytest.mark.slow
@pytest.mark.parametrize("size", ORIGINAL_GFLOPS)
def test_work_is_at_most_3_percent_above_the_originals(size):
    model = build_model(size, "meta")
    model.set_attn_implementation("eager")
    for workload, original in ORIGINAL_GFLOPS[size].items():
        steps = 2 if workload == "generate" else 20
        if workload == "generate":
            decoding = ORIGINAL_GFLOPS[size]["decode"]
            original = decoding + (original - decoding) * steps / 20
        counted = count_flops(workload, model, steps) / 1e9
        assert 0.97 * original < counted < 1.03 * original, workload


def test_fast_training_step_equals_the_plain_one(fast, plain):
    losses, gradients = [], []
    for model in (fast.train(), plain.train()):
        for module in model.modules():
            module.attention_dropout = 0.0
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        masks = sample_masks(model.config, 2, generator=torch.Generator().manual_seed(0))
        losses.append(model(input_ids=Setting(model, 2).tokens(), **masks.as_kwargs()).loss)
        losses[-1].backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})

    torch.testing.assert_close(*losses)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("workload", [features, encode, decode])
def test_fast_workloads_equal_the_plain_ones(fast, plain, workload):
    results = [workload(Setting(model, batch_size=2))() for model in (fast, plain)]

    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


def test_plain_logits_are_the_fast_ones(fast, plain):
    tokens = Setting(fast, 2).tokens()
    tokens[:, :4] = fast.config.mask_token_id

    with torch.no_grad():
        logits = [model.eval()(input_ids=tokens).logits for model in (fast, plain)]

    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)


def test_plain_generation_makes_images(plain):
    images = generate(Setting(plain, batch_size=2, num_inference_steps=3))()

    assert images.shape == (2, 3, 32, 32)
    assert images.std() > 0


def test_plain_tokenizer_executes_what_does_nothing():
    model = build_model("small", "meta")
    model.set_attn_implementation("eager")

    assert count_flops("decode", plain_copy(model)) > 1.2 * count_flops("decode", model)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_models_of_recipes_can_be_measured(recipe: Path):
    """Their tokenizers, which recipes do not describe, fit their grids."""
    config = build_model(str(recipe), "meta").config
    scale = 2 ** (len(config.vq_config["down_block_types"]) - 1)
    assert config.image_height_width == tuple(side * scale for side in config.grid_size)


def test_a_recipe_says_how_attention_is_computed():
    recipe = Path(ROOT, "configs", "mage_digits.yaml")
    model = build_model(str(recipe), "meta")
    assert (model.config.hidden_size, model.config.hidden_dropout_prob) == (96, 0.2)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("content", [None, "model", "model: 3", "output_dir: here"])
def test_what_says_nothing_of_a_model(content: str | None, tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"A size is vit-base, .*recipe with `model:` in it.*got `.*recipe.yaml`"):
        build_model(str(path), "meta")
