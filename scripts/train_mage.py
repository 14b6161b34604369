"""
Trains MAGE on the images of any `datasets` source, with the recipe of the paper (appendix A).

The digits model:
    accelerate launch scripts/train_mage.py --config configs/mage_digits.yaml \
    --dataset_name FOLDER --tokenizer_name_or_path TOKENIZER_FOLDER
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import DistributedType
from accelerate.utils import set_seed
from diffusers import VQModel

from transformers_mage import MageConfig, MageForMaskedImageModeling, sample_masks
from transformers_mage.command_line import argument, check_numbers, group, parse_arguments, reports_errors
from transformers_mage.data.arguments import TokenizerArguments
from transformers_mage.data.tokenization import (
    BatchTokenizer,
    first_images,
    load_tokenizer,
    patch_size,
    settle_pixel_range,
)
from transformers_mage.data.views import ImageViews
from transformers_mage.files import check_inside
from transformers_mage.hub.publishing import Publisher
from transformers_mage.image_tokens import pixel_range, set_pixel_range
from transformers_mage.training.conditional import freeze_encoder, load_for_training
from transformers_mage.training.contrastive import contrast_updates
from transformers_mage.training.pictures import picture, sample_tokens, save_picture
from transformers_mage.training.pretraining import (
    MageForPreTraining,
    build_model,
    evaluate,
    model_values,
    training_labels,
    write_generator,
)
from transformers_mage.training.representations.encoding import (
    BatchEncoder,
    RepresentationArguments,
    load_representation_encoder,
    representation_values,
)
from transformers_mage.training.resuming import check_output_dir
from transformers_mage.training.run import TrainingRun, create_accelerator
from transformers_mage.training.stopping import has_stopped_falling
from transformers_mage.training.token_source import (
    TokenArguments,
    class_values,
    held_out_tokens,
    token_source,
)
from transformers_mage.training.tracking import training_flops

# Sharded models cannot generate: the sampler calls only a part of them.
WHOLE_MODEL = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


@dataclass
class MageArguments(RepresentationArguments, TokenizerArguments, TokenArguments):
    model: dict = field(
        init=False,
        default_factory=dict,
        metadata=group("fields of MageConfig; what the tokenizer decides need not be said.", model_values),
    )
    # A model brings its tokenizer: a recipe's is not its own.
    REPLACES: ClassVar = {"pretrained_model_name_or_path": ("tokenizer_name_or_path", "tokenizer_subfolder")}
    pretrained_model_name_or_path: str | None = argument(
        None, "Start from the weights of this MAGE model, with its tokenizer."
    )
    class_conditional: bool = argument(False, "Learn the classes of `--label_column` too, to generate images of them.")
    freeze_encoder: bool = argument(False, "Train only the decoder, and the embeddings of classes.")
    mask_ratio_per_image: bool = argument(False, "Draw a masking ratio for each image, rather than for each batch.")
    contrastive_weight: float = argument(0.0, "Weight of the contrastive loss: 0.1 is MAGE-C, 0 is MAGE.")
    contrastive_temperature: float = argument(0.2, "Temperature of the contrastive loss.")
    gradient_checkpointing: bool = argument(False, "Save memory by computing activations twice.")

    validation_split: str | None = argument(None, "Held-out split, for a loss at fixed masks.")
    validation_steps: int = argument(1000, "Updates between looks at the held-out split.")
    max_validation_samples: int = argument(2048, "Held-out images to look at.")
    early_stopping_patience: int | None = argument(
        None, "Stop when so many looks at the held-out split in a row were worse than the best one."
    )
    sample_steps: int = argument(0, "Updates between pictures of samples and reconstructions; 0 makes none.")
    num_inference_steps: int = argument(20, "Decoding steps of the samples.")

    def check(self):
        super().check()
        check_numbers(self, "contrastive_weight validation_steps sample_steps", at_least=0)
        check_numbers(self, "contrastive_temperature", more_than=0)
        check_numbers(self, "max_validation_samples num_inference_steps early_stopping_patience", at_least=1)
        if self.early_stopping_patience and not self.validation_split:
            raise ValueError("`--early_stopping_patience` needs a held-out split: say `--validation_split NAME`.")
        self.tokenizer_name_or_path = self.tokenizer_name_or_path or self.pretrained_model_name_or_path
        if self.validation_split is not None:
            check_inside(self.output_dir, self.validation_split, "--validation_split")
        if not self.tokenizer_name_or_path and not self.token_cache:
            raise ValueError("Say which tokenizer to use: `--tokenizer_name_or_path FOLDER`.")
        if self.freeze_encoder and not self.pretrained_model_name_or_path:
            raise ValueError(
                "`--freeze_encoder` keeps a trained encoder: say `--pretrained_model_name_or_path FOLDER`."
            )

    @property
    def num_views(self) -> int:
        """Views of each image in a batch: the contrastive loss compares two."""
        return 2 if self.contrastive_weight else 1


@reports_errors
def main(argv: list[str] | None = None):
    arguments = parse_arguments(MageArguments, __doc__, argv)
    check_output_dir(arguments.output_dir, arguments.resume_from_checkpoint)
    accelerator = create_accelerator(arguments)
    tokenizer = open_tokenizer(arguments)
    encoder = load_representation_encoder(arguments, tokenizer, reads_tokens_only=bool(arguments.token_cache))
    mage = create_model(arguments, tokenizer, representation_values(encoder))
    config = mage.config
    if arguments.gradient_checkpointing:
        mage.gradient_checkpointing_enable()
    if arguments.torch_compile:
        mage.compile()
        mage.mage.compile()

    views = ImageViews(config.image_height_width, tokenizer.config.in_channels, arguments.num_views, arguments.crops)
    source = token_source(arguments, accelerator, tokenizer, views, config)
    encode = BatchEncoder(accelerator, BatchTokenizer(tokenizer, views.on_device()), encoder)
    limit = arguments.max_validation_samples
    held_out = held_out_tokens(arguments, arguments.validation_split, limit, tokenizer, config)

    run = TrainingRun(arguments, source, accelerator, arguments.num_views * training_flops(config))
    model = run.prepare(MageForPreTraining(mage, arguments.contrastive_weight, arguments.contrastive_temperature))
    if held_out is not None:
        run.call_every(arguments.validation_steps, lambda: validate(run, model, held_out, encode))
    run.call_every(arguments.sample_steps, lambda: draw_pictures(run, encode, held_out))
    publisher = Publisher.of(arguments, accelerator)
    write = partial(
        write_generator,
        config=config,
        tokenizer=tokenizer,
        arguments=arguments,
        name=publisher.name,
        representation_encoder=None if encoder is None else encoder.model,
    )
    run.publish_checkpoints(publisher, write)
    set_seed(arguments.seed, device_specific=True)
    run.start()
    inputs = model_inputs(run, encode, config)
    if arguments.contrastive_weight:
        per_update = accelerator.gradient_accumulation_steps
        inputs = contrast_updates(model, inputs, per_update, arguments.contrastive_temperature)
    for kwargs in inputs:
        with accelerator.accumulate(model):
            run.update(*model(**kwargs))

    with run.finished() as state:
        if accelerator.is_main_process:
            publisher.write(partial(write, state=state))
    if accelerator.is_main_process:
        publisher.push()


def open_tokenizer(arguments: MageArguments) -> VQModel:
    """The tokenizer that the tokens of the cache are of, or that the command line names."""
    cached = Path(arguments.token_cache, "tokenizer") if arguments.token_cache else None
    if not arguments.tokenizer_name_or_path:
        return load_tokenizer(cached)
    tokenizer = load_tokenizer(arguments.tokenizer_name_or_path, arguments.tokenizer_subfolder)
    if cached is not None:
        if cached.is_dir():
            set_pixel_range(tokenizer, *pixel_range(load_tokenizer(cached)))
        return tokenizer
    images = partial(first_images, tokenizer, arguments.train_data, 16 * patch_size(tokenizer))
    settle_pixel_range(tokenizer, arguments.tokenizer_pixel_range, images)
    return tokenizer


def model_inputs(run: TrainingRun, encode: BatchEncoder, config: MageConfig) -> Iterator[dict[str, Any]]:
    """The model's arguments for one micro-batch after another."""
    for batch in run.batches():
        input_ids, representations = encode(batch)
        masks = sample_masks(
            config,
            batch_size=len(input_ids),
            generator=run.generator(),
            device=run.accelerator.device,
            per_image=run.arguments.mask_ratio_per_image,
        )
        labels = training_labels(config, batch.labels, run.arguments.num_views)
        yield {"input_ids": input_ids, "masks": masks, "class_labels": labels, "representations": representations}


def create_model(
    arguments: MageArguments, tokenizer: VQModel, more_values: dict[str, Any]
) -> MageForMaskedImageModeling:
    """A new model, or a saved one to start from, of the classes of the data set where that is asked for."""
    values = arguments.model | more_values | (class_values(arguments) if arguments.class_conditional else {})
    if not arguments.pretrained_model_name_or_path:
        return build_model(values, tokenizer)
    mage = load_for_training(arguments.pretrained_model_name_or_path, values)
    if arguments.freeze_encoder:
        freeze_encoder(mage)
    return mage


def validate(run: TrainingRun, model: torch.nn.Module, held_out: torch.Tensor, encode: BatchEncoder):
    """Logs a loss on held-out tokens, and ends the run where that has long been lower."""
    run.log(evaluate(model, held_out, run.arguments.train_batch_size, run.accelerator, encode.represent))
    patience = run.arguments.early_stopping_patience
    if patience and has_stopped_falling(run.logged("validation_loss"), patience):
        run.end_early()


def draw_pictures(run: TrainingRun, encode: BatchEncoder, held_out: torch.Tensor | None):
    """Samples, and held-out images as the tokenizer reconstructs them, whose representations lead the samples."""
    if run.accelerator.distributed_type not in WHOLE_MODEL:
        return
    shown = None if held_out is None else held_out[:16].to(run.accelerator.device)
    representations = None if shown is None else encode.represent(shown)
    with run.evaluation_weights() as model:
        mage = model.mage
        samples = sample_tokens(mage, 16, run.arguments.num_inference_steps, run.arguments.seed, representations)
    if run.accelerator.is_main_process:
        tokens = {"samples": samples} | ({} if shown is None else {"reconstructions": shown})
        for name, codes in tokens.items():
            grid = picture(encode.tokenize.tokenizer, codes, mage.config.grid_size, columns=4)
            save_picture(grid, name, run.progress.step, run.arguments.output_dir, run.accelerator)


if __name__ == "__main__":
    main()
