"""Images led by representations: given, taken from photos, or drawn."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler
from PIL import Image
from transformers import ViTConfig, ViTModel

from transformers_mage import (
    MageConfig,
    MageForMaskedImageModeling,
    MageModel,
    MagePipeline,
    MageScheduler,
    RepresentationDiffusionModel,
    standardize,
)

SIZE = 32


def diffusion_model(size: int = SIZE, **kwargs) -> RepresentationDiffusionModel:
    """Untrained, but not the constant 0 that it starts as."""
    model = RepresentationDiffusionModel(size, 16, bottleneck_size=8, time_embedding_size=4, num_blocks=1, **kwargs)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def led_model(config: MageConfig, **values) -> MageForMaskedImageModeling:
    """It reacts to representations more than untrained ones do."""
    source = {"model_name_or_path": "earlier", "pooling": "mean"}
    values = {"representation_size": SIZE, "representation_source": source, **values}
    model = MageForMaskedImageModeling(MageConfig(**{**config.to_dict(), **values})).eval()
    with torch.no_grad():
        model.mage.embeddings.representation_embeddings.projection.weight.mul_(10)
    return model


@pytest.fixture
def led(small_config: MageConfig, small_model: MageForMaskedImageModeling) -> MagePipeline:
    """A model led by what an earlier one of the same tokenizer says of images, with everything it needs."""
    model = led_model(small_config)
    model.mage.vqvae.load_state_dict(small_model.mage.vqvae.state_dict())
    encoder = MageModel(MageConfig(**{**small_config.to_dict(), "vq_config": None})).eval()
    pipe = MagePipeline(
        model,
        MageScheduler(model.config.mask_token_id, num_inference_steps=4),
        representation_model=diffusion_model(),
        representation_encoder=encoder,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens(pipe: MagePipeline, seed: int = 0, **kwargs) -> torch.Tensor:
    return pipe(generator=seeded(seed), output_type="latent", num_representation_steps=5, **kwargs).images


@pytest.fixture
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def test_a_call_draws_a_representation_for_each_image(led: MagePipeline):
    generator = seeded()
    drawn = led.draw_representations(3, 5, generator=generator)
    led_by_them = led(representations=drawn, generator=generator, output_type="latent").images

    assert drawn.shape == (3, SIZE)
    assert torch.equal(tokens(led, num_images=3), led_by_them)


def test_image_i_does_not_depend_on_the_others(led: MagePipeline):
    def made(seeds: list[int]) -> torch.Tensor:
        generators = [seeded(seed) for seed in seeds]
        return led(
            num_images=len(seeds), generator=generators, output_type="latent", num_representation_steps=5
        ).images

    assert torch.equal(made([1, 2, 3])[1:2], made([2]))


def test_images_like_a_photo(led: MagePipeline, photo: Image.Image):
    """The middle of the photo, at the model's size, through the tokenizer that both models share."""
    covering = photo.resize((48, 32), Image.Resampling.BICUBIC).crop((8, 0, 40, 32))
    pixels = torch.from_numpy(np.array(covering)).permute(2, 0, 1)[None] / 255
    features = led.representation_encoder(input_ids=led.model.get_image_tokens(pixels)).pooler_output

    representation = led.get_representations(photo)

    torch.testing.assert_close(representation, standardize(features))
    given = tokens(led, num_images=2, representations=representation[0])
    assert torch.equal(tokens(led, num_images=2, like=photo), given)
    assert not torch.equal(given, tokens(led, num_images=2))


def test_several_representations_make_images_of_each(led: MagePipeline):
    several = torch.randn(2, SIZE)

    made = tokens(led, representations=several.numpy(), num_images=2)

    assert len(made) == 4
    assert torch.equal(made, tokens(led, representations=several.repeat_interleave(2, dim=0)))


def test_without_a_diffusion_model_the_empty_representation_leads(led: MagePipeline):
    led.representation_model = None

    assert torch.equal(tokens(led), tokens(led, representations=torch.full((SIZE,), torch.nan)))


def test_edits_are_led_by_the_empty_representation_unless_another_is_given(led: MagePipeline, photo: Image.Image):
    edit = {"image": photo, "strength": 0.9}

    alone = tokens(led, **edit)

    assert torch.equal(alone, tokens(led, representations=torch.full((SIZE,), torch.nan), **edit))
    assert not torch.equal(alone, tokens(led, like=photo, **edit))


@torch.no_grad()
def test_guidance_goes_away_from_the_empty_representation(led: MagePipeline):
    blank = torch.full((2, 8, 8), led.model.config.mask_token_id)
    representations = torch.randn(2, SIZE)
    with_it, without = (led.model(input_ids=blank, representations=r).logits for r in (representations, None))
    seen = []

    def notice(pipe, logits, *args, **kwargs):
        seen.append(logits)
        return step(logits, *args, **kwargs)

    step, led.scheduler.step = led.scheduler.step, lambda *args, **kwargs: notice(led, *args, **kwargs)
    tokens(led, representations=representations, guidance_scale=2.0, guidance_schedule="constant")

    torch.testing.assert_close(seen[0], with_it + 2 * (with_it - without), rtol=1e-4, atol=1e-5)


def test_a_diffusion_of_classes_draws_those_that_are_asked_for(led: MagePipeline):
    pipe = MagePipeline(led.model, led.scheduler, representation_model=diffusion_model(num_classes=3))
    pipe.set_progress_bar_config(disable=True)
    generator = seeded()
    labels = torch.tensor([2, 0])
    drawn = pipe.draw_representations(2, 5, class_labels=labels, generator=generator)
    expected = pipe(representations=drawn, generator=generator, output_type="latent").images

    assert torch.equal(tokens(pipe, class_labels=[2, 0]), expected)
    assert tokens(pipe, num_images=2).shape == (2, 8, 8)
    assert tokens(pipe, class_labels=[None, 1]).shape == (2, 8, 8)
    with pytest.raises(ValueError, match="nothing is drawn for `representations`"):
        tokens(pipe, class_labels=[1], representations=drawn[0])


def test_classes_and_representations_lead_together(small_config: MageConfig):
    model = led_model(small_config, num_classes=2)
    pipe = MagePipeline(model, MageScheduler(model.config.mask_token_id), representation_model=diffusion_model())
    pipe.set_progress_bar_config(disable=True)

    assert tokens(pipe, class_labels=[0, 1], guidance_scale=1.0).shape == (2, 8, 8)


def test_any_image_model_may_give_the_representations(small_config: MageConfig, photo: Image.Image, tmp_path: Path):
    sizes = {"hidden_size": SIZE, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    encoder = ViTModel(ViTConfig(**sizes, image_size=16, patch_size=8), add_pooling_layer=False)
    source = {"model_name_or_path": "org/vit", "pooling": "cls", "image_size": 16}
    model = led_model(small_config, representation_source=source)
    pipe = MagePipeline(model, MageScheduler(model.config.mask_token_id), representation_encoder=encoder)
    pipe.save_pretrained(tmp_path)

    loaded = MagePipeline.from_pretrained(tmp_path)

    assert isinstance(loaded.representation_encoder, ViTModel)
    assert json.loads((tmp_path / "model_index.json").read_text())["representation_encoder"] == [
        "transformers",
        "ViTModel",
    ]
    torch.testing.assert_close(loaded.get_representations(photo), pipe.get_representations(photo))


@pytest.mark.slow
@pytest.mark.parametrize("door", [MagePipeline, DiffusionPipeline])
@pytest.mark.parametrize("with_code", [False, True])
def test_one_folder_holds_it_all(led: MagePipeline, photo: Image.Image, tmp_path: Path, door: type, with_code: bool):
    led.save_pretrained(tmp_path, with_code=with_code)
    loaded = door.from_pretrained(tmp_path, **({"trust_remote_code": True} if door is DiffusionPipeline else {}))
    loaded.set_progress_bar_config(disable=True)

    assert torch.equal(tokens(loaded), tokens(led))
    assert torch.equal(tokens(loaded, like=photo), tokens(led, like=photo))
    assert not list((tmp_path / "representation_encoder").glob("*vq*"))
    # The same again, from what was loaded.
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(tokens(MagePipeline.from_pretrained(tmp_path / "again")), tokens(led))


def test_saving_again_without_parts_leaves_none(led: MagePipeline, tmp_path: Path):
    led.save_pretrained(tmp_path)
    MagePipeline(led.model, led.scheduler).save_pretrained(tmp_path)

    assert not list(tmp_path.glob("representation_*"))
    assert not [name for name in json.loads((tmp_path / "model_index.json").read_text()) if "representation" in name]
    assert MagePipeline.from_pretrained(tmp_path).representation_model is None


def test_another_scheduler_is_kept(led: MagePipeline, tmp_path: Path):
    assert isinstance(led.representation_scheduler, DDIMScheduler)
    led.representation_scheduler = DPMSolverMultistepScheduler(prediction_type="sample")
    led.save_pretrained(tmp_path)

    assert isinstance(MagePipeline.from_pretrained(tmp_path).representation_scheduler, DPMSolverMultistepScheduler)


def test_parts_join_when_a_folder_is_loaded(led: MagePipeline, tmp_path: Path):
    led.representation_model.save_pretrained(tmp_path / "diffusion")
    MagePipeline(led.model, led.scheduler).save_pretrained(tmp_path / "model")

    drawing = RepresentationDiffusionModel.from_pretrained(tmp_path / "diffusion")
    joined = MagePipeline.from_pretrained(tmp_path / "model", representation_model=drawing)
    joined.set_progress_bar_config(disable=True)

    assert torch.equal(tokens(joined), tokens(led))


def test_dtypes_of_the_parts(led: MagePipeline, photo: Image.Image, tmp_path: Path):
    led.save_pretrained(tmp_path)

    pipe = MagePipeline.from_pretrained(tmp_path, dtype={"default": torch.bfloat16, "representation_model": None})
    pipe.set_progress_bar_config(disable=True)

    assert (pipe.model.dtype, pipe.representation_model.dtype) == (torch.bfloat16, torch.float32)
    assert pipe.representation_encoder.dtype == torch.bfloat16
    assert tokens(pipe).shape == tokens(pipe, like=photo).shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"representations": torch.zeros(5)}, r"of shape \(32,\) or \(num, 32\), got torch.float32 of shape \(5,\)"),
        ({"representations": torch.zeros(0, SIZE)}, r"got torch.float32 of shape \(0, 32\)"),
        ({"representations": torch.zeros(SIZE, dtype=torch.long)}, "must be floating point"),
        ({"representations": torch.zeros(SIZE), "like": torch.rand(3, 32, 32)}, "either `representations` or `like`"),
        (
            {"representations": torch.zeros(3, SIZE), "image": torch.rand(2, 3, 32, 32), "strength": 0.5},
            "2 images and",
        ),
        ({"like": "photo.png"}, "`like`"),
        ({"generator": [seeded()] * 2, "num_images": 3}, "one for each of the 3 representations, got 2"),
    ],
)
def test_what_makes_no_images_is_refused(led: MagePipeline, arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        led(**arguments)


def test_what_is_missing_is_named(led: MagePipeline, small_pipeline: MagePipeline, photo: Image.Image):
    with pytest.raises(ValueError, match="`like` was passed, but this model is not led by representations"):
        small_pipeline(like=photo)
    with pytest.raises(ValueError, match="takes none"):
        MagePipeline(small_pipeline.model, small_pipeline.scheduler, representation_model=diffusion_model())
    led.representation_encoder = led.representation_model = None
    with pytest.raises(ValueError, match="came without its `representation_encoder`"):
        led(like=photo)
    with pytest.raises(ValueError, match="has no `representation_model` to draw representations with"):
        led.draw_representations()
