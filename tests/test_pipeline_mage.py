import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForMaskedImageModeling
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from transformers_mage import MageConfig, MageForMaskedImageModeling, MagePipeline, MageScheduler


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photo(mode: str = "RGB", size: tuple[int, int] = (32, 32)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def lower_half(size: tuple[int, int] = (32, 32)) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, (0, size[1] // 2, *size))
    return mask


def as_array(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float32)


# Generation


def test_output_types(small_pipeline):
    kwargs = {"num_images": 3, "num_inference_steps": 2}
    images = {kind: small_pipeline(output_type=kind, **kwargs).images for kind in ("pil", "np", "pt", "latent")}

    assert [image.size for image in images["pil"]] == [(32, 32)] * 3
    assert images["np"].shape == (3, 32, 32, 3)
    assert images["pt"].shape == (3, 3, 32, 32)
    assert 0 <= images["pt"].min() <= images["pt"].max() <= 1
    assert not images["pt"].requires_grad
    assert images["latent"].shape == (3, 8, 8)
    assert images["latent"].max() < 16
    assert small_pipeline(return_dict=False)[0][0].size == (32, 32)


def test_same_generator_same_images(small_pipeline):
    first, second = (small_pipeline(2, generator=seeded(7), output_type="pt").images for _ in range(2))

    assert torch.equal(first, second)


def test_one_generator_an_image_makes_it_independent_of_its_batch(small_pipeline):
    batch = small_pipeline(8, generator=[seeded(i) for i in range(8)], output_type="latent").images

    alone = small_pipeline(generator=seeded(5), output_type="latent").images
    assert torch.equal(batch[5:6], alone)
    assert not torch.equal(batch[4], batch[5])


def test_callback_sees_tokens_being_filled_in_and_may_change_them(small_pipeline):
    mask_token_id = small_pipeline.model.config.mask_token_id
    masked = []

    def watch(pipe, step, timestep, kwargs):
        masked.append((kwargs["tokens"] == mask_token_id).sum().item())
        return {"tokens": torch.zeros_like(kwargs["tokens"])} if step == 3 else {}

    tokens = small_pipeline(num_inference_steps=4, callback_on_step_end=watch, output_type="latent").images

    assert masked == [59, 45, 24, 0]
    assert (tokens == 0).all()


def test_model_runs_once_a_step(small_pipeline, monkeypatch):
    calls = []
    forward = small_pipeline.model.forward
    monkeypatch.setattr(small_pipeline.model, "forward", lambda **kwargs: calls.append(1) or forward(**kwargs))

    small_pipeline(num_inference_steps=5)

    assert len(calls) == 5


def test_blank_canvases_are_predicted_once(small_pipeline, monkeypatch):
    """Four images begin alike, so the first step sees one of them; and they end as if it had seen all."""
    seen, forward = [], small_pipeline.model.forward

    def watched(*args, input_ids: torch.Tensor, **kwargs):
        seen.append(len(input_ids))
        return forward(*args, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(small_pipeline.model, "forward", watched)
    made = {"num_images": 4, "num_inference_steps": 3, "output_type": "latent"}
    images = small_pipeline(generator=seeded(), **made).images
    assert seen == [1, 4, 4]

    monkeypatch.setattr(small_pipeline, "_is_compiled", True)
    assert torch.equal(small_pipeline(generator=seeded(), **made).images, images)
    assert seen[3:] == [4, 4, 4]


def test_decoding_takes_a_few_images_at_a_time(small_pipeline, monkeypatch):
    """As many as have the pixels of 3 of them, so that memory does not grow with the batch."""
    tokens = torch.randint(16, (7, 8, 8))
    whole = small_pipeline.model.decode_image_tokens(tokens)
    sizes = []
    small_pipeline.vqvae.decoder.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    monkeypatch.setattr("transformers_mage.image_tokens.PIXELS_AT_ONCE", 3 * 32 * 32)

    assert torch.allclose(small_pipeline.model.decode_image_tokens(tokens), whole, atol=1e-5)
    assert small_pipeline.model.get_image_tokens(whole.clamp(0, 1)).shape == (7, 8, 8)
    assert sizes == [3, 3, 1]


def test_models_in_half_precision_decode_in_it_and_encode_in_float32(small_pipeline, pixel_values):
    model = small_pipeline.model
    tokens, pixels = model.get_image_tokens(pixel_values), model.decode_image_tokens(torch.ones(1, 64).long())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.get_image_tokens(pixel_values), tokens)
        in_half = model.decode_image_tokens(torch.ones(1, 64).long())
    assert not torch.equal(in_half, pixels)

    model.to(torch.bfloat16).mage.vqvae.float()

    assert torch.equal(model.get_image_tokens(pixel_values), tokens)
    decoded = model.decode_image_tokens(torch.ones(1, 64).long())
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded, in_half)


# Inpainting


def test_known_pixels_and_tokens_are_kept(small_pipeline):
    image = photo()
    painted = small_pipeline(image=image, mask_image=lower_half(), generator=seeded()).images[0]
    tokens = small_pipeline(image=image, mask_image=lower_half(), output_type="latent", num_images=8).images

    assert np.array_equal(as_array(painted)[:16], as_array(image)[:16])
    assert not np.array_equal(as_array(painted)[16:], as_array(image)[16:])
    assert torch.equal(tokens[0, :4].expand(8, -1, -1), tokens[:, :4])
    assert not torch.equal(tokens[0, 4:].expand(8, -1, -1), tokens[:, 4:])


def test_a_token_is_repainted_where_the_mask_touches_it(small_pipeline):
    mask = Image.new("L", (32, 32))
    mask.putpixel((5, 0), 255)

    tokens = small_pipeline(image=photo(), mask_image=mask, num_images=16, output_type="latent").images.flatten(1)

    changed = (tokens != tokens[0]).any(dim=0).nonzero()[:, 0]
    assert changed.tolist() == [1]


def test_several_images_and_several_paintings_of_each(small_pipeline):
    images = [photo(), photo().rotate(90)]
    painted = small_pipeline(num_images=2, image=images, mask_image=lower_half()).images

    assert len(painted) == 4
    for number, result in enumerate(painted):
        assert np.array_equal(as_array(result)[:16], as_array(images[number // 2])[:16])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK"])
def test_images_of_every_kind(small_pipeline, mode):
    painted = small_pipeline(image=photo(mode), mask_image=lower_half()).images[0]

    assert (painted.mode, painted.size) == ("RGB", (32, 32))


@pytest.mark.parametrize(
    ("size", "resized"), [((1, 1), (32, 32)), ((64, 64), (32, 32)), ((48, 20), (76, 32)), ((20, 50), (32, 80))]
)
def test_images_of_every_size_are_resized_to_cover_the_models(small_pipeline, size, resized):
    painted = small_pipeline(image=photo(size=size), mask_image=Image.new("L", size, 255)).images[0]

    assert painted.size == resized


def test_arrays_and_tensors(small_pipeline):
    pixels = as_array(photo()) / 255
    mask = np.zeros((32, 32), dtype=np.float32)
    mask[16:] = 1
    as_tensor = torch.from_numpy(pixels).permute(2, 0, 1)

    from_array = small_pipeline(image=pixels[None], mask_image=mask[None, ..., None], generator=seeded()).images[0]
    from_tensor = small_pipeline(
        image=as_tensor[None], mask_image=torch.from_numpy(mask)[None, None], generator=seeded()
    ).images[0]

    assert np.array_equal(as_array(from_array), as_array(from_tensor))
    assert np.array_equal(as_array(from_array)[:16], as_array(photo())[:16])


# One folder, three doors


def test_one_folder_serves_all(small_pipeline, pixel_values, tmp_path):
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_normalize=False
    )
    MagePipeline(small_pipeline.model, small_pipeline.scheduler, processor).save_pretrained(tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json", "model.safetensors", "model_index.json", "preprocessor_config.json", "scheduler",
    ]  # fmt: skip
    pipe = MagePipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    images = (p(2, generator=seeded(), output_type="pt").images for p in (pipe, small_pipeline))
    assert torch.equal(*images)
    inputs = AutoImageProcessor.from_pretrained(tmp_path)([photo("L", (40, 50)), photo()], return_tensors="pt")
    assert AutoModel.from_pretrained(tmp_path)(**inputs).pooler_output.shape == (2, 32)
    model = AutoModelForMaskedImageModeling.from_pretrained(tmp_path)
    assert torch.equal(model(pixel_values).logits, small_pipeline.model(pixel_values).logits)


def test_pipeline_without_an_image_processor_saves_too(small_pipeline, tmp_path):
    small_pipeline.save_pretrained(tmp_path, max_shard_size="40KB")
    loaded = MagePipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)

    assert loaded.image_processor is None
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.vqvae.dtype == torch.float32


def test_saved_folder_does_not_say_where_it_was_loaded_from(small_pipeline, tmp_path):
    small_pipeline.save_pretrained(tmp_path / "first")
    MagePipeline.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")

    first, second = ((tmp_path / name / "model_index.json").read_text() for name in ("first", "second"))
    assert first == second


def test_folder_that_is_no_pipeline(tmp_path):
    with pytest.raises(OSError, match=r"model_index\.json"):
        MagePipeline.from_pretrained(tmp_path)


# Bad input


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_images": 0}, "at least 1, got 0"),
        ({"num_images": 2.0}, "at least 1, got 2.0"),
        ({"num_inference_steps": 0}, "at least 1, got 0"),
        ({"temperature": -2.0}, "0 or more and finite, got -2.0"),
        ({"output_type": "jpeg"}, "must be one of .*'pil'.* got 'jpeg'"),
        ({"generator": 0}, "must be a torch.Generator"),
        ({"num_images": 2, "generator": [seeded()]}, "one for each of the 2 images, got 1"),
        ({"image": photo()}, "`mask_image` .* is missing"),
        ({"mask_image": lower_half()}, "`image` is missing"),
        ({"image": photo(), "mask_image": lower_half((16, 16))}, r"\(32, 32\) \(height, width\), got \(16, 16\)"),
        ({"image": [photo()] * 3, "mask_image": [lower_half()] * 2}, "one for each of the 3 images, got 2"),
        ({"image": [], "mask_image": []}, "must hold pixels"),
        ({"image": Image.new("RGB", (0, 4)), "mask_image": Image.new("L", (0, 4))}, "must hold pixels"),
        ({"image": "photo.png", "mask_image": lower_half()}, "lists of them, got str"),
        (
            {"callback_on_step_end_tensor_inputs": ["latents"]},
            r"a list out of \['tokens', 'preview'\], got \['latents'\]",
        ),
    ],
)
def test_wrong_arguments_are_refused_with_what_would_do(small_pipeline, kwargs, message):
    with pytest.raises(ValueError, match=message):
        small_pipeline(**kwargs)


def test_model_without_a_tokenizer_makes_tokens_alone(small_config):
    config = MageConfig(**{**small_config.to_dict(), "vq_config": None})
    pipe = MagePipeline(MageForMaskedImageModeling(config).eval(), MageScheduler(config.mask_token_id))

    assert pipe(num_inference_steps=2, output_type="latent").images.shape == (1, 8, 8)
    with pytest.raises(ValueError, match=r"no tokenizer.*output_type='latent'"):
        pipe()
