"""
Finds how to sample a MAGE model: tries settings, scores each against real images, and counts what an image costs.

    python scripts/tune_sampling.py --model_name_or_path FOLDER --references imagenet/val --output_dir tuning
    python scripts/tune_sampling.py ... --encoder_keep_share 1 0.5 --full_steps 1 2 --budget 500 --save
    python scripts/tune_sampling.py ... --guidance_scale 1 2 4 --guidance_interval 0 1 0.5 1

All combinations of the values are tried, and what has none stays as the model's folder says. Every try is a line of
`tries.jsonl`, and what is there is not tried again: the same command resumes. `frontier.png` shows the scores against
the work. With `--budget`, the best setting that costs no more is named, and with `--save` written into the model's
folder and its card.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState

from transformers_mage import MagePipeline
from transformers_mage.benchmarking import (
    PIPELINE_CHOICES,
    SCHEDULER_CHOICES,
    Tries,
    averaged,
    best_within,
    combinations,
    count_gflops,
    draw_frontier,
    frontier,
    pipe_with,
    save_setting,
    without_weights,
)
from transformers_mage.command_line import argument, check_numbers, parse_arguments, reports_errors
from transformers_mage.conditioning import GUIDANCE_SCHEDULES
from transformers_mage.files import fingerprint, locked
from transformers_mage.hub.cards import markdown_table, replace_block
from transformers_mage.hub_folders import UNREADABLE
from transformers_mage.metrics import FrechetInceptionDistance, ImageCollection, load_feature_network
from transformers_mage.metrics.feature_networks import FeatureNetwork
from transformers_mage.progress import progress_bar
from transformers_mage.sampling import ClassPlan, Sampler
from transformers_mage.scheduling_mage import MASKING_SCHEDULES, TEMPERATURE_SCHEDULES, UNMASKING_ORDERS

CHOICES = (*SCHEDULER_CHOICES, *PIPELINE_CHOICES)
CARD_BLOCK = "sampling"


@dataclass
class TuningArguments:
    model_name_or_path: str | None = argument(None, "A MAGE model's folder or Hub name.")
    references: str | None = argument(None, "Real images: a folder, or a dataset.")
    references_split: str | None = argument(None, "The split of a dataset of references with several.")
    image_column: str | None = argument(None, "The column with the images of a dataset with several such columns.")
    feature_network: str = argument(
        "inception", '"inception", "efficientnet-lite0", or the folder or Hub name of a vision model.'
    )
    inception_weights: str | None = argument(None, "torch-fidelity's weights file, if it is not in torch's cache.")
    num_images: int = argument(5000, "Images of each try.")
    seeds: list[int] = argument([0], "Each setting is tried with all of them.")
    batch_size: int = argument(64, "Images made at once.")

    num_inference_steps: list[int] = argument([8, 12, 16, 20], "Decoding steps to try.")
    temperature: list[float] = argument([3.0, 6.0, 12.0], "Strengths of the noise on the choice of tokens to try.")
    encoder_keep_share: list[float] = argument([1.0, 0.5], "Least shares that the encoder sees to try; 1 is all.")
    full_steps: list[int] = argument([], "Every how many steps all tokens are computed, to try.")
    masking_schedule: list[str] = argument([], f"Schedules to try, of {', '.join(MASKING_SCHEDULES)}.")
    temperature_schedule: list[str] = argument([], f"And of {', '.join(TEMPERATURE_SCHEDULES)}.")
    unmasking_order: list[str] = argument([], f"Orders to try, of {', '.join(UNMASKING_ORDERS)}.")
    token_temperature: list[float] = argument([], "What divides the logits that tokens are sampled from, to try.")
    top_k: list[int] = argument([], "Numbers of likeliest codes to sample among, to try.")
    top_p: list[float] = argument([], "Probabilities of the likeliest codes to sample among, to try.")
    guidance_scale: list[float] = argument([], "Strengths of classifier-free guidance to try; 0 is none.")
    guidance_schedule: list[str] = argument([], f"How guidance rises, of {', '.join(GUIDANCE_SCHEDULES)}.")
    guidance_interval: list[float] = argument(
        [], "From which and up to which share of the steps there is guidance: `0 1 0.5 1` tries two intervals."
    )

    budget: float | None = argument(None, "Name the best setting of at most so many GFLOP an image.")
    save: bool = argument(False, "Write the best setting into the model's folder, and its score into its card.")
    output_dir: str = argument("tuning", "Where the tries go.")

    def check(self):
        if not self.model_name_or_path or not self.references:
            raise ValueError("Say which model to tune (`--model_name_or_path`) and by which images (`--references`).")
        check_numbers(self, "num_images batch_size num_inference_steps full_steps top_k", at_least=1)
        check_numbers(self, "seeds temperature token_temperature guidance_scale", at_least=0)
        check_numbers(self, "encoder_keep_share top_p", more_than=0, at_most=1)
        for name in ("seeds", "num_inference_steps"):
            if not getattr(self, name):
                raise ValueError(f"`--{name}` takes a value at least.")
        if len(self.guidance_interval) % 2:
            raise ValueError(
                f"`--guidance_interval` takes two shares for each interval, got {self.guidance_interval}."
            )
        if self.save and self.budget is None:
            raise ValueError("`--save` writes the best setting within a budget: add `--budget GFLOP`.")
        if self.save and not Path(self.model_name_or_path).is_dir():
            raise ValueError(f"`--save` writes into a folder, and {self.model_name_or_path} is none here.")


@reports_errors
def main(argv: list[str] | None = None):
    arguments = parse_arguments(TuningArguments, __doc__, argv)
    pipe, folder = load_pipeline(arguments), Path(arguments.output_dir)
    with locked(folder):
        rows = try_untried(arguments, pipe, Tries(folder / "tries.jsonl"))
        draw_frontier(rows, {"fid": f"FID ({arguments.feature_network} features)"}, folder / "frontier.png")
    print(table_of(frontier(rows, "fid"), arguments))
    if arguments.budget is not None:
        report_best(arguments, best_within(rows, "fid", arguments.budget))


def try_untried(arguments: TuningArguments, pipe: MagePipeline, tries: Tries) -> list[dict]:
    """All tries of this run's settings, those of earlier runs among them, averaged over seeds."""
    common = {
        "model": fingerprint(pipe.model),
        **{name: getattr(arguments, name) for name in ("references", "feature_network", "num_images")},
    }
    settings = [common | setting for setting in all_settings(arguments, pipe)]
    untried = tries.untried(settings)
    if untried:
        # First, since it takes seconds and finds settings that cannot be.
        counted = without_weights(pipe)
        work = [count_work(counted, setting) for setting in progress_bar(untried, desc="Counting")]
        network = load_feature_network(arguments.feature_network, arguments.inception_weights).to(pipe.device)
        features = FeatureNetwork(network)
        references = reference_features(arguments, features, pipe)
        for setting, gflops in zip(progress_bar(untried, desc="Trying"), work, strict=True):
            scores = score(pipe_with(pipe, setting), setting, arguments, features, references)
            tries.add(setting | {"gflops": gflops} | scores)
    return averaged(tries.of(settings), settings, "fid")


def load_pipeline(arguments: TuningArguments) -> MagePipeline:
    name = arguments.model_name_or_path
    try:
        pipe = MagePipeline.from_pretrained(name).to(PartialState().device)
    except UNREADABLE as error:
        raise ValueError(f"{name} cannot be loaded: {error}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def all_settings(arguments: TuningArguments, pipe: MagePipeline) -> list[dict]:
    own = {name: pipe.scheduler.config[name] for name in SCHEDULER_CHOICES}
    own |= {name: pipe.config[name] for name in PIPELINE_CHOICES}
    choices = {name: getattr(arguments, name) or [own[name]] for name in CHOICES} | {"seed": arguments.seeds}
    if not any(choices["guidance_scale"]) and (arguments.guidance_schedule or arguments.guidance_interval):
        raise ValueError("How guidance goes over the steps can be tried where there is some: add `--guidance_scale`.")
    shares = arguments.guidance_interval or own["guidance_interval"]
    choices["guidance_interval"] = [[begin, end] for begin, end in zip(shares[::2], shares[1::2], strict=True)]
    # Of all tokens nothing is dropped.
    choices["encoder_keep_share"] = [None if share == 1 else share for share in choices["encoder_keep_share"]]
    return combinations(choices)


def count_work(counted: MagePipeline, setting: dict) -> float:
    """GFLOP of an image; raises ValueError for a setting that does not exist or that the model cannot have."""
    image = {"class_labels": [0]} if counted.model.config.num_classes else {"num_images": 1}
    return count_gflops(pipe_with(counted, setting), **image)


def reference_features(arguments: TuningArguments, features: FeatureNetwork, pipe: MagePipeline) -> torch.Tensor:
    source = ImageCollection(
        arguments.references,
        arguments.references_split,
        arguments.image_column,
        pipe.model.config.image_height_width[0],
    )
    batches = progress_bar(source.batches(arguments.batch_size), desc="References")
    return torch.cat([features(images.to(pipe.device)).features for images, _ in batches if images is not None])


def score(
    pipe: MagePipeline, setting: dict, arguments: TuningArguments, features: FeatureNetwork, references: torch.Tensor
) -> dict[str, float]:
    """The Fréchet distance of a setting's images."""
    classes = ClassPlan(pipe.model.config, None, arguments.num_images)
    make = Sampler(pipe, classes, setting["seed"])
    metric = FrechetInceptionDistance(features.network)
    metric.add_batch(references=references)
    for start in progress_bar(range(0, arguments.num_images, arguments.batch_size), desc="Generating", leave=False):
        end = min(start + arguments.batch_size, arguments.num_images)
        images = torch.from_numpy(make(range(start, end))).permute(0, 3, 1, 2)
        metric.add_batch(predictions=features(images.to(pipe.device)).features)
    return metric.compute()


def table_of(rows: list[dict], arguments: TuningArguments) -> str:
    """With a column for each choice that there was."""
    names = [name for name in CHOICES if getattr(arguments, name)]
    header = [*names, "GFLOP an image", "FID"]
    return markdown_table(
        header, [[*(row[name] for name in names), f"{row['gflops']:.4g}", f"{row['fid']:.4g}"] for row in rows]
    )


def report_best(arguments: TuningArguments, best: dict):
    print(f"\nThe best of at most {arguments.budget:g} GFLOP an image:\n\n{table_of([best], arguments)}")
    if not arguments.save:
        return
    folder = Path(arguments.model_name_or_path)
    save_setting(folder, best)
    note = (
        f"Sampled by default with these settings, found by `scripts/tune_sampling.py` (FID of {arguments.num_images} "
        f"images by {arguments.feature_network}, {best['seeds']} seeds):\n\n{table_of([best], arguments)}"
    )
    write_into_card(folder / "README.md", note)
    print(f"Written into {folder}.")


def write_into_card(card: Path, note: str):
    """Where an earlier note is, or at the end."""
    text = card.read_text() if card.exists() else ""
    if f"<!-- {CARD_BLOCK} -->" not in text:
        card.write_text(f"{text.rstrip()}\n\n## Sampling\n\n<!-- {CARD_BLOCK} -->\n<!-- /{CARD_BLOCK} -->\n".lstrip())
    replace_block(card, CARD_BLOCK, note)


if __name__ == "__main__":
    main()
