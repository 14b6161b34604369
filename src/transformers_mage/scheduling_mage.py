"""MageScheduler: which tokens to keep at each step of iterative decoding. It knows no model."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from .checks import finite_number, is_whole_number, share, whole_number
from .masking import to_device

# Share of the tokens that stay masked once a share r of the steps is done. MaskGIT (arXiv 2202.04200, section 3.3)
# compares all but the last two.
MASKING_SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda r: math.cos(math.pi / 2 * r),
    "linear": lambda r: 1 - r,
    "square": lambda r: 1 - r**2,
    "cubic": lambda r: 1 - r**3,
    "square_root": lambda r: 1 - math.sqrt(r),
    "arccos": lambda r: math.acos(r) / (math.pi / 2),  # arXiv 2310.14400
    "exponential": lambda r: math.expm1(-5 * (1 - r)) / math.expm1(-5),  # eMIGM, arXiv 2503.07197
}
# Share of `temperature` that is left once a share r of the steps is done.
TEMPERATURE_SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda r: 1 - r,
    "cosine": lambda r: math.cos(math.pi / 2 * r),
    "square": lambda r: (1 - r) ** 2,
    "constant": lambda r: 1.0,
}
UNMASKING_ORDERS = ("confidence", "random", "halton")


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


class StepPlan(NamedTuple):
    """
    What changes from step to step, in tensors, so that a compiled step need not be compiled again.

    Args:
        num_masked (`torch.LongTensor` of shape `(batch_size,)`): tokens that the schedule masks again.
        noise_strength (`torch.FloatTensor` of shape `()`): of the confidence noise.
        rank (`torch.FloatTensor` of shape `(batch_size, sequence_length)`, *optional*):
            when it is each position's turn, where the order is fixed.
    """

    num_masked: torch.LongTensor
    noise_strength: torch.FloatTensor
    rank: torch.FloatTensor | None


class MageScheduler(SchedulerMixin, ConfigMixin):
    """
    Iterative decoding of masked tokens (MAGE, section 3.3, after MaskGIT, arXiv 2202.04200).

    Each step samples every masked token from the model's distribution and keeps the ones it is most confident of:
    confidence is the sampled token's log probability plus Gumbel noise, whose strength falls linearly to zero. The
    defaults are the paper's; another choice is a scheduler made from the first one's configuration:

    ```python
    >>> pipe.scheduler = MageScheduler.from_config(pipe.scheduler.config, unmasking_order="halton", top_p=0.95)
    ```

    Args:
        mask_token_id (`int`): the id of masked tokens.
        masking_schedule (`str`, *optional*, defaults to `"cosine"`):
            how the share of masked tokens falls over the share r of steps done: `"cosine"`, cos(pi r / 2), the
            paper's; `"linear"`, 1 - r; `"square"`, 1 - r^2; `"cubic"`, 1 - r^3; `"square_root"`, 1 - sqrt(r);
            `"arccos"`, acos(r) 2 / pi (arXiv 2310.14400); `"exponential"`, 1 - exp(-5 (1 - r)), as a share of where
            it starts (eMIGM, arXiv 2503.07197). The linear one keeps as many tokens at each step, the square root
            most of them at first, the others most of them in the end.
        temperature (`float`, *optional*, defaults to 6.0):
            strength of the confidence noise at the start (6.0 is the paper's for ViT-B). 0 keeps the likeliest tokens.
            Only the order `"confidence"` has such noise.
        num_inference_steps (`int`, *optional*, defaults to 20): steps where `set_timesteps` is not told.
        unmasking_order (`str`, *optional*, defaults to `"confidence"`):
            which of the sampled tokens a step keeps: `"confidence"`, the paper's rule; `"random"`, any, whatever their
            probability, as in absorbing-state diffusion (arXiv 2107.03006); `"halton"`, the next ones of a
            two-dimensional Halton sequence over the grid (arXiv 2503.17076), which are far apart, so that tokens
            sampled together depend little on each other.
        token_temperature (`float`, *optional*, defaults to 1.0):
            divides the logits that tokens are sampled from, as for any language model; 0 takes the likeliest code.
        top_k (`int`, *optional*):
            sample only among the k likeliest codes, and those as likely as the k-th (arXiv 1805.04833).
        top_p (`float`, *optional*):
            sample only among the fewest codes that are together at least this likely (nucleus sampling, arXiv
            1904.09751). Confidence is always that of the whole distribution at temperature 1.
        temperature_schedule (`str`, *optional*, defaults to `"linear"`):
            how the confidence noise falls over the share r of steps done: `"linear"`, 1 - r, the paper's;
            `"cosine"`, cos(pi r / 2); `"square"`, (1 - r)^2; `"constant"`, 1.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        mask_token_id: int,
        masking_schedule: str = "cosine",
        temperature: float = 6.0,
        num_inference_steps: int = 20,
        unmasking_order: str = "confidence",
        token_temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature_schedule: str = "linear",
    ):
        _check_choice("masking_schedule", masking_schedule, MASKING_SCHEDULES)
        _check_choice("unmasking_order", unmasking_order, UNMASKING_ORDERS)
        _check_choice("temperature_schedule", temperature_schedule, TEMPERATURE_SCHEDULES)
        # As Python's own numbers, since they are saved as JSON.
        self.register_to_config(
            mask_token_id=whole_number("mask_token_id", mask_token_id, least=0),
            temperature=finite_number("temperature", temperature),
            num_inference_steps=whole_number("num_inference_steps", num_inference_steps, least=1),
            token_temperature=finite_number("token_temperature", token_temperature),
            top_k=None if top_k is None else whole_number("top_k", top_k, least=1),
            top_p=None if top_p is None else share("top_p", top_p),
        )
        self._warped_as: tuple[float, int | None, float | None] | None = None
        self.set_timesteps()

    @classmethod
    def extract_init_dict(cls, config_dict: dict, **kwargs) -> tuple[dict, dict, dict]:
        # `from_config` would forget arguments passed by position: diffusers takes them for defaults.
        config_dict = {name: value for name, value in config_dict.items() if name != "_use_default_values"}
        return super().extract_init_dict(config_dict, **kwargs)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        temperature: float | None = None,
        device: torch.device | str | None = None,
        grid_size: tuple[int, int] | None = None,
    ):
        """
        Starts a run.

        Args:
            num_inference_steps (`int`, *optional*): number of steps S; the configured one by default.
            temperature (`float`, *optional*): the configured one by default.
            device: taken for the sake of diffusers' convention. The timesteps S - 1 to 0 are loop counters and stay on
                the host, so that no step waits for an accelerator.
            grid_size (`tuple[int, int]`, *optional*):
                rows and columns that the tokens make, for the Halton order; a square by default.

        Raises:
            ValueError: for fewer than one step or a temperature that is not 0 or more.
        """
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        temperature = self.config.temperature if temperature is None else temperature
        self.num_inference_steps = whole_number("num_inference_steps", steps, least=1)
        self.temperature = finite_number("temperature", temperature)
        self.timesteps = torch.arange(self.num_inference_steps - 1, -1, -1)
        self.grid_size = grid_size
        self._num_masked_at_start: torch.Tensor | None = None
        self._halton_rank: torch.Tensor | None = None
        warped_as = (self.config.token_temperature, self.config.top_k, self.config.top_p)
        # The same objects as before where nothing was registered anew: compiled code knows them.
        if warped_as != self._warped_as:
            self._warped_as, self._warpers = warped_as, _warpers(*warped_as)

    def step(
        self,
        model_output: torch.FloatTensor,
        timestep: int | torch.Tensor,
        sample: torch.LongTensor,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> MageSchedulerOutput | tuple[torch.LongTensor, torch.LongTensor]:
        """
        Samples the masked tokens and masks again those whose turn it is not yet: in the paper's order, the least
        confident ones. Nothing waits for an accelerator.

        Args:
            model_output (`torch.FloatTensor` of shape `(batch_size, sequence_length, codebook_size)`): logits.
            timestep (`int`): one of `timesteps`. The first starts a run anew.
            sample (`torch.LongTensor` of shape `(batch_size, sequence_length)`): tokens, the mask token where unknown.
            generator (`torch.Generator` or a list of them, one an image, *optional*): source of the noise.

        Raises:
            ValueError: for a timestep that is not one of `timesteps`, for logits and tokens that do not belong
                together and, on the CPU, for logits that are not finite.
        """
        step_index = self._step_index(timestep)
        _check_step(model_output, sample)
        if step_index == 0 or self._num_masked_at_start is None:
            self._num_masked_at_start = (sample == self.config.mask_token_id).sum(dim=1)
        noise = rand_tensor((sample.shape[0], 2, sample.shape[1]), generator, model_output.device)
        masked_again, sampled = self.choose_tokens(model_output, sample, noise, self.plan_step(step_index, sample))
        if not return_dict:
            return masked_again, sampled
        return MageSchedulerOutput(prev_sample=masked_again, pred_original_sample=sampled)

    def _step_index(self, timestep: int | torch.Tensor) -> int:
        last = self.num_inference_steps - 1
        if not is_whole_number(timestep) or not 0 <= int(timestep) <= last:
            raise ValueError(
                f"`timestep` must be one of `timesteps`, from {last} down to 0, got {timestep!r}. `set_timesteps` "
                "plans another number of steps."
            )
        return last - int(timestep)

    def plan_step(self, step_index: int, sample: torch.LongTensor) -> StepPlan:
        """What step `step_index` of S depends on, apart from tokens, logits and noise."""
        done = (step_index + 1) / self.num_inference_steps
        at_start = self._num_masked_at_start
        if at_start is None:
            at_start = (sample == self.config.mask_token_id).sum(dim=1)
        num_masked = self._num_masked_after(step_index, at_start)
        return StepPlan(
            num_masked=num_masked if done < 1 else torch.zeros_like(num_masked),
            noise_strength=torch.full((), self._noise_strength_at(done), device=sample.device),
            rank=self._halton_rank_of(sample) if self.config.unmasking_order == "halton" else None,
        )

    def choose_tokens(
        self, logits: torch.FloatTensor, sample: torch.LongTensor, noise: torch.FloatTensor, plan: StepPlan
    ) -> tuple[torch.LongTensor, torch.LongTensor]:
        """
        The work of a step: (masked again, sampled) tokens. It is the same for all steps but for its arguments, so
        that one compiled version serves them all.

        Args:
            logits (`torch.FloatTensor` of shape `(batch_size, sequence_length, codebook_size)`).
            sample (`torch.LongTensor` of shape `(batch_size, sequence_length)`): tokens, the mask token where unknown.
            noise (`torch.FloatTensor` of shape `(batch_size, 2, sequence_length)`): uniform in [0, 1).
            plan ([`StepPlan`]): the step's.
        """
        is_masked = sample == self.config.mask_token_id
        sampled, log_probability = self._sample_tokens(logits, noise[:, 0])
        sampled = torch.where(is_masked, sampled, sample)
        if self.config.unmasking_order == "confidence":
            turn = log_probability + plan.noise_strength * gumbel_noise(noise[:, 1])
        else:
            turn = noise[:, 1] if plan.rank is None else -plan.rank
        return self._mask_lowest(turn, sampled, is_masked, plan.num_masked), sampled

    def compile(self, **kwargs: Any):
        """Compiles the work of a step. `kwargs` are those of `torch.compile`."""
        compiled = torch.compile(type(self).choose_tokens.__get__(self), fullgraph=True, **kwargs)
        # CUDA graphs write the results of every step to the same place.
        self.choose_tokens = lambda *args: tuple(tokens.clone() for tokens in compiled(*args))  # type: ignore[method-assign]

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
        log p + temperature (1 - (step_index + 1) / S) gumbel is highest; tokens known before always stay. (Where
        `temperature_schedule` is another than `"linear"`, so is the factor.)

        Args:
            sampled, log_probability, gumbel, is_masked (`torch.Tensor` of shape `(batch_size, sequence_length)`):
                the tokens, their log probabilities, unit Gumbel noise, and which were masked before this step.
        """
        confidence = log_probability + self._noise_strength_at((step_index + 1) / self.num_inference_steps) * gumbel
        at_start = is_masked.sum(dim=1) if self._num_masked_at_start is None else self._num_masked_at_start
        return self._mask_lowest(confidence, sampled, is_masked, self._num_masked_after(step_index, at_start))

    def _mask_lowest(
        self,
        confidence: torch.FloatTensor,
        sampled: torch.LongTensor,
        is_masked: torch.BoolTensor,
        scheduled: torch.LongTensor,
    ) -> torch.LongTensor:
        """
        Masks again as many tokens as are scheduled, those of lowest confidence. Known ones stay, and one more becomes
        known, unless it is the only one and another step is to come.
        """
        # The known ones sort to the end, and all but one may be masked again: each step makes some progress. While
        # more steps are to come (`scheduled` is 0 after the last) at least one stays masked, as in the original.
        confidence = confidence.masked_fill(~is_masked, torch.inf)
        num_masked = torch.minimum(is_masked.sum(dim=1) - 1, scheduled)
        num_masked = torch.maximum(num_masked, scheduled.clamp(max=1))
        # By rank rather than by the value of the last one, so that equal ones do not change how many are masked.
        rank = confidence.argsort(dim=1, stable=True).argsort(dim=1)
        return sampled.masked_fill(is_masked & (rank < num_masked[:, None]), self.config.mask_token_id)

    def _sample_tokens(
        self, logits: torch.FloatTensor, uniform: torch.FloatTensor
    ) -> tuple[torch.LongTensor, torch.FloatTensor]:
        """Sampled tokens, and their log probabilities in the model's own distribution."""
        if not self._warpers:
            return sample_tokens(logits, uniform)
        tokens, _ = sample_tokens(self._warp(logits), uniform)
        log_probabilities = logits.log_softmax(dim=-1, dtype=torch.float32)
        return tokens, log_probabilities.gather(-1, tokens[..., None]).squeeze(-1)

    def _warp(self, logits: torch.FloatTensor) -> torch.FloatTensor:
        """The distribution that tokens are sampled from, -inf in place of what is cut off."""
        warped = logits.float().reshape(-1, logits.shape[-1])
        for warper in self._warpers:
            # They are made for text, and take what was written so far; these three do not look at it.
            warped = warper(None, warped)
        return warped.view(logits.shape)

    def _noise_strength_at(self, done: float) -> float:
        return self.temperature * TEMPERATURE_SCHEDULES[self.config.temperature_schedule](done)

    def _halton_rank_of(self, sample: torch.LongTensor) -> torch.FloatTensor:
        """(batch_size, sequence_length): when it is each position's turn."""
        rank = self._halton_rank
        if rank is None or rank.device != sample.device:
            rows, columns = self.grid_size or _square(sample.shape[1])
            if rows * columns != sample.shape[1]:
                raise ValueError(
                    f"`grid_size` {self.grid_size} has {rows * columns} tokens, the sample {sample.shape[1]}. Pass "
                    "the sample's rows and columns to `set_timesteps`."
                )
            rank = halton_order(rows, columns).argsort().to(sample.device, torch.float32)
            self._halton_rank = rank
        return rank.expand(sample.shape)

    def _num_masked_after(self, step_index: int, at_start: torch.LongTensor) -> torch.LongTensor:
        """How many of the tokens masked `at_start` of each image the schedule masks again, at least one."""
        share = MASKING_SCHEDULES[self.config.masking_schedule]((step_index + 1) / self.num_inference_steps)
        precision = torch.float32 if at_start.device.type == "mps" else torch.float64
        return (at_start.to(precision) * share).floor().long().clamp(min=1)

    def max_masked(self, step_index: int, sequence_length: int) -> int:
        """At most so many tokens of an image are masked before a step, known without looking at them."""
        if step_index == 0:
            return sequence_length
        share = MASKING_SCHEDULES[self.config.masking_schedule](step_index / self.num_inference_steps)
        # One more, since a device may round the product another way.
        return min(math.floor(sequence_length * share) + 1, sequence_length)

    def min_masked(self, step_index: int, masked_at_start: int) -> int:
        """At least so many tokens of an image that starts with `masked_at_start` are masked before a step."""
        masked = masked_at_start
        for step in range(step_index):
            share = MASKING_SCHEDULES[self.config.masking_schedule]((step + 1) / self.num_inference_steps)
            masked = min(masked, max(min(masked - 1, math.floor(masked_at_start * share)), 1))
        # One less, since a device may round the product another way.
        return masked if step_index == 0 else max(masked - 1, 0)

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
        done = (self._step_index(timesteps) + 1) / self.num_inference_steps
        num_masked = math.floor(sample.shape[1] * MASKING_SCHEDULES[self.config.masking_schedule](done))
        rank = rand_tensor(sample.shape, generator, sample.device).argsort(dim=1).argsort(dim=1)
        return sample.masked_fill(rank < num_masked, self.config.mask_token_id)


def _check_step(model_output: torch.Tensor, sample: torch.Tensor):
    if sample.ndim != 2 or sample.is_floating_point() or sample.is_complex():
        raise ValueError(
            f"`sample` must be integers of shape (batch_size, sequence_length), got {sample.dtype} of shape "
            f"{tuple(sample.shape)}."
        )
    if model_output.ndim != 3 or model_output.shape[:2] != sample.shape or not model_output.is_floating_point():
        batch_size, length = sample.shape
        raise ValueError(
            f"`model_output` must be floating point of shape ({batch_size}, {length}, codebook_size), as `sample` has "
            f"{length} tokens, got {model_output.dtype} of shape {tuple(model_output.shape)}."
        )
    # -inf rules a code out. NaN and +inf survive the maximum, and so does a position without any code.
    on_host = model_output.device.type == "cpu" and not torch.compiler.is_compiling()
    if on_host and not model_output.amax(dim=-1).isfinite().all():
        raise ValueError(
            "`model_output` must leave a code of finite likelihood at each position, got NaN or infinity."
        )


def _check_choice(name: str, value: str, choices: Collection[str]):
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {list(choices)}, got {value!r}.")


def _warpers(temperature: float, top_k: int | None, top_p: float | None) -> list[LogitsProcessor]:
    """What sharpens or flattens a distribution and cuts its tail off, in this order."""
    if temperature == 0:
        return [TopKLogitsWarper(1)]
    warpers: list[LogitsProcessor] = [] if temperature == 1 else [TemperatureLogitsWarper(temperature)]
    if top_k is not None:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p is not None:
        warpers.append(TopPLogitsWarper(top_p))
    return warpers


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


@lru_cache
def halton_order(rows: int, columns: int) -> torch.LongTensor:
    """
    Positions of a grid in the order in which a Halton sequence first visits them (arXiv 2503.17076): point i, from 1
    on, lies at the share phi_2(i) of the height and phi_3(i) of the width, where phi_b mirrors i's digits in base b
    at the point.

    Returns:
        `torch.LongTensor` of shape `(rows * columns,)`: a permutation of the positions, row by row.
    """
    num_points = rows * columns
    while True:
        index = torch.arange(1, num_points + 1)
        row = (_radical_inverse(index, 2) * rows).long().clamp(max=rows - 1)
        column = (_radical_inverse(index, 3) * columns).long().clamp(max=columns - 1)
        first_visit = torch.full((rows * columns,), num_points).scatter_reduce(
            0, row * columns + column, index - 1, "amin"
        )
        if first_visit.max() < num_points:
            return first_visit.argsort()
        num_points *= 2


def _radical_inverse(index: torch.LongTensor, base: int) -> torch.Tensor:
    result, digit_value = torch.zeros(index.shape, dtype=torch.float64), 1.0
    while index.any():
        digit_value /= base
        result += digit_value * (index % base)
        index = index // base
    return result


def _square(length: int) -> tuple[int, int]:
    side = math.isqrt(length)
    if side * side != length:
        raise ValueError(f"{length} tokens make no square: pass `grid_size=(rows, columns)` to `set_timesteps`.")
    return side, side


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
    device = torch.device(device or "cpu")
    if not isinstance(generator, Sequence) or isinstance(generator, str):
        return to_device(_rand_where_generator_is(shape, generator, device), device)
    if len(generator) != shape[0]:
        raise ValueError(f"Pass one generator, or one for each of the {shape[0]} images, got {len(generator)}.")
    # Moved together: each move of its own would cost as much.
    return to_device(torch.cat([_rand_where_generator_is((1, *shape[1:]), one, device) for one in generator]), device)


def _rand_where_generator_is(
    shape: Sequence[int], generator: torch.Generator | None, device: torch.device
) -> torch.FloatTensor:
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(
            f"`generator` must be a torch.Generator or a list of them, got {generator!r}. "
            "For a seed, pass `torch.Generator().manual_seed(seed)`."
        )
    if generator is None or generator.device.type == device.type:
        return torch.rand(*shape, generator=generator, device=device)
    if generator.device.type != "cpu":
        raise ValueError(
            f"The generator lives on {generator.device}, the tokens on {device}. Make it on {device.type} or the CPU."
        )
    return torch.rand(*shape, generator=generator)


__all__ = ["MageScheduler", "MageSchedulerOutput"]
