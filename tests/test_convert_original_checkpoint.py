"""The command: original checkpoints of every kind become folders that reproduce the recorded numbers, and back."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import VQModel
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoModelForMaskedImageModeling

from tests.original_files import convert, original_weights, save_original, save_tokenizer
from tests.reference import TINY, ReferenceCase, relative_error
from transformers_mage import MagePipeline, convert_original_checkpoint
from transformers_mage.convert_original_checkpoint import main

RECORDED = TINY.recorded
# Half precision rounds every activation: relative error of the features of a correct model.
ROUNDING = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 8e-3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A converted pre-training checkpoint."""
    path = tmp_path_factory.mktemp("converted")
    return convert(save_original(path / "mage.pth", original_weights()), path / "mage")


@torch.no_grad()
def test_auto_model_gives_the_recorded_features(folder):
    model = AutoModel.from_pretrained(folder)
    outputs = model(TINY.pixel_values)

    assert torch.equal(model.get_image_tokens(TINY.pixel_values).flatten(1), RECORDED["tokenizer.token_ids"])
    assert relative_error(outputs.pooler_output, RECORDED["encoder.before_norm_mean"]) < 1e-5
    assert relative_error(outputs.last_hidden_state[:, ::16], RECORDED["encoder.last_hidden_state"]) < 1e-5


@torch.no_grad()
def test_masked_image_modeling_gives_the_recorded_loss(folder):
    model = AutoModelForMaskedImageModeling.from_pretrained(folder)
    masks = {"bool_masked_pos": RECORDED["mim.masked"].bool(), "bool_dropped_pos": RECORDED["mim.dropped"].bool()}
    outputs = model(TINY.pixel_values, **masks)

    assert relative_error(outputs.loss, RECORDED["mim.loss"]) < 1e-5


@torch.no_grad()
def test_pipeline_gives_the_recorded_logits_and_image(folder):
    pipe = MagePipeline.from_pretrained(folder)
    logits = pipe.model(RECORDED["decode.tokens_in"][4].long() if False else None, input_ids=RECORDED["decode.tokens_in"][4]).logits
    image = pipe.model.decode_image_tokens(RECORDED["decode.sampled"][-1])

    assert relative_error(logits[:, ::16, ::7], RECORDED["decode.logits"][1]) < 1e-5
    assert relative_error(image[:, :, ::4, ::4], RECORDED["decode.image"]) < 1e-5
    assert pipe.scheduler.config.num_inference_steps == 20
    assert pipe.scheduler.config.temperature == 6.0
