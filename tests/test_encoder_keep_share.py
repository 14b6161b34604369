"""The encoder may drop hidden tokens while generating, as it does in training, at fixed sizes."""

import numpy as np
import PIL.Image
import pytest
import torch

from transformers_mage import MageForMaskedImageModeling, MagePipeline, MageScheduler
from transformers_mage.decoding_plan import DecodingPlan


def pipeline(model: MageForMaskedImageModeling, steps: int = 6, **kwargs) -> MagePipeline:
    scheduler = MageScheduler(model.config.mask_token_id, num_inference_steps=steps)
    pipe = MagePipeline(model, scheduler, **{"encoder_keep_share": 0.5, **kwargs})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def calls(small_model, monkeypatch) -> list[dict]:
    """What the model was asked for, step by step."""
    forward, calls = small_model.forward, []
    monkeypatch.setattr(small_model, "forward", lambda **kwargs: calls.append(kwargs) or forward(**kwargs))
    return calls


def seen_by_encoder(call: dict) -> torch.Tensor:
    tokens = call["input_ids"].flatten(1)
    return ~call.get("bool_dropped_pos", torch.zeros_like(tokens, dtype=torch.bool))


def test_known_tokens_and_random_hidden_ones_are_seen(small_model, calls):
    pipeline(small_model)(3, generator=seeded())

    is_known = [call["input_ids"].flatten(1) != small_model.config.mask_token_id for call in calls]
    is_seen = [seen_by_encoder(call) for call in calls]
    assert all((seen | ~known).all() for seen, known in zip(is_seen, is_known, strict=True))
    assert [seen.sum(dim=1).tolist() for seen in is_seen[1:]] == [[32] * 3, [32] * 3, [32] * 3, [33] * 3, [49] * 3]
    assert [known.sum(dim=1).tolist() for known in is_known[1:]] == [[n] * 3 for n in (3, 9, 19, 32, 48)]
    assert len({tuple(row) for row in is_seen[1].tolist()}) == 3
    assert not torch.equal(is_seen[1] & is_seen[2], is_seen[1])


def test_the_first_look_at_blank_canvases_is_whole_and_shared(small_model, calls):
    pipeline(small_model)(3)

    assert len(calls[0]["input_ids"]) == 1
    assert "bool_dropped_pos" not in calls[0]


def test_without_a_share_nothing_is_dropped(small_model, calls):
    pipeline(small_model, encoder_keep_share=None)(2)

    assert len(calls) == 6
    assert all("bool_dropped_pos" not in call for call in calls)


def test_an_image_does_not_depend_on_the_others(small_model):
    pipe = pipeline(small_model)

    together = pipe(3, generator=[seeded(i) for i in range(3)], output_type="latent").images

    for i in range(3):
        assert torch.equal(pipe(generator=[seeded(i)], output_type="latent").images[0], together[i])


def test_both_passes_of_guidance_see_the_same(small_config, monkeypatch):
    small_config.num_classes, calls = 3, []
    model = MageForMaskedImageModeling(small_config).eval()
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **kwargs: calls.append(kwargs) or forward(**kwargs))

    pipeline(model)(class_labels=[0, 2], guidance_scale=2.0)

    for call in calls[1:]:
        with_class, without = call["bool_dropped_pos"].chunk(2)
        assert torch.equal(with_class, without)


def test_editing_shows_the_encoder_all_that_is_known(small_model, calls):
    """A quarter is hidden in the one image, the left three quarters in the other."""
    masks = np.zeros((2, 32, 32, 1), dtype=np.uint8)
    masks[0, :16, :16], masks[1, :, :24] = 255, 255
    photos = [PIL.Image.new("RGB", (32, 32), color) for color in ("red", "green")]

    pipeline(small_model)(image=photos, mask_image=list(masks[..., 0]), generator=seeded())

    # The model refuses to drop a known token. All are seen for a first guess.
    assert [int(seen_by_encoder(call).sum(dim=1).unique()) for call in calls] == [64, 48, 50, 52, 54, 57, 61]


def test_larger_canvases(small_model, calls):
    tokens = pipeline(small_model, steps=8)(2, height=48, width=32, generator=seeded(), output_type="latent").images

    assert tokens.shape == (2, 12, 8)
    assert tokens.max() < small_model.config.codebook_size
    # 96 tokens in two windows of 64, either of which may come to hold all of the known ones.
    counts = [int(seen_by_encoder(call).sum(dim=1).unique()) for call in calls]
    assert counts == [64, 32, 32, 32, 32, 44, 61, 64]


def test_a_callback_may_change_what_is_known(small_model, calls):
    mask = small_model.config.mask_token_id

    def reveal_then_hide(pipe, step, timestep, tensors):
        return {"tokens": torch.full_like(tensors["tokens"], 3 if step == 1 else mask)} if step < 3 else {}

    pipeline(small_model)(2, callback_on_step_end=reveal_then_hide)

    assert [int(seen_by_encoder(call).sum(dim=1).unique()) for call in calls[1:4]] == [32, 64, 32]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "square_root", "exponential"])
@pytest.mark.parametrize("temperature", [0.0, 6.0])
def test_no_fewer_tokens_are_hidden_than_the_plan_says(schedule: str, temperature: float):
    """Where the model is as sure of all tokens as well, and with more steps than the schedule has use for."""
    scheduler = MageScheduler(99, schedule, temperature, num_inference_steps=15)
    plan = DecodingPlan(scheduler, 16, 16, hidden_at_start=(9, 16))
    tokens = torch.full((2, 16), 99)
    tokens[1, 9:] = 3
    for step, timestep in enumerate(scheduler.timesteps):
        hidden = (tokens == 99).sum(dim=1)
        fewest, most = plan._hidden_before(step, tokens)
        assert fewest <= hidden.min()
        assert hidden.max() <= most
        tokens = scheduler.step(torch.zeros(2, 16, 8), timestep, tokens, seeded(step)).prev_sample


def test_it_is_saved_with_the_pipeline(small_model, tmp_path):
    pipeline(small_model).save_pretrained(tmp_path / "half")
    pipeline(small_model, encoder_keep_share=None).save_pretrained(tmp_path / "all")

    assert MagePipeline.from_pretrained(tmp_path / "half").config.encoder_keep_share == 0.5
    assert MagePipeline.from_pretrained(tmp_path / "half", encoder_keep_share=None).config.encoder_keep_share is None
    assert "encoder_keep_share" not in (tmp_path / "all" / "model_index.json").read_text()


@pytest.mark.parametrize("value", [0.0, 1.5, "half"])
def test_shares_that_do_not_exist(small_model, value):
    with pytest.raises(ValueError, match="`encoder_keep_share` must lie above 0 and be at most 1, got"):
        pipeline(small_model, encoder_keep_share=value)
