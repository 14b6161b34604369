"""
The rule by which a quickstart chooses: docs/own_images.md says it in words, with the measurements behind it.

Sizes are chosen by the operations that they cost and those that the machine did; then a few steps of just these sizes
say how many updates fit.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

from .judge import BATCH_SIZE as JUDGE_BATCH
from .looking import ImageSurvey
from .measuring import Machine, Rates, tokenizer_training_flops
from .sizes import MODEL_SIZES, TOKENIZER_WIDTHS, ModelSize, Sizes, TokenizerSize, training_flops_of

# Of the time that is left for training: what each part gets. Without labels, or without a network for the decoder's
# perceptual loss, the model and the tokenizer get their parts.
SHARES = {"tokenizer": 0.25, "decoder": 0.11, "mage": 0.43, "conditional": 0.08, "judge": 0.03, "sampling": 0.1}
# A step of a run against a step alone: batches, averages, logging, checkpoints, looks at held-out images.
RUN_OVERHEAD = 1.1
# Seconds that a stage takes besides its steps: folders, models, pictures.
STAGE_SECONDS = 2.0
FEWEST_UPDATES = {"tokenizer": 1500, "mage": 3000}
MOST_PASSES = {"tokenizer": 100, "decoder": 50, "mage": 400, "conditional": 50}
LARGE_SIDES = (256, 192, 128, 96, 64, 48)
# Up to this side images are taken as they are.
SMALL_SIDE = 40
MOST_VIEWS = 8
# Of a model that sees each image more often than this, a tenth of the activations is dropped.
FEW_PASSES = 30
# Of the whole time, for preparing and encoding the images: of more, a part is drawn. Next to looking at them, they are
# encoded and written.
PREPARING_SHARE, PREPARING_COST = 0.2, 1.5
FEWEST_OF_A_CLASS = 10
MANY_IMAGES = 10_000
# Ways of sampling that are tried, and what making their samples costs, in those of all steps: two take fewer.
SWEPT_WAYS, SWEPT_COST = 6, 5.2
# Of an image that scores are of: features of it, its reconstruction, a training image, a test image and a sample of a
# class.
SCORED_FEATURES = 5
MOST_JUDGED, FEWEST_JUDGED = 5000, 128
# Of the whole time; each image passes through the model three times, once with random weights, and its pixels are
# classified too.
PROBE_SHARE, PROBE_PASSES, COMPARISON_PASSES = 0.04, 1, 3
# As preparation holds images out.
HELD_OUT_SHARE = 0.08
# Of the time of a pass, for the classifiers that learn from its features.
CLASSIFYING = 1.0
# Updates, or images, below which nothing is learned, whatever the time.
MOST_PROBE_SCORES = 50_000_000
LEAST_WORTH, FEWEST_AT_ALL, MOST_JUDGE_UPDATES = 1000, 20, 2000
STAGES = (
    *("data", "tokenizer", "codes", "tokens", "decoder", "mage", "conditional"),
    *("judge", "sweep", "scores", "probe", "comparison", "card"),
)


@dataclass
class Plan:
    """
    What will be done, and how long it will take.

    Attributes:
        hours (`float`): that were asked for.
        sizes ([`Sizes`]): what is trained.
        rates ([`Rates`]): how fast.
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
    rates: Rates
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
    spent: Callable[[], float] = lambda: 0.0,
    can_sharpen: bool = True,
    image_size: int | None = None,
) -> Plan:
    """
    Args:
        survey ([`ImageSurvey`]): of the images.
        machine ([`Machine`]): what it can do.
        hours (`float`): there are.
        rates_of (`Callable`): measures what was chosen.
        spent (`Callable`): gives the seconds of the hours that are gone.
        can_sharpen (`bool`): whether there is a network for the decoder's perceptual loss.
        image_size (`int`, *optional*): side of the images; chosen by default.
    """
    shares = shares_of(survey, can_sharpen)
    sizes = choose_sizes(survey, machine, 3600 * hours - spent(), shares, image_size)
    rates = rates_of(sizes)
    return plan_updates(survey, hours, 3600 * hours - spent(), shares, sizes, rates)


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
    model = ([model for model in models if model_updates(model, tokenizer) >= FEWEST_UPDATES["mage"]] or models[:1])[
        -1
    ]
    passes = min(model_updates(model, tokenizer) * model_batch / survey.num_images, MOST_PASSES["mage"])
    dropout = 0.1 if passes > FEW_PASSES else 0.0
    return Sizes(tokenizer, model, codes, dropout, tokenizer_batch, model_batch)


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
    few_samples = FEWEST_JUDGED * (_seconds_swept(rates) + 2 * _seconds_sampled(rates))
    nothing_yet = Plan(
        hours=hours,
        sizes=sizes,
        rates=rates,
        updates={},
        num_images=num_images,
        num_views=num_views,
        crop_scale_min=crop_scale_of(survey),
        horizontal_flip=not survey.has_handedness,
        # With fewer, chance would choose.
        num_swept=FEWEST_JUDGED if shares["sampling"] * seconds >= few_samples else 0,
        num_judged=FEWEST_JUDGED,
        num_probed=_num_probed(survey, seconds, num_images, rates),
        seconds={},
    )
    plan = fitted(nothing_yet, survey, seconds, shares, STAGES)
    seconds_late = plan.total_seconds - seconds
    plan.reasons = reasons_for(survey, sizes) + _limits(survey, plan, seconds_late)
    return plan


def fitted(
    plan: Plan,
    survey: ImageSurvey,
    seconds: float,
    shares: Mapping[str, float],
    todo: Collection[str],
    first: Plan | None = None,
) -> Plan:
    """
    A plan with as many updates and samples as fit into what is left of the time.

    Args:
        plan ([`Plan`]): whose sizes, images and rates are kept.
        survey ([`ImageSurvey`]): of the images.
        seconds (`float`): that are left.
        shares (`Mapping[str, float]`): of the parts; see [`shares_of`].
        todo (`Collection[str]`): names of the stages that are still to be done.
        first ([`Plan`], *optional*): what was planned in the beginning. No stage gets less than half of that, however
            late it is: a model or a judge of a few updates is worth nothing.
    """
    stages = {name: cost for name, cost in _fixed_seconds(plan, survey).items() if name in todo}
    parts = {name: share for name, share in shares.items() if {"sampling": "scores"}.get(name, name) in todo}
    given = _share_out(max(seconds - sum(stages.values()), 0.1 * seconds), parts, _most_seconds(plan))
    updates = {name: 0 for name in SHARES if name != "sampling"} | plan.updates
    for name, (batch, rate, overhead) in _trainings(plan).items():
        if name not in parts:
            continue
        fits = (given[name] - STAGE_SECONDS) * rate / batch / overhead
        least = max(FEWEST_AT_ALL, first.updates[name] // 2 if first else 0)
        updates[name] = int(max(min(fits, _most(name, plan.num_images, batch)), least))
        stages[name] = STAGE_SECONDS + updates[name] * batch / rate * overhead
    num_swept, num_judged, of_sampling = _samples(plan, given.get("sampling", 0.0), todo, first)
    stages |= of_sampling
    return dataclasses.replace(
        plan,
        updates=updates,
        num_swept=num_swept,
        num_judged=num_judged,
        seconds=plan.seconds | {name: round(stages[name], 1) for name in STAGES if stages.get(name)},
    )


def _share_out(seconds: float, shares: Mapping[str, float], most: Mapping[str, float]) -> dict[str, float]:
    """What each part gets; what is more than one of them can use goes to the others."""
    given: dict[str, float] = {}
    while left := {name: share for name, share in shares.items() if name not in given}:
        unit = (seconds - sum(given.values())) / sum(left.values())
        full = {name: most[name] for name, share in left.items() if share * unit > most[name]}
        given |= full or {name: share * unit for name, share in left.items()}
    return given


def _most_seconds(plan: Plan) -> dict[str, float]:
    """More than which no part can use."""
    most = {
        name: STAGE_SECONDS + _most(name, plan.num_images, batch) * batch / rate * overhead if rate else 0.0
        for name, (batch, rate, overhead) in _trainings(plan).items()
    }
    swept = _seconds_swept(plan.rates) if plan.num_swept else 0.0
    return {**most, "sampling": 2 * STAGE_SECONDS + MOST_JUDGED * (swept + _seconds_judged(plan))}


def _fixed_seconds(plan: Plan, survey: ImageSurvey) -> dict[str, float]:
    """Of the stages that are as long as the images make them."""
    rates = plan.rates
    passes = _num_passed(plan, survey) * (1 + CLASSIFYING) * (1 / rates.encoding + 1 / (2 * rates.model))
    prepared = plan.num_images + survey.split_sizes["validation"] + survey.split_sizes["test"]
    return {
        "data": STAGE_SECONDS + PREPARING_COST * prepared * survey.seconds_per_image,
        "codes": 2 * STAGE_SECONDS,
        "tokens": STAGE_SECONDS + plan.num_views * plan.num_images / rates.encoding,
        "probe": STAGE_SECONDS + PROBE_PASSES * passes if passes else 0.0,
        "comparison": STAGE_SECONDS + COMPARISON_PASSES * passes if passes else 0.0,
        "card": 2 * STAGE_SECONDS,
    }


def _num_passed(plan: Plan, survey: ImageSurvey) -> int:
    """Images whose features are computed: those that classifiers learn from, and all that they are scored on."""
    if not plan.num_probed:
        return 0
    return plan.num_probed + (survey.split_sizes["test"] or int(HELD_OUT_SHARE * plan.num_images))


def _seconds_swept(rates: Rates) -> float:
    """Of one sample of each way of sampling, and of what they are compared with."""
    return SWEPT_COST / rates.sampling + (SWEPT_WAYS + 4) / rates.features


def _seconds_judged(plan: Plan) -> float:
    """Of each sample that scores are of, and of one of a class where there is such a model."""
    return (2 if plan.updates.get("conditional") else 1) * _seconds_sampled(plan.rates)


def _seconds_sampled(rates: Rates) -> float:
    return 1 / rates.sampling + SCORED_FEATURES / 2 / rates.features + 1 / rates.encoding


def _samples(
    plan: Plan, seconds: float, todo: Collection[str], first: Plan | None
) -> tuple[int, int, dict[str, float]]:
    """Samples of each way of sampling and for the scores, and the seconds of both stages."""
    found = {}
    least_swept, least_judged = (first.num_swept // 2, first.num_judged // 2) if first else (0, 0)
    num_swept, num_judged = plan.num_swept, plan.num_judged
    if num_swept and "sweep" in todo:
        fits = (seconds / 2 - STAGE_SECONDS) / _seconds_swept(plan.rates)
        num_swept = int(min(max(fits, FEWEST_JUDGED, least_swept), MOST_JUDGED))
        found["sweep"] = STAGE_SECONDS + num_swept * _seconds_swept(plan.rates)
    if "scores" in todo:
        fits = (seconds - found.get("sweep", 0.0) - STAGE_SECONDS) / _seconds_judged(plan)
        num_judged = int(min(max(fits, FEWEST_JUDGED, least_judged), MOST_JUDGED))
        found["scores"] = STAGE_SECONDS + num_judged * _seconds_judged(plan)
    return num_swept, num_judged, found


def _limits(survey: ImageSurvey, plan: Plan, seconds_late: float) -> list[str]:
    """What there is no time for."""
    found = []
    if plan.num_images < _num_whole(survey):
        found.append(f"{plan.num_images} of {survey.num_images} images, drawn at random: all would take too long")
    if survey.classes and not plan.num_probed:
        found.append(f"no probe: {len(survey.classes)} classes are too many for so few images, or for the memory")
    if not plan.num_swept:
        found.append("no search for the best way of sampling: there is no time for it")
    if seconds_late > 20:
        found.append(f"{seconds_late / 60:.1f} minutes more than there are: less would make no model")
    return found


def _trainings(plan: Plan) -> dict[str, tuple[int, float, float]]:
    """Batch size and images a second of each training, and how much longer it takes than its steps alone."""
    sizes, rates = plan.sizes, plan.rates
    return {
        "tokenizer": (sizes.tokenizer_batch, rates.tokenizer, RUN_OVERHEAD),
        "decoder": (sizes.tokenizer_batch, rates.decoder, RUN_OVERHEAD),
        "mage": (sizes.model_batch, rates.model, RUN_OVERHEAD),
        "conditional": (sizes.model_batch, rates.model, RUN_OVERHEAD),
        "judge": (JUDGE_BATCH, rates.judge, 1.0),
    }


def _most(name: str, num_images: int, batch_size: int) -> float:
    """Updates, after which more would be learned by heart."""
    if name == "judge":
        return MOST_JUDGE_UPDATES
    return max(MOST_PASSES[name] * num_images / batch_size, LEAST_WORTH)


def _num_whole(survey: ImageSurvey) -> int:
    return int(survey.num_images * (1 - survey.num_broken / survey.num_seen))


def _images_and_views(survey: ImageSurvey, seconds: float, rates: Rates) -> tuple[int, int]:
    preparing = PREPARING_SHARE * seconds
    per_image = PREPARING_COST * survey.seconds_per_image + 1 / rates.encoding
    num_images = int(min(_num_whole(survey), max(preparing / per_image, LEAST_WORTH)))
    if crop_scale_of(survey) == 1 and survey.has_handedness:
        return num_images, 1
    left = max(preparing - num_images * per_image, 0)
    return num_images, 1 + int(min(MOST_VIEWS - 1, left * rates.encoding / num_images))


def _num_probed(survey: ImageSurvey, seconds: float, num_images: int, rates: Rates) -> int:
    """Images whose features are computed; none without labels."""
    if not survey.classes:
        return 0
    passes = (PROBE_PASSES + COMPARISON_PASSES) * (1 + CLASSIFYING)
    fits = max(PROBE_SHARE * seconds / passes / (1 / rates.encoding + 1 / (2 * rates.model)), LEAST_WORTH)
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
    return Plan(**{**values, "sizes": Sizes(**sizes), "rates": Rates(**values["rates"])})
