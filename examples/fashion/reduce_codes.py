"""
Gives the tokenizer of clothes fewer codes: scripts/reduce_codes.py for 28 x 28 pixels.

    python -m examples.fashion.reduce_codes --tokenizer_name_or_path outputs/fashion/vqgan --codebook_size 64 \
        --dataset_name outputs/fashion/data --output_dir outputs/fashion/vqgan-64
"""

import argparse
from pathlib import Path

from transformers_mage.data.tokenization import load_tokenizer
from transformers_mage.training.vqgan.reducing import reduce_codes

from .images import load_split


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", type=Path, default=Path("outputs", "fashion", "data"))
    parser.add_argument(
        "--tokenizer_name_or_path", default="outputs/fashion/vqgan", help="the tokenizer to start from"
    )
    parser.add_argument("--codebook_size", type=int, default=64, help="codes that it gets")
    parser.add_argument("--num_images", type=int, default=4000, help="training images to cluster the latents of")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs", "fashion", "vqgan-64"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    tokenizer = load_tokenizer(arguments.tokenizer_name_or_path)
    images = load_split(arguments.dataset_name, "train")[0][: arguments.num_images]
    images = images.expand(-1, tokenizer.config.in_channels, -1, -1)
    reduce_codes(tokenizer, images, arguments.codebook_size, arguments.seed).save_pretrained(arguments.output_dir)


if __name__ == "__main__":
    main()
