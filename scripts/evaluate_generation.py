"""
Scores generated images against real ones, or a tokenizer by its reconstructions.

    accelerate launch scripts/evaluate_generation.py --samples samples --references imagenet/val --output_dir scores
    accelerate launch scripts/evaluate_generation.py --tokenizer mage-vit-base --references imagenet/val

Samples and references are folders of images, datasets, or statistics files (those of `--save_statistics`, or an `.npz`
with `mu` and `sigma`). The results go to `results.json` and, for a model card, to `results.md`.
"""

import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from transformers_mage.command_line import argument, check_numbers, parse_arguments, reports_errors
from transformers_mage.data.tokenization import load_tokenizer
from transformers_mage.files import write_json, write_text
from transformers_mage.hub.eval_results import model_card_block
from transformers_mage.image_tokens import PIXEL_RANGE
from transformers_mage.metrics import (
    METRICS,
    Evaluator,
    ImageCollection,
    InceptionScore,
    SavedStatistics,
    Side,
    compute,
    is_statistics_file,
    load_feature_network,
    possible_metrics,
)
from transformers_mage.sampling import samples_path


@dataclass
class EvaluationArguments:
    samples: str | None = argument(None, "Generated images, or their statistics.")
    references: str | None = argument(None, "Real images, or their statistics.")
    tokenizer: str | None = argument(None, "Score the reconstructions of this `VQModel` or MAGE folder instead.")
    metrics: str | None = argument(
        None, f"With commas between them: {', '.join(METRICS)}. By default, what is possible."
    )
    feature_network: str = argument(
        "inception", '"inception", "efficientnet-lite0", or the folder or Hub name of a vision model.'
    )
    inception_weights: str | None = argument(None, "torch-fidelity's weights file, if it is not in torch's cache.")
    samples_split: str | None = argument(None, "The split of a dataset of samples with several.")
    references_split: str | None = argument(None, "The split of a dataset of references with several.")
    image_column: str | None = argument(None, "The column with the images of a dataset with several such columns.")
    resolution: int | None = argument(None, "Resize the shorter side to this, and crop the centre.")
    pixel_min: float | None = argument(None, "What black is to the tokenizer, if its configuration does not say it.")
    pixel_max: float | None = argument(None, "What white is to the tokenizer, if its configuration does not say it.")
    batch_size: int = argument(64, "Images in one forward pass of one process.")
    dataloader_num_workers: int = argument(0, "Processes that load images, for each evaluating process.")
    seed: int = argument(0, "Chooses the subsets of KID and of the Inception Score.")
    save_statistics: str | None = argument(None, "Keep the references' statistics in this `.safetensors` file.")
    output_dir: str = argument("evaluation", "Where the results go.")
    model_name: str = argument("mage", "The model's name, for its card.")
    dataset_name: str | None = argument(None, "The references' name, for the card; by default their folder's.")

    def check(self):
        """Raises `ValueError` for flags that make no evaluation."""
        unknown = set(self.asked_metrics) - set(METRICS)
        if unknown:
            raise ValueError(f"There is no metric {', '.join(sorted(unknown))}; there are {', '.join(METRICS)}.")
        check_numbers(self, "batch_size resolution", at_least=1)
        check_numbers(self, "dataloader_num_workers seed", at_least=0)
        if self.pixel_range and self.pixel_range[0] >= self.pixel_range[1]:
            low, high = self.pixel_range
            raise ValueError(f"`--pixel_min` ({low}) must be below `--pixel_max` ({high}).")
        if self.tokenizer is None and self.samples is None:
            raise ValueError("Say what to score: `--samples`, or `--tokenizer` for its reconstructions.")
        alone = self.asked_metrics == [InceptionScore.key] and not self.tokenizer
        if self.references is None and not alone:
            raise ValueError(
                f"Say what to compare with: `--references` (only `--metrics {InceptionScore.key}` works without)."
            )

    @property
    def pixel_range(self) -> tuple[float, float] | None:
        if self.pixel_min is None and self.pixel_max is None:
            return None
        low, high = PIXEL_RANGE
        return (
            low if self.pixel_min is None else self.pixel_min,
            high if self.pixel_max is None else self.pixel_max,
        )

    @property
    def asked_metrics(self) -> list[str]:
        return self.metrics.split(",") if self.metrics else []


@reports_errors
def main(argv: list[str] | None = None):
    args = parse_arguments(EvaluationArguments, __doc__, argv)
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    state, exchange = PartialState(), Path(args.output_dir, ".exchange")
    exchange.mkdir(parents=True, exist_ok=True)
    evaluator = Evaluator(
        lambda: load_feature_network(args.feature_network, args.inception_weights).to(state.device),
        exchange,
        args.batch_size,
        args.dataloader_num_workers,
        args.seed,
    )
    scores = evaluate_tokenizer(args, evaluator) if args.tokenizer else evaluate_samples(args, evaluator)
    if state.is_main_process:
        write_results(args, scores, evaluator.inputs)
    state.wait_for_everyone()
    shutil.rmtree(exchange, ignore_errors=True)


def evaluate_samples(args: EvaluationArguments, evaluator: Evaluator) -> dict[str, float]:
    sides = (
        open_side(args, args.samples, args.samples_split),
        open_side(args, args.references, args.references_split),
    )
    has_classes = args.feature_network == "inception"
    metrics = evaluator.score_samples(args.asked_metrics or possible_metrics(*sides, has_classes), *sides)
    return compute(metrics, args.save_statistics, args.feature_network)


def open_side(args: EvaluationArguments, path: str | None, split: str | None) -> Side:
    """The images, or the statistics, that a flag names."""
    if path is None:
        return None
    if is_statistics_file(path):
        return SavedStatistics.open(path, args.feature_network)
    return ImageCollection(samples_path(path), split, args.image_column, args.resolution)


def evaluate_tokenizer(args: EvaluationArguments, evaluator: Evaluator) -> dict[str, float]:
    tokenizer = load_tokenizer(args.tokenizer).to(evaluator.state.device)
    channels = tokenizer.config.in_channels
    source = ImageCollection(args.references, args.references_split, args.image_column, args.resolution, channels)
    return evaluator.score_tokenizer(tokenizer, source, args.pixel_range)


def write_results(args: EvaluationArguments, scores: dict[str, float], inputs: dict[str, Any]):
    folder = Path(args.output_dir)
    report = {"scores": scores, "feature_network": args.feature_network, **inputs}
    if args.tokenizer:
        report["tokenizer"] = args.tokenizer
    write_json(folder / "results.json", report)
    reference_name = Path(args.references).name if args.references else "none"
    card = model_card_block(
        scores,
        model_name=args.model_name,
        dataset_name=args.dataset_name or reference_name,
        dataset_split=args.references_split,
        feature_network=args.feature_network,
        task_type="image-to-image" if args.tokenizer else "unconditional-image-generation",
    )
    write_text(folder / "results.md", card)
    print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    main()
