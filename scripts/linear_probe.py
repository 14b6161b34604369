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
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import broadcast, set_seed

from transformers_mage import MageModel
from transformers_mage.command_line import argument, check_numbers, parse_arguments, reports_errors
from transformers_mage.data.labelled_images import EvaluationImages, LabelledImages
from transformers_mage.data.sources import source_of
from transformers_mage.data.views import ImageViews, RandomViews
from transformers_mage.files import fingerprint
from transformers_mage.hub.publishing import Publisher
from transformers_mage.precision import chosen_precision
from transformers_mage.representation import (
    LARS,
    ClassificationArguments,
    Feature,
    FeatureExtractor,
    FeatureStore,
    FrozenFeatures,
    ProbeHead,
    ProbeHeads,
    Result,
    evaluate,
    evaluation_loader,
    extract_features,
    fit_best_probe,
    load_encoder,
    nearest_neighbour_scores,
    probe_as_classifier,
    save_results,
    score,
    table,
    write_classifier,
)
from transformers_mage.representation.classifiers import image_shape, processor_of
from transformers_mage.training.arguments import TrainingArguments
from transformers_mage.training.optimization import peak_learning_rate, updates_of_epochs
from transformers_mage.training.resuming import check_output_dir
from transformers_mage.training.run import TrainingRun, create_accelerator

logger = get_logger(__name__)


@dataclass
class ProbeArguments(ClassificationArguments, TrainingArguments):
    layers: list[int] = argument([-1], "Layers: 0 are the embeddings, -1 is the last one, before the final norm.")
    poolings: list[str] = argument(["mean"], "Among mean and cls.")
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
            run.features_dir = str(folder / Path(str(run.dataset_name)).name)
        return runs

    def check(self):
        super().check()
        wrong = set(self.poolings) - {"mean", "cls"}
        if wrong:
            raise ValueError(f"`--poolings` must be among mean and cls, got {', '.join(sorted(wrong))}.")
        check_numbers(self, "num_neighbours", at_least=1)
        check_numbers(self, "penalty validation_epochs", at_least=0)
        check_numbers(self, "momentum", at_least=0, less_than=1)
        check_numbers(self, "trust_coefficient", more_than=0)


@reports_errors
def main(argv: list[str] | None = None):
    arguments = parse_arguments(ProbeArguments, __doc__, argv)
    accelerator = create_accelerator(arguments)
    encoder = load_encoder(arguments.model_name_or_path).to(accelerator.device)
    extractor = FeatureExtractor(encoder, arguments.layers, arguments.poolings)
    protocol = probe_cached_features if arguments.cached_features else train_probes
    results = []
    for run_arguments in arguments.runs():
        train, validation = run_arguments.load_images()
        results += protocol(run_arguments, train, validation, extractor)
    if accelerator.is_main_process:
        save_results(results, arguments.output_dir)
        print(table(results))


@dataclass
class TrainedProbe:
    """A probe of a feature, and how good it is."""

    feature: Feature
    head: ProbeHead
    result: Result


def train_probes(
    arguments: ProbeArguments, train: LabelledImages, validation: LabelledImages, extractor: FeatureExtractor
) -> list[Result]:
    """The paper's protocol (appendix B), for all features at once."""
    check_output_dir(arguments.output_dir, arguments.resume_from_checkpoint)
    accelerator, config = create_accelerator(arguments), extractor.model.config
    shape = image_shape(config)
    train = train.select(train.draw(arguments.shots, arguments.label_fraction, arguments.seed))
    views = ImageViews(shape[1:], shape[0], crops=arguments.crops)
    source = source_of(train.dataset, train.columns, views, arguments.loading(accelerator))
    run = TrainingRun(arguments, source, accelerator)
    heads = ProbeHeads(extractor.names, config.hidden_size, len(train.classes))
    heads = run.prepare(heads, create_optimizer(heads, arguments, run.batch_size))
    loader = evaluation_loader(
        EvaluationImages.of(validation, shape), arguments.eval_loading(accelerator), accelerator
    )
    scores: dict[str, dict[str, float]] = {}

    def validate():
        with run.evaluation_weights() as trained:
            # Each process has seen other images: let all use the same statistics.
            broadcast(list(trained.buffers()))
            scores.update(evaluate(lambda pixels: trained(extractor(pixels)), loader, accelerator))
        run.log({f"{name}/{key}": value for name, values in scores.items() for key, value in values.items()})

    every = updates_of_epochs(arguments, arguments.validation_epochs, len(train), run.batch_size)
    run.call_every(every or run.total_steps, validate)
    set_seed(arguments.seed, device_specific=True)
    run.start()
    train_heads(run, heads, extractor, views.on_device())
    if not scores:
        validate()
    publisher = Publisher.of(arguments, accelerator)
    with run.finished():
        trained = accelerator.unwrap_model(heads).heads
        probes = [
            TrainedProbe(
                feature,
                trained[str(feature)],
                Result.of(arguments, f"linear probe by LARS, {feature}", len(train), scores[str(feature)]),
            )
            for feature in extractor.features
        ]
        is_saved = accelerator.is_main_process and save_best(probes, extractor.model, validation, arguments, publisher)
    if is_saved:
        publisher.push()
    return [probe.result for probe in probes]


def train_heads(run: TrainingRun, heads: torch.nn.Module, extractor: FeatureExtractor, views: RandomViews):
    """The heads' losses are added; none of them changes what another one learns."""
    for batch in run.batches():
        with run.accelerator.accumulate(heads):
            with run.accelerator.autocast():
                features = extractor(views.of(batch))
            losses = {
                f"loss/{name}": F.cross_entropy(logits.float(), batch.labels)
                for name, logits in heads(features).items()
            }
            total = torch.stack(list(losses.values())).sum()
            run.update(total, {"loss": total / len(losses), **losses})


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
    accelerator = Accelerator(mixed_precision=chosen_precision(arguments.mixed_precision))
    known = cached_features(extractor, train, arguments, arguments.train_split, accelerator)
    unknown = cached_features(extractor, validation, arguments, arguments.validation_split, accelerator)
    if not accelerator.is_main_process:
        return []
    known = known.rows(train.draw(arguments.shots, arguments.label_fraction, arguments.seed))
    num_labels, start = len(train.classes), time.perf_counter()
    probes, results = [], []
    for feature in extractor.features:
        features, to_classify = known.features[str(feature)], unknown.features[str(feature)]
        probe = fit_best_probe(features, known.labels, num_labels, arguments.penalty, arguments.seed)
        neighbours = nearest_neighbour_scores(
            features, known.labels, to_classify, num_labels, arguments.num_neighbours
        )
        for method, logits in (("linear probe", probe(to_classify)), ("k-NN", neighbours)):
            results.append(Result.of(arguments, f"{method}, {feature}", len(known), score(logits, unknown.labels)))
        probes.append(TrainedProbe(feature, probe.as_head(), results[-2]))
    seconds, names = time.perf_counter() - start, ", ".join(extractor.names)
    logger.info(f"Learned from {len(known)} images and scored {len(unknown)} in {seconds:.2f} s: {names}.")
    publisher = Publisher.of(arguments, accelerator)
    if save_best(probes, extractor.model, validation, arguments, publisher):
        publisher.push()
    return results


def cached_features(
    extractor: FeatureExtractor,
    images: LabelledImages,
    arguments: ProbeArguments,
    split: str,
    accelerator: Accelerator,
) -> FrozenFeatures:
    """The features of a split, computed where they are not there yet."""
    made_of = {"model": fingerprint(extractor.model), "features": extractor.names}
    made_of |= {"dataset_name": arguments.dataset_name, "dataset_config_name": arguments.dataset_config_name}
    store = FeatureStore(Path(arguments.features_dir), split, len(images), made_of, file_format="safetensors")
    crops = EvaluationImages.of(images, image_shape(extractor.model.config))
    extract_features(extractor, crops, store, accelerator, arguments.eval_loading(accelerator))
    return FrozenFeatures.of(store, accelerator.device)


def save_best(
    probes: list[TrainedProbe],
    encoder: MageModel,
    images: LabelledImages,
    arguments: ProbeArguments,
    publisher: Publisher,
) -> bool:
    """Writes the encoder up to the layer of the best feature, and the probe of it, as a classifier, if it is one."""
    best = max(probes, key=lambda probe: probe.result.rank)
    if best.feature.layer == 0:
        logger.warning(f"A classifier has at least one layer, so the probe of {best.feature} is not saved.")
        return False
    model = probe_as_classifier(encoder, best.feature, best.head, images.classes.names)
    facts = arguments.card_facts(publisher.name, "classification", model.config)
    write_classifier(model, processor_of(images, model.config), best.result, images, publisher, facts)
    return True


if __name__ == "__main__":
    main()
