"""Steps between full ones compute only what was hidden there, and look at the others as they were (ReCAP)."""

from collections.abc import Sequence

import numpy as np
import PIL.Image
import pytest
import torch

from transformers_mage import MageConfig, MageForMaskedImageModeling, MagePipeline, MageScheduler

STEPS = 6


def pipeline(model: MageForMaskedImageModeling, **kwargs) -> MagePipeline:
    pipe = MagePipeline(model, MageScheduler(model.config.mask_token_id, num_inference_steps=STEPS), **kwargs)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def model(small_config: MageConfig) -> MageForMaskedImageModeling:
    small_config.num_classes = 3
    return MageForMaskedImageModeling(small_config).eval()


@pytest.fixture
def calls(model, monkeypatch) -> list[tuple[dict, torch.Tensor]]:
    """What the model was asked for and the logits that it gave, step by step."""
    forward, calls = model.forward, []

    def record(**kwargs):
        output = forward(**kwargs)
        calls.append((kwargs, output.logits))
        return output

    monkeypatch.setattr(model, "forward", record)
    return calls


def num_reused(call: tuple[dict, torch.Tensor]) -> int:
    """Tokens of each image that a step did not compute."""
    kwargs, _ = call
    return kwargs["context_positions"].shape[1] if kwargs.get("context_key_values") else 0


# The approximation, written down image by image, layer by layer.

KeyValues = dict[int, tuple[torch.Tensor, torch.Tensor]]


def run_layers(
    layers: Sequence[torch.nn.Module], hidden: torch.Tensor, computed: list[int], old: list[KeyValues]
) -> tuple[torch.Tensor, list[KeyValues]]:
    """Layers over the positions `computed`, which also look at `old` ones. Position -1 is the class token's."""
    all_keys_and_values = []
    for layer, others in zip(layers, old, strict=True):
        attention, normalized = layer.attention, layer.layernorm_before(hidden)
        queries, keys, values = (
            project(normalized).view(len(computed), -1, attention.head_dim)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        all_keys_and_values.append({p: (keys[i], values[i]) for i, p in enumerate(computed)})
        known = {**others, **all_keys_and_values[-1]}
        seen_keys, seen_values = (torch.stack([known[p][part] for p in known]) for part in (0, 1))
        scores = torch.einsum("qhd,khd->hqk", queries, seen_keys) * attention.head_dim**-0.5
        attended = torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), seen_values).flatten(1)
        hidden = hidden + attention.o_proj(attended)
        hidden = hidden + layer.mlp(layer.layernorm_after(hidden))
    return hidden, all_keys_and_values


def plain_step(
    model: MageForMaskedImageModeling,
    tokens: torch.Tensor,
    dropped: list[int],
    context: list[int],
    old: tuple[list[KeyValues], list[KeyValues]],
) -> tuple[dict[int, torch.Tensor], tuple[list[KeyValues], list[KeyValues]]]:
    """Logits of the positions that are not in the context, and all keys and values of the encoder and the decoder."""
    mask, embeddings = model.config.mask_token_id, model.mage.embeddings
    computed = [-1, *(p for p in range(len(tokens)) if p not in context and p not in dropped)]
    ids = torch.tensor([model.config.unconditional_token_id if p < 0 else int(tokens[p]) for p in computed])
    places = embeddings.position_embeddings[0, [p + 1 for p in computed]]
    hidden = embeddings.layernorm(embeddings.word_embeddings(ids) + places)
    hidden, encoder_kv = run_layers(model.mage.layers, hidden, computed, old[0])
    features = dict(zip(computed, model.decoder.embed(model.mage.layernorm(hidden)), strict=True))

    positions = [-1, *(p for p in range(len(tokens)) if p not in context)]
    grid = torch.stack([features[-1] if p < 0 or tokens[p] == mask else features[p] for p in positions])
    hidden = grid + model.decoder.position_embeddings[0, [p + 1 for p in positions]]
    hidden, decoder_kv = run_layers(model.decoder.layers, hidden, positions, old[1])
    codes = embeddings.word_embeddings.weight[: model.config.codebook_size]
    logits = model.head(model.decoder.layernorm(hidden), codes)
    return dict(zip(positions, logits, strict=True)), (encoder_kv, decoder_kv)


@torch.no_grad()
def check_against_plain(model, full: dict, reusing: dict, logits: torch.Tensor, image: int):
    def arguments(call: dict) -> tuple[torch.Tensor, list[int]]:
        dropped = call["bool_dropped_pos"][image].nonzero().flatten().tolist() if "bool_dropped_pos" in call else []
        return call["input_ids"][image].flatten(), dropped

    nothing = tuple([{}] * len(layers) for layers in (model.mage.layers, model.decoder.layers))
    context = reusing["context_positions"][image].tolist()
    _, kept = plain_step(model, *arguments(full), [], nothing)
    old = tuple([{p: layer[p] for p in context} for layer in part] for part in kept)
    expected, _ = plain_step(model, *arguments(reusing), context, old)
    read = reusing["read_positions"][image].tolist()
    torch.testing.assert_close(logits[image], torch.stack([expected[p] for p in read]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("encoder_keep_share", [None, 0.5])
def test_it_is_the_approximation_as_written_down(model, calls, encoder_keep_share):
    pipeline(model, full_steps=3, encoder_keep_share=encoder_keep_share)(2, generator=seeded())

    # Nothing is known when the first step begins; 18 tokens of 64 are, at least, when the fourth does.
    assert [num_reused(call) for call in calls] == [0, 0, 0, 0, 18, 18]
    (full, _), *reusing = calls[3:]
    for kwargs, logits in reusing:
        for image in range(2):
            check_against_plain(model, full, kwargs, logits, image)


def test_full_steps_are_what_they_are_without_others(model, calls):
    pipeline(model, full_steps=[2, 4])(2, generator=seeded())
    recording = [call for call in calls if "context_positions" in call[0] and not num_reused(call)]

    assert len(recording) == 2
    for kwargs, logits in recording:
        plain = {name: value for name, value in kwargs.items() if not name.startswith("context")}
        with torch.no_grad():
            assert torch.equal(model(**plain).logits, logits)


@pytest.mark.parametrize("full_steps", [1, range(STEPS)])
@pytest.mark.parametrize("encoder_keep_share", [None, 0.5])
def test_with_every_step_full_nothing_changes(model, calls, full_steps, encoder_keep_share):
    expected = pipeline(model, encoder_keep_share=encoder_keep_share)(2, generator=seeded(), output_type="latent")
    pipe = pipeline(model, encoder_keep_share=encoder_keep_share, full_steps=full_steps)

    assert torch.equal(pipe(2, generator=seeded(), output_type="latent").images, expected.images)
    assert all("context_positions" not in kwargs for kwargs, _ in calls)


def test_an_image_does_not_depend_on_the_others(model):
    pipe = pipeline(model, full_steps=2, encoder_keep_share=0.5)

    together = pipe(3, generator=[seeded(i) for i in range(3)], output_type="latent").images

    for i in range(3):
        assert torch.equal(pipe(generator=[seeded(i)], output_type="latent").images[0], together[i])


def test_a_step_where_guidance_begins_or_ends_is_full(model, calls):
    pipe = pipeline(model, full_steps=[1])
    pipe(class_labels=[0, 2], guidance_scale=2.0, guidance_interval=(0.5, 0.8))

    assert [(len(kwargs["input_ids"]), num_reused(call)) for call in calls for kwargs in call[:1]] == [
        (2, 0), (2, 0), (2, 2), (4, 0), (4, 2), (2, 0),
    ]  # fmt: skip


def test_editing_computes_what_is_kept_once(model, calls):
    """A quarter of the image is repainted."""
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[:16, :16] = 255

    pipeline(model, full_steps=STEPS)(image=PIL.Image.new("RGB", (32, 32)), mask_image=mask)

    # After a first look, for a guess.
    assert [num_reused(call) for call in calls[1:]] == [0] + 5 * [48]


def test_larger_canvases(model, calls):
    images = pipeline(model, full_steps=2, encoder_keep_share=0.5)(height=48, width=32, output_type="latent").images

    assert images.shape == (1, 12, 8)
    assert num_reused(calls[-1]) > 0


def test_tokens_that_a_callback_changes_are_computed(model, calls):
    def hide_the_first(pipe, step, timestep, tensors):
        if step == 4:
            tensors["tokens"][:, :8] = model.config.mask_token_id
            return {"tokens": tensors["tokens"]}
        return None

    pipeline(model, full_steps=[3])(callback_on_step_end=hide_the_first)

    assert num_reused(calls[4]) > 0
    assert num_reused(calls[5]) == 0


def test_they_are_saved_with_the_pipeline(model, tmp_path):
    pipeline(model, full_steps=(0, 2)).save_pretrained(tmp_path / "some")
    pipeline(model).save_pretrained(tmp_path / "all")

    assert MagePipeline.from_pretrained(tmp_path / "some").config.full_steps == [0, 2]
    assert MagePipeline.from_pretrained(tmp_path / "some", full_steps=3).config.full_steps == 3
    assert "full_steps" not in (tmp_path / "all" / "model_index.json").read_text()


@pytest.mark.parametrize(
    ("value", "message"),
    [(0, "every how many steps .* of at least 1, got 0"), ([0, -1], "numbers of steps, .* at least 0, got -1"),
     ("all", "got 'all'")],
)  # fmt: skip
def test_steps_that_do_not_exist(model, value, message):
    with pytest.raises(ValueError, match=f"`full_steps` must be {message}" if message[0] != "g" else message):
        pipeline(model, full_steps=value)


def test_the_model_says_what_is_missing(model):
    tokens, positions = torch.zeros(1, 64, dtype=torch.long), torch.arange(4)[None]
    kept = model(input_ids=tokens, context_positions=positions).context_key_values

    with pytest.raises(ValueError, match="pass `read_positions`"):
        model(input_ids=tokens, context_positions=positions, context_key_values=kept)
    with pytest.raises(ValueError, match="without the `context_positions` that they belong to"):
        model(input_ids=tokens, context_key_values=kept, read_positions=positions + 4)
