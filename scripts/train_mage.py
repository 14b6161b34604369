"""
Trains MAGE on the images of any `datasets` source, with the recipe of the paper (appendix A).

The digits model:
    accelerate launch scripts/train_mage.py --config configs/mage_digits.yaml \
    --dataset_name FOLDER --tokenizer_name_or_path TOKENIZER_FOLDER
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import set_seed
from diffusers import VQModel

from transformers_mage import MageConfig, MageForMaskedImageModeling, sample_masks
from transformers_mage.command_line import argument, parse_arguments, reports_errors
from transformers_mage.data.arguments import TokenizerArguments
from transformers_mage.data.indexed import IndexedSource, InMemoryImages, InMemoryTokens, validation_images
from transformers_mage.data.loading import load_images
from transformers_mage.data.sources import create_source, indexed_source
from transformers_mage.data.streamed import StreamedSource
from transformers_mage.data.token_cache import CachedTokens, cached_class_settings
from transformers_mage.data.tokenization import (
    Encoder,
    image_size,
    load_tokenizer,
    patch_size,
    settle_pixel_range,
    tokenize_views,
    validation_tokens,
)
from transformers_mage.data.views import RandomViews
from transformers_mage.image_tokens import pixel_range, set_pixel_range
from transformers_mage.training.arguments import TrainingArguments
from transformers_mage.training.conditional import class_settings, freeze_encoder, load_for_training
from transformers_mage.training.contrastive import contrast_passes
from transformers_mage.training.pictures import generate, picture, save_picture
from transformers_mage.training.pretraining import MageForPreTraining, build_model, save_model, training_labels
from transformers_mage.training.run import TrainingRun, create_accelerator
from transformers_mage.training.tracking import training_flops
from transformers_mage.training.validation import validate

# Sharded models cannot generate: the sampler calls only a part of them.
WHOLE_MODEL = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


@dataclass
class MageArguments(TokenizerArguments, TrainingArguments):
    model: dict = field(init=False, default_factory=dict)
    pretrained_model_name_or_path: str | None = argument(
        None, "Go on from the weights of this MAGE model, with its tokenizer."
    )
    class_conditional: bool = argument(False, "Learn the classes of `--label_column` too, to generate images of them.")
    freeze_encoder: bool = argument(False, "Train only the decoder, and the classes' embeddings.")
    token_cache: str | None = argument(None, "Train on tokens that scripts/cache_tokens.py made, not on images.")
    tokenized_views: int = argument(
        0, "Encode this many random views of each image once, before training; 0 encodes in each step."
    )
    mask_ratio_per_image: bool = argument(False, "Draw a masking ratio for each image, rather than for each pass.")
    contrastive_weight: float = argument(0.0, "Weight of the contrastive loss: 0.1 is MAGE-C, 0 is MAGE.")
    contrastive_temperature: float = argument(0.2, "Temperature of the contrastive loss.")
    gradient_checkpointing: bool = argument(False, "Save memory by computing activations twice.")

    validation_split: str | None = argument(None, "Held-out split, for a loss at fixed masks.")
    validation_steps: int = argument(1000, "Updates between looks at the held-out split.")
    max_validation_samples: int = argument(2048, "Held-out images to look at.")
    sample_steps: int = argument(0, "Updates between pictures of samples and reconstructions; 0 makes none.")
    num_inference_steps: int = argument(20, "Decoding steps of the samples.")

    def validate(self):
        super().validate()
        self.tokenizer_name_or_path = self.tokenizer_name_or_path or self.pretrained_model_name_or_path
        if not self.tokenizer_name_or_path and not self.token_cache:
            raise ValueError("Say which tokenizer to use: `--tokenizer_name_or_path FOLDER`.")
        if self.freeze_encoder and not self.pretrained_model_name_or_path:
            raise ValueError(
                "`--freeze_encoder` keeps a trained encoder: say `--pretrained_model_name_or_path FOLDER`."
            )

    def has_data(self) -> bool:
        return bool(self.dataset_name or self.token_cache)


@reports_errors
def main(argv: list[str] | None = None):
    arguments = parse_arguments(MageArguments, __doc__, argv)
    accelerator = create_accelerator(arguments)
    tokenizer = open_tokenizer(arguments)
    mage = create_model(arguments, tokenizer)
    config = mage.config
    if arguments.gradient_checkpointing:
        mage.gradient_checkpointing_enable()
    if arguments.torch_compile:
        mage.compile()
        mage.mage.compile()

    num_views = 2 if arguments.contrastive_weight else 1
    encoder = Encoder(tokenizer, RandomViews(image_size(config), **arguments.crops()), num_views)
    source = token_source(arguments, accelerator, encoder, config)
    held_out = held_out_tokens(arguments, tokenizer, config)

    run = TrainingRun(arguments, source, accelerator, num_views * training_flops(config))
    model = run.prepare(MageForPreTraining(mage, arguments.contrastive_weight, arguments.contrastive_temperature))
    if held_out is not None:
        run.call_every(
            arguments.validation_steps,
            lambda: run.log(validate(model, held_out, arguments.train_batch_size, accelerator)),
        )
    run.call_every(arguments.sample_steps, lambda: draw_pictures(run, tokenizer, held_out))
    set_seed(arguments.seed, device_specific=True)
    run.start()
    for passes in passes_together(run, encoder, config):
        for kwargs in (
            passes if len(passes) == 1 else contrast_passes(model, passes, arguments.contrastive_temperature)
        ):
            with accelerator.accumulate(model):
                run.update(*model(**kwargs))

    state = run.finish()
    if accelerator.is_main_process:
        hub = {"push_to_hub": arguments.push_to_hub, "repo_id": arguments.hub_model_id}
        save_model(state, config, tokenizer, arguments.output_dir, **hub)


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
    side = patch_size(tokenizer)

    def first_images() -> torch.Tensor:
        dataset = load_images(arguments, arguments.train_split, arguments.streaming)
        shape = (tokenizer.config.in_channels, 16 * side, 16 * side)
        return validation_images(dataset, arguments.image_column, shape, limit=2)

    settle_pixel_range(tokenizer, arguments.tokenizer_pixel_range, first_images)
    return tokenizer


def passes_together(run: TrainingRun, encoder: Encoder, config: MageConfig) -> Iterator[list[dict[str, Any]]]:
    """
    Arguments of the model for one pass after another; with a contrastive loss, which compares all images of an update,
    for all of its passes at once.
    """
    together = run.accelerator.gradient_accumulation_steps if run.arguments.contrastive_weight else 1
    passes = []
    for batch in run.batches():
        input_ids = encoder(batch)
        masks = sample_masks(
            config,
            batch_size=len(input_ids),
            generator=run.generator(passes_ahead=len(passes)),
            device=run.accelerator.device,
            per_image=run.arguments.mask_ratio_per_image,
        )
        labels = training_labels(config, batch.get("labels"), encoder.num_views)
        passes.append({"input_ids": input_ids, "masks": masks, "class_labels": labels})
        if len(passes) == together:
            yield passes
            passes = []


def create_model(arguments: MageArguments, tokenizer: VQModel) -> MageForMaskedImageModeling:
    """A new model, or a saved one to go on with, of the classes of the dataset where that is asked for."""
    values = dict(arguments.model)
    if arguments.class_conditional and arguments.token_cache:
        values |= cached_class_settings(Path(arguments.token_cache, arguments.train_split))
    elif arguments.class_conditional:
        dataset = load_images(arguments, arguments.train_split, arguments.streaming)
        values |= class_settings(dataset, arguments.label_column)
    if not arguments.pretrained_model_name_or_path:
        return build_model(values, tokenizer)
    mage = load_for_training(arguments.pretrained_model_name_or_path, values)
    if arguments.freeze_encoder:
        freeze_encoder(mage)
    return mage


def token_source(
    arguments: MageArguments, accelerator: Accelerator, encoder: Encoder, config: MageConfig
) -> IndexedSource | StreamedSource:
    """Where tokens come from: a cache, memory, or the tokenizer in each step, which then goes to the device."""
    if arguments.token_cache:
        data = CachedTokens(Path(arguments.token_cache, arguments.train_split), encoder.num_views)
        data.check(encoder.tokenizer, arguments.crops(), config.grid_size)
        return indexed_source(data, arguments, accelerator)
    encoder.tokenizer.to(accelerator.device)
    source = create_source(
        arguments, accelerator, (encoder.tokenizer.config.in_channels, *image_size(config)), encoder.num_views
    )
    if not arguments.tokenized_views:
        return source
    images = getattr(source, "dataset", None)
    if not isinstance(images, InMemoryImages):
        raise SystemExit(
            "`--tokenized_views` encodes images that fit into memory (see `--in_memory_limit`), which these do not. "
            "Make a token cache with scripts/cache_tokens.py."
        )
    tokens = tokenize_views(encoder.tokenizer, images.images, encoder.views, arguments.tokenized_views)
    return indexed_source(InMemoryTokens(tokens, images.labels, encoder.num_views), arguments, accelerator)


def held_out_tokens(arguments: MageArguments, tokenizer: VQModel, config: MageConfig) -> torch.Tensor | None:
    """(num_images, sequence_length) tokens of the held-out split, if there is one."""
    if not arguments.validation_split:
        return None
    if arguments.token_cache:
        data = CachedTokens(Path(arguments.token_cache, arguments.validation_split))
        return data.first_views(arguments.max_validation_samples)
    dataset = load_images(arguments, arguments.validation_split, arguments.streaming)
    limit = arguments.max_validation_samples
    return validation_tokens(tokenizer, dataset, arguments.image_column, image_size(config), limit)


def draw_pictures(run: TrainingRun, tokenizer: VQModel, held_out: torch.Tensor | None):
    """Samples, and held-out images as the tokenizer reconstructs them."""
    if run.accelerator.distributed_type not in WHOLE_MODEL:
        return
    with run.evaluation_weights() as model:
        mage = model.mage
        samples = generate(mage, 16, run.arguments.num_inference_steps, run.arguments.seed)
    if run.accelerator.is_main_process:
        tokens = {"samples": samples} | ({} if held_out is None else {"reconstructions": held_out[:16]})
        for name, codes in tokens.items():
            grid = picture(tokenizer, codes, mage.config.grid_size, columns=4)
            save_picture(grid, name, run.progress.step, run.arguments.output_dir, run.accelerator)


if __name__ == "__main__":
    main()
