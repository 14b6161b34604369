"""
Encodes the images of any `datasets` source once, so that training needs no tokenizer.

ImageNet with ten views of each image, on all GPUs; started again after a kill, it continues:
    accelerate launch scripts/cache_tokens.py --dataset_name imagenet-1k --streaming \
        --tokenizer_name_or_path TOKENIZER_FOLDER --views 10 --output_dir TOKENS
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from diffusers import VQModel
from tqdm.auto import tqdm

from transformers_mage.command_line import argument, parse_arguments, reports_errors
from transformers_mage.data.arguments import DataArguments
from transformers_mage.data.batches import DataError
from transformers_mage.data.loading import Columns, load_images
from transformers_mage.data.token_cache import (
    CacheMetadata,
    encode_shard,
    missing_shards,
    save_shard,
    shard_folder,
    transform_values,
)
from transformers_mage.data.tokenization import load_tokenizer, tokenize
from transformers_mage.data.views import ImageViews
from transformers_mage.files import fingerprint


@dataclass
class CacheArguments(DataArguments):
    tokenizer_name_or_path: str | None = argument(None, "A `VQModel`'s folder or Hub name, or that of a MAGE model.")
    image_size: int = argument(256, "Side of the views, in pixels.")
    views: int = argument(10, "Random views of each image.")
    batch_size: int = argument(16, "Images, with all their views, to encode at once.")
    rows_per_shard: int = argument(10_000, "Images in a shard, for a dataset that is not streamed.")

    def check(self):
        super().check()
        if not self.tokenizer_name_or_path:
            raise ValueError("Say which tokenizer to use: `--tokenizer_name_or_path FOLDER`.")
        for name in ("views", "batch_size", "rows_per_shard", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`--{name}` must be at least 1, got {getattr(self, name)}.")


@reports_errors
def main(argv: list[str] | None = None):
    arguments = parse_arguments(CacheArguments, __doc__, argv)
    accelerator = Accelerator()
    tokenizer = load_tokenizer(arguments.tokenizer_name_or_path).to(accelerator.device)
    dataset, columns = load_images(arguments.train_data)
    size = (arguments.image_size, arguments.image_size)
    views = ImageViews(size, tokenizer.config.in_channels, arguments.views, arguments.crops)
    metadata = describe(arguments, tokenizer, views, dataset, columns)
    folder = Path(arguments.output_dir, arguments.train_split)
    if (folder / "tokens.json").exists():
        CacheMetadata.load(folder).check_same(metadata, folder)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        metadata.save(folder)
        tokenizer.save_pretrained(Path(arguments.output_dir, "tokenizer"))
    todo = missing_shards(folder, metadata.num_shards)
    accelerator.wait_for_everyone()

    num_skipped = num_images = 0
    mine = todo[accelerator.process_index :: accelerator.num_processes]
    for index in tqdm(mine, desc="Encoding shards", disable=not accelerator.is_local_main_process):
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
    counts = accelerator.reduce(torch.tensor([num_skipped, num_images], device=accelerator.device)).tolist()
    accelerator.print(f"{folder}: {counts[1]} images read now, {counts[0]} of them broken and skipped.")
    if counts[0] > arguments.max_skipped_share * counts[1]:
        raise DataError(f"More than `--max_skipped_share` {arguments.max_skipped_share} of the images are broken.")


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
