"""
The rule by which a quickstart chooses: docs/own_images.md says it in words, with the measurements behind it.

Sizes are chosen by the operations that they cost and those that the machine did; then a few steps of just these sizes
say how many updates fit.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from .judge import LARGEST_SIDE, judge_training_flops
from .looking import ImageSurvey
from .measuring import Machine, Rates, tokenizer_training_flops
from .sizes import MODEL_SIZES, TOKENIZER_WIDTHS, ModelSize, TokenizerSize, training_flops_of

# Of the time that is left for training: what each part gets. Without labels, or without a network for the decoder's
# perceptual loss, the model and the tokenizer get their parts.
SHARES = {"tokenizer": 0.27, "decoder": 0.11, "mage": 0.46, "conditional": 0.08, "judge": 0.03, "sampling": 0.05}
# A step of a run against a step alone: batches, averages, logging, checkpoints, looks at held-out images.
RUN_OVERHEAD = 1.15
# Seconds that a stage takes besides its steps: folders, models, pictures.
STAGE_SECONDS = 4.0
FEWEST_UPDATES = {"tokenizer": 1500, "mage": 3000}
MOST_PASSES = {"tokenizer": 100, "decoder": 50, "mage": 200, "conditional": 50}
LARGE_SIDES = (256, 192, 128, 96, 64, 48)
# Up to this side images are taken as they are.
SMALL_SIDE = 40
MOST_VIEWS = 8
# Of the whole time, for preparing and encoding the images: of more, a part is drawn.
PREPARING_SHARE = 0.2
FEWEST_OF_A_CLASS = 10
MANY_IMAGES = 10_000
SAMPLING_STEPS, SWEEP_SETTINGS = 20, 6
MOST_JUDGED, FEWEST_JUDGED = 5000, 128
# Of the whole time; an image passes through three encoders, each of which costs about as much as the tokenizer's.
PROBE_SHARE, PROBE_PASSES = 0.04, 7
# Updates, or images, below which nothing is learned, whatever the time.
MOST_PROBE_SCORES = 50_000_000
LEAST_WORTH, FEWEST_AT_ALL, MOST_JUDGE_UPDATES = 1000, 20, 2000
STAGES = (
    *("data", "tokenizer", "codes", "tokens", "decoder", "mage", "conditional"),
    *("judge", "sweep", "scores", "probe", "card"),
)


@dataclass
class Sizes:
    """
    What is trained.

    Attributes:
        tokenizer ([`TokenizerSize`]): with the codes that it learns.
        model ([`ModelSize`]): the MAGE.
        num_codes (`int`): that are left of the tokenizer's after k-means.
        tokenizer_batch, model_batch (`int`): images in an update.
    """

    tokenizer: TokenizerSize
    model: ModelSize
    num_codes: int
    tokenizer_batch: int
    model_batch: int

    @property
    def grid_side(self) -> int:
        return self.tokenizer.image_size // self.tokenizer.patch_size


@dataclass
class Plan:
    """
    What will be done, and how long it will take.

    Attributes:
        hours (`float`): that were asked for.
        sizes ([`Sizes`]): what is trained.
        updates (`dict[str, int]`): of "tokenizer", "decoder", "mage", "conditional" and "judge"; 0 leaves one out.
        num_images (`int`): that are trained on.
        num_views (`int`): of each in the token cache.
        crop_scale_min (`float`), horizontal_flip (`bool`): how views are drawn.
        num_swept, num_judged (`int`): samples for each way of sampling that is tried, 0 for none, and for the scores.
        num_probed (`int`): images whose features are computed; 0 without labels.
        seconds (`dict[str, float]`): of each stage.
        reasons (`list[str]`): why.
    """

    hours: float
    sizes: Sizes
    updates: dict[str, int]
    num_images: int
    num_views: int
    crop_scale_min: float
    horizontal_flip: bool
    num_swept: int
    num_judged: int
    num_probed: int
    seconds: dict[str, float]
    reasons: list[str] = field(default_factory=list)

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())

    def rows(self) -> list[tuple[str, str]]:
        """What people read, as pairs of words."""
        tokenizer, model, grid = self.sizes.tokenizer, self.sizes.model, self.sizes.grid_side
        updates = [f"{name} {count}" for name, count in self.updates.items() if count]
        crops = "no crops" if self.crop_scale_min == 1 else f"crops of {self.crop_scale_min:.0%} of the area or more"
        minutes = [f"{name} {seconds / 60:.1f}" for name, seconds in self.seconds.items()]
        return [
            ("images", f"{self.num_images} of {tokenizer.image_size} x {tokenizer.image_size} pixels"),
            ("tokens", f"{grid} x {grid} out of {self.sizes.num_codes} codes"),
            ("tokenizer", f"{tokenizer.width} channels at its finest level"),
            ("model", f"width {model.width}, {model.num_layers} + {model.decoder_num_layers} layers"),
            ("views", f"{crops}, {'mirrored' if self.horizontal_flip else 'not mirrored'}"),
            ("updates", ", ".join(updates)),
            ("minutes", f"{', '.join(minutes)}; {self.total_seconds / 60:.1f} from now on"),
            *(("because", reason) for reason in self.reasons),
        ]


def choose(
    survey: ImageSurvey,
    machine: Machine,
    hours: float,
    rates_of: Callable[[Sizes], Rates],
    *,
    seconds_spent: float = 0.0,
    can_sharpen: bool = True,
    image_size: int | None = None,
) -> Plan:
    """
    Args:
        survey ([`ImageSurvey`]): of the images.
        machine ([`Machine`]): what it can do.
        hours (`float`): there are.
        rates_of (`Callable`): measures what was chosen.
        seconds_spent (`float`): of the hours.
        can_sharpen (`bool`): whether there is a network for the decoder's perceptual loss.
        image_size (`int`, *optional*): side of the images; chosen by default.
    """
    seconds = 3600 * hours - seconds_spent
    shares = shares_of(survey, can_sharpen)
    sizes = choose_sizes(survey, machine, seconds, shares, image_size)
    plan = plan_updates(survey, hours, seconds, shares, sizes, rates_of(sizes))
    operations = judge_training_flops(min(sizes.tokenizer.image_size, LARGEST_SIDE))
    fits = plan.seconds["judge"] * machine.tokenizer_flops / machine.num_processes / operations / RUN_OVERHEAD
    plan.updates["judge"] = int(min(max(fits, FEWEST_AT_ALL), MOST_JUDGE_UPDATES))
    return plan


def shares_of(survey: ImageSurvey, can_sharpen: bool) -> dict[str, float]:
    """What each part gets of the time for training."""
    shares = dict(SHARES)
    if not can_sharpen:
        shares["tokenizer"] += shares.pop("decoder")
    if not has_usable_classes(survey):
        shares["mage"] += shares.pop("conditional")
    return shares


def has_usable_classes(survey: ImageSurvey) -> bool:
    """Whether there are images enough of each class, on average, to learn to make them."""
    return bool(survey.classes) and survey.num_images >= FEWEST_OF_A_CLASS * len(survey.classes)


def sides_of(short_side: int) -> Iterator[tuple[int, int]]:
    """Sides of images, in pixels, and of tokens that would do, the largest first."""
    if short_side <= SMALL_SIDE:
        side = max(4 * -(-short_side // 4), 16)
        yield side, 2 if side <= 16 else 4
        return
    for side in LARGE_SIDES:
        if side <= short_side:
            yield side, 16 if side > 128 else 8 if side >= 64 else 4
    yield 32, 4


def choose_sizes(
    survey: ImageSurvey, machine: Machine, seconds: float, shares: dict[str, float], image_size: int | None = None
) -> Sizes:
    """
    The largest images, then the widest tokenizer, then the largest model whose updates are enough, as far as the
    operations tell.
    """
    tokenizer_batch, model_batch = batch_sizes(survey, machine)
    free = (1 - PREPARING_SHARE) * seconds / RUN_OVERHEAD

    def tokenizer_updates(size: TokenizerSize) -> float:
        operations = tokenizer_training_flops(size) * tokenizer_batch
        return shares["tokenizer"] * free * machine.tokenizer_flops / operations

    def model_updates(model: ModelSize, tokenizer: TokenizerSize) -> float:
        operations = training_flops_of(model, tokenizer) * model_batch
        return shares["mage"] * free * machine.model_flops / operations

    models = MODEL_SIZES[: num_model_sizes(survey)]
    for side, patch in _wanted_sides(survey, image_size):
        codes = num_codes(survey, side, patch)
        widths = tokenizer_widths(survey, patch)
        tokenizer = TokenizerSize(side, patch, widths[0], 4 * codes)
        has_updates = tokenizer_updates(tokenizer) >= FEWEST_UPDATES["tokenizer"]
        if has_updates and model_updates(models[0], tokenizer) >= FEWEST_UPDATES["mage"]:
            break
    for width in widths[1:]:
        wider = TokenizerSize(side, patch, width, 4 * codes)
        # It has more to learn, so that it is worth its time with twice the updates.
        if tokenizer_updates(wider) >= 2 * FEWEST_UPDATES["tokenizer"]:
            tokenizer = wider
    enough = [model for model in models if model_updates(model, tokenizer) >= FEWEST_UPDATES["mage"]]
    return Sizes(tokenizer, (enough or models[:1])[-1], codes, tokenizer_batch, model_batch)


def _wanted_sides(survey: ImageSurvey, image_size: int | None) -> list[tuple[int, int]]:
    if image_size is None:
        return list(sides_of(survey.short_side))
    return [(image_size, 16 if image_size > 128 else 8 if image_size > 48 else 4)]


def reasons_for(survey: ImageSurvey, sizes: Sizes) -> list[str]:
    """What people may want to know of a choice."""
    is_small = survey.short_side <= SMALL_SIDE
    of_sides = "small images are taken as they are" if is_small else "the largest that the time allows"
    grey = "images without colours need few, and fewer are easier to predict"
    of_codes = grey if survey.is_grey else "a thousand tokens or more are of each"
    reasons = [
        f"{sizes.tokenizer.image_size} pixels a side, where the images have {survey.short_side}: {of_sides}",
        f"{sizes.num_codes} codes: {of_codes}",
    ]
    if crop_scale_of(survey) == 1:
        reasons.append("no crops: they would cut into what stands on a plain ground")
    if not has_usable_classes(survey):
        few = f"fewer than {FEWEST_OF_A_CLASS} images of a class" if survey.classes else "no labels"
        reasons.append(f"no class-conditional model: there are {few}")
    return reasons


def batch_sizes(survey: ImageSurvey, machine: Machine) -> tuple[int, int]:
    """Of the tokenizer and the model: all processes together see as many, and an accelerator four times."""
    factor = 4 if machine.device != "cpu" and survey.num_images >= MANY_IMAGES else 1
    tokenizer, model = (max(factor * batch // machine.num_processes, 1) for batch in (32, 64))
    return tokenizer, model


def num_codes(survey: ImageSurvey, image_size: int, patch_size: int) -> int:
    """A power of two, so that a thousand tokens or more are of each code."""
    most = 64 if survey.is_grey else 256
    most *= {2: 1, 4: 1, 8: 2, 16: 4}[patch_size]
    tokens = survey.num_images * (image_size // patch_size) ** 2
    return min(most, max(2 ** (int(tokens // 1000).bit_length() - 1) if tokens >= 1000 else 0, 16))


def tokenizer_widths(survey: ImageSurvey, patch_size: int) -> list[int]:
    """Channels of the finest level that would do, the narrowest first."""
    most = 16 if survey.is_grey and patch_size <= 4 else {2: 32, 4: 32, 8: 64, 16: 128}[patch_size]
    return [width for width in TOKENIZER_WIDTHS if width <= most]


def num_model_sizes(survey: ImageSurvey) -> int:
    """How many of the models, the smallest first, so many images can teach."""
    steps = (5_000, 20_000, 100_000)
    return 2 + sum(survey.num_images >= step for step in steps) + (survey.num_images >= 300_000)


def plan_updates(
    survey: ImageSurvey, hours: float, seconds: float, shares: dict[str, float], sizes: Sizes, rates: Rates
) -> Plan:
    """How many images, views, updates and samples of chosen sizes fit into the time."""
    num_images, num_views = _images_and_views(survey, seconds, rates)
    num_probed = _num_probed(survey, seconds, num_images, rates)
    stages = {
        "data": STAGE_SECONDS + num_images * survey.seconds_per_image,
        "codes": 2 * STAGE_SECONDS,
        "tokens": 2 * STAGE_SECONDS + num_views * num_images / rates.encoding,
        "probe": 2 * STAGE_SECONDS + num_probed * PROBE_PASSES / rates.encoding if num_probed else 0.0,
        "card": 2 * STAGE_SECONDS,
    }
    free = max(seconds - sum(stages.values()) - (len(shares) + 1) * STAGE_SECONDS, 0.1 * seconds)
    updates = {}
    for name, (batch, rate) in _trainings(sizes, rates).items():
        fits = int(min(shares.get(name, 0.0) * free * rate / batch / RUN_OVERHEAD, _most(name, num_images, batch)))
        updates[name] = max(fits, FEWEST_AT_ALL) if name in shares else 0
        stages[name] = STAGE_SECONDS + updates[name] * batch / rate * RUN_OVERHEAD if updates[name] else 0.0
    stages["judge"] = STAGE_SECONDS + shares["judge"] * free
    num_swept, num_judged, of_sampling = _samples(shares["sampling"] * free, rates)
    stages |= of_sampling
    seconds_late = sum(stages.values()) - seconds
    return Plan(
        hours=hours,
        sizes=sizes,
        updates=updates,
        num_images=num_images,
        num_views=num_views,
        crop_scale_min=crop_scale_of(survey),
        horizontal_flip=not survey.has_handedness,
        num_swept=num_swept,
        num_judged=num_judged,
        num_probed=num_probed,
        seconds={name: round(stages[name], 1) for name in STAGES if stages[name]},
        reasons=reasons_for(survey, sizes) + _limits(survey, num_images, num_probed, num_swept, seconds_late),
    )


def _samples(seconds: float, rates: Rates) -> tuple[int, int, dict[str, float]]:
    """Samples of each way of sampling and for the scores, and the seconds of both stages."""
    seconds_each = SAMPLING_STEPS / rates.sampling
    half = seconds / 2 / seconds_each
    num_judged = int(min(max(half, FEWEST_JUDGED), MOST_JUDGED))
    # With fewer, chance would choose.
    num_swept = int(min(half / SWEEP_SETTINGS, MOST_JUDGED)) if half >= SWEEP_SETTINGS * FEWEST_JUDGED else 0
    sweep = STAGE_SECONDS + SWEEP_SETTINGS * num_swept * seconds_each if num_swept else 0.0
    return num_swept, num_judged, {"sweep": sweep, "scores": 2 * STAGE_SECONDS + num_judged * seconds_each}


def _limits(survey: ImageSurvey, num_images: int, num_probed: int, num_swept: int, seconds_late: float) -> list[str]:
    """What there is no time for."""
    found = []
    if num_images < _num_whole(survey):
        found.append(f"{num_images} of {survey.num_images} images, drawn at random: all would take too long")
    if survey.classes and not num_probed:
        found.append(f"no probe: {len(survey.classes)} classes are too many for so few images, or for the memory")
    if not num_swept:
        found.append("no search for the best way of sampling: there is no time for it")
    if seconds_late > 60:
        found.append(f"{seconds_late / 60:.0f} minutes more than there are: less would make no model")
    return found


def _trainings(sizes: Sizes, rates: Rates) -> dict[str, tuple[int, float]]:
    """Batch size and images a second of each training."""
    return {
        "tokenizer": (sizes.tokenizer_batch, rates.tokenizer),
        "decoder": (sizes.tokenizer_batch, rates.decoder),
        "mage": (sizes.model_batch, rates.model),
        "conditional": (sizes.model_batch, rates.model),
    }


def _most(name: str, num_images: int, batch_size: int) -> float:
    """Updates, after which more would be learned by heart."""
    return max(MOST_PASSES[name] * num_images / batch_size, LEAST_WORTH)


def _num_whole(survey: ImageSurvey) -> int:
    return int(survey.num_images * (1 - survey.num_broken / survey.num_seen))


def _images_and_views(survey: ImageSurvey, seconds: float, rates: Rates) -> tuple[int, int]:
    preparing = PREPARING_SHARE * seconds
    per_image = survey.seconds_per_image + 1 / rates.encoding
    num_images = int(min(_num_whole(survey), max(preparing / per_image, LEAST_WORTH)))
    if crop_scale_of(survey) == 1 and survey.has_handedness:
        return num_images, 1
    left = max(preparing - num_images * per_image, 0)
    return num_images, 1 + int(min(MOST_VIEWS - 1, left * rates.encoding / num_images))


def _num_probed(survey: ImageSurvey, seconds: float, num_images: int, rates: Rates) -> int:
    """Images whose features are computed; none without labels."""
    if not survey.classes:
        return 0
    fits = max(PROBE_SHARE * seconds * rates.encoding / PROBE_PASSES, LEAST_WORTH)
    # All scores of all images are in memory at once.
    count = int(min(num_images, fits, MOST_PROBE_SCORES / len(survey.classes)))
    return count if count >= 2 * len(survey.classes) else 0


def crop_scale_of(survey: ImageSurvey) -> float:
    """Least share of an image's area that a crop keeps."""
    if survey.is_centred and survey.num_images >= MANY_IMAGES:
        return 1.0
    return 0.8 if survey.is_centred or survey.short_side <= SMALL_SIDE else 0.6


def as_dict(plan: Plan) -> dict:
    """As JSON has it; see [`plan_of`]."""
    return dataclasses.asdict(plan)


def plan_of(values: dict) -> Plan:
    """The plan that [`as_dict`] made these values of."""
    sizes = dict(values["sizes"])
    sizes |= {"tokenizer": TokenizerSize(**sizes["tokenizer"]), "model": ModelSize(**sizes["model"])}
    return Plan(**{**values, "sizes": Sizes(**sizes)})
