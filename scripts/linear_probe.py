"""
Trains linear probes on the frozen features of a MAGE model, and scores them.

The paper's protocol: LARS, a head with batch norm, 90 epochs of augmented images:
    accelerate launch scripts/linear_probe.py --config configs/linear_probe_vit_base.yaml \
        --model_name_or_path mage-vit-base --dataset_name imagenet-1k --output_dir probe

The fast one: features are computed once, then the optimum of logistic regression, its penalty chosen on held-out
images, and weighted nearest neighbours; here of three layers, for 1, 10 and 25 images a class drawn with three seeds:
    accelerate launch scripts/linear_probe.py --cached_features --model_name_or_path mage-vit-base \
        --dataset_name food101,oxford-pets --layers 8 10 12 --shots_per_class 1 10 25 --num_seeds 3 --output_dir probe

Results go to `results.json` and, as a table, to `results.md`; the best probe is saved as a classifier.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import broadcast, set_seed

from transformers_mage import MageModel
from transformers_mage.command_line import argument, parse_arguments, reports_errors
from transformers_mage.data.labelled_images import EvaluationImages, LabelledImages
from transformers_mage.data.sources import source_of
from transformers_mage.data.views import ImageViews
from transformers_mage.representation.classification import (
    ClassificationArguments,
    evaluate,
    evaluation_loader,
    evaluation_processor,
    image_shape,
    load_encoder,
    load_labelled_images,
    save_classifier,
    score,
)
from transformers_mage.representation.features import FeatureExtractor, FeatureStore, extract_features, fingerprint
from transformers_mage.representation.lars import LARS
from transformers_mage.representation.probing import (
    FrozenFeatures,
    ProbeHead,
    ProbeHeads,
    fit_best_probe,
    nearest_neighbour_scores,
    probe_as_classifier,
)
from transformers_mage.representation.results import Result, best, save_results, table
from transformers_mage.training.optimization import peak_learning_rate, updates_of_epochs
from transformers_mage.training.run import TrainingRun, create_accelerator

logger = get_logger(__name__)


@dataclass
class ProbeArguments(ClassificationArguments):
    layers: list[int] = field(
        default_factory=lambda: [-1],
        metadata={"help": "Layers: 0 are the embeddings, -1 is the last one, before the final norm."},
    )
    poolings: list[str] = field(default_factory=lambda: ["mean"], metadata={"help": "Among mean and cls."})
    cached_features: bool = argument(False, "Compute the features once, without augmentation.")
    features_dir: str | None = argument(None, "Where they are kept; by default in the folder of the results.")
    num_neighbours: int = argument(20, "Nearest neighbours that vote, with `--cached_features`.")
    penalty: float | None = argument(
        None, "Weight of the squared norm of the cached features' probe; by default it is chosen on held-out images."
    )
    base_learning_rate: float = argument(0.1, "Peak learning rate for 256 images an update: it scales with them.")
    momentum: float = argument(0.9, "Momentum of LARS.")
    trust_coefficient: float = argument(0.001, "Trust coefficient of LARS.")
    weight_decay: float = argument(0.0, "Weight decay of LARS.")
    max_grad_norm: float = argument(0.0, "Clip gradients to this norm; 0 does not clip.")
    num_train_epochs: float = argument(90, "Passes over the data.")
    warmup_epochs: float = argument(10, "Passes over the data in which the learning rate rises.")
    validation_epochs: float = argument(10, "Passes over the data between evaluations.")

    def runs(self) -> list["ProbeArguments"]:
        runs = super().runs()
        for run in runs:
            folder = Path(self.features_dir or Path(self.output_dir, "features"))
            run.features_dir = str(folder / Path(run.dataset_name).name)
        return runs

    def check(self):
        super().check()
        wrong = set(self.poolings) - {"mean", "cls"}
        if wrong:
            raise ValueError(f"`--poolings` must be among mean and cls, got {', '.join(sorted(wrong))}.")


@reports_errors
def main(argv: list[str] | None = None):
    arguments = parse_arguments(ProbeArguments, __doc__, argv)
    accelerator = create_accelerator(arguments)
    encoder = load_encoder(arguments.model_name_or_path).to(accelerator.device)
    try:
        extractor = FeatureExtractor(encoder, arguments.layers, arguments.poolings)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    protocol = probe_cached_features if arguments.cached_features else train_probes
    results = []
    for run_arguments in arguments.runs():
        train, validation = load_labelled_images(run_arguments)
        results += protocol(run_arguments, train, validation, extractor)
    if accelerator.is_main_process:
        save_results(results, arguments.output_dir)
        print(table(results))


def train_probes(
    arguments: ProbeArguments, train: LabelledImages, validation: LabelledImages, extractor: FeatureExtractor
) -> list[Result]:
    """The paper's protocol (appendix B), for all features at once."""
    accelerator, config = create_accelerator(arguments), extractor.model.config
    shape = image_shape(config)
    train = train.select(train.draw(arguments.shots, arguments.label_fraction, arguments.seed))
    views = ImageViews(shape[1:], shape[0], crops=arguments.crops)
    source = source_of(train.dataset, train.columns, views, arguments.loading(accelerator))
    run = TrainingRun(arguments, source, accelerator)
    heads = ProbeHeads(extractor.names, config.hidden_size, len(train.classes))
    heads = run.prepare(heads, create_optimizer(heads, arguments, run.batch_size))
    loader = evaluation_loader(validation, shape, arguments, accelerator)
    scores = {}

    def validate():
        with run.evaluation_weights() as trained:
            # Each process has seen other images: let all use the same statistics.
            broadcast(list(trained.buffers()))
            scores.update(evaluate(lambda pixels: trained(extractor(pixels)), loader, accelerator))
        run.log({f"{name}/{key}": value for name, values in scores.items() for key, value in values.items()})

    every = updates_of_epochs(arguments, arguments.validation_epochs, len(train), run.batch_size)
    run.call_every(every or run.total_steps, validate)
    draw_views = views.on_device()
    set_seed(arguments.seed, device_specific=True)
    run.start()
    for batch in run.batches():
        with accelerator.accumulate(heads):
            with accelerator.autocast():
                features = extractor(draw_views.of(batch))
            losses = {
                f"loss/{name}": F.cross_entropy(logits.float(), batch.labels)
                for name, logits in heads(features).items()
            }
            total = torch.stack(list(losses.values())).sum()
            run.update(total, {"loss": total / len(losses), **losses})

    if not scores:
        validate()
    method = "linear probe by LARS"
    results = [Result.of(arguments, f"{method}, {name}", len(train), scores[name]) for name in extractor.names]
    run.finish()
    if accelerator.is_main_process:
        chosen = extractor.names[results.index(best(results))]
        save_probe(extractor.model, chosen, accelerator.unwrap_model(heads).heads[chosen], validation, arguments)
    return results


def create_optimizer(heads: ProbeHeads, arguments: ProbeArguments, batch_size: int) -> LARS:
    return LARS(
        heads.parameters(),
        peak_learning_rate(arguments, batch_size),
        arguments.momentum,
        arguments.weight_decay,
        arguments.trust_coefficient,
    )


def probe_cached_features(
    arguments: ProbeArguments, train: LabelledImages, validation: LabelledImages, extractor: FeatureExtractor
) -> list[Result]:
    """The optimum on features that are computed once, and nearest neighbours."""
    accelerator = Accelerator(mixed_precision=arguments.mixed_precision)
    known = cached_features(extractor, train, arguments, arguments.train_split, accelerator)
    unknown = cached_features(extractor, validation, arguments, arguments.validation_split, accelerator)
    if not accelerator.is_main_process:
        return []
    known = known.rows(train.draw(arguments.shots, arguments.label_fraction, arguments.seed))
    results, probes, num_labels, start = [], {}, len(train.classes), time.perf_counter()
    for name, features in known.features.items():
        probes[name] = fit_best_probe(features, known.labels, num_labels, arguments.penalty, arguments.seed)
        neighbours = nearest_neighbour_scores(
            features, known.labels, unknown.features[name], num_labels, arguments.num_neighbours
        )
        for method, logits in (("linear probe", probes[name](unknown.features[name])), ("k-NN", neighbours)):
            results.append(Result.of(arguments, f"{method}, {name}", len(known), score(logits, unknown.labels)))
    seconds = time.perf_counter() - start
    logger.info(f"Learned from {len(known)} images and scored {len(unknown)} in {seconds:.2f} s: {', '.join(probes)}.")
    chosen = best([result for result in results if result.classifier.startswith("linear probe")])
    feature = chosen.classifier.removeprefix("linear probe, ")
    save_probe(extractor.model, feature, probes[feature].as_head(), validation, arguments)
    return results


def cached_features(
    extractor: FeatureExtractor,
    images: LabelledImages,
    arguments: ProbeArguments,
    split: str,
    accelerator: Accelerator,
) -> FrozenFeatures:
    """The features of a split, computed where they are not there yet."""
    config = extractor.model.config
    made_of = {"model": fingerprint(extractor.model), "features": extractor.names}
    made_of |= {"dataset_name": arguments.dataset_name, "dataset_config_name": arguments.dataset_config_name}
    store = FeatureStore(Path(arguments.features_dir), split, len(images), made_of, file_format="safetensors")
    extract_features(
        extractor,
        EvaluationImages.of(images, image_shape(config)),
        store,
        accelerator,
        arguments.eval_batch_size,
        arguments.dataloader_num_workers,
    )
    return FrozenFeatures.of(store, accelerator.device)


def save_probe(encoder: MageModel, feature: str, probe: ProbeHead, images: LabelledImages, arguments: ProbeArguments):
    """Writes the encoder up to the feature's layer, and a probe of it, as a classifier."""
    if feature.startswith("layer_0_"):
        logger.warning(f"A classifier has at least one layer, so the probe of {feature} is not saved.")
        return
    model = probe_as_classifier(encoder, feature, probe, images.classes.names)
    save_classifier(model, evaluation_processor(images, model.config), arguments)


if __name__ == "__main__":
    main()
