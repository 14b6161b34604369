"""
Encodes the images of any `datasets` source once, so that training needs no tokenizer.

ImageNet with ten views of each image, on all GPUs; started again after a kill, it continues:
    accelerate launch scripts/cache_tokens.py --dataset_name imagenet-1k --streaming \
        --tokenizer_name_or_path TOKENIZER_FOLDER --views 10 --output_dir TOKENS
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from diffusers import VQModel

from transformers_mage.command_line import argument, check_numbers, parse_arguments, reports_errors
from transformers_mage.data.arguments import DataArguments, TokenizerArguments
from transformers_mage.data.batches import DataError
from transformers_mage.data.loading import Columns, load_images
from transformers_mage.data.token_cache import (
    CacheMetadata,
    damaged_shards,
    encode_shard,
    save_shard,
    shard_folder,
    transform_values,
)
from transformers_mage.data.tokenization import (
    check_image_size,
    first_images,
    load_tokenizer,
    settle_pixel_range,
    tokenize,
)
from transformers_mage.data.views import ImageViews
from transformers_mage.files import FolderError, explains_full_disk, fingerprint, locked, written_aside
from transformers_mage.progress import terminal_bar


@dataclass
class CacheArguments(TokenizerArguments, DataArguments):
    image_size: int = argument(256, "Side of the views, in pixels.")
    views: int = argument(10, "Random views of each image.")
    batch_size: int = argument(16, "Images, with all their views, to encode at once.")
    rows_per_shard: int = argument(10_000, "Images in a shard, for a dataset that is not streamed.")

    def check(self):
        super().check()
        if not self.tokenizer_name_or_path:
            raise ValueError("Say which tokenizer to use: `--tokenizer_name_or_path FOLDER`.")
        check_numbers(self, "views batch_size rows_per_shard image_size", at_least=1)


@reports_errors
def main(argv: list[str] | None = None):
    arguments = parse_arguments(CacheArguments, __doc__, argv)
    accelerator = Accelerator()
    tokenizer = load_tokenizer(arguments.tokenizer_name_or_path, arguments.tokenizer_subfolder).to(accelerator.device)
    check_image_size(tokenizer, arguments.image_size)
    images = partial(first_images, tokenizer, arguments.train_data, arguments.image_size)
    settle_pixel_range(tokenizer, arguments.tokenizer_pixel_range, images)
    dataset, columns = load_images(arguments.train_data)
    size = (arguments.image_size, arguments.image_size)
    views = ImageViews(size, tokenizer.config.in_channels, arguments.views, arguments.crops)
    metadata = describe(arguments, tokenizer, views, dataset, columns)
    folder = Path(arguments.output_dir, arguments.train_split)
    lock = locked(folder) if accelerator.is_main_process else nullcontext()
    with lock, explains_full_disk(folder):
        todo = prepare_folder(folder, metadata, tokenizer, accelerator)
        num_images, num_skipped = 0, 0
        is_hidden = None if accelerator.is_local_main_process else True
        for index in terminal_bar(todo, desc="Encoding shards", disable=is_hidden):
            shard, skipped = encode_shard(
                dataset.shard(metadata.num_shards, index),
                lambda pixels: tokenize(tokenizer, pixels.to(accelerator.device).float() / 255),
                views,
                columns,
                (arguments.seed, index),
                arguments.batch_size,
                max(arguments.dataloader_num_workers, 1),
            )
            save_shard(shard, shard_folder(folder, index, metadata.num_shards))
            num_skipped, num_images = num_skipped + skipped, num_images + len(shard) + skipped
    counts = accelerator.reduce(torch.tensor([num_images, num_skipped], device=accelerator.device)).tolist()
    accelerator.print(f"{folder}: {counts[0]} images read now, {counts[1]} of them broken and skipped.")
    if counts[1] > arguments.max_skipped_share * counts[0]:
        raise DataError(f"More than `--max_skipped_share` {arguments.max_skipped_share} of the images are broken.")


def prepare_folder(folder: Path, metadata: CacheMetadata, tokenizer: VQModel, accelerator: Accelerator) -> list[int]:
    """Writes what is to be known of the tokens, and gives the shards that this process has to make."""
    for other in folder.parent.glob("*/tokens.json"):
        made = CacheMetadata.load(other.parent)
        if other.parent == folder:
            made.check_same(metadata, folder)
        elif made.tokenizer != metadata.tokenizer:
            raise FolderError(f"{other.parent} holds tokens of another tokenizer. Use that, or another folder.")
    damage = damaged_shards(folder, metadata.num_shards, read=True)
    for index, what in damage.items():
        if what != "is missing":
            accelerator.print(f"{shard_folder(folder, index, metadata.num_shards)} {what}: it is made anew.")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        metadata.save(folder)
        with written_aside(folder.parent / "tokenizer") as aside:
            tokenizer.save_pretrained(aside)
    return list(damage)[accelerator.process_index :: accelerator.num_processes]


def describe(
    arguments: CacheArguments,
    tokenizer: VQModel,
    views: ImageViews,
    dataset: Dataset | IterableDataset,
    columns: Columns,
) -> CacheMetadata:
    side = arguments.image_size // 2 ** (len(tokenizer.config.block_out_channels) - 1)
    size = None if arguments.streaming else len(dataset)
    num_shards = dataset.num_shards if arguments.streaming else math.ceil(size / arguments.rows_per_shard)
    source = {
        "name": arguments.dataset_name,
        "config_name": arguments.dataset_config_name,
        "split": arguments.train_split,
        "num_images": size,
        "classes": getattr((dataset.features or {}).get(columns.label), "names", None),
    }
    return CacheMetadata(
        fingerprint(tokenizer), transform_values(views), [side, side], source, arguments.seed, num_shards
    )


if __name__ == "__main__":
    main()
