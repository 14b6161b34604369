"""diffusers' tests of schedulers, for MageScheduler; what they assume of floats is said of tokens."""

import tempfile

import pytest
import torch

from tests.peers import diffusers_tests
from transformers_mage import MageScheduler

suite = diffusers_tests.load("schedulers.test_schedulers")
MASK = 116


class TestMageScheduler(suite.SchedulerCommonTest):
    scheduler_classes = (MageScheduler,)
    forward_default_kwargs = (("num_inference_steps", 10),)

    def get_scheduler_config(self, **kwargs):
        return {"mask_token_id": MASK, **kwargs}

    @property
    def dummy_sample(self):
        return Tokens(torch.full((4, 64), MASK))

    def test_scheduler_public_api(self):
        # `init_noise_sigma` and `scale_model_input` scale floats; tokens are not scaled, as with AmusedScheduler.
        scheduler = MageScheduler(**self.get_scheduler_config())
        assert callable(scheduler.step)
        assert not hasattr(scheduler, "scale_model_input")

    def test_add_noise_device(self):
        # `add_noise` takes no noise of the sample's shape, since masking needs none: the generator draws it.
        scheduler = MageScheduler(**self.get_scheduler_config())
        scheduler.set_timesteps(self.default_num_inference_steps)
        sample = torch.zeros(4, 64, dtype=torch.long)
        noised = scheduler.add_noise(sample, scheduler.timesteps[5], torch.Generator().manual_seed(0))
        assert noised.shape == sample.shape
        assert (noised == MASK).any()

    def test_trained_betas(self):
        # There are no betas: the schedule is a function of the share of steps done.
        with pytest.raises(TypeError, match="trained_betas"):
            MageScheduler(**self.get_scheduler_config(), trained_betas=[0.1, 0.3])

    def test_compatibles(self):
        # The suite looks for others in diffusers, and has a variable without a value where there is none.
        assert MageScheduler(**self.get_scheduler_config()).compatibles == []

    def check_over_configs(self, time_step=None, **config):
        # Without `scale_model_input`, as above.
        first, sample = MageScheduler(**self.get_scheduler_config(**config)), self.dummy_sample
        with tempfile.TemporaryDirectory() as folder:
            first.save_config(folder)
            second = MageScheduler.from_pretrained(folder)
        steps = []
        for scheduler in (first, second):
            scheduler.set_timesteps(dict(self.forward_default_kwargs)["num_inference_steps"])
            timestep = scheduler.timesteps[0] if time_step is None else time_step
            steps.append(scheduler.step(0.1 * sample, timestep, sample, torch.Generator().manual_seed(0)).prev_sample)
        assert torch.equal(*steps)

    def test_over_configs(self):
        for config in ({"masking_schedule": "linear"}, {"temperature": 0.0}, {"unmasking_order": "halton"}):
            with self.subTest(config):
                self.check_over_configs(**config)


class Tokens(torch.Tensor):
    """Tokens that become logits where the suite makes the model's output of the sample, by `0.1 * sample`."""

    @staticmethod
    def __new__(cls, tokens):
        return tokens.as_subclass(cls)

    def __rmul__(self, factor):
        generator = torch.Generator().manual_seed(0)
        return factor * torch.randn(*self.shape, 16, generator=generator)
