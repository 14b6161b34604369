"""
Trains the diffusion that draws representations for a model led by them (RCG, arXiv 2312.03701).

    accelerate launch scripts/train_representation_diffusion.py --config configs/representation_diffusion.yaml \
        --model_name_or_path MODEL_FOLDER --dataset_name imagenet-1k --output_dir outputs/complete

MODEL_FOLDER is what train_mage.py made with `--representation_model_name_or_path`; `MagePipeline.from_pretrained` of
the output folder then draws a representation, and makes an image of it. With `--features`, a folder that
extract_features.py wrote, no images are needed; without a model the diffusion is written alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from transformers_mage import MagePipeline
from transformers_mage.command_line import argument, group, parse_arguments, reports_errors
from transformers_mage.data.batches import Source
from transformers_mage.data.indexed import IndexedSource, InMemoryFeatures
from transformers_mage.data.tokenization import BatchTokenizer
from transformers_mage.data.views import ImageViews
from transformers_mage.files import FolderError
from transformers_mage.hub.publishing import Publisher
from transformers_mage.representation.feature_store import load_features
from transformers_mage.representations import RepresentationEncoder, RepresentationSource, standardize
from transformers_mage.training.optimization import peak_learning_rate
from transformers_mage.training.representations.diffusion import (
    RepresentationDiffusionForTraining,
    build_diffusion,
    diffusion_values,
    write_diffusion,
)
from transformers_mage.training.representations.encoding import BatchEncoder, cached_representations
from transformers_mage.training.resuming import check_output_dir
from transformers_mage.training.run import TrainingRun, create_accelerator
from transformers_mage.training.token_source import TokenArguments, cached_tokens, class_values, token_source


@dataclass
class RepresentationDiffusionArguments(TokenArguments):
    representation_model: dict = field(
        init=False,
        default_factory=dict,
        metadata=group("fields of RepresentationDiffusionModel.", diffusion_values),
    )
    model_name_or_path: str | None = argument(
        None, "The model to draw representations for; it is written together with what draws them."
    )
    class_conditional: bool = argument(False, "Learn to draw representations of the classes of `--label_column`.")
    features: str | None = argument(
        None, "Learn from the features in this folder, which extract_features.py wrote, not from images."
    )
    feature_name: str | None = argument(None, 'Which of them, as "layer_12_mean", if there are several.')

    def check(self):
        super().check()
        if not self.model_name_or_path and not self.features:
            raise ValueError(
                "Say what to draw representations for: `--model_name_or_path FOLDER`; or give `--features FOLDER`."
            )

    def has_data(self) -> bool:
        return super().has_data() or bool(self.features)


@reports_errors
def main(argv: list[str] | None = None):
    arguments = parse_arguments(RepresentationDiffusionArguments, __doc__, argv)
    check_output_dir(arguments.output_dir, arguments.resume_from_checkpoint)
    accelerator = create_accelerator(arguments)
    pipe = open_pipeline(arguments.model_name_or_path) if arguments.model_name_or_path else None
    if arguments.features:
        source, encode = feature_source(arguments, accelerator), None
        size = source.dataset.features.shape[-1]
        check_size(size, pipe)
    else:
        source, encode = image_source(arguments, accelerator, pipe)
        size = pipe.model.config.representation_size
    classes = classes_of(arguments, source) if arguments.class_conditional else {}
    if pipe is not None and "id2label" in classes and not pipe.model.config.num_classes:
        pipe.model.config.id2label = classes["id2label"]
    diffusion = build_diffusion(arguments.representation_model, size, classes.get("num_classes"))
    if arguments.torch_compile:
        diffusion.compile()

    run = TrainingRun(arguments, source, accelerator)
    model = RepresentationDiffusionForTraining(diffusion)
    num_timesteps = model.num_train_timesteps
    model = run.prepare(model, create_optimizer(model, arguments, run.batch_size))
    publisher = Publisher.of(arguments, accelerator)
    write = partial(write_diffusion, diffusion=diffusion, pipe=pipe, arguments=arguments, name=publisher.name)
    run.publish_checkpoints(publisher, write)
    set_seed(arguments.seed, device_specific=True)
    run.start()
    for inputs in model_inputs(run, encode, num_timesteps):
        with accelerator.accumulate(model):
            run.update(*model(**inputs))

    with run.finished() as state:
        if accelerator.is_main_process:
            publisher.write(partial(write, state=state))
    if accelerator.is_main_process:
        publisher.push()


def open_pipeline(name_or_path: str) -> MagePipeline:
    """
    A pipeline whose model is led by representations, and which says of images what theirs are.

    Raises:
        FolderError: where it is another one.
    """
    pipe = MagePipeline.from_pretrained(name_or_path)
    if pipe.model.config.representation_size is None:
        raise FolderError(
            f"{name_or_path} is not led by representations. Train a model that is: "
            "`train_mage.py --representation_model_name_or_path NAME_OR_FOLDER`."
        )
    return pipe


def check_size(size: int, pipe: MagePipeline | None):
    expected = size if pipe is None else pipe.model.config.representation_size
    if size != expected:
        raise FolderError(
            f"The features have {size} numbers, and the model is led by representations of {expected}. Extract those "
            f"that it was trained with: {pipe.model.config.representation_source}."
        )


def feature_source(arguments: RepresentationDiffusionArguments, accelerator: Accelerator) -> IndexedSource:
    """Features from files, standardised as representations are."""
    features, labels = load_features(Path(arguments.features), arguments.train_split, arguments.feature_name)
    return IndexedSource(
        InMemoryFeatures(standardize(features.float())[:, None], labels), arguments.loading(accelerator)
    )


def image_source(
    arguments: RepresentationDiffusionArguments, accelerator: Accelerator, pipe: MagePipeline
) -> tuple[Source, BatchEncoder]:
    """
    Images or tokens, and what gives their representations in each step. Where tokens are cached and their
    representations fit into memory, these are the source, computed now.
    """
    config, tokenizer = pipe.model.config, pipe.vqvae
    if pipe.representation_encoder is None or tokenizer is None:
        raise FolderError(
            f"{arguments.model_name_or_path} came without its tokenizer or its `representation_encoder`, so that it "
            "cannot say what represents an image. Give `--features FOLDER`."
        )
    encoder = RepresentationEncoder(pipe.representation_encoder, RepresentationSource(**config.representation_source))
    views = ImageViews(config.image_height_width, tokenizer.config.in_channels, crops=arguments.crops)
    encode = BatchEncoder(accelerator, BatchTokenizer(tokenizer, views.on_device()), encoder)
    if not arguments.token_cache:
        return token_source(arguments, accelerator, tokenizer, views, config), encode
    data = cached_tokens(arguments, tokenizer, views, config)
    if not encoder.reads_tokens:
        raise ValueError(
            f"The representations of {arguments.model_name_or_path} are of pixels, and a token cache has none. Train "
            "on images: `--dataset_name`."
        )
    loading = arguments.loading(accelerator)
    if len(data) * data.metadata.transform["num_views"] * 4 * encoder.size > arguments.in_memory_limit * 1e9:
        return IndexedSource(data, loading), encode
    representations = cached_representations(data, encode, arguments.train_batch_size)
    return IndexedSource(InMemoryFeatures(representations, data.labels), loading), encode


def classes_of(arguments: RepresentationDiffusionArguments, source: Source) -> dict[str, Any]:
    """How many classes there are and, where the data say it, what they are called."""
    if not arguments.features:
        return class_values(arguments)
    labels = source.dataset.labels
    if labels is None or labels.min() < 0:
        raise FolderError(f"{arguments.features} has no classes to condition on: leave `--class_conditional` out.")
    return {"num_classes": int(labels.max()) + 1}


def create_optimizer(
    model: torch.nn.Module, arguments: RepresentationDiffusionArguments, batch_size: int
) -> torch.optim.AdamW:
    """AdamW that decays all parameters, as RCG does."""
    rate, betas = peak_learning_rate(arguments, batch_size), (arguments.adam_beta1, arguments.adam_beta2)
    return torch.optim.AdamW(model.parameters(), rate, betas, weight_decay=arguments.weight_decay, fused=True)


def model_inputs(run: TrainingRun, encode: BatchEncoder | None, num_timesteps: int) -> Iterator[dict[str, Any]]:
    """The model's arguments for one micro-batch after another."""
    for batch in run.batches():
        representations = batch.features
        if representations is None:
            representations = encode.representations_of(batch)
        generator, device = run.generator(), run.accelerator.device
        noise = torch.randn(representations.shape, generator=generator)
        timesteps = torch.randint(num_timesteps, representations.shape[:1], generator=generator)
        inputs = {"representations": representations, "noise": noise.to(device), "timesteps": timesteps.to(device)}
        yield inputs | ({"class_labels": batch.labels} if run.arguments.class_conditional else {})


if __name__ == "__main__":
    main()
