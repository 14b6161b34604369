"""Editing through the pipeline: inpainting, outpainting, uncropping, variations, larger canvases, and watching it."""

import numpy as np
import PIL.Image
import pytest
import torch

from transformers_mage import MageConfig, MageForMaskedImageModeling, MagePipeline, MageScheduler


def run(pipe: MagePipeline, seed: int = 0, output_type: str = "pt", **kwargs):
    return pipe(output_type=output_type, generator=torch.Generator().manual_seed(seed), **kwargs).images


def photograph(height: int = 32, width: int = 32) -> PIL.Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def left_half_black(height: int = 32, width: int = 32) -> PIL.Image.Image:
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[:, width // 2 :] = 255
    return PIL.Image.fromarray(mask)


# Inpainting


@pytest.mark.parametrize("feather", [None, 0, 7])
def test_pixels_outside_the_mask_come_back_untouched(small_pipeline: MagePipeline, feather: int | None):
    image = photograph()
    edited = run(small_pipeline, image=image, mask_image=left_half_black(), feather=feather, output_type="pil")[0]
    before, after = np.asarray(image), np.asarray(edited)
    assert np.array_equal(before[:, :16], after[:, :16])
    assert not np.array_equal(before[:, 16:], after[:, 16:])


def test_a_feathered_edge_changes_pixels_near_the_edge_only(small_pipeline: MagePipeline):
    edit = {"image": photograph(), "mask_image": left_half_black()}
    hard, soft = run(small_pipeline, feather=0, **edit), run(small_pipeline, feather=4, **edit)
    assert not torch.equal(hard[..., 16:20], soft[..., 16:20])
    assert torch.equal(hard[..., 21:], soft[..., 21:])


def test_a_black_mask_gives_the_image_back(small_pipeline: MagePipeline):
    image = photograph()
    black = PIL.Image.new("L", image.size, 0)
    assert np.array_equal(run(small_pipeline, image=image, mask_image=black, output_type="pil")[0], image)


def test_a_white_mask_is_generation_from_nothing(small_pipeline: MagePipeline):
    white = PIL.Image.new("L", (32, 32), 255)
    assert torch.equal(run(small_pipeline, image=photograph(), mask_image=white), run(small_pipeline))


@pytest.mark.parametrize("columns", [slice(16, 32), slice(18, 32), slice(9, 11)])
def test_what_the_mask_covers_does_not_matter(small_pipeline: MagePipeline, columns: slice):
    """Nothing of it shows in the tokens around it: holes may come in any colour."""
    mask, other = np.zeros((32, 32), dtype=np.uint8), np.array(photograph())
    mask[:, columns], other[:, columns] = 255, 0
    tokens = [
        run(small_pipeline, image=image, mask_image=PIL.Image.fromarray(mask), output_type="latent", num_images=4)
        for image in (photograph(), PIL.Image.fromarray(other))
    ]
    assert torch.equal(*tokens)


def test_a_token_at_the_edge_of_a_hole_is_known_by_what_is_kept_of_its_pixels(small_pipeline: MagePipeline):
    """Tokens of 4 pixels, of which half, or all but three, are kept."""
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[:, 18:], mask[:16, 15] = 255, 255
    image = np.array(photograph())
    edit = {"mask_image": PIL.Image.fromarray(mask), "num_images": 8, "output_type": "latent"}
    tokens = run(small_pipeline, image=PIL.Image.fromarray(image), **edit)
    assert torch.equal(tokens[0, :, :5].expand(8, -1, -1), tokens[..., :5])
    assert (tokens[..., 5:] != tokens[0, :, 5:]).any()

    image[:, 16:18] = 255 - image[:, 16:18]
    assert not torch.equal(run(small_pipeline, image=PIL.Image.fromarray(image), **edit)[..., 4], tokens[..., 4])


def test_soft_masks_are_taken(small_pipeline: MagePipeline):
    ramp = PIL.Image.fromarray(np.tile(np.linspace(0, 255, 32, dtype=np.uint8), (32, 1)))
    image = photograph()
    edited = run(small_pipeline, image=image, mask_image=ramp)
    known = torch.from_numpy(np.asarray(image) / 255).float().permute(2, 0, 1)
    difference = (edited[0] - known).abs().mean(dim=(0, 1))
    assert difference[0] == 0
    assert difference[:8].mean() < difference[-8:].mean()


def test_gradients_are_off_and_shapes_right(small_pipeline: MagePipeline):
    image = torch.rand(2, 3, 32, 32, requires_grad=True)
    edited = run(small_pipeline, image=image, mask_image=torch.ones(1, 1, 32, 32), num_images=2)
    assert edited.shape == (4, 3, 32, 32)
    assert not edited.requires_grad


def test_editing_as_another_class(small_config: MageConfig):
    model = MageForMaskedImageModeling(MageConfig(**small_config.to_dict() | {"num_classes": 3, "num_labels": 3}))
    pipe = MagePipeline(model.eval(), MageScheduler(model.config.mask_token_id, num_inference_steps=4))
    edit = {"image": photograph(), "mask_image": left_half_black(), "class_labels": [0, 1, 2], "guidance_scale": 2.0}
    edited = run(pipe, **edit)
    assert edited.shape == (3, 3, 32, 32)
    assert torch.equal(edited[0, ..., :16], edited[1, ..., :16])
    with pytest.raises(ValueError, match="as many of one as of the other, got 2 images and 3 classes"):
        run(pipe, image=[photograph(), photograph()], padding=4, class_labels=[0, 1, 2])


# Outpainting and larger canvases


def test_outpainting_to_twice_the_width(small_pipeline: MagePipeline):
    image = photograph()
    wide = run(small_pipeline, image=image, padding=(0, 0, 32, 0), output_type="pil")[0]
    assert wide.size == (64, 32)
    assert np.array_equal(np.asarray(wide)[:, :32], np.asarray(image))


def test_padding_and_a_mask_together(small_pipeline: MagePipeline):
    image = photograph()
    edited = run(small_pipeline, image=image, mask_image=left_half_black(), padding=4, output_type="pil")[0]
    assert edited.size == (40, 40)
    assert np.array_equal(np.asarray(edited)[4:36, 4:20], np.asarray(image)[:, :16])


def test_uncropping_keeps_the_small_image_in_the_middle(small_pipeline: MagePipeline):
    image = photograph(16, 16)
    edited = run(small_pipeline, image=image, height=16, width=16, padding=8, output_type="pil")[0]
    assert edited.size == (32, 32)
    assert np.array_equal(np.asarray(edited)[8:24, 8:24], np.asarray(image))


def test_a_canvas_larger_than_trained(small_pipeline: MagePipeline):
    assert run(small_pipeline, height=48, width=80).shape == (1, 3, 48, 80)
    tokens = run(small_pipeline, height=48, width=80, output_type="latent")
    assert tokens.shape == (1, 12, 20)
    assert tokens.max() < 16


def test_windows_at_the_trained_size_are_the_plain_model(small_pipeline: MagePipeline):
    assert torch.equal(run(small_pipeline, height=32, width=32), run(small_pipeline))


def test_a_larger_canvas_s_image_does_not_depend_on_its_batch(small_pipeline: MagePipeline):
    def generators(seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    kwargs = {"height": 32, "width": 48, "output_type": "latent"}
    together = small_pipeline(num_images=3, generator=generators([0, 1, 2]), **kwargs).images
    assert torch.equal(together[1:2], small_pipeline(generator=generators([1]), **kwargs).images)


def test_a_long_photograph_keeps_its_shape(small_pipeline: MagePipeline):
    edited = run(small_pipeline, image=photograph(60, 120), mask_image=left_half_black(60, 120), output_type="pil")[0]
    assert edited.size == (64, 32)


def test_height_and_width_keep_the_photograph_s_own_pixels(small_pipeline: MagePipeline):
    image = photograph(40, 64)
    edit = {"image": image, "mask_image": left_half_black(40, 64), "height": 40, "width": 64}
    edited = run(small_pipeline, output_type="pil", **edit)[0]
    assert np.array_equal(np.asarray(edited)[:, :32], np.asarray(image)[:, :32])


# Variations


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_variations_make_a_share_of_the_tokens_anew(small_pipeline: MagePipeline, strength: float):
    starts = []

    def step_input(self, model_output, timestep, sample, *args, **kwargs):
        starts.append((sample == small_pipeline.model.config.mask_token_id).sum(dim=1).tolist())
        return MageScheduler.step(small_pipeline.scheduler, model_output, timestep, sample, *args, **kwargs)

    small_pipeline.scheduler.step = step_input.__get__(small_pipeline.scheduler)
    varied = run(small_pipeline, image=photograph(), strength=strength, num_images=2, output_type="latent")
    assert starts[0] == [64 * strength] * 2
    known = small_pipeline.model.get_image_tokens(
        torch.from_numpy(np.asarray(photograph()) / 255).float().permute(2, 0, 1)[None]
    )
    assert (varied == known).flatten(1).sum(dim=1).min() >= 64 * (1 - strength)


def test_variations_stay_within_the_mask(small_pipeline: MagePipeline):
    image = photograph()
    edit = {"image": image, "mask_image": left_half_black(), "strength": 0.5}
    edited = run(small_pipeline, output_type="pil", **edit)[0]
    assert np.array_equal(np.asarray(edited)[:, :16], np.asarray(image)[:, :16])


# Watching


def test_steps_are_returned(small_pipeline: MagePipeline):
    mask_token_id = small_pipeline.model.config.mask_token_id
    output = small_pipeline(num_images=2, output_type="latent", return_steps=True)
    assert output.steps.shape == (4, 2, 8, 8)
    num_masked = (output.steps == mask_token_id).sum(dim=(2, 3))
    assert (num_masked.diff(dim=0) < 0).all()
    assert torch.equal(output.steps[-1], output.images)
    was_known = output.steps[:-1] != mask_token_id
    assert torch.equal(output.steps[1:][was_known], output.steps[:-1][was_known])


def test_steps_come_with_the_tuple_and_only_if_asked_for(small_pipeline: MagePipeline):
    assert small_pipeline().steps is None
    images, steps = small_pipeline(return_steps=True, return_dict=False)
    assert (len(images), len(steps)) == (1, 4)
    assert len(small_pipeline(return_dict=False)) == 1


def test_the_callback_gets_tokens_and_a_preview(small_pipeline: MagePipeline):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append(tensors)
        return {}

    names = ["tokens", "preview"]
    small_pipeline(num_images=2, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names)
    assert [tuple(tensors["preview"].shape) for tensors in seen] == [(2, 3, 32, 32)] * 4
    grey = (seen[0]["preview"] == 0.5).all(dim=1).unflatten(1, (8, 4)).unflatten(3, (8, 4)).all(dim=4).all(dim=2)
    assert torch.equal(grey.flatten(1), seen[0]["tokens"] == small_pipeline.model.config.mask_token_id)
    assert seen[-1]["tokens"].shape == (2, 64)


def test_a_preview_has_a_colour_for_each_code(small_pipeline: MagePipeline):
    mask_token_id = small_pipeline.model.config.mask_token_id
    preview = small_pipeline.preview(torch.tensor([[[3, 5, mask_token_id], [5, 3, 3]]]))
    squares = preview.unflatten(3, (3, 4)).unflatten(2, (2, 4))
    assert torch.equal(squares, squares[:, :, :, :1, :, :1].expand_as(squares))
    colours = squares[0, :, :, 0, :, 0]
    assert torch.equal(colours[:, 0, 0], colours[:, 1, 1])
    assert torch.equal(colours[:, 0, 1], colours[:, 1, 0])
    assert not torch.equal(colours[:, 0, 0], colours[:, 0, 1])
    assert colours[:, 0, 2].tolist() == [0.5] * 3


def test_a_preview_is_the_image_where_codes_are_colours(small_pipeline: MagePipeline, monkeypatch):
    palette = torch.rand(16, 3)

    def decode(tokens: torch.LongTensor) -> torch.FloatTensor:
        return palette[tokens].permute(0, 3, 1, 2).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)

    monkeypatch.setattr(small_pipeline.model, "decode_image_tokens", decode)
    tokens = torch.randint(0, 16, (2, 5, 9))
    torch.testing.assert_close(small_pipeline.preview(tokens), decode(tokens))


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"padding": 32}, "`image` is missing: `padding` says what to change in it"),
        ({"strength": 0.5}, "`image` is missing: `strength` says what to change in it"),
        ({"image": photograph()}, "`mask_image` .white where to repaint., `padding` or `strength` is missing"),
        ({"image": photograph(), "padding": 6}, "multiple of 4 pixels"),
        ({"image": photograph(), "strength": 0.0}, "above 0 and be at most 1, got 0.0"),
        ({"image": photograph(), "strength": 1.5}, "above 0 and be at most 1, got 1.5"),
        ({"image": photograph(), "strength": 0.5, "padding": 4}, "either `strength` or `padding`"),
        ({"image": photograph(), "padding": 4, "feather": -1}, "`feather` must be a whole number of pixels"),
        ({"height": 64}, "both `height` and `width` or none, got 64 and None"),
        ({"height": 64, "width": 50}, "`width` must be a multiple of 4 pixels.*48 would do"),
        ({"height": 16, "width": 16}, r"at least as large .*\(32, 32\).*got \(16, 16\)"),
        ({"image": photograph(), "mask_image": left_half_black(32, 40)}, "as large as its image"),
        ({"image": [photograph(), photograph(32, 64)], "padding": 4}, "different shapes make no batch"),
        (
            {"callback_on_step_end_tensor_inputs": ["logits"]},
            r"a list out of \['tokens', 'preview'\], got \['logits'\]",
        ),
    ],
)
def test_wrong_editing_is_refused(small_pipeline: MagePipeline, arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        small_pipeline(**arguments)


def test_a_model_without_tokenizer_has_no_previews(small_config: MageConfig):
    model = MageForMaskedImageModeling(MageConfig(**small_config.to_dict() | {"vq_config": None}))
    pipe = MagePipeline(model.eval(), MageScheduler(model.config.mask_token_id))
    with pytest.raises(ValueError, match="no tokenizer"):
        pipe(output_type="latent", callback_on_step_end_tensor_inputs=["preview"])
    assert pipe(output_type="latent", return_steps=True).steps.shape == (20, 1, 8, 8)
