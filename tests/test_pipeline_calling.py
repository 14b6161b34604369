"""How people call the pipeline: with what they have, from callbacks, and with models that are not ready."""

import copy

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers.callbacks import PipelineCallback

from transformers_mage import MageConfig, MageForMaskedImageModeling, MagePipeline, MageScheduler

NAMES = dict(enumerate(["zero", "one", "two", "three", "Four"]))
PIXELS = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
MASK = np.zeros((32, 32), dtype=bool)
MASK[16:] = True


@pytest.fixture
def conditional_pipeline(small_config: MageConfig) -> MagePipeline:
    config = MageConfig(**small_config.to_dict() | {"num_classes": 5, "id2label": NAMES})
    pipe = MagePipeline(
        MageForMaskedImageModeling(config).eval(), MageScheduler(config.mask_token_id, num_inference_steps=4)
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens_of(pipe: MagePipeline, *args, **kwargs) -> torch.LongTensor:
    return pipe(*args, generator=seeded(), output_type="latent", **kwargs).images


# What to make, as the first argument


def test_a_number_is_so_many_images(small_pipeline, conditional_pipeline):
    for pipe in (small_pipeline, conditional_pipeline):
        for number in (3, np.int64(3), torch.tensor(3)):
            assert torch.equal(tokens_of(pipe, number), tokens_of(pipe, num_images=3))
    assert len(small_pipeline(2, 3, return_steps=True).steps) == 3  # the second one is still the number of steps


@pytest.mark.parametrize(
    ("prompt", "labels"),
    [
        ("three", [3]),
        (["three", 1, None], [3, 1, None]),
        ([2], [2]),
        (range(5), [0, 1, 2, 3, 4]),
        (torch.tensor([4, 0]), [4, 0]),
        (np.array([4, 0]), [4, 0]),
        (np.array(["one", "two"]), [1, 2]),
        ("THREE", [3]),
        ("four", [4]),
    ],
)
def test_anything_else_is_classes(conditional_pipeline, prompt, labels):
    expected = tokens_of(conditional_pipeline, class_labels=labels, num_images=2)
    assert torch.equal(tokens_of(conditional_pipeline, prompt, num_images=2), expected)
    assert torch.equal(tokens_of(conditional_pipeline, prompt=prompt, num_images=2), expected)


def test_names_that_differ_in_case_alone_are_told_apart(small_config):
    names = {0: "Turkey", 1: "turkey", 2: "duck"}
    config = MageConfig(**small_config.to_dict() | {"num_classes": 3, "id2label": names})
    pipe = MagePipeline(MageForMaskedImageModeling(config).eval(), MageScheduler(config.mask_token_id))
    assert torch.equal(tokens_of(pipe, "turkey"), tokens_of(pipe, class_labels=1))
    assert torch.equal(tokens_of(pipe, "Duck"), tokens_of(pipe, class_labels=2))
    with pytest.raises(ValueError, match=r"Several classes are called 'TURKEY': \[0, 1\]"):
        pipe("TURKEY")


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        (("three",), {"class_labels": 2}, "first argument, 'three', means `class_labels`. Leave one of both out"),
        ((2,), {"num_images": 2}, "first argument, 2, means `num_images`"),
        ((0,), {}, "`num_images` must be a whole number of at least 1, got 0"),
        ((2.0,), {}, "`prompt` must be ids, names or None, got 2.0"),
        ((True,), {}, "`prompt` must be ids, names or None, got True"),
        ((["three", 9],), {}, "`prompt` must lie between 0 and 4, got 9"),
        (([],), {}, "`prompt` must hold at least one class"),
        (("thre",), {}, r"No class is called 'thre'.*\['three'"),
        ((), {"class_labels": -2}, "`class_labels` must lie between 0 and 4, got -2"),
        ((), {"class_labels": [0, -1]}, "`class_labels` must lie between 0 and 4, got -1"),
        ((), {"class_labels": np.array([[0, 1]])}, r"must be ids, names or None, got \[0, 1\]"),
        ((), {"class_labels": {"three"}}, r"must be ids, names or None, got \{'three'\}"),
        ((), {"class_labels": torch.tensor([1.5])}, "must be ids, names or None, got 1.5"),
    ],
)
def test_what_cannot_be_made_is_refused(conditional_pipeline, args, kwargs, message):
    with pytest.raises(ValueError, match=message):
        conditional_pipeline(*args, **kwargs)


def test_an_unconditional_model_has_no_classes_to_name(small_pipeline):
    with pytest.raises(ValueError, match=r"`prompt` asks an unconditional model .* for 'three'"):
        small_pipeline("three")


# Numbers of every library


def test_numpy_and_torch_numbers_are_numbers(conditional_pipeline):
    plain = tokens_of(
        conditional_pipeline, class_labels=[1], num_images=2, height=32, width=40, num_inference_steps=3,
        temperature=2.0, guidance_scale=1.5,
    )  # fmt: skip
    for integer, number in ((np.int64, np.float32), (np.uint8, np.float64), (torch.tensor, torch.tensor)):
        made = tokens_of(
            conditional_pipeline, class_labels=integer(1), num_images=integer(2), height=integer(32),
            width=integer(40), num_inference_steps=integer(3), temperature=number(2.0), guidance_scale=number(1.5),
        )  # fmt: skip
        assert torch.equal(made, plain)


@pytest.mark.parametrize("integer", [np.int64, torch.tensor])
def test_numpy_and_torch_numbers_edit(small_pipeline, integer):
    edit = {"image": PIXELS, "output_type": "np"}
    plain = small_pipeline(padding=(0, 4, 8, 0), feather=2, generator=seeded(), **edit).images
    sides = [integer(side) for side in (0, 4, 8, 0)]
    made = small_pipeline(padding=sides, feather=integer(2), generator=seeded(), **edit).images
    assert np.array_equal(made, plain)
    assert np.array_equal(small_pipeline(padding=integer(4), **edit).images.shape, (1, 40, 40, 3))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_images": True}, "`num_images` must be a whole number of at least 1, got True"),
        ({"num_images": np.float32(2)}, "`num_images` must be a whole number"),
        ({"num_inference_steps": "20"}, "`num_inference_steps` must be a whole number of at least 1, got '20'"),
        ({"temperature": np.nan}, "`temperature` must be 0 or more and finite, got nan"),
        ({"temperature": "6"}, "`temperature` must be 0 or more and finite, got '6'"),
        ({"guidance_scale": np.nan}, "`guidance_scale` must be 0 .no guidance. or more and finite, got nan"),
        ({"guidance_scale": "high"}, "`guidance_scale` must be 0 .no guidance. or more and finite, got 'high'"),
        ({"height": 32.0, "width": 32}, "`height` must be a multiple of 4 pixels"),
        ({"height": np.nan, "width": 32}, "`height` must be a multiple of 4 pixels"),
        ({"height": 32, "width": True}, "`width` must be a multiple of 4 pixels"),
        ({"image": PIXELS, "strength": np.nan}, "`strength` must lie above 0"),
        ({"image": PIXELS, "strength": "0.5"}, "`strength` must lie above 0"),
        ({"image": PIXELS, "strength": 0.5, "feather": 1.5}, "`feather` must be a whole number of pixels of at least"),
        ({"image": PIXELS, "padding": 1.5}, "`padding` must be one number or"),
        ({"image": PIXELS, "padding": "4"}, "`padding` must be one number or"),
        ({"image": PIXELS, "padding": True}, "`padding` must be one number or"),
    ],
)
def test_wrong_numbers_are_refused_by_name(small_pipeline, kwargs, message):
    with pytest.raises(ValueError, match=message):
        small_pipeline(**kwargs)


# Images and masks of every library


@pytest.mark.parametrize(
    "image",
    [
        PIL.Image.fromarray(PIXELS),
        PIXELS,
        PIXELS[None],
        PIXELS / 255,
        PIXELS.astype(np.uint16) * 257,
        torch.from_numpy(PIXELS),
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        torch.from_numpy(PIXELS).permute(2, 0, 1)[None] / 255,
        PIL.Image.fromarray(PIXELS).convert("RGBA"),
    ],
)
@pytest.mark.parametrize(
    "mask",
    [MASK, 255 * MASK.astype(np.uint8), MASK.astype(np.int64), np.dstack([MASK] * 3), MASK[None],
     torch.from_numpy(MASK), PIL.Image.fromarray(MASK)],
)  # fmt: skip
def test_kept_pixels_come_back_bit_for_bit(small_pipeline, image, mask):
    painted = np.asarray(small_pipeline(image=image, mask_image=mask, generator=seeded()).images[0])

    assert np.array_equal(painted[:16], PIXELS[:16])
    from_pil = small_pipeline(
        image=PIL.Image.fromarray(PIXELS), mask_image=PIL.Image.fromarray(MASK), generator=seeded()
    )
    assert np.array_equal(painted, np.asarray(from_pil.images[0]))


def test_a_batch_has_a_mask_each(small_pipeline):
    images = np.stack([PIXELS, 255 - PIXELS, PIXELS.transpose(1, 0, 2)])
    masks = np.stack([MASK, ~MASK, MASK.T])
    painted = small_pipeline(image=images, mask_image=masks, output_type="np").images

    for result, image, mask in zip((255 * painted).round().astype(np.uint8), images, masks, strict=True):
        assert np.array_equal(result[~mask], image[~mask])
        assert not np.array_equal(result[mask], image[mask])


@pytest.mark.parametrize("kind", ["I;16", "float", "RGB"])
def test_a_grey_model_reads_deep_and_colour_images(small_config, kind):
    vq_config = {**small_config.vq_config, "in_channels": 1, "out_channels": 1}
    config = MageConfig(**small_config.to_dict() | {"vq_config": vq_config})
    pipe = MagePipeline(MageForMaskedImageModeling(config).eval(), MageScheduler(config.mask_token_id))
    grey = PIXELS[..., 0]
    image = {
        "I;16": PIL.Image.fromarray(grey.astype(np.uint16) * 257),
        "float": PIL.Image.fromarray((grey / 255).astype(np.float32)),
        "RGB": np.dstack([grey] * 3),
    }[kind]

    painted = pipe(image=image, mask_image=MASK).images[0]

    assert painted.mode == "L"
    assert np.array_equal(np.asarray(painted)[:16], grey[:16])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"image": PIXELS.astype(float), "mask_image": MASK}, "`image` holds floats from 0 to 255"),
        ({"image": PIXELS, "mask_image": np.full((32, 32), 255.0)}, "`mask_image` holds floats from 255 to 255"),
        ({"image": np.full((32, 32), np.nan), "padding": 4}, "`image` holds NaN"),
        ({"image": PIXELS, "mask_image": MASK[:16]}, r"`mask_image` must be as large as its image, \(32, 32\)"),
        ({"image": PIXELS, "mask_image": np.stack([MASK] * 2)}, "one for each of the 1 images, got 2"),
        ({"image": np.zeros((32, 32, 5, 5, 5)), "padding": 4}, "`image` must have the shape"),
    ],
)
def test_wrong_images_are_refused_by_name(small_pipeline, kwargs, message):
    with pytest.raises(ValueError, match=message):
        small_pipeline(**kwargs)


# Models


def test_dropout_is_off_and_the_mode_comes_back(small_pipeline):
    expected = tokens_of(small_pipeline, 4)
    small_pipeline.model.train().decoder.eval()
    modes = [module.training for module in small_pipeline.model.modules()]

    assert torch.equal(tokens_of(small_pipeline, 4), expected)
    assert [module.training for module in small_pipeline.model.modules()] == modes

    def fail(*args):
        raise KeyError("stop")

    with pytest.raises(KeyError):
        small_pipeline(callback_on_step_end=fail)
    assert [module.training for module in small_pipeline.model.modules()] == modes


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
@pytest.mark.parametrize(("weight", "value"), [("head.bias", torch.nan), ("mage.layernorm.weight", torch.inf)])
def test_weights_that_are_not_finite_are_named(small_pipeline, output_type, weight, value):
    with torch.no_grad():
        small_pipeline.model.get_parameter(weight).view(-1)[0] = value

    with pytest.raises(ValueError, match=rf"not finite numbers \({weight}\)"):
        small_pipeline(output_type=output_type)


def test_a_broken_tokenizer_is_named_too(small_pipeline):
    with torch.no_grad():
        small_pipeline.vqvae.decoder.conv_out.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"not finite numbers \(mage\.vqvae\.decoder\.conv_out\.bias\)"):
        small_pipeline()
    assert small_pipeline(output_type="latent").images.shape == (1, 8, 8)


def test_overflow_without_a_broken_weight_is_told(small_pipeline):
    with torch.no_grad():
        small_pipeline.model.head.layernorm.weight.fill_(1e38)
        small_pipeline.model.mage.embeddings.word_embeddings.weight.mul_(1e38)
    with pytest.raises(
        ValueError, match=r"predictions .* are not finite, though its weights are: they overflow in torch\.float32"
    ):
        small_pipeline()


def test_impossible_codes_are_fine(small_pipeline):
    """Somebody may forbid codes by logits of minus infinity."""

    def forbid(module, args, output):
        output.logits[..., 3:] = -torch.inf

    small_pipeline.model.register_forward_hook(forbid)
    assert set(tokens_of(small_pipeline, 4).unique().tolist()) <= {0, 1, 2}


# Callbacks as of diffusers


def test_what_callbacks_ask_a_pipeline(conditional_pipeline):
    seen = []

    def look(pipe, step, timestep, tensors):
        seen.append((pipe.num_timesteps, pipe.guidance_scale, pipe.do_classifier_free_guidance, pipe.interrupt))
        return tensors

    conditional_pipeline("one", guidance_scale=2, num_inference_steps=3, callback_on_step_end=look)
    conditional_pipeline(1, num_inference_steps=2, callback_on_step_end=look)

    assert seen == [(3, 2.0, True, False)] * 3 + [(2, 0.0, False, False)] * 2


def test_an_interrupted_call_ends_with_whole_images(small_pipeline):
    mask_token_id = small_pipeline.model.config.mask_token_id
    steps = []

    def interrupt(pipe, step, timestep, tensors):
        steps.append(step)
        pipe._interrupt = step == 1

    output = small_pipeline(
        2, num_inference_steps=6, callback_on_step_end=interrupt, return_steps=True, output_type="latent"
    )

    assert steps == [0, 1]
    assert output.steps.shape == (2, 2, 8, 8)
    assert (output.steps[0] == mask_token_id).any()
    assert (output.images < 16).all()
    assert torch.equal(output.steps[1], output.images)
    assert small_pipeline(num_inference_steps=6).images[0].size == (32, 32)  # the next call is not interrupted


def test_tokens_that_a_callback_masks_in_the_end_are_those_sampled(small_pipeline):
    def hide(pipe, step, timestep, tensors):
        return {"tokens": torch.full_like(tensors["tokens"], pipe.model.config.mask_token_id)}

    assert (small_pipeline(callback_on_step_end=hide, output_type="latent").images < 16).all()


def test_a_callback_may_end_guidance(conditional_pipeline, monkeypatch):
    sizes, forward = [], conditional_pipeline.model.forward

    def watched(*args, input_ids, **kwargs):
        sizes.append(len(input_ids))
        return forward(*args, input_ids=input_ids, **kwargs)

    def end_guidance(pipe, step, timestep, tensors):
        if step == 1:
            pipe._guidance_scale = 0.0
        return {}

    monkeypatch.setattr(conditional_pipeline.model, "forward", watched)
    conditional_pipeline("two", guidance_scale=1.0, callback_on_step_end=end_guidance)
    assert sizes == [2, 2, 1, 1]


def test_callbacks_of_diffusers_name_their_own_tensors(small_pipeline):
    class Watch(PipelineCallback):
        tensor_inputs = ["preview"]
        seen = []

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            self.seen.append(list(callback_kwargs))
            return callback_kwargs

    small_pipeline(num_inference_steps=2, callback_on_step_end=Watch(cutoff_step_index=None, cutoff_step_ratio=1.0))
    assert Watch.seen == [["preview"]] * 2


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1], "must return a dictionary or None, got list"),
        ({"tokens": torch.zeros(3, dtype=torch.long)}, r"a tensor of shape \(1, 64\), got Tensor of shape \(3,\)"),
        ({"tokens": np.zeros((1, 64), np.int64)}, r"a tensor of shape \(1, 64\), got ndarray of shape \(1, 64\)"),
        ({"tokens": None}, r"a tensor of shape \(1, 64\), got NoneType\."),
        ({"tokens": torch.full((1, 64), 99_999)}, "Tokens must be codes from 0 to 15 or the mask token"),
    ],
)
def test_what_a_callback_must_not_return(small_pipeline, returned, message):
    with pytest.raises(ValueError, match=message):
        small_pipeline(callback_on_step_end=lambda *_: returned)


@pytest.mark.parametrize("names", ["tokens", ["latents"]])
def test_names_of_what_a_callback_is_given(small_pipeline, names):
    with pytest.raises(ValueError, match=r"must be a list out of \['tokens', 'preview'\], got"):
        small_pipeline(callback_on_step_end=lambda *_: None, callback_on_step_end_tensor_inputs=names)


def test_a_pipeline_may_be_copied(small_pipeline):
    assert torch.equal(tokens_of(copy.deepcopy(small_pipeline), 2), tokens_of(small_pipeline, 2))
