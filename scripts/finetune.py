"""
Fine-tunes a MAGE model into a classifier, with the recipe of the paper (section 4.4), and scores it.

    accelerate launch scripts/finetune.py --config configs/finetune_vit_base.yaml \
        --model_name_or_path mage-vit-base --dataset_name imagenet-1k --output_dir classifier

On 25 images a class of two transfer sets, with three draws of each:
    accelerate launch scripts/finetune.py --config configs/finetune_vit_base.yaml --model_name_or_path mage-vit-base \
        --dataset_name food101,oxford-pets --shots_per_class 25 --num_seeds 3 --output_dir transfer

The last model goes to the output folder, the one that was best on the validation split to `best` in it, scores to
`results.json` and, as a table, to `results.md`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import set_seed
from diffusers import VQModel

from transformers_mage import MageForImageClassification
from transformers_mage.command_line import argument, check_numbers, parse_arguments, reports_errors
from transformers_mage.data.labelled_images import EvaluationImages
from transformers_mage.data.sources import source_of
from transformers_mage.data.views import ImageViews
from transformers_mage.hub.publishing import Publisher
from transformers_mage.representation import (
    BestClassifier,
    ClassificationArguments,
    ClassifierInputs,
    Mixup,
    RandAugment,
    Result,
    evaluate,
    evaluation_loader,
    layer_decay_groups,
    load_classifier,
    save_results,
    table,
    write_classifier,
)
from transformers_mage.representation.classifiers import classifier_of, image_shape, processor_of
from transformers_mage.training.arguments import TrainingArguments
from transformers_mage.training.optimization import peak_learning_rate, updates_of_epochs
from transformers_mage.training.resuming import check_output_dir
from transformers_mage.training.run import TrainingRun, create_accelerator


@dataclass
class FinetuneArguments(ClassificationArguments, TrainingArguments):
    classifier_pooling: str = argument("mean", "What is classified.", choices=["mean", "cls"])
    do_normalize: bool = argument(False, "Take ImageNet's mean and deviation off the pixels, as the paper does.")
    drop_path_rate: float = argument(0.1, "Stochastic depth of the last layer; less before it.")
    layer_decay: float = argument(0.65, "Learning rate of a layer, in shares of the next one's.")
    rand_augment_magnitude: float = argument(9.0, "Mean magnitude of RandAugment, up to 10; 0 switches it off.")
    rand_augment_std: float = argument(0.5, "Standard deviation of the magnitude.")
    mixup_alpha: float = argument(0.8, "Parameter of mixup; 0 switches it off.")
    cutmix_alpha: float = argument(1.0, "Parameter of CutMix; 0 switches it off.")
    mixup_switch_prob: float = argument(0.5, "Probability of CutMix, where both are on.")
    label_smoothing: float = argument(0.1, "Share of a label that is spread over all classes.")
    base_learning_rate: float = argument(2.5e-4, "Peak learning rate for 256 images an update: it scales with them.")
    min_learning_rate: float = argument(1e-6, "Learning rate of the head at the end.")
    adam_beta2: float = argument(0.999, "Second moment's decay of AdamW.")
    max_grad_norm: float = argument(0.0, "Clip gradients to this norm; 0 does not clip.")
    num_train_epochs: float = argument(100, "Passes over the data.")
    warmup_epochs: float = argument(5, "Passes over the data in which the learning rate rises.")
    validation_epochs: float = argument(1, "Passes over the data between evaluations.")
    gradient_checkpointing: bool = argument(False, "Save memory by computing activations twice.")

    def check(self):
        super().check()
        check_numbers(self, "drop_path_rate mixup_switch_prob label_smoothing layer_decay", at_least=0, at_most=1)
        check_numbers(self, "mixup_alpha cutmix_alpha rand_augment_std validation_epochs", at_least=0)
        check_numbers(self, "rand_augment_magnitude", at_least=0, at_most=10)


@reports_errors
def main(argv: list[str] | None = None):
    arguments = parse_arguments(FinetuneArguments, __doc__, argv)
    accelerator = create_accelerator(arguments)
    results = [finetune(run_arguments) for run_arguments in arguments.runs()]
    if accelerator.is_main_process:
        save_results(results, arguments.output_dir)
        print(table(results))


def finetune(arguments: FinetuneArguments) -> Result:
    check_output_dir(arguments.output_dir, arguments.resume_from_checkpoint)
    accelerator = create_accelerator(arguments)
    train, validation = arguments.load_images()
    train = train.select(train.draw(arguments.shots, arguments.label_fraction, arguments.seed))
    model = create_classifier(arguments, train.classes.names)
    config, tokenizer = model.config, model.mage.vqvae.to(accelerator.device)
    # It is not trained, so it belongs neither into checkpoints nor into what is distributed.
    model.mage.vqvae = None
    shape = image_shape(config)
    inputs = create_inputs(arguments, tokenizer, config.num_labels, shape[0])
    processor = processor_of(validation, config, arguments.do_normalize)

    views = ImageViews(shape[1:], shape[0], crops=arguments.crops)
    source = source_of(train.dataset, train.columns, views, arguments.loading(accelerator))
    run = TrainingRun(arguments, source, accelerator)
    model = run.prepare(model, create_optimizer(model, arguments, run.batch_size))
    loader = evaluation_loader(
        EvaluationImages.of(validation, shape), arguments.eval_loading(accelerator), accelerator
    )
    best = BestClassifier(Path(arguments.output_dir, "best"), config, tokenizer, processor)
    accelerator.register_for_checkpointing(best)

    scores: dict[str, float] = {}

    def validate():
        with run.evaluation_weights() as trained:
            predict = lambda pixels: {"": trained(input_ids=inputs.evaluation(pixels)).logits}  # noqa: E731
            scores.update(evaluate(predict, loader, accelerator)[""])
            best.offer(model, scores, accelerator)
        run.log({f"validation/{name}": value for name, value in scores.items()})

    every = updates_of_epochs(arguments, arguments.validation_epochs, len(train), run.batch_size)
    run.call_every(every, validate)
    draw_views = views.on_device()
    set_seed(arguments.seed, device_specific=True)
    run.start()
    for batch in run.batches():
        with accelerator.accumulate(model):
            random = np.random.default_rng(run.generator().initial_seed())
            loss = model(**inputs.training(draw_views.of(batch), batch.labels, random)).loss
            run.update(loss, {"loss": loss})

    if not scores:
        validate()
    result = Result.of(arguments, f"fine-tuned, {arguments.classifier_pooling}", len(train), scores)
    publisher = Publisher.of(arguments, accelerator)
    with run.finished() as state:
        if state is not None:
            facts = arguments.card_facts(publisher.name, "classification", config)
            trained = classifier_of(state, config, tokenizer)
            write_classifier(trained, processor, result, validation, publisher, facts)
    if accelerator.is_main_process:
        publisher.push()
    return result


def create_classifier(arguments: FinetuneArguments, class_names: list[str]) -> MageForImageClassification:
    """The model to train, on the encoder of the folder."""
    model = load_classifier(
        arguments.model_name_or_path,
        class_names,
        classifier_pooling=arguments.classifier_pooling,
        classifier_batch_norm=False,
        drop_path_rate=arguments.drop_path_rate,
        problem_type="single_label_classification",
    )
    if model.mage.embeddings.class_embeddings is not None:
        # Of class-conditional generation; a classifier is not told the class.
        model.mage.embeddings.class_embeddings.requires_grad_(False)
    if arguments.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model


def create_inputs(
    arguments: FinetuneArguments, tokenizer: VQModel, num_labels: int, channels: int
) -> ClassifierInputs:
    """What happens to the images."""
    if arguments.do_normalize and channels != 3:
        raise ValueError(f"`--do_normalize` takes ImageNet's colours off, but the images have {channels} channels.")
    magnitude = arguments.rand_augment_magnitude
    rand_augment = RandAugment(magnitude, arguments.rand_augment_std) if magnitude else None
    mixup = Mixup(
        num_labels,
        arguments.mixup_alpha,
        arguments.cutmix_alpha,
        arguments.label_smoothing,
        arguments.mixup_switch_prob,
    )
    return ClassifierInputs(tokenizer, rand_augment, mixup, arguments.do_normalize)


def create_optimizer(
    model: MageForImageClassification, arguments: FinetuneArguments, batch_size: int
) -> torch.optim.AdamW:
    """AdamW with layer-wise learning rates."""
    learning_rate = peak_learning_rate(arguments, batch_size)
    groups = layer_decay_groups(
        model, model.config.num_hidden_layers, learning_rate, arguments.layer_decay, arguments.weight_decay
    )
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(arguments.adam_beta1, arguments.adam_beta2), fused=True)


if __name__ == "__main__":
    main()
