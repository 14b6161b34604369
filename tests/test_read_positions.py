"""The last decoder layer is computed where it is read, and what is read stays the same."""

import pytest
import torch

from transformers_mage import MageForMaskedImageModeling, MagePipeline, MageScheduler, sample_masks


@pytest.fixture
def model(small_model: MageForMaskedImageModeling) -> MageForMaskedImageModeling:
    """Without dropout, so that two passes in training mode compute the same."""
    for module in small_model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return small_model


@torch.no_grad()
def test_scores_at_some_positions_are_those_of_all(model: MageForMaskedImageModeling):
    tokens = torch.randint(16, (2, 64))
    tokens[:, :40] = model.config.mask_token_id
    positions = torch.stack([torch.randperm(64)[:10] for _ in range(2)])

    some = model(input_ids=tokens, read_positions=positions).logits
    every = model(input_ids=tokens).logits

    torch.testing.assert_close(some, every.gather(1, positions[..., None].expand(-1, -1, 16)))


@pytest.mark.parametrize("per_image", [False, True])
def test_losses_and_gradients_stay_the_same(model: MageForMaskedImageModeling, per_image: bool):
    tokens = torch.randint(16, (4, 64))
    masks = sample_masks(model.config, 4, generator=torch.Generator().manual_seed(0), per_image=per_image).as_kwargs()
    model.train()

    results = []
    for max_masked in (masks["max_masked"], None):
        model.zero_grad()
        output = model(input_ids=tokens, **masks | {"max_masked": max_masked})
        output.loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append((output.masked_logits, output.masked_labels, output.loss, gradients))

    sparing, whole = results
    assert masks["max_masked"] < 64
    torch.testing.assert_close(sparing, whole)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"max_masked": 65}, "`max_masked` must be from 0 to 64, the number of positions, got 65"),
        ({"max_masked": 2}, "`max_masked` is 2, but `bool_masked_pos` masks 64 positions of an image"),
        ({"read_positions": torch.zeros(1, 1, dtype=torch.long)}, "with `bool_masked_pos` the masked ones are read"),
    ],
)
def test_what_does_not_fit_is_refused(model: MageForMaskedImageModeling, kwargs: dict, message: str):
    tokens, masked = torch.randint(16, (1, 64)), torch.ones(1, 64, dtype=torch.bool)
    with pytest.raises(ValueError, match=message):
        model.train()(input_ids=tokens, bool_masked_pos=masked, **kwargs)


@pytest.mark.parametrize("guidance_scale", [0.0, 2.0])
def test_generation_reads_hidden_tokens_alone_and_stays_the_same(small_config, guidance_scale: float, monkeypatch):
    model = MageForMaskedImageModeling(type(small_config)(**small_config.to_dict() | {"num_classes": 3})).eval()
    pipe = MagePipeline(model, MageScheduler(model.config.mask_token_id, num_inference_steps=6))
    pipe.set_progress_bar_config(disable=True)

    def generate() -> torch.Tensor:
        generator = [torch.Generator().manual_seed(seed) for seed in range(4)]
        return pipe(
            ["0", "2"], num_images=2, guidance_scale=guidance_scale, generator=generator, output_type="latent"
        )[0]

    model.config.id2label = {0: "0", 1: "1", 2: "2"}
    read = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *args, **kwargs: read.append(kwargs) or forward(*args, **kwargs))
    sparing = generate()
    assert [len(kwargs["read_positions"][0]) for kwargs in read[1:]] == [62, 56, 46, 33, 17]
    monkeypatch.setattr(MageScheduler, "max_masked", lambda self, step, length: length)
    assert torch.equal(generate(), sparing)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "square_root", "exponential", "cubic"])
def test_no_more_tokens_are_hidden_than_the_schedule_says(small_model, schedule: str):
    scheduler = MageScheduler(small_model.config.mask_token_id, num_inference_steps=7, masking_schedule=schedule)
    pipe = MagePipeline(small_model, scheduler)
    pipe.set_progress_bar_config(disable=True)

    steps = pipe(3, return_steps=True).steps

    hidden = (steps == small_model.config.mask_token_id).sum(dim=(2, 3)).amax(dim=1).tolist()
    assert all(count <= scheduler.max_masked(step + 1, 64) for step, count in enumerate(hidden))
