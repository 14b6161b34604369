"""MageScheduler: which tokens to keep at each step of iterative decoding. It knows no model."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput

# Share of the tokens that stay masked once a share r of the steps is done.
MASKING_SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda r: math.cos(math.pi / 2 * r),
    "linear": lambda r: 1 - r,
}


@dataclass
class MageSchedulerOutput(BaseOutput):
    """
    Output of a step of [`MageScheduler`].

    Args:
        prev_sample (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
            tokens for the next step, the least confident ones masked again.
        pred_original_sample (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
            the same before masking: a whole image, for previews.
    """

    prev_sample: torch.LongTensor
    pred_original_sample: torch.LongTensor


class MageScheduler(SchedulerMixin, ConfigMixin):
    """
    Iterative decoding of masked tokens (MAGE, section 3.3, after MaskGIT, arXiv 2202.04200).

    Each step samples every masked token from the model's distribution and keeps the ones it is most confident of:
    confidence is the sampled token's log probability plus Gumbel noise, whose strength falls linearly to zero.

    Args:
        mask_token_id (`int`): the id of masked tokens.
        masking_schedule (`str`, *optional*, defaults to `"cosine"`):
            how the number of masked tokens falls: `"cosine"` (the paper's) or `"linear"`.
        temperature (`float`, *optional*, defaults to 6.0):
            strength of the confidence noise at the start (6.0 is the paper's for ViT-B). 0 keeps the likeliest tokens.
        num_inference_steps (`int`, *optional*, defaults to 20): steps where `set_timesteps` is not told.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        mask_token_id: int,
        masking_schedule: str = "cosine",
        temperature: float = 6.0,
        num_inference_steps: int = 20,
    ):
        if masking_schedule not in MASKING_SCHEDULES:
            raise ValueError(f"`masking_schedule` must be one of {list(MASKING_SCHEDULES)}, got {masking_schedule!r}.")
        self.set_timesteps(num_inference_steps, temperature)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        temperature: float | None = None,
        device: torch.device | str | None = None,
    ):
        """
        Starts a run.

        Args:
            num_inference_steps (`int`, *optional*): number of steps S; the configured one by default.
            temperature (`float`, *optional*): the configured one by default.
            device: taken for the sake of diffusers' convention. The timesteps S - 1 to 0 are loop counters and stay on
                the host, so that no step waits for an accelerator.

        Raises:
            ValueError: for fewer than one step or a negative temperature.
        """
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        temperature = self.config.temperature if temperature is None else temperature
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"`num_inference_steps` must be a whole number of at least 1, got {steps!r}.")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"`temperature` must be 0 or more and finite, got {temperature}.")
        self.num_inference_steps = steps
        self.temperature = temperature
        self.timesteps = torch.arange(steps - 1, -1, -1)
        self._num_masked_at_start = None

    def step(
        self,
        model_output: torch.FloatTensor,
        timestep: int | torch.Tensor,
        sample: torch.LongTensor,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> MageSchedulerOutput | tuple[torch.LongTensor, torch.LongTensor]:
        """
        Samples the masked tokens and masks the least confident ones again. Nothing waits for an accelerator.

        Args:
            model_output (`torch.FloatTensor` of shape `(batch_size, sequence_length, codebook_size)`): logits.
            timestep (`int`): one of `timesteps`. The first starts a run anew.
            sample (`torch.LongTensor` of shape `(batch_size, sequence_length)`): tokens, the mask token where unknown.
            generator (`torch.Generator` or a list of them, one an image, *optional*): source of the noise.
        """
        is_masked = sample == self.config.mask_token_id
        step_index = self.num_inference_steps - 1 - int(timestep)
        if step_index == 0 or self._num_masked_at_start is None:
            self._num_masked_at_start = is_masked.sum(dim=1)
        noise = rand_tensor((sample.shape[0], 2, sample.shape[1]), generator, model_output.device)
        sampled, log_probability = sample_tokens(model_output, noise[:, 0])
        sampled = torch.where(is_masked, sampled, sample)
        if step_index == self.num_inference_steps - 1:
            masked_again = sampled
        else:
            masked_again = self.mask_least_confident(
                sampled, log_probability, gumbel_noise(noise[:, 1]), is_masked, step_index
            )
        if not return_dict:
            return masked_again, sampled
        return MageSchedulerOutput(prev_sample=masked_again, pred_original_sample=sampled)

    def mask_least_confident(
        self,
        sampled: torch.LongTensor,
        log_probability: torch.FloatTensor,
        gumbel: torch.FloatTensor,
        is_masked: torch.BoolTensor,
        step_index: int,
    ) -> torch.LongTensor:
        """
        The rule of the paper for step `step_index` of S: of the tokens just sampled, those stay whose confidence
        log p + temperature (1 - (step_index + 1) / S) gumbel is highest; tokens known before always stay.

        Args:
            sampled, log_probability, gumbel, is_masked (`torch.Tensor` of shape `(batch_size, sequence_length)`):
                the tokens, their log probabilities, unit Gumbel noise, and which were masked before this step.
        """
        done = (step_index + 1) / self.num_inference_steps
        confidence = log_probability + self.temperature * (1 - done) * gumbel
        confidence = confidence.masked_fill(~is_masked, torch.inf)
        num_masked = self._num_masked_after(is_masked.sum(dim=1), done).clamp(max=sampled.shape[1] - 1)
        cut_off = confidence.sort(dim=1).values.gather(1, num_masked[:, None])
        return sampled.masked_fill(confidence < cut_off, self.config.mask_token_id)

    def _num_masked_after(self, num_masked: torch.LongTensor, done: float) -> torch.LongTensor:
        """How many of the `num_masked` tokens of each image are masked again; never none before the last step."""
        at_start = num_masked if self._num_masked_at_start is None else self._num_masked_at_start
        share = MASKING_SCHEDULES[self.config.masking_schedule](done)
        precision = torch.float32 if at_start.device.type == "mps" else torch.float64
        scheduled = (at_start.to(precision) * share).floor().long()
        return torch.minimum(num_masked - 1, scheduled).clamp(min=1)

    def add_noise(
        self,
        sample: torch.LongTensor,
        timesteps: int | torch.Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> torch.LongTensor:
        """
        Masks as many random tokens as the schedule leaves masked after the step at `timesteps`.

        Args:
            sample (`torch.LongTensor` of shape `(batch_size, sequence_length)`): tokens of whole images.
            timesteps (`int`): one of `timesteps`; the larger, the more is masked.
        """
        done = (self.num_inference_steps - int(timesteps)) / self.num_inference_steps
        num_masked = math.floor(sample.shape[1] * MASKING_SCHEDULES[self.config.masking_schedule](done))
        rank = rand_tensor(sample.shape, generator, sample.device).argsort(dim=1).argsort(dim=1)
        return sample.masked_fill(rank < num_masked, self.config.mask_token_id)


def sample_tokens(logits: torch.FloatTensor, uniform: torch.FloatTensor) -> tuple[torch.LongTensor, torch.FloatTensor]:
    """
    Samples from softmax(logits) by inverting its cumulative distribution: one random number a token.

    Args:
        logits (`torch.FloatTensor` of shape `(batch_size, sequence_length, codebook_size)`).
        uniform (`torch.FloatTensor` of shape `(batch_size, sequence_length)`): in [0, 1).

    Returns:
        the tokens and their log probabilities, both of shape `(batch_size, sequence_length)`.
    """
    probabilities = logits.softmax(dim=-1, dtype=torch.float32)
    cumulative = probabilities.cumsum(dim=-1)
    # 1 - uniform lies in (0, 1], so that no token of probability zero is ever drawn.
    threshold = (1 - uniform[..., None]) * cumulative[..., -1:]
    tokens = torch.searchsorted(cumulative, threshold).clamp(max=logits.shape[-1] - 1)
    return tokens.squeeze(-1), probabilities.gather(-1, tokens).squeeze(-1).log()


def gumbel_noise(uniform: torch.FloatTensor) -> torch.FloatTensor:
    """Unit Gumbel noise from numbers in [0, 1)."""
    tiny = torch.finfo(uniform.dtype).tiny
    return -torch.log(-torch.log(uniform.clamp(min=tiny)))


def rand_tensor(
    shape: Sequence[int],
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    device: torch.device | str | None = None,
) -> torch.FloatTensor:
    """
    Uniform noise in [0, 1): what diffusers' `randn_tensor` is for normal noise. Drawn on the generator's device and
    moved; with a list of generators, one an image, image i's noise does not depend on the batch it is in.

    Raises:
        ValueError: for a list of another length than the batch, or an accelerator's generator on the CPU.
    """
    if isinstance(generator, (list, tuple)):
        if len(generator) != shape[0]:
            raise ValueError(f"Pass one generator, or one for each of the {shape[0]} images, got {len(generator)}.")
        return torch.cat([rand_tensor((1, *shape[1:]), one, device) for one in generator])
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(
            f"`generator` must be a torch.Generator or a list of them, got {generator!r}. "
            "For a seed, pass `torch.Generator().manual_seed(seed)`."
        )
    device = torch.device(device or "cpu")
    if generator is None or generator.device.type == device.type:
        return torch.rand(*shape, generator=generator, device=device)
    if generator.device.type != "cpu":
        raise ValueError(
            f"The generator lives on {generator.device}, the tokens on {device}. Make it on {device.type} or the CPU."
        )
    return torch.rand(*shape, generator=generator).to(device)


__all__ = ["MageScheduler", "MageSchedulerOutput"]
