import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForMaskedImageModeling

from transformers_mage import (
    MageConfig,
    MageForImageClassification,
    MageForMaskedImageModeling,
    MageModel,
    sample_masks,
)
from transformers_mage.modeling_mage import interpolate_position_embeddings


def tokens_of(config: MageConfig, batch_size: int = 2) -> torch.Tensor:
    return torch.randint(config.codebook_size, (batch_size, config.sequence_length))


def masks_of(config: MageConfig, batch_size: int = 2) -> dict:
    return sample_masks(config, batch_size, generator=torch.Generator().manual_seed(0)).as_kwargs()


def without_dropout(config: MageConfig) -> MageConfig:
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    return config


# Features


def test_features_from_pixels_are_those_of_their_tokens(small_model, pixel_values):
    tokens = small_model.get_image_tokens(pixel_values)

    from_pixels, from_tokens = small_model.mage(pixel_values), small_model.mage(input_ids=tokens)

    assert from_pixels.last_hidden_state.shape == (2, 1 + 64, 32)
    assert from_pixels.pooler_output.shape == (2, 32)
    assert torch.equal(from_pixels.last_hidden_state, from_tokens.last_hidden_state)


def test_hidden_states_and_attentions_come_when_asked_for(small_model, pixel_values):
    small_model.set_attn_implementation("eager")
    outputs = small_model.mage(pixel_values, output_hidden_states=True, output_attentions=True)

    assert [state.shape for state in outputs.hidden_states] == [(2, 65, 32)] * 3
    assert [attention.shape for attention in outputs.attentions] == [(2, 2, 65, 65)] * 2
    last = outputs.hidden_states[-1]
    assert torch.equal(small_model.mage.layernorm(last), outputs.last_hidden_state)
    assert torch.allclose(last[:, 1:].mean(dim=1), outputs.pooler_output)


def test_hidden_states_of_the_whole_model_are_the_encoders(small_model, pixel_values):
    outputs = small_model(pixel_values, output_hidden_states=True)

    assert [state.shape for state in outputs.hidden_states] == [(2, 65, 32)] * 3


def test_encoder_sees_kept_tokens_alone(small_model, small_config):
    """What is dropped does not change the features of the rest, whatever it is."""
    tokens, masks = tokens_of(small_config), masks_of(small_config)
    others = torch.where(masks["bool_dropped_pos"], tokens_of(small_config), tokens)
    hide = {"bool_masked_pos": masks["bool_masked_pos"], "bool_dropped_pos": masks["bool_dropped_pos"]}

    features = small_model.mage(input_ids=tokens, **hide).last_hidden_state

    assert features.shape == (2, 1 + 32, 32)
    assert torch.equal(features, small_model.mage(input_ids=others, **hide).last_hidden_state)


def test_larger_grids_interpolate_when_asked_to(small_model):
    pixels = torch.rand(1, 3, 48, 40)

    with pytest.raises(ValueError, match=r"trained on grids of \(8, 8\) .* got \(12, 10\).*interpolate_pos_encoding"):
        small_model(pixels)
    outputs = small_model(pixels, interpolate_pos_encoding=True)
    assert outputs.logits.shape == (1, 120, 16)


def test_interpolation_at_the_trained_size_is_the_trained_embedding():
    embeddings = torch.randn(1, 1 + 12, 8)

    assert interpolate_position_embeddings(embeddings, (3, 4), (3, 4)) is embeddings
    larger = interpolate_position_embeddings(embeddings, (3, 4), (6, 8))
    assert larger.shape == (1, 1 + 48, 8)
    assert torch.equal(larger[:, 0], embeddings[:, 0])


def test_oblong_grids(small_config):
    config = MageConfig(**{**small_config.to_dict(), "image_size": (32, 16)})
    model = MageForMaskedImageModeling(config).eval()

    assert model(torch.rand(1, 3, 32, 16)).logits.shape == (1, 32, 16)
    assert model.decode_image_tokens(tokens_of(config)).shape == (2, 3, 32, 16)


# Masked image modeling


def test_logits_everywhere_and_loss_where_masked(small_model, small_config):
    tokens, masks = tokens_of(small_config), masks_of(small_config)
    outputs = small_model(input_ids=tokens, **masks)

    masked = masks["bool_masked_pos"]
    expected = torch.nn.functional.cross_entropy(outputs.logits[masked], tokens[masked], label_smoothing=0.1)
    assert outputs.logits.shape == (2, 64, 16)
    assert torch.equal(outputs.masked_logits, outputs.logits[masked])
    assert torch.equal(outputs.masked_labels, tokens[masked])
    assert torch.allclose(outputs.loss, expected)


def test_hints_about_counts_change_nothing(small_model, small_config):
    tokens, masks = tokens_of(small_config), masks_of(small_config)
    bare = {name: masks[name] for name in ("bool_masked_pos", "bool_dropped_pos")}

    assert torch.equal(small_model(input_ids=tokens, **masks).loss, small_model(input_ids=tokens, **bare).loss)


def test_unknown_tokens_are_predicted_without_masks(small_model, small_config):
    """Generation: masked ids in `input_ids` are as good as `bool_masked_pos`."""
    tokens, masked = tokens_of(small_config), masks_of(small_config)["bool_masked_pos"]
    hidden = tokens.masked_fill(masked, small_config.mask_token_id)

    outputs = small_model(input_ids=hidden)

    assert outputs.loss is None
    assert torch.equal(outputs.logits, small_model(input_ids=tokens, bool_masked_pos=masked).logits)


def test_training_computes_no_more_than_the_evaluation_of_masked_positions(small_config):
    model = MageForMaskedImageModeling(without_dropout(small_config))
    tokens, masks = tokens_of(small_config), masks_of(small_config)

    training, evaluation = model.train()(input_ids=tokens, **masks), model.eval()(input_ids=tokens, **masks)

    assert training.logits is None
    assert torch.allclose(training.masked_logits, evaluation.masked_logits, atol=1e-6)
    assert torch.allclose(training.loss, evaluation.loss)


def test_flops_of_a_training_step_are_the_models_own():
    """
    The encoder at kept tokens, the decoder at all, but what is only read of its last layer at masked ones, as the
    head over the codes; three times that.
    """
    config = MageConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=1, decoder_hidden_size=32,
        decoder_num_hidden_layers=2, decoder_num_attention_heads=1, codebook_size=100,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, mask_ratio_mean=0.75, mask_ratio_std=0.0,
    )  # fmt: skip
    model = MageForMaskedImageModeling(config).train()
    model.set_attn_implementation("eager")  # the counter does not know the fused attention of CPUs
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens_of(config), **masks_of(config)).loss.backward()

    def layers(number: int, length: int, width: int) -> int:
        return number * length * (12 * width**2 + 2 * length * width)

    last_layer = 257 * 2 * 32**2 + 192 * (10 * 32**2 + 2 * 257 * 32)
    forward = layers(3, 129, 64) + layers(1, 257, 32) + last_layer + 129 * 64 * 32 + 192 * 64 * (32 + 100)
    assert counter.get_total_flops() == pytest.approx(2 * 3 * 2 * forward, rel=0.03)


def test_gradients_reach_every_parameter_but_the_tokenizers(small_config):
    model = MageForMaskedImageModeling(small_config).train()

    model(input_ids=tokens_of(small_config), **masks_of(small_config)).loss.backward()

    without_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without_gradient == {name for name in model.state_dict() if "vqvae" in name}


def test_gradient_checkpointing_computes_the_same_gradients(small_config):
    model = MageForMaskedImageModeling(without_dropout(small_config)).train()
    tokens, masks = tokens_of(small_config), masks_of(small_config)

    def gradient() -> torch.Tensor:
        model.zero_grad()
        model(input_ids=tokens, **masks).loss.backward()
        return model.mage.embeddings.word_embeddings.weight.grad.clone()

    plain = gradient()
    model.activation_checkpointing_enable()
    assert torch.allclose(plain, gradient(), atol=1e-7)


def test_initialisation_is_the_originals():
    config = MageConfig(num_hidden_layers=1, decoder_num_hidden_layers=1)
    model = MageForMaskedImageModeling(config).requires_grad_(False)

    layer = model.mage.layers[0]
    fused_bound = math.sqrt(6 / (768 + 3 * 768))
    assert layer.attention.q_proj.weight.abs().max() == pytest.approx(fused_bound, rel=1e-3)
    assert layer.mlp.fc1.weight.abs().max() == pytest.approx(math.sqrt(6 / (768 + 3072)), rel=1e-3)
    assert layer.mlp.fc1.bias.abs().max() == 0
    assert model.head.bias.abs().max() == 0
    for weight in (model.mage.embeddings.word_embeddings.weight, model.decoder.position_embeddings):
        assert weight.std() == pytest.approx(0.02, rel=0.02)


def test_codebook_of_a_new_tokenizer_starts_as_that_of_diffusers(small_model):
    codebook = small_model.mage.vqvae.quantize.embedding.weight

    assert codebook.abs().max() <= 1 / 16
    assert codebook.abs().max() > 0.9 / 16


def test_base_and_large_have_the_published_sizes():
    with torch.device("meta"):
        base = MageForMaskedImageModeling(MageConfig())
        large = MageForMaskedImageModeling(
            MageConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, decoder_hidden_size=1024)
        )

    # The original counts what it never uses: 1.2 M, most of it a patch embedding and a pixel head.
    assert sum(p.numel() for p in base.parameters()) == pytest.approx(145e6, rel=0.01)
    assert sum(p.numel() for p in large.parameters()) == pytest.approx(408e6, rel=0.01)


# Classification


def test_probe_is_a_batch_norm_before_the_linear_layer(small_config, pixel_values):
    config = MageConfig(
        **{**small_config.to_dict(), "classifier_batch_norm": True, "id2label": {0: "a", 1: "b", 2: "c"}}
    )
    model = MageForImageClassification(config).eval()
    outputs = model(pixel_values, labels=torch.tensor([0, 2]))

    features = model.fc_norm(model.mage(pixel_values).pooler_output)
    assert outputs.logits.shape == (2, 3)
    assert torch.allclose(outputs.logits, model.classifier(features / math.sqrt(1 + 1e-6)))
    assert torch.allclose(outputs.loss, torch.nn.functional.cross_entropy(outputs.logits, torch.tensor([0, 2])))


def test_classifier_of_the_class_token(small_config, pixel_values):
    config = MageConfig(**{**small_config.to_dict(), "classifier_pooling": "cls"})
    model = MageForImageClassification(config).eval()

    features = model.mage(pixel_values).last_hidden_state[:, 0]
    assert torch.allclose(model(pixel_values).logits, model.classifier(features))


def classifier_of(config: MageConfig, num_labels: int, **values) -> MageForImageClassification:
    return MageForImageClassification(MageConfig(**{**config.to_dict(), "num_labels": num_labels, **values}))


def test_soft_labels_of_one_class_are_that_class(small_config, pixel_values):
    model = classifier_of(small_config, 3, problem_type="single_label_classification").eval()
    labels = torch.tensor([0, 2])
    one_hot = torch.nn.functional.one_hot(labels, 3).float()

    assert torch.allclose(model(pixel_values, labels=one_hot).loss, model(pixel_values, labels=labels).loss)


def test_labels_are_smoothed_while_training_alone(small_config, pixel_values):
    model = classifier_of(without_dropout(small_config), 4, classifier_label_smoothing=0.2)
    labels = torch.tensor([0, 3])
    training, evaluation = model.train()(pixel_values, labels=labels), model.eval()(pixel_values, labels=labels)

    smoothed = torch.nn.functional.one_hot(labels, 4) * 0.8 + 0.05
    expected = -(smoothed * training.logits.log_softmax(dim=1)).sum(dim=1).mean()
    assert torch.allclose(training.loss, expected)
    assert torch.allclose(evaluation.loss, torch.nn.functional.cross_entropy(evaluation.logits, labels))


@pytest.mark.parametrize(
    ("num_labels", "labels", "loss_function", "problem_type"),
    [
        (2, torch.tensor([[1.0, 1.0], [0.0, 1.0]]), "binary_cross_entropy_with_logits", "multi_label_classification"),
        (1, torch.tensor([0.5, 2.0]), "mse_loss", "regression"),
        (3, torch.tensor([2, -100]), "cross_entropy", None),
    ],
    ids=["several labels", "regression", "one that does not count"],
)  # fmt: skip
def test_problem_types_are_those_of_transformers(
    small_config, pixel_values, num_labels, labels, loss_function, problem_type
):
    model = classifier_of(small_config, num_labels).eval()
    outputs = model(pixel_values, labels=labels)

    expected = getattr(torch.nn.functional, loss_function)(outputs.logits.squeeze(1), labels)
    assert torch.allclose(outputs.loss, expected)
    assert model.config.problem_type == problem_type


@pytest.mark.parametrize("label", [3, -1])
def test_labels_that_are_no_classes_are_refused(small_config, pixel_values, label):
    with pytest.raises(ValueError, match=f"classes from 0 to 2, or -100, .* got {label}. .* `num_labels=N`"):
        classifier_of(small_config, 3)(pixel_values, labels=torch.tensor([0, label]))


def test_classifier_drops_paths_while_training_alone(small_config, pixel_values):
    model = classifier_of(without_dropout(small_config), 3, drop_path_rate=0.9)
    batch = pixel_values.repeat(8, 1, 1, 1)

    trained, evaluated = model.train()(batch).logits, model.eval()(batch).logits

    assert len(trained.unique(dim=0)) > 2
    assert torch.allclose(evaluated[0::2], evaluated[:1].expand(8, -1), atol=1e-5)


# Saving and loading


@pytest.mark.parametrize("max_shard_size", ["5GB", "40KB"])
def test_saved_and_loaded_model_gives_the_same_bits(small_model, pixel_values, tmp_path, max_shard_size):
    small_model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    expected = small_model(pixel_values)

    loaded = AutoModelForMaskedImageModeling.from_pretrained(tmp_path)
    encoder = AutoModel.from_pretrained(tmp_path)

    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_size == "40KB")
    assert isinstance(loaded, MageForMaskedImageModeling)
    assert isinstance(encoder, MageModel)
    assert torch.equal(loaded(pixel_values).logits, expected.logits)
    assert torch.equal(encoder(pixel_values).last_hidden_state, expected.encoder_last_hidden_state)


def test_classifier_starts_from_any_mage_folder(small_model, pixel_values, tmp_path):
    small_model.save_pretrained(tmp_path)

    classifier = AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=5)

    expected = small_model.mage(pixel_values).pooler_output
    assert torch.equal(classifier.mage(pixel_values).pooler_output, expected)
    assert classifier(pixel_values).logits.shape == (2, 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_tokenizer_exact(small_model, pixel_values, tmp_path, dtype):
    small_model.save_pretrained(tmp_path)
    loaded = MageForMaskedImageModeling.from_pretrained(tmp_path, dtype=dtype)
    full, half = small_model(pixel_values), loaded(pixel_values)

    assert loaded.dtype == dtype
    assert loaded.mage.vqvae.dtype == torch.float32
    assert torch.equal(loaded.get_image_tokens(pixel_values), small_model.get_image_tokens(pixel_values))
    error = (half.encoder_last_hidden_state.float() - full.encoder_last_hidden_state).norm()
    assert error / full.encoder_last_hidden_state.norm() < 4 * torch.finfo(dtype).eps

    loaded.save_pretrained(tmp_path / "again")
    again = MageForMaskedImageModeling.from_pretrained(tmp_path / "again", dtype="auto")
    assert torch.equal(again(pixel_values).logits, half.logits)


def test_loaded_tokenizer_stays_frozen(small_model, tmp_path):
    small_model.save_pretrained(tmp_path)
    loaded = MageForMaskedImageModeling.from_pretrained(tmp_path)

    assert not any(parameter.requires_grad for parameter in loaded.mage.vqvae.parameters())


def test_tokens_do_not_depend_on_autocast(small_model, pixel_values):
    tokens = small_model.get_image_tokens(pixel_values)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(small_model.get_image_tokens(pixel_values), tokens)


# Bad input


def call_with(**kwargs):
    return lambda model: model(**kwargs)


GOOD_TOKENS = torch.zeros(2, 64, dtype=torch.long)
GOOD_MASK = torch.ones(2, 64, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (call_with(), "either `pixel_values` or `input_ids`, got neither"),
        (call_with(pixel_values=torch.rand(2, 3, 32, 32), input_ids=GOOD_TOKENS), "got both"),
        (call_with(pixel_values=torch.rand(3, 32, 32)), r"shape \(batch_size, 3, height, width\), got \(3, 32, 32\)"),
        (call_with(pixel_values=torch.rand(2, 1, 32, 32)), r"got \(2, 1, 32, 32\)"),
        (call_with(pixel_values=torch.rand(2, 3, 30, 32)), "multiples of 4 pixels"),
        (call_with(pixel_values=torch.rand(2, 3, 0, 0)), "multiples of 4 pixels"),
        (call_with(pixel_values=torch.rand(0, 3, 32, 32)), r"got \(0, 3, 32, 32\)"),
        (call_with(pixel_values=torch.zeros(2, 3, 32, 32, dtype=torch.uint8)), "got torch.uint8. Use .* processor"),
        (call_with(input_ids=GOOD_TOKENS[:0]), r"not be empty, got \(0, 64\)"),
        (call_with(input_ids=GOOD_TOKENS.float()), "must be integers, got torch.float32"),
        (call_with(input_ids=GOOD_TOKENS[0]), r"got \(64,\)"),
        (call_with(input_ids=GOOD_TOKENS + 16), "codes from 0 to 15 or the mask token 1016, got 16"),
        (call_with(input_ids=GOOD_TOKENS - 1), "got -1"),
        (call_with(input_ids=GOOD_TOKENS[:, :60]), "60 tokens make no square"),
        (call_with(input_ids=GOOD_TOKENS[:, :49]), r"got \(7, 7\)"),
        (call_with(input_ids=GOOD_TOKENS, bool_masked_pos=GOOD_MASK[:, 1:]), r"shape \(2, 64\), got .* \(2, 63\)"),
        (call_with(input_ids=GOOD_TOKENS, bool_masked_pos=GOOD_MASK.long()), "must be a bool tensor"),
        (
            call_with(input_ids=GOOD_TOKENS, bool_masked_pos=~GOOD_MASK, bool_dropped_pos=GOOD_MASK),
            "`bool_masked_pos` does not mask",
        ),
        (
            call_with(
                input_ids=GOOD_TOKENS, bool_masked_pos=GOOD_MASK, bool_dropped_pos=GOOD_MASK.triu()
            ),
            "same number of positions in every image, got between 63 and 64",
        ),
        (
            call_with(input_ids=torch.full((2, 64), 1016), bool_masked_pos=GOOD_MASK),
            "no label to learn from",
        ),
        (call_with(input_ids=GOOD_TOKENS, class_labels=torch.zeros(2).long()), "unconditional model"),
    ],
)  # fmt: skip
def test_wrong_input_is_refused_with_what_would_do(small_model, call, message):
    with pytest.raises(ValueError, match=message):
        call(small_model)


def test_model_without_a_tokenizer_takes_tokens_alone(small_config):
    model = MageForMaskedImageModeling(MageConfig(**{**small_config.to_dict(), "vq_config": None})).eval()

    assert model(input_ids=tokens_of(small_config)).logits.shape == (2, 64, 16)
    with pytest.raises(ValueError, match=r"no tokenizer .* cannot take `pixel_values`. Pass `input_ids`"):
        model(torch.rand(2, 3, 32, 32))
    with pytest.raises(ValueError, match="cannot decode tokens"):
        model.decode_image_tokens(tokens_of(small_config))


def test_folder_that_is_no_model(tmp_path):
    with pytest.raises((OSError, ValueError), match=r"no file named model\.safetensors"):
        MageForMaskedImageModeling.from_pretrained(tmp_path)
