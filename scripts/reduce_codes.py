"""
Gives a trained tokenizer fewer codes, the centres of k-means over the latents of its training images, which a model
of its tokens can predict better.

    python scripts/reduce_codes.py --dataset_name FOLDER --tokenizer_name_or_path TOKENIZER_FOLDER \
        --image_size 28 --codebook_size 64 --output_dir TOKENIZER_FOLDER-64

The decoder should learn the new codes afterwards: scripts/train_vqgan.py with `--freeze_encoder`.
"""

from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState

from transformers_mage.command_line import argument, check_numbers, parse_arguments, reports_errors
from transformers_mage.data.arguments import DataArguments, TokenizerArguments
from transformers_mage.data.tokenization import check_image_size, first_images, load_tokenizer, settle_pixel_range
from transformers_mage.files import written_aside
from transformers_mage.training.vqgan.reducing import reduce_codes


@dataclass
class ReductionArguments(TokenizerArguments, DataArguments):
    image_size: int = argument(256, "Side of the images, in pixels.")
    codebook_size: int = argument(64, "Codes that the tokenizer gets.")
    max_train_samples: int | None = argument(4000, "Cluster the latents of the first images only.")

    def check(self):
        super().check()
        if not self.tokenizer_name_or_path:
            raise ValueError("Say which tokenizer to start from: `--tokenizer_name_or_path FOLDER`.")
        check_numbers(self, "image_size", at_least=1)
        check_numbers(self, "codebook_size", at_least=2)


@reports_errors
def main(argv: list[str] | None = None):
    arguments = parse_arguments(ReductionArguments, __doc__, argv)
    if not PartialState().is_main_process:
        return
    tokenizer = load_tokenizer(arguments.tokenizer_name_or_path, arguments.tokenizer_subfolder)
    check_image_size(tokenizer, arguments.image_size)
    # As many as there are, unless somebody says how many.
    limit = arguments.max_train_samples or 2**31
    images = first_images(tokenizer, arguments.train_data, arguments.image_size, limit)
    settle_pixel_range(tokenizer, arguments.tokenizer_pixel_range, lambda: images[:2])
    reduced = reduce_codes(tokenizer, images, arguments.codebook_size, arguments.seed)
    with written_aside(Path(arguments.output_dir)) as aside:
        reduced.save_pretrained(aside)


if __name__ == "__main__":
    main()
