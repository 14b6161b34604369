"""Where the tokens that a model is trained on come from: a cache, memory, or the tokenizer in each step."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import VQModel

from ..command_line import argument, check_numbers
from ..configuration_mage import MageConfig
from ..data.batches import DataError, Loading, Source
from ..data.indexed import IndexedSource, InMemoryTokens
from ..data.loading import load_images
from ..data.sources import create_source, load_into_memory
from ..data.token_cache import CachedTokens, cached_class_settings
from ..data.tokenization import tokenize_views, validation_tokens
from ..data.views import ImageViews
from .arguments import TrainingArguments
from .conditional import class_settings


@dataclass
class TokenArguments(TrainingArguments):
    """What every script that trains on tokens can be told."""

    token_cache: str | None = argument(None, "Train on tokens that scripts/cache_tokens.py made, not on images.")
    tokenized_views: int = argument(
        0, "Encode this many random views of each image once, before training; 0 encodes in each step."
    )

    def check(self):
        super().check()
        check_numbers(self, "tokenized_views", at_least=0)
        if self.tokenized_views and (self.token_cache or self.streaming):
            other = "--token_cache" if self.token_cache else "--streaming"
            raise ValueError(f"`--tokenized_views` encodes images in memory: leave it out, or `{other}`.")

    def has_data(self) -> bool:
        return bool(self.dataset_name or self.token_cache)


def class_values(arguments: TokenArguments) -> dict[str, Any]:
    """`num_classes` and `id2label` of [`MageConfig`] for the classes of the data."""
    if arguments.token_cache:
        return cached_class_settings(Path(arguments.token_cache, arguments.train_split))
    dataset, columns = load_images(arguments.train_data)
    return class_settings(dataset, columns.label or arguments.label_column)


def token_source(
    arguments: TokenArguments, accelerator: Accelerator, tokenizer: VQModel, views: ImageViews, config: MageConfig
) -> Source:
    """Where tokens come from: a cache, memory, or the tokenizer in each step, which then goes to the device."""
    loading = arguments.loading(accelerator)
    if arguments.token_cache:
        return IndexedSource(cached_tokens(arguments, tokenizer, views, config), loading)
    tokenizer.to(accelerator.device)
    if arguments.tokenized_views:
        return IndexedSource(tokens_in_memory(arguments, tokenizer, views, loading), loading)
    return create_source(arguments.train_data, views, loading)


def cached_tokens(
    arguments: TokenArguments, tokenizer: VQModel, views: ImageViews, config: MageConfig
) -> CachedTokens:
    """The cache that the command line names, once it is known to hold tokens of this tokenizer and grid."""
    assert arguments.token_cache is not None
    data = CachedTokens(Path(arguments.token_cache, arguments.train_split), views.num_views)
    data.check(tokenizer, views.crops, config.grid_size)
    return data


def tokens_in_memory(
    arguments: TokenArguments, tokenizer: VQModel, views: ImageViews, loading: Loading
) -> InMemoryTokens:
    """Tokens of `--tokenized_views` views of each image, all made now."""
    dataset, columns = load_images(arguments.train_data)
    images = None if arguments.streaming else load_into_memory(dataset, columns, views, loading)
    if images is None:
        raise DataError(
            "`--tokenized_views` encodes images that fit into memory (see `--in_memory_limit`), which these do not. "
            "Make a token cache with scripts/cache_tokens.py."
        )
    tokens = tokenize_views(tokenizer, images.images, views.on_device(), arguments.tokenized_views)
    return InMemoryTokens(tokens, images.labels, views.num_views)


def held_out_tokens(
    arguments: TokenArguments, split: str | None, limit: int, tokenizer: VQModel, config: MageConfig
) -> torch.Tensor | None:
    """(num_images, sequence_length) tokens of at most `limit` images of a held-out split, if there is one."""
    if not split:
        return None
    if arguments.token_cache:
        return CachedTokens(Path(arguments.token_cache, split)).first_views(limit)
    return validation_tokens(tokenizer, arguments.train_data.of_split(split), config.image_height_width, limit)
