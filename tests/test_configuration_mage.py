import pytest
from huggingface_hub.errors import StrictDataclassError

from tests.conftest import SMALL_VQ_CONFIG
from transformers_mage import MageConfig


def test_default_is_the_published_base_model_without_a_tokenizer():
    config = MageConfig()

    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (768, 12, 12)
    assert (config.decoder_hidden_size, config.decoder_num_hidden_layers) == (768, 8)
    assert config.decoder_num_attention_heads == 16
    assert (config.vocab_size, config.mask_token_id, config.unconditional_token_id) == (2025, 2024, 1100)
    assert config.grid_size == (16, 16)
    assert config.vq_config is None


@pytest.mark.parametrize("image_size", [(64, 32), [64, 32]])
def test_sizes_follow_from_the_configuration(image_size):
    config = MageConfig(image_size=image_size)

    assert (config.image_height_width, config.grid_size, config.sequence_length) == ((64, 32), (4, 2), 8)
    assert MageConfig(image_size=64).image_height_width == (64, 64)
    assert config.num_channels == 3
    grey = MageConfig(patch_size=4, codebook_size=16, vq_config=SMALL_VQ_CONFIG | {"in_channels": 1})
    assert grey.num_channels == 1


def test_saved_and_loaded_config_is_the_same(tmp_path, small_config):
    small_config.save_pretrained(tmp_path)

    assert MageConfig.from_pretrained(tmp_path).to_dict() == small_config.to_dict()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_attention_heads": 5}, r"must divide `hidden_size` \(768\), got 5"),
        ({"decoder_num_attention_heads": 7}, r"must divide `decoder_hidden_size` \(768\), got 7"),
        ({"hidden_size": 0}, "`hidden_size` must be at least 1, got 0"),
        (
            {"mask_ratio_min": 0.9, "mask_ratio_max": 0.6},
            "0 < `mask_ratio_min` <= .* got 0.9 and 0.6",
        ),
        ({"mask_ratio_std": -1}, "`mask_ratio_std` must be 0"),
        ({"drop_ratio": 0.6}, r"`drop_ratio` must lie between 0 and `mask_ratio_min` \(0.5\), got 0.6"),
        ({"hidden_act": "gelux"}, "`hidden_act` must be one of .*'gelu'.*, got 'gelux'"),
        ({"intermediate_size": -1}, "`intermediate_size` must be at least 1, got -1"),
        ({"layer_norm_eps": 0.0}, "`layer_norm_eps` must be above 0"),
        ({"initializer_range": float("nan")}, "`initializer_range` must be 0 or more and finite, got nan"),
        ({"mask_ratio_mean": float("nan")}, "`mask_ratio_mean` must lie between .* got nan"),
        ({"mask_ratio_mean": 1e9}, "at most 6 `mask_ratio_std` \\(0.25\\) outside, got 1000000000.0"),
        ({"mask_ratio_std": float("inf")}, "`mask_ratio_std` must be 0 .* finite, got inf"),
        ({"image_size": 250}, r"multiple of `patch_size` \(16\), got 250"),
        ({"hidden_dropout_prob": 1.5}, "between 0 and 1, got 1.5"),
        ({"num_classes": -1}, "got -1"),
        ({"classifier_pooling": "max"}, 'must be "mean" or "cls", got "max"'),
        ({"vq_config": SMALL_VQ_CONFIG}, "`codebook_size` is 1024 but the tokenizer of `vq_config` has 16 codes"),
        ({"vq_config": SMALL_VQ_CONFIG, "codebook_size": 16}, "Pass `patch_size=4`"),
        ({"hidden_size": "wide"}, "expected int, got str"),
    ],
)
def test_wrong_values_are_refused_with_what_would_do(wrong, message):
    with pytest.raises(StrictDataclassError, match=message):
        MageConfig(**wrong)
