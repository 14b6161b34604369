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
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor
from tqdm import tqdm

from transformers_mage.command_line import argument, parse_arguments, reports_errors
from transformers_mage.data.tokenization import load_tokenizer
from transformers_mage.metrics import (
    FeatureExtractor,
    FrechetInceptionDistance,
    InceptionFeatures,
    InceptionScore,
    KernelInceptionDistance,
    PrecisionRecall,
    StreamingMetric,
    TokenizerScores,
    TransformersFeatures,
    is_statistics_file,
    load_statistics,
    save_statistics,
)
from transformers_mage.metrics.images import ImageSource
from transformers_mage.metrics.report import model_card_block

SIDES = {"predictions": "samples", "references": "references"}  # a metric's name of each side, and the flag's
METRICS = {
    metric_class.key: metric_class
    for metric_class in (FrechetInceptionDistance, InceptionScore, KernelInceptionDistance, PrecisionRecall)
}


@dataclass
class EvaluationArguments:
    samples: str | None = argument(None, "Generated images, or their statistics.")
    references: str | None = argument(None, "Real images, or their statistics.")
    tokenizer: str | None = argument(None, "Score the reconstructions of this `VQModel` or MAGE folder instead.")
    metrics: str | None = argument(
        None, f"With commas between them: {', '.join(METRICS)}. By default, what is possible."
    )
    feature_network: str = argument("inception", '"inception", or the folder or Hub name of a vision model.')
    inception_weights: str | None = argument(None, "torch-fidelity's weights file, if it is not in torch's cache.")
    samples_split: str | None = argument(None, "The split of a dataset of samples with several.")
    references_split: str | None = argument(None, "The split of a dataset of references with several.")
    image_column: str | None = argument(None, "The column with the images of a dataset with several such columns.")
    resolution: int | None = argument(None, "Resize the shorter side to this, and crop the centre.")
    pixel_min: float = argument(0.0, "What black is to the tokenizer.")
    pixel_max: float = argument(1.0, "What white is to the tokenizer.")
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
        if self.batch_size < 1 or (self.resolution or 1) < 1:
            raise ValueError(f"`--batch_size` ({self.batch_size}) and `--resolution` must be at least 1.")
        if self.pixel_min >= self.pixel_max:
            raise ValueError(f"`--pixel_min` ({self.pixel_min}) must be below `--pixel_max` ({self.pixel_max}).")
        if self.tokenizer is None and self.samples is None:
            raise ValueError("Say what to score: `--samples`, or `--tokenizer` for its reconstructions.")
        alone = self.asked_metrics == [InceptionScore.key] and not self.tokenizer
        if self.references is None and not alone:
            raise ValueError(
                f"Say what to compare with: `--references` (only `--metrics {InceptionScore.key}` works without)."
            )

    @property
    def asked_metrics(self) -> list[str]:
        return self.metrics.split(",") if self.metrics else []


class Evaluation:
    """What every step needs: the flags, the processes, and how the metrics of several processes find each other."""

    def __init__(self, args: EvaluationArguments):
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        self.args, self.state = args, PartialState()
        self.exchange = Path(args.output_dir) / ".exchange"
        self.options = {
            "num_process": self.state.num_processes,
            "process_id": self.state.process_index,
            "cache_dir": str(self.exchange),
            "seed": args.seed,
            "timeout": 3600,
        }

    def feature_network(self) -> torch.nn.Module:
        if self.args.feature_network == "inception":
            network = InceptionFeatures(self.args.inception_weights)
        else:
            network = TransformersFeatures(self.args.feature_network)
        return network.to(self.state.device)

    def stream(self, source: ImageSource, name: str, add: Callable[[Tensor], None]) -> dict[str, Any]:
        """Give this process's share of the images to `add`; returns how many all processes saw and had to skip."""
        state, batch_size, seen, skipped = self.state, self.args.batch_size, 0, 0
        batches = source.batches(
            batch_size, self.args.dataloader_num_workers, state.process_index, state.num_processes
        )
        with tqdm(total=len(source), desc=name, unit="image", disable=not state.is_main_process) as progress:
            for images, undecodable in batches:
                skipped += undecodable
                if images is not None:
                    add(images.to(state.device))
                    seen += len(images)
                progress.update(min(batch_size * state.num_processes, len(source) - progress.n))
        seen, skipped = reduce(torch.tensor([seen, skipped], device=state.device), "sum").tolist()
        if not seen:
            raise ValueError(f"none of the {skipped} images in {source.path} can be decoded")
        if skipped and state.is_main_process:
            warnings.warn(f"{skipped} of the {seen + skipped} images in {source.path} cannot be decoded", stacklevel=2)
        return {"path": source.path, "count": seen, "skipped": skipped}


def open_side(args: EvaluationArguments, name: str) -> ImageSource | dict[str, dict[str, Tensor]] | None:
    """The images, or the statistics by metric, that a flag names."""
    path = getattr(args, name)
    if path is None:
        return None
    if not is_statistics_file(path):
        return ImageSource(path, getattr(args, f"{name}_split"), args.image_column, args.resolution)
    states, metadata = load_statistics(path)
    network = metadata.get("feature_network", args.feature_network)
    if network != args.feature_network:
        raise ValueError(
            f'{path} holds statistics of "{network}" features; compare them with --feature_network {network}'
        )
    return states


def choose_metrics(args: EvaluationArguments, sides: dict[str, Any]) -> list[str]:
    """The metrics that were asked for, or else all that the inputs allow."""
    if args.asked_metrics:
        return args.asked_metrics
    possible = []
    for key, metric_class in METRICS.items():
        inputs = [sides[side] for side in metric_class.inputs]
        given = all(item is not None and (isinstance(item, ImageSource) or key in item) for item in inputs)
        if given and (metric_class is not InceptionScore or args.feature_network == "inception"):
            possible.append(key)
    if not possible:
        raise ValueError("the two sides have no statistics in common")
    return possible


def evaluate_samples(run: Evaluation) -> tuple[dict[str, float], dict[str, Any]]:
    """Feeds both sides to all metrics; each image passes through the network once."""
    sides = {side: open_side(run.args, name) for side, name in SIDES.items()}
    metrics = {key: METRICS[key](**run.options) for key in choose_metrics(run.args, sides)}
    streamed = any(isinstance(source, ImageSource) for source in sides.values())
    extractor = FeatureExtractor(run.feature_network()) if streamed else None
    inputs = {}
    for side, source in sides.items():
        name, takers = SIDES[side], [metric for metric in metrics.values() if side in metric.features]
        if takers and isinstance(source, ImageSource):
            inputs[name] = run.stream(source, name, partial(add_images, extractor, takers, side))
        elif takers and source is not None:
            inputs[name] = {"path": getattr(run.args, name)}
            for metric in takers:
                metric.load_statistics(inputs[name]["path"], side)
    return score(run, metrics), inputs


def add_images(extractor: FeatureExtractor, metrics: list[StreamingMetric], side: str, images: Tensor) -> None:
    batch = extractor(images)
    for metric in metrics:
        metric.add_batch(**{side: batch})


def score(run: Evaluation, metrics: dict[str, StreamingMetric]) -> dict[str, float]:
    """The results, on the main process; there, the references' statistics are saved too."""
    statistics = {key: metric.gather() for key, metric in metrics.items()}
    if not run.state.is_main_process:
        return {}
    if run.args.save_statistics:
        references = {key: sides["references"] for key, sides in statistics.items() if "references" in sides}
        save_statistics(run.args.save_statistics, references, feature_network=run.args.feature_network)
    results = [metric.score(**statistics[key]) for key, metric in metrics.items()]
    return {name: value for result in results for name, value in result.items()}


def evaluate_tokenizer(run: Evaluation) -> tuple[dict[str, float], dict[str, Any]]:
    """PSNR, SSIM and rFID of what the tokenizer makes of the references."""
    args, tokenizer = run.args, load_tokenizer(run.args.tokenizer).to(run.state.device)
    mode = "L" if tokenizer.config.in_channels == 1 else "RGB"
    source = ImageSource(args.references, args.references_split, args.image_column, args.resolution, mode)
    scores = TokenizerScores(tokenizer, run.feature_network(), (args.pixel_min, args.pixel_max), **run.options)
    inputs = {"references": run.stream(source, "references", scores.add_batch)}
    return scores.compute() or {}, inputs


def write_results(args: EvaluationArguments, scores: dict[str, float], inputs: dict[str, Any]) -> None:
    folder = Path(args.output_dir)
    report = {"scores": scores, "feature_network": args.feature_network, **inputs}
    if args.tokenizer:
        report["tokenizer"] = args.tokenizer
    (folder / "results.json").write_text(json.dumps(report, indent=2) + "\n")
    reference_name = Path(args.references).name if args.references else "none"
    card = model_card_block(
        scores,
        model_name=args.model_name,
        dataset_name=args.dataset_name or reference_name,
        dataset_split=args.references_split,
        feature_network=args.feature_network,
        task_type="image-to-image" if args.tokenizer else "unconditional-image-generation",
    )
    (folder / "results.md").write_text(card)
    print(json.dumps(scores, indent=2))


@reports_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(EvaluationArguments, __doc__, argv)
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    run = Evaluation(args)
    try:
        scores, inputs = evaluate_tokenizer(run) if args.tokenizer else evaluate_samples(run)
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(f"error: {error}" if run.state.is_main_process else 1) from error
    if run.state.is_main_process:
        write_results(args, scores, inputs)
    run.state.wait_for_everyone()
    shutil.rmtree(run.exchange, ignore_errors=True)


if __name__ == "__main__":
    main()
