"""transformers' own tests of configurations and models, for all classes, with and without a tokenizer."""

import tempfile
import unittest

import pytest
import torch
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin

from tests.conftest import SMALL_VQ_CONFIG
from transformers_mage import MageConfig, MageForImageClassification, MageForMaskedImageModeling, MageModel

BATCH_SIZE = 3


class MageModelTester:
    """What the mixins ask of every model: a small configuration, inputs for it, and the sizes of the outputs."""

    is_training = True
    batch_size = BATCH_SIZE
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 2
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

    def _prepare_for_class(self, inputs_dict: dict, model_class: type, return_labels: bool = False) -> dict:
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels and model_class is MageForMaskedImageModeling:
            inputs["bool_masked_pos"] = torch.ones(BATCH_SIZE, 64, dtype=torch.long)
        if return_labels and model_class is MageForImageClassification:
            inputs["labels"] = torch.zeros(BATCH_SIZE, dtype=torch.long)
        return inputs


class ModelWithTokenizerTest(ModelTests, unittest.TestCase):
    pass


class ModelWithoutTokenizerTest(ModelTests, unittest.TestCase):
    vq_config = None
