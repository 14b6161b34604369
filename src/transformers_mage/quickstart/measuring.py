"""Measuring the machine: how fast tokenizers and models train on it, in which precision and with how many threads."""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..benchmarking.measuring import synchronize
from ..configuration_mage import MageConfig
from ..image_tokens import decode_images, encode_images
from ..masking import sample_masks
from ..modeling_mage import MageForMaskedImageModeling
from ..pipeline_mage import MagePipeline
from ..progress import progress_bar, told_to
from ..sampling.sampler import NUM_DECODED_AT_ONCE
from ..scheduling_mage import MageScheduler
from ..training.tracking import training_flops
from ..training.vqgan.adversarial import Adversary
from ..training.vqgan.discriminator import PatchDiscriminator
from ..training.vqgan.objective import LossWeights, VQGANForTraining
from ..training.vqgan.perceptual import perceptual_distance
from .judge import BATCH_SIZE as JUDGE_BATCH
from .judge import Judge, train_judge
from .judging import BATCH_SIZE as SAMPLING_BATCH
from .judging import STEPS as SAMPLING_STEPS
from .judging import Jury
from .sizes import ModelSize, Sizes, TokenizerSize

# Of each way: a first step that nobody counts, then as many as fit.
MOST_SECONDS_PER_WAY = 1.5
# Of the whole time, for all ways and all rates, which are about as many.
MEASURING_SHARE, MEASURED = 0.02, 20
# Emulated bfloat16 can be ten times slower: the first step tells.
HOPELESS = 3.0
TOKENIZER_BATCH, MODEL_BATCH = 32, 64
REFERENCE_TOKENIZER = TokenizerSize(image_size=32, patch_size=4, width=16, codebook_size=256)
REFERENCE_MODEL = ModelSize(width=128, num_layers=4, decoder_width=128, decoder_num_layers=2)
REFERENCE_GRID = (7, 7)

Step = Callable[[], object]


@dataclass(frozen=True)
class Way:
    """
    How to compute.

    Attributes:
        mixed_precision (`str`): `"no"` or `"bf16"`.
        attention (`str`): `"sdpa"` or `"eager"`; a tokenizer has none.
        num_threads (`int`): of one process, on a processor.
    """

    mixed_precision: str
    attention: str
    num_threads: int

    def __str__(self) -> str:
        precision = {"no": "float32", "bf16": "bfloat16"}[self.mixed_precision]
        threads = "1 thread" if self.num_threads == 1 else f"{self.num_threads} threads"
        return ", ".join(filter(None, [precision, self.attention, threads]))


@dataclass
class Machine:
    """
    What was measured.

    Attributes:
        device (`str`): "cpu", "cuda", ...
        num_processes (`int`): that train together.
        num_threads (`int`): the best number for one process.
        tokenizer_precision, model_precision, attention (`str`): the fastest; see [`Way`].
        tokenizer_flops, model_flops (`float`): operations a second of all processes, in training.
        measured (`dict[str, dict[str, float]]`): images a second of each way, for "tokenizer" and "model".
    """

    device: str
    num_processes: int
    num_threads: int
    tokenizer_precision: str
    model_precision: str
    attention: str
    tokenizer_flops: float
    model_flops: float
    measured: dict[str, dict[str, float]]

    @property
    def tokenizer_way(self) -> Way:
        return Way(self.tokenizer_precision, "", self.num_threads)

    @property
    def model_way(self) -> Way:
        return Way(self.model_precision, self.attention, self.num_threads)

    def rows(self) -> list[tuple[str, str]]:
        """What people read, as pairs of words."""
        found = []
        for what, rates in self.measured.items():
            ways = sorted(rates.items(), key=lambda item: -item[1])
            found.append((f"{what}, images/s", "; ".join(f"{way}: {rate:.0f}" for way, rate in ways)))
        processes = f", {self.num_processes} processes" if self.num_processes > 1 else ""
        return [("device", f"{self.device}{processes}"), *found]


def seconds_per_way(hours: float) -> float:
    """How long each of the steps is repeated: less where hours are short."""
    return min(MEASURING_SHARE * 3600 * hours / MEASURED, MOST_SECONDS_PER_WAY)


def measure(seconds: float = MOST_SECONDS_PER_WAY, max_threads: int | None = None) -> Machine:
    """
    Trains a small tokenizer and a small model for some steps in every way that the device has.

    Args:
        seconds (`float`): for each of them.
        max_threads (`int`, *optional*): of a process on the processor; by default as many as torch takes.
    """
    state = PartialState()
    max_threads = max_threads or torch.get_num_threads()
    reference = REFERENCE_MODEL.config(REFERENCE_GRID, 64)
    with torch.random.fork_rng(), _threads_kept():
        model = _time_ways(
            _ways(state.device, max_threads, ("sdpa", "eager")),
            partial(model_step, reference, MODEL_BATCH),
            seconds,
        )
        tokenizer = _time_ways(
            _ways(state.device, max_threads, ("",)),
            partial(tokenizer_step, REFERENCE_TOKENIZER, TOKENIZER_BATCH),
            seconds,
        )
    # One number of threads for all stages: the one that is best for the model, which trains longest.
    best = min(model, key=model.__getitem__)
    same = {way: seconds for way, seconds in tokenizer.items() if way.num_threads == best.num_threads}
    best_tokenizer = min(same, key=same.__getitem__)
    model_work = training_flops(reference) * MODEL_BATCH
    tokenizer_work = tokenizer_training_flops(REFERENCE_TOKENIZER) * TOKENIZER_BATCH
    return Machine(
        device=state.device.type,
        num_processes=state.num_processes,
        num_threads=best.num_threads,
        tokenizer_precision=best_tokenizer.mixed_precision,
        model_precision=best.mixed_precision,
        attention=best.attention,
        tokenizer_flops=state.num_processes * tokenizer_work / same[best_tokenizer],
        model_flops=state.num_processes * model_work / model[best],
        measured={
            "tokenizer": {str(way): TOKENIZER_BATCH / seconds for way, seconds in tokenizer.items()},
            "model": {str(way): MODEL_BATCH / seconds for way, seconds in model.items()},
        },
    )


@dataclass
class Rates:
    """
    Images a second of all processes, of one tokenizer and one model.

    Attributes:
        tokenizer, decoder, model (`float`): in training; the decoder with a perceptual loss and a discriminator, 0
            where there is no network for that.
        encoding (`float`): through the tokenizer's encoder.
        sampling (`float`): made in 20 steps, up to their pixels.
        judge (`float`): in training the network that distances are by.
        features (`float`): through the network that distances are by.
    """

    tokenizer: float
    decoder: float
    model: float
    encoding: float
    sampling: float
    judge: float
    features: float


def measure_rates(
    machine: Machine,
    sizes: Sizes,
    decoder_losses: dict[str, float] | None,
    is_grey: bool,
    seconds: float = MOST_SECONDS_PER_WAY,
) -> Rates:
    """
    Trains what has been chosen for some steps.

    Args:
        machine ([`Machine`]): how to compute.
        sizes ([`Sizes`]): what.
        decoder_losses (`dict`, *optional*): values of the decoder's recipe; without them it is not measured.
        is_grey (`bool`): whether the images have no colours.
        seconds (`float`): for each of the rates.
    """
    side, first, second = sizes.tokenizer.image_size, sizes.tokenizer_batch, sizes.model_batch
    config = sizes.model.config(sizes.grid, sizes.num_codes, dropout=sizes.dropout)
    with torch.random.fork_rng(), _threads_kept():
        torch.set_num_threads(machine.num_threads)
        steps = {
            "tokenizer": (tokenizer_step(sizes.tokenizer, first, machine.tokenizer_way), first),
            "model": (model_step(config, second, machine.model_way), second),
            "encoding": (encoding_step(sizes.tokenizer, first), first),
            "sampling": (sampling_step(config, sizes.tokenizer, machine.attention), SAMPLING_BATCH),
            "judge": (judge_step(side), 2 * JUDGE_BATCH),
            "features": (features_step(side, is_grey), SAMPLING_BATCH),
        }
        if decoder_losses is not None:
            steps["decoder"] = (decoder_step(sizes.tokenizer, first, decoder_losses, machine.tokenizer_way), first)
        # Their own progress bars are too short to tell anything.
        with told_to(lambda _: None):
            rates = {name: count / _seconds_of(step, seconds) for name, (step, count) in steps.items()}
    together = {"tokenizer", "model", "encoding", "decoder"}
    return Rates(
        **{"decoder": 0.0}
        | {name: rate * (machine.num_processes if name in together else 1) for name, rate in rates.items()}
    )


def _ways(device: torch.device, max_threads: int, attentions: Sequence[str]) -> Iterator[Way]:
    threads = sorted({1, max_threads}) if device.type == "cpu" else [max_threads]
    for number in threads:
        for precision in ("no", "bf16"):
            for attention in attentions:
                yield Way(precision, attention, number)


@contextmanager
def _threads_kept() -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _time_ways(ways: Iterator[Way], step_of: Callable[[Way], Step], seconds_each: float) -> dict[Way, float]:
    """Seconds of a step in each way; of those that are hopeless, of the first one."""
    seconds: dict[Way, float] = {}
    for way in progress_bar(list(ways), desc="Measuring the machine", leave=False):
        torch.set_num_threads(way.num_threads)
        step = step_of(way)
        first = _time(step)
        is_hopeless = bool(seconds) and first > HOPELESS * min(seconds.values())
        seconds[way] = first if is_hopeless else _median_seconds(step, seconds_each)
    return seconds


def _seconds_of(step: Step, seconds: float) -> float:
    """Seconds of a step, a first one left out."""
    first = _time(step)
    return first if first > 2 * MOST_SECONDS_PER_WAY else _median_seconds(step, seconds)


def _median_seconds(step: Step, seconds: float, most: int = 50) -> float:
    taken = [_time(step)]
    while sum(taken) < seconds and len(taken) < most:
        taken.append(_time(step))
    return sorted(taken)[len(taken) // 2]


def _time(step: Step) -> float:
    device = PartialState().device
    synchronize(device)
    start = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - start


def _training_step(model: nn.Module, loss_of: Callable[[], torch.Tensor], way: Way) -> Step:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, fused=True)
    average = [parameter.detach().clone() for parameter in parameters]

    def step():
        with torch.autocast(PartialState().device.type, torch.bfloat16, enabled=way.mixed_precision == "bf16"):
            loss = loss_of()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch._foreach_lerp_(average, [parameter.detach() for parameter in parameters], 0.01)

    return step


def _model_of(config: MageConfig, attention: str) -> MageForMaskedImageModeling:
    model = MageForMaskedImageModeling(config).to(PartialState().device)
    model.set_attn_implementation(attention)
    return model


def model_step(config: MageConfig, batch_size: int, way: Way) -> Step:
    """A training step of a model on random tokens."""
    device = PartialState().device
    model = _model_of(config, way.attention).train()
    tokens = torch.randint(config.codebook_size, (batch_size, config.sequence_length), device=device)
    generator = torch.Generator().manual_seed(0)

    def loss() -> torch.Tensor:
        masks = sample_masks(model.config, batch_size, generator=generator, device=device, per_image=True)
        return model(input_ids=tokens, **masks.as_kwargs()).loss

    return _training_step(model, loss, way)


def tokenizer_step(size: TokenizerSize, batch_size: int, way: Way) -> Step:
    """A training step of a tokenizer on random pixels, with the pixels' error for its loss."""
    model = VQGANForTraining(size.build(), LossWeights()).to(PartialState().device).train()
    pixels = _pixels(size, batch_size)
    return _training_step(model, lambda: model(pixels).loss, way)


def decoder_step(size: TokenizerSize, batch_size: int, losses: dict[str, float], way: Way) -> Step:
    """A training step of a tokenizer's decoder, with a perceptual loss and a discriminator."""
    vqvae = size.build()
    for part in (vqvae.encoder, vqvae.quant_conv, vqvae.quantize):
        part.requires_grad_(False)
    discriminator = PatchDiscriminator(3, int(losses["discriminator_channels"]), int(losses["discriminator_levels"]))
    perceptual = perceptual_distance("efficientnet-lite0", num_stages=int(losses["perceptual_stages"]))
    weights = LossWeights(perceptual=losses["perceptual_weight"], adversarial=losses["adversarial_weight"])
    model = VQGANForTraining(vqvae, weights, perceptual, Adversary(discriminator, "hinge", losses["lecam_weight"]))
    model.to(PartialState().device).train()
    pixels = _pixels(size, batch_size)
    return _training_step(model, lambda: model(pixels).loss, way)


def encoding_step(size: TokenizerSize, batch_size: int) -> Step:
    """Tokens of random pixels."""
    vqvae = size.build().to(PartialState().device).requires_grad_(False).eval()
    pixels = _pixels(size, batch_size)
    return lambda: encode_images(vqvae, pixels)


def sampling_step(config: MageConfig, tokenizer: TokenizerSize, attention: str) -> Step:
    """A batch of samples, from nothing to pixels, as they are judged."""
    device = PartialState().device
    model = _model_of(config, attention).eval()
    vqvae = tokenizer.build().to(device).requires_grad_(False).eval()
    pipe = MagePipeline(model, MageScheduler(model.config.mask_token_id))
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator(device).manual_seed(seed) for seed in range(SAMPLING_BATCH)]
    options: dict[str, Any] = {"generator": generators, "output_type": "latent", "return_dict": False}

    def step():
        tokens = pipe(num_images=SAMPLING_BATCH, num_inference_steps=SAMPLING_STEPS, **options)[0]
        for part in torch.as_tensor(tokens).split(NUM_DECODED_AT_ONCE):
            decode_images(vqvae, part)

    return step


def judge_step(side: int) -> Step:
    """Two updates of the network that distances are by."""
    images = torch.randint(256, (2 * JUDGE_BATCH, 3, side, side), dtype=torch.uint8)
    return lambda: train_judge(images, None, 0, updates=2)


def features_step(side: int, is_grey: bool) -> Step:
    """The features that distances are by."""
    jury = Jury.of(Judge().requires_grad_(False).eval(), is_grey, side)
    images = torch.randint(256, (SAMPLING_BATCH, 3, side, side), dtype=torch.uint8)
    return lambda: jury.features(images)


def _pixels(size: TokenizerSize, batch_size: int) -> torch.Tensor:
    return torch.rand(batch_size, 3, size.image_size, size.image_size, device=PartialState().device)


@functools.cache
def tokenizer_training_flops(size: TokenizerSize) -> float:
    """Operations an image of a tokenizer's training step, forward and backward. Nothing is computed."""
    # It is convolutional: operations grow with the area.
    side = 2 * size.patch_size
    with torch.device("meta"):
        model = VQGANForTraining(size.build(), LossWeights()).train()
        pixels = torch.zeros(1, 3, side, side)
    with FlopCounterMode(display=False) as counter:
        model(pixels).loss.backward()
    return counter.get_total_flops() * (size.image_size / side) ** 2
