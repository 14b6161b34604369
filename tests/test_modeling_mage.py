import copy
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForMaskedImageModeling

from transformers_mage import (
    MageConfig,
    MageForImageClassification,
    MageForMaskedImageModeling,
    MageModel,
    sample_masks,
)
from transformers_mage.modeling_mage import check_weights, interpolate_position_embeddings


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


# As other models behave


def test_integer_masks_are_as_good_as_bool_ones(small_model, small_config):
    tokens, masks = tokens_of(small_config), masks_of(small_config)
    integers = masks | {name: masks[name].long() for name in ("bool_masked_pos", "bool_dropped_pos")}

    assert torch.equal(small_model(input_ids=tokens, **masks).logits, small_model(input_ids=tokens, **integers).logits)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_masked_is_nothing_to_learn(small_model, small_config, training):
    """A loss of 0 rather than an error: one such batch must not end a run, and every process needs a way back."""
    loss = small_model.train(training)(
        input_ids=tokens_of(small_config), bool_masked_pos=torch.zeros(2, 64, dtype=torch.bool)
    ).loss
    loss.backward()

    assert loss == 0
    assert all(p.grad is None or not p.grad.any() for p in small_model.parameters())
    assert small_model.head.dense.weight.grad is not None


def test_tuples_when_the_configuration_asks_for_them(small_config, pixel_values):
    for model_class in (MageModel, MageForMaskedImageModeling, MageForImageClassification):
        model = model_class(small_config).eval()
        expected = model(pixel_values)
        model.config.return_dict = False

        assert isinstance(model(pixel_values), tuple)
        assert torch.equal(model(pixel_values)[0], expected[0])
        assert torch.equal(model(pixel_values, return_dict=True)[0], expected[0])
        model.config.return_dict = True


def test_vocabulary_keeps_its_size(small_model, small_config):
    before = copy.deepcopy(small_model.state_dict())

    with pytest.raises(ValueError, match="cannot be resized: its 1017 entries are the 16 codes of its tokenizer"):
        small_model.resize_token_embeddings(2000)

    assert small_model.resize_token_embeddings() is small_model.get_input_embeddings()
    assert small_model.resize_token_embeddings(1017) is small_model.get_input_embeddings()
    assert all(torch.equal(weight, before[name]) for name, weight in small_model.state_dict().items())
    assert small_model.config.vocab_size == small_config.vocab_size


@pytest.mark.parametrize("label", [-2, 3])
def test_classes_that_do_not_exist_are_refused(small_config, label):
    model = MageForMaskedImageModeling(MageConfig(**{**small_config.to_dict(), "num_classes": 3}))

    with pytest.raises(ValueError, match=f"from 0 to 2, or -1 for no class, got {label}"):
        model(input_ids=tokens_of(small_config), class_labels=torch.tensor([0, label]))


@pytest.mark.parametrize(
    "cast",
    [
        lambda model: model.half(),
        lambda model: model.bfloat16(),
        lambda model: model.to(torch.bfloat16),
        lambda model: model.to("cpu", torch.float16),
        lambda model: model.to(dtype=torch.bfloat16).to(torch.float16),
        lambda model: model.type(torch.bfloat16),
    ],
    ids=["half", "bfloat16", "to", "to with a device", "to twice", "type"],
)
def test_casts_leave_the_tokenizer_in_float32(small_model, pixel_values, cast):
    tokens = small_model.get_image_tokens(pixel_values)

    model = cast(small_model)

    assert model.dtype in (torch.float16, torch.bfloat16)
    assert {parameter.dtype for parameter in model.mage.vqvae.parameters()} == {torch.float32}
    assert list(model.state_dict()) == list(MageForMaskedImageModeling(model.config).state_dict())
    assert torch.equal(model.get_image_tokens(pixel_values), tokens)
    assert model.to("meta").mage.vqvae.device.type == "meta"


def test_the_tokenizer_itself_is_cast_by_name(small_model):
    small_model.mage.vqvae.to(torch.bfloat16)
    assert small_model.mage.vqvae.dtype == torch.bfloat16

    assert small_model.float().mage.vqvae.dtype == torch.float32


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


def remove_weights(folder: Path, *parts: str):
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not any(part in name for part in parts)}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("parts", "auto_class", "message"),
    [
        (["vqvae."], AutoModel, r"lacks .*\(vqvae\..*tokenizer is incomplete: pass `vq_config=None`"),
        (["vqvae.encoder.conv_in"], AutoModelForImageClassification, r"lacks 2 .*mage\.vqvae\.encoder\.conv_in"),
        (["vqvae.quantize"], AutoModelForMaskedImageModeling, "lacks 1 of the weights of MageForMaskedImageModeling"),
        (["decoder.layers", "decoder.embed"], AutoModelForMaskedImageModeling, "holds? an encoder only"),
        (["mage.layers.1.mlp"], AutoModel, "lacks 4 .* Download, convert or save it again"),
        (["mage.embeddings"], AutoModelForImageClassification, "lacks 4 .*mage.embeddings"),
    ],
)
def test_missing_weights_are_refused_where_random_ones_would_be_used(
    small_model, tmp_path, parts, auto_class, message
):
    small_model.mage.vqvae = small_model.mage.vqvae if "vqvae" in parts[0] else None
    small_model.config.vq_config = small_model.config.vq_config if "vqvae" in parts[0] else None
    small_model.save_pretrained(tmp_path)
    remove_weights(tmp_path, *parts)

    with pytest.raises(ValueError, match=message):
        auto_class.from_pretrained(tmp_path)


def test_weights_stored_as_integers_are_refused(small_model, tmp_path):
    small_model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["head.dense.weight"] = weights["head.dense.weight"].long()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ValueError, match=r"1 of its weights as whole numbers \(head.dense.weight as I64\)"):
        MageForMaskedImageModeling.from_pretrained(tmp_path)


def test_models_load_without_a_tokenizer_that_is_incomplete(small_model, small_config, tmp_path):
    small_model.save_pretrained(tmp_path)
    remove_weights(tmp_path, "vqvae.encoder")

    loaded = MageForMaskedImageModeling.from_pretrained(tmp_path, vq_config=None)

    tokens = tokens_of(small_config)
    assert torch.equal(loaded(input_ids=tokens).logits, small_model(input_ids=tokens).logits)


def test_added_classes_may_be_new_but_not_lost(small_config, tmp_path):
    classes = {**small_config.to_dict(), "num_classes": 3}
    MageForMaskedImageModeling(small_config).save_pretrained(tmp_path / "unconditional")
    MageForMaskedImageModeling(MageConfig(**classes)).save_pretrained(tmp_path / "conditional")
    remove_weights(tmp_path / "conditional", "class_embeddings")

    added = MageForMaskedImageModeling.from_pretrained(tmp_path / "unconditional", config=MageConfig(**classes))

    assert added.mage.embeddings.class_embeddings.num_embeddings == 3
    with pytest.raises(ValueError, match="class_embeddings"):
        MageForMaskedImageModeling.from_pretrained(tmp_path / "conditional")


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["head.dense.weight", "mage.vqvae.quantize.embedding.weight"])
def test_weights_that_are_not_finite_are_named(small_model, value, name):
    check_weights(small_model)
    small_model.get_parameter(name).data[0, 1] = value

    with pytest.raises(ValueError, match=f"1 of the weights of MageForMaskedImageModeling .* \\({name}\\)"):
        check_weights(small_model)
    check_weights(small_model.half().decoder)


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
        (call_with(input_ids=GOOD_TOKENS, bool_masked_pos=GOOD_MASK.float()), "must be a bool tensor, or .*float32"),
        (call_with(input_ids=GOOD_TOKENS, bool_masked_pos=2 * GOOD_MASK.long()), "0 and 1 only, got 2"),
        (call_with(input_ids=GOOD_TOKENS, bool_masked_pos=GOOD_MASK, num_masked=127), "is 127, but .* masks 128"),
        (call_with(input_ids=GOOD_TOKENS, bool_masked_pos=GOOD_MASK, num_masked=129), r"from 0 to 128 .*, got 129"),
        (call_with(input_ids=GOOD_TOKENS, bool_masked_pos=GOOD_MASK, num_masked=-1), "got -1"),
        (call_with(input_ids=GOOD_TOKENS, num_dropped=3), "`bool_dropped_pos`, which says where, is missing"),
        (
            call_with(
                input_ids=GOOD_TOKENS, bool_masked_pos=GOOD_MASK, bool_dropped_pos=GOOD_MASK, num_dropped=63
            ),
            "`num_dropped` = 63 positions in every image, got between 64 and 64",
        ),
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


def test_a_pickle_of_more_than_tensors_is_not_read(small_model: MageForMaskedImageModeling, tmp_path: Path):
    """transformers advises to read it nevertheless."""
    small_model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"weight": Path("somewhere")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="Nothing in it was run"):
        MageForMaskedImageModeling.from_pretrained(tmp_path)
