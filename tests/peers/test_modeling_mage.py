"""transformers' own tests of configurations and models, for all classes, with and without a tokenizer."""

import tempfile
import unittest

import pytest
import torch
from safetensors.torch import save_file
from transformers.models.auto import modeling_auto
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin

from tests.conftest import SMALL_VQ_CONFIG
from transformers_mage import MageConfig, MageForImageClassification, MageForMaskedImageModeling, MageModel

BATCH_SIZE = 3

# By these tables the mixins know what a class is for: which inputs and labels it takes.
modeling_auto.MODEL_MAPPING_NAMES["mage"] = "MageModel"
modeling_auto.MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING_NAMES["mage"] = "MageForMaskedImageModeling"
modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES["mage"] = "MageForImageClassification"


class MageModelTester:
    """What the mixins ask of every model: a small configuration, inputs for it, and the sizes of the outputs."""

    is_training = True
    batch_size = BATCH_SIZE
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 2
    image_size, patch_size = 32, 4
    # Class token and tokens; masks are of the tokens alone.
    seq_length, mask_length, num_masks = 1 + 64, 64, 32

    def __init__(self, vq_config: dict | None):
        self.vq_config = vq_config

    def get_config(self) -> MageConfig:
        return MageConfig(
            codebook_size=16,
            image_size=32,
            patch_size=4,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=37,
            decoder_hidden_size=24,
            decoder_num_hidden_layers=2,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=37,
            vq_config=self.vq_config,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[MageConfig, dict[str, torch.Tensor]]:
        if self.vq_config is None:
            return self.get_config(), {"input_ids": torch.randint(16, (BATCH_SIZE, 64))}
        return self.get_config(), {"pixel_values": torch.rand(BATCH_SIZE, 3, 32, 32)}


class ModelTests(ModelTesterMixin):
    """With a tokenizer."""

    all_model_classes = (MageModel, MageForMaskedImageModeling, MageForImageClassification)
    vq_config: dict | None = SMALL_VQ_CONFIG

    def setUp(self):
        self.model_tester = MageModelTester(self.vq_config)
        self.config_tester = ConfigTester(
            self, config_class=MageConfig, has_text_modality=False, hidden_size=32, num_attention_heads=2
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    def _prepare_for_class(self, inputs_dict: dict, model_class: type, return_labels: bool = False) -> dict:
        """Where the mixin masks nothing, which leaves empty logits that it cannot compare, everything is masked."""
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        mask = inputs.get("bool_masked_pos")
        if mask is not None and not mask.any():
            inputs["bool_masked_pos"] = torch.ones_like(mask)
        return inputs

    def test_correct_missing_keys(self):
        """
        The mixin loads every model from the base model's weights. A classifier may start so; a decoder may not, since
        it would make images of random weights.
        """
        config = self.model_tester.get_config()
        with tempfile.TemporaryDirectory() as folder:
            MageModel(config).save_pretrained(folder)
            _, info = MageForImageClassification.from_pretrained(folder, output_loading_info=True)
            assert "classifier.weight" in info["missing_keys"]
            with pytest.raises(ValueError, match="hold an encoder only"):
                MageForMaskedImageModeling.from_pretrained(folder)

    def test_base_model_prefix_loads_base_weights(self):
        """Of the classifier alone, since a decoder may not start from an encoder's folder (see above)."""
        self.all_model_classes = (MageForImageClassification,)
        super().test_base_model_prefix_loads_base_weights()

    def test_model_weights_reload_no_missing_tied_weights(self):
        """The mixin loads a file without any of the model's weights, to see which are named: all of them are."""
        config = self.model_tester.get_config()
        for model_class in self.all_model_classes:
            with self.subTest(model_class.__name__), tempfile.TemporaryDirectory() as folder:
                model = model_class(config)
                model.save_pretrained(folder)
                save_file({"tensor": torch.ones(2)}, f"{folder}/model.safetensors", metadata={"format": "pt"})
                needed = [name for name in model.state_dict() if not name.startswith(model._may_be_missing)]
                with pytest.raises(ValueError, match=f"lacks {len(needed)} of the weights"):
                    model_class.from_pretrained(folder)

    def test_resize_tokens_embeddings(self):
        """The mixin makes the vocabulary larger and smaller. Here it is that of the tokenizer's codes."""
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            vocabulary = model.get_input_embeddings().weight
            for size in (model.config.vocab_size + 10, model.config.vocab_size - 15):
                with self.subTest(model_class.__name__), pytest.raises(ValueError, match="cannot be resized"):
                    model.resize_token_embeddings(size)
            assert model.get_input_embeddings().weight is vocabulary


class ModelWithTokenizerTest(ModelTests, unittest.TestCase):
    pass


class ModelWithoutTokenizerTest(ModelTests, unittest.TestCase):
    vq_config = None
