"""diffusers' tests of pipelines, for MagePipeline: unconditional, of classes, and with an image to edit."""

import unittest

import numpy as np
import PIL.Image
import pytest
import torch

from tests.conftest import SMALL_VQ_CONFIG
from tests.peers import diffusers_tests
from transformers_mage import MageConfig, MageForMaskedImageModeling, MagePipeline, MageScheduler

suite = diffusers_tests.load("pipelines.test_pipelines_common")


class MagePipelineTests(suite.PipelineTesterMixin, suite.PipelineLatentTesterMixin):
    pipeline_class = MagePipeline
    params = frozenset(["num_images", "num_inference_steps", "temperature", "output_type", "guidance_scale"])
    batch_params = frozenset()
    image_params = frozenset()
    image_latents_params = frozenset()
    # The model is called `model`, there are no latents to start from, and `num_images` counts images of each class.
    required_optional_params = frozenset(["num_inference_steps", "generator", "output_type", "return_dict"])
    # Attention slicing and xFormers are switches of diffusers' own attention; the model has transformers'.
    test_attention_slicing = False
    test_xformers_attention = False
    test_layerwise_casting = False
    test_group_offloading = True
    num_classes = 0

    def get_dummy_components(self):
        torch.manual_seed(0)
        config = MageConfig(
            codebook_size=16, image_size=32, patch_size=4, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            decoder_hidden_size=24, decoder_num_hidden_layers=2, decoder_num_attention_heads=2,
            vq_config=SMALL_VQ_CONFIG, num_classes=self.num_classes,
        )  # fmt: skip
        model = MageForMaskedImageModeling(config)
        components = {"model": model, "scheduler": MageScheduler(config.mask_token_id)}
        return components | dict.fromkeys(MagePipeline._optional_components)

    def get_dummy_inputs(self, device, seed=0):
        generator = torch.Generator(device).manual_seed(seed)
        return {"generator": generator, "num_inference_steps": 2, "output_type": "np"}

    def test_inference_batch_consistent(self):
        # The number of images is `num_images`, not `batch_size`.
        pipe = MagePipeline(**self.get_dummy_components())
        for number in (2, 3):
            generators = [torch.Generator().manual_seed(seed) for seed in range(number)]
            inputs = self.get_dummy_inputs("cpu") | {"num_images": number, "generator": generators}
            assert len(pipe(**inputs)[0]) == number

    def test_inference_batch_single_identical(self):
        # The same.
        pipe = MagePipeline(**self.get_dummy_components())
        alone = pipe(**self.get_dummy_inputs("cpu"))[0]
        generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
        together = pipe(**self.get_dummy_inputs("cpu") | {"num_images": 3, "generator": generators})[0]
        assert together.shape[0] == 3
        assert np.abs(together[0] - alone[0]).max() < 1e-4

    def test_callback_inputs(self):
        # Tokens are what latents are elsewhere.
        pipe = MagePipeline(**self.get_dummy_components())
        seen = []

        def callback(pipe, step, timestep, tensors):
            seen.append(sorted(tensors))
            is_last = step == pipe.num_timesteps - 1
            return {"tokens": torch.zeros_like(tensors["tokens"])} if is_last else tensors

        inputs = self.get_dummy_inputs("cpu") | {"output_type": "latent", "callback_on_step_end": callback}
        for names in (["tokens"], pipe._callback_tensor_inputs):
            output = pipe(**inputs, callback_on_step_end_tensor_inputs=names)[0]
            assert output.abs().sum() == 0
        assert seen == [["tokens"]] * 2 + [["preview", "tokens"]] * 2

    def test_multi_vae(self):
        # The tokenizer is part of the model, and only a VQModel has tokens.
        assert type(MagePipeline(**self.get_dummy_components()).vqvae).__name__ == "VQModel"

    def test_encode_prompt_works_in_isolation(self):
        # There is no text.
        assert not hasattr(MagePipeline, "encode_prompt")

    def test_StableDiffusionMixin_component(self):  # noqa: N802
        # There is nothing of Stable Diffusion in it.
        assert not issubclass(MagePipeline, suite.StableDiffusionMixin)


class TestUnconditional(MagePipelineTests, unittest.TestCase):
    def test_cfg(self):
        # An unconditional model has nothing to be guided by.
        pipe = MagePipeline(**self.get_dummy_components())
        with pytest.raises(ValueError, match="unconditional"):
            pipe(**self.get_dummy_inputs("cpu"), guidance_scale=7.5)

    def test_callback_cfg(self):
        # The same.
        pipe = MagePipeline(**self.get_dummy_components())
        pipe(**self.get_dummy_inputs("cpu"))
        assert (pipe.guidance_scale, pipe.do_classifier_free_guidance) == (0.0, False)


class TestConditional(MagePipelineTests, unittest.TestCase):
    params = frozenset(["class_labels", "guidance_scale"])
    batch_params = frozenset(["class_labels"])
    num_classes = 3

    def get_dummy_inputs(self, device, seed=0):
        return super().get_dummy_inputs(device, seed) | {"class_labels": 1, "guidance_scale": 2.0}


class TestEditing(MagePipelineTests, unittest.TestCase):
    params = frozenset(["image", "mask_image", "strength", "padding", "height", "width", "class_labels"])
    image_params = frozenset(["image", "mask_image"])
    num_classes = 3

    def get_dummy_inputs(self, device, seed=0):
        pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        mask = 255 * (np.arange(32) >= 16).astype(np.uint8)[:, None].repeat(32, axis=1)
        images = {"image": PIL.Image.fromarray(pixels), "mask_image": PIL.Image.fromarray(mask).convert("RGB")}
        return super().get_dummy_inputs(device, seed) | images | {"class_labels": 1}
