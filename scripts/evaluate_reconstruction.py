"""
Compares tokenizers by what they make of the same images: a line for each.

    accelerate launch scripts/evaluate_reconstruction.py --tokenizers vqgan-plain,vqgan-full \
        --references DATASET --references_split test --feature_networks efficientnet-lite0
    accelerate launch scripts/evaluate_reconstruction.py --tokenizers amused/amused-256 --tokenizer_subfolder vqvae \
        --references imagenet/val --resolution 256 --feature_networks inception --perceptual_network lpips:vgg

The results go to `results.json` and, as a table, to `results.md`.
"""

import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from diffusers import VQModel
from torch import Tensor

from transformers_mage.command_line import argument, check_numbers, parse_arguments, reports_errors
from transformers_mage.data.batches import DataError
from transformers_mage.data.tokenization import (
    PIXEL_RANGES,
    TokenizerError,
    load_tokenizer,
    patch_size,
    settle_pixel_range,
)
from transformers_mage.files import write_json, write_text
from transformers_mage.hub.cards import markdown_table
from transformers_mage.metrics import TokenizerScores, load_feature_network
from transformers_mage.metrics.evaluation import Evaluator
from transformers_mage.metrics.images import ImageCollection
from transformers_mage.training.vqgan.perceptual import COMPARED, perceptual_distance

# Of a score's name the heading, and how many decimals are shown.
COLUMNS = {
    "psnr": ("PSNR (dB)", 2),
    "ssim": ("SSIM", 4),
    "perceptual_distance": ("perceptual distance", 4),
    "codes_used": ("codes used", 0),
    "code_perplexity": ("perplexity of the codes", 1),
}


@dataclass
class ReconstructionArguments:
    tokenizers: str | None = argument(
        None, "Folders or Hub names of stock `VQModel`s or MAGE models, with commas between them."
    )
    tokenizer_subfolder: str | None = argument(
        None, "The tokenizers' folder inside; pipelines keep theirs in `vqvae`."
    )
    tokenizer_pixel_range: str = argument(
        "auto",
        "What black and white are to them: [0, 1] (unit) or [-1, 1] (symmetric).",
        choices=["auto", *PIXEL_RANGES],
    )
    references: str | None = argument(None, "Real images: a folder or a dataset.")
    references_split: str | None = argument(None, "The split of a dataset with several.")
    image_column: str | None = argument(None, "The column with the images of a dataset with several such columns.")
    resolution: int | None = argument(None, "Resize the shorter side to this, and crop the centre.")
    feature_networks: str = argument(
        "inception",
        'For rFID, with commas between them: "inception", "efficientnet-lite0", "torchvision:MODEL", "timm:MODEL", or '
        "the folder or Hub name of a vision model.",
    )
    inception_weights: str | None = argument(None, "torch-fidelity's weights file, if it is not in torch's cache.")
    perceptual_network: str | None = argument(
        None, 'Also give distances as "efficientnet-lite0", "lpips:vgg", "torchvision:MODEL"... sees them.'
    )
    perceptual_compared: str = argument("features", "What of the network is compared.", choices=list(COMPARED))
    perceptual_image_size: int | None = argument(None, "Resize images to this for the network.")
    batch_size: int = argument(64, "Images in one forward pass of one process.")
    dataloader_num_workers: int = argument(0, "Processes that load images, for each evaluating process.")
    output_dir: str = argument("reconstruction", "Where the results go.")

    def check(self):
        """Raises `ValueError` for flags that make no comparison."""
        if not self.tokenizers or not self.references:
            raise ValueError("Say which tokenizers to compare, and on what: `--tokenizers A,B --references IMAGES`.")
        check_numbers(self, "batch_size resolution perceptual_image_size", at_least=1)
        check_numbers(self, "dataloader_num_workers", at_least=0)


@reports_errors
def main(argv: list[str] | None = None):
    arguments = parse_arguments(ReconstructionArguments, __doc__, argv)
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    state, exchange = PartialState(), Path(arguments.output_dir, ".exchange")
    tokenizers = open_tokenizers(arguments, state)
    channels = next(iter(tokenizers.values())).config.in_channels
    source = ImageCollection(
        arguments.references, arguments.references_split, arguments.image_column, arguments.resolution, channels
    )
    image = first_image(source)
    for name, tokenizer in tokenizers.items():
        check_shape(name, tokenizer, image)
        settle_pixel_range(tokenizer, arguments.tokenizer_pixel_range, lambda: image)
    exchange.mkdir(parents=True, exist_ok=True)
    results = compare(arguments, tokenizers, source, exchange)
    if state.is_main_process:
        write_json(Path(arguments.output_dir, "results.json"), results)
        table = table_of(results)
        write_text(Path(arguments.output_dir, "results.md"), f"{table}\n")
        print(table)
    state.wait_for_everyone()
    shutil.rmtree(exchange, ignore_errors=True)


def open_tokenizers(arguments: ReconstructionArguments, state: PartialState) -> dict[str, VQModel]:
    """The tokenizers by their names."""
    names = arguments.tokenizers.split(",")
    tokenizers = {name: load_tokenizer(name, arguments.tokenizer_subfolder).to(state.device) for name in names}
    channels = {name: tokenizer.config.in_channels for name, tokenizer in tokenizers.items()}
    if len(set(channels.values())) > 1:
        raise TokenizerError(f"Tokenizers of grey and of colour images see different images: {channels} channels.")
    return tokenizers


def first_image(source: ImageCollection) -> Tensor:
    """(1, channels, height, width), uint8: the first image that can be decoded."""
    decoded = (image for image in (source[index] for index in range(len(source))) if image is not None)
    image = next(decoded, None)
    if image is None:
        raise DataError(f"None of the {len(source)} images in {source.path} can be decoded.")
    return image[None]


def compare(
    arguments: ReconstructionArguments, tokenizers: dict[str, VQModel], source: ImageCollection, exchange: Path
) -> dict[str, Any]:
    """The scores of each tokenizer, on the main process. The images are read, and their features made, once."""
    evaluator = Evaluator(torch.nn.Identity, exchange, arguments.batch_size, arguments.dataloader_num_workers)
    names = arguments.feature_networks.split(",")
    networks = {name: load_feature_network(name, arguments.inception_weights) for name in names}
    networks = {name: network.to(evaluator.state.device) for name, network in networks.items()}
    perceptual = None
    if arguments.perceptual_network:
        size = arguments.perceptual_image_size
        perceptual = perceptual_distance(arguments.perceptual_network, arguments.perceptual_compared, size)
    options = {"perceptual": perceptual, **evaluator.metric_options}
    scores = {name: TokenizerScores(tokenizer, networks, **options) for name, tokenizer in tokenizers.items()}

    def add(images: Tensor):
        features = None
        for scored in scores.values():
            features = features or scored.features(images)
            scored.add_batch(images, features)

    evaluator.read(source, "references", add)
    found = {name: scored.compute() for name, scored in scores.items()}
    return {**evaluator.inputs, "perceptual_network": arguments.perceptual_network, "tokenizers": found}


def check_shape(name: str, tokenizer: VQModel, images: Tensor):
    side, (height, width) = patch_size(tokenizer), images.shape[-2:]
    if height % side or width % side:
        raise TokenizerError(
            f"A token of {name} is {side} x {side} pixels, and the images have {height} x {width}: say `--resolution` "
            f"with a multiple of {side}."
        )


def table_of(results: dict[str, Any]) -> str:
    """A line for each tokenizer."""
    lines, names = results["tokenizers"], list(next(iter(results["tokenizers"].values())))
    header = ["tokenizer", *(COLUMNS.get(name, (name, 3))[0] for name in names)]
    rows = [
        [tokenizer, *(f"{scores[name]:.{COLUMNS.get(name, (name, 3))[1]}f}" for name in names)]
        for tokenizer, scores in lines.items()
    ]
    return markdown_table(header, rows)


if __name__ == "__main__":
    main()
