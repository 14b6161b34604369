"""
Nothing in a decoding or training step makes the host wait for the accelerator.

The meta device stands for the accelerator: its tensors have no values, so that whoever looks at one fails. What moves
values from the host must not wait for the copy.
"""

from types import SimpleNamespace

import pytest
import torch
from torch.overrides import TorchFunctionMode

from transformers_mage import MageConfig, MageForMaskedImageModeling, MagePipeline, MageScheduler, sample_masks
from transformers_mage.conditioning import Condition
from transformers_mage.training.pretraining import MageForPreTraining
from transformers_mage.training.tracking import Averages

META = torch.device("meta")


class NoWaiting(TorchFunctionMode):
    """Fails where values move from the host to the device, and the host waits until they are there."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor, torch.Tensor.to):
            values = args[1] if func is torch.Tensor.new_tensor else args[0]
            is_there = isinstance(values, torch.Tensor) and values.device == META
            if result.device == META and not is_there and not kwargs.get("non_blocking"):
                raise AssertionError(f"{func} to {result.device} waits")
        return result


def on_meta(config: MageConfig) -> MageForMaskedImageModeling:
    with META:
        return MageForMaskedImageModeling(config)


def test_waiting_is_noticed():
    for move in (lambda: torch.tensor(1.0, device=META), lambda: torch.zeros(2).to(META)):
        with NoWaiting(), pytest.raises(AssertionError, match="waits"):
            move()
    with pytest.raises(RuntimeError, match="meta"):
        torch.zeros(2, device=META).sum().item()


@pytest.mark.slow
@pytest.mark.parametrize("order", ["confidence", "random"])
@pytest.mark.parametrize("generators", ["none", "one", "one an image"])
def test_generation(small_config, order, generators):
    config = MageConfig(**{**small_config.to_dict(), "num_classes": 3})
    scheduler = MageScheduler(config.mask_token_id, unmasking_order=order)
    pipe = MagePipeline(on_meta(config).eval(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    generator = {"none": None, "one": torch.Generator(), "one an image": [torch.Generator(), torch.Generator()]}
    tokens = torch.full((2, 64), config.mask_token_id, device=META)
    scheduler.set_timesteps(3)

    with NoWaiting(), torch.no_grad():
        for timestep in scheduler.timesteps.tolist():
            labels = Condition(torch.zeros(2, dtype=torch.long, device=META))
            logits = pipe._predict_logits(tokens.unflatten(1, (8, 8)), labels, 1.5)
            tokens = scheduler.step(logits, timestep, tokens, generator[generators]).prev_sample
        pixels = pipe.model.decode_image_tokens(tokens.unflatten(1, (8, 8)))

    assert pixels.shape == (2, 3, 32, 32)
    assert pipe(2, num_inference_steps=3, output_type="pt").images.shape == (2, 3, 32, 32)


def test_generation_that_computes_less(small_config):
    scheduler = MageScheduler(small_config.mask_token_id, num_inference_steps=4)
    pipe = MagePipeline(on_meta(small_config).eval(), scheduler, encoder_keep_share=0.5, full_steps=2)
    pipe.set_progress_bar_config(disable=True)

    with NoWaiting():
        tokens = pipe(2, generator=[torch.Generator(), torch.Generator()], output_type="latent").images

    assert tokens.shape == (2, 8, 8)


def test_training(small_config):
    model = MageForPreTraining(on_meta(small_config), contrastive_weight=0.1).to(META).train()
    averages = Averages(SimpleNamespace(device=META))
    masks = sample_masks(small_config, 4, generator=torch.Generator(), device=META)

    with NoWaiting():
        loss, metrics = model(torch.zeros(4, 64, dtype=torch.long, device=META), masks)
        loss.backward()
        metrics["grad_norm"] = torch.nn.utils.clip_grad_norm_(model.parameters(), 3.0)
        averages.add(metrics)

    assert all(total.device == META for total in averages.sums.values())


def test_features(small_config):
    encoder = on_meta(small_config).mage.eval()

    with NoWaiting(), torch.no_grad():
        features = encoder(torch.rand(2, 3, 32, 32, device=META)).pooler_output

    assert features.shape == (2, 32)
