"""
Compares what a model's features tell of the classes of any labelled images with what raw pixels and an encoder with
random weights tell, by linear probes and nearest neighbours.

    python scripts/compare_representations.py --model_name_or_path FOLDER --dataset_name FOLDER_OR_HUB_NAME \
        --validation_split test --shots_per_class 1 10 0 --num_seeds 3 --output_dir comparison

Other models join with `--other_models MAGE-C=FOLDER`. The table goes to `results.md`, its numbers to `results.json`.
"""

from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from transformers_mage.command_line import argument, parse_arguments, reports_errors
from transformers_mage.representation import (
    ClassificationArguments,
    FeatureExtractor,
    Result,
    describe,
    load_encoder,
    probe_features,
    random_encoder,
    save_results,
    table,
)


@dataclass
class ComparisonArguments(ClassificationArguments):
    layers: list[int] = argument([-1], "Layers: 0 are the embeddings, -1 is the last one, before the final norm.")
    poolings: list[str] = argument(["mean"], "Among mean and cls.")
    other_models: list[str] = argument([], "Models to compare with, of images of the same size: NAME=FOLDER.")

    def check(self):
        super().check()
        wrong = [other for other in self.other_models if not all(other.partition("="))]
        if wrong:
            raise ValueError(f"`--other_models` takes a name and a folder each, NAME=FOLDER; got {wrong[0]}.")


@reports_errors
def main(argv: list[str] | None = None):
    arguments = parse_arguments(ComparisonArguments, __doc__, argv)
    accelerator = Accelerator()
    if not accelerator.is_main_process:
        return
    encoders = load_extractors(arguments, accelerator)
    Path(arguments.output_dir).mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    for name in str(arguments.dataset_name).split(","):
        results += compare(name, arguments, encoders, accelerator)
        # What is there by now is kept if a later data set cannot be read.
        save_results(results, arguments.output_dir)
    print(table(results))


def load_extractors(arguments: ComparisonArguments, accelerator: Accelerator) -> dict[str, FeatureExtractor]:
    """The model, the same with random weights, and the others."""
    trained = load_encoder(str(arguments.model_name_or_path)).to(accelerator.device)
    models = {"the model": trained, "random encoder": random_encoder(trained)}
    for other in arguments.other_models:
        name, _, folder = other.partition("=")
        models[name] = load_encoder(folder).to(accelerator.device)
    return {name: FeatureExtractor(model, arguments.layers, arguments.poolings) for name, model in models.items()}


def compare(
    name: str, arguments: ComparisonArguments, encoders: dict[str, FeatureExtractor], accelerator: Accelerator
) -> list[Result]:
    """All subsets and seeds of one data set."""
    runs = [run for run in arguments.runs() if run.dataset_name == name]
    train, validation = runs[0].load_images()
    loading = arguments.eval_loading(accelerator)
    known, unknown = (describe(encoders, images, accelerator, loading) for images in (train, validation))
    return [result for run in runs for result in probe_features(known, unknown, len(train.classes), run)]


if __name__ == "__main__":
    main()
