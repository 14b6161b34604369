"""
Gives a trained tokenizer fewer codes: the centres of k-means over the latents of its training images.

    python -m examples.fashion.reduce_codes --tokenizer_name_or_path outputs/fashion/vqgan --codebook_size 64 \
        --dataset_name outputs/fashion/data --output_dir outputs/fashion/vqgan-64

A tokenizer that is trained for exact pixels tells apart what no eye does, and a model of its tokens has to predict
that too. With a quarter of the codes the Fréchet distance of reconstructions is the same, and every token is easier to
guess. The decoder should learn the new codes afterwards (configs/vqgan_fashion_decoder.yaml).
"""

import argparse
from pathlib import Path

import torch
from diffusers import VQModel
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor
from tqdm.auto import tqdm

from transformers_mage.data.tokenization import load_tokenizer

from .images import load_split
from .judge import as_grey


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
    clusters = MiniBatchKMeans(arguments.codebook_size, n_init=3, batch_size=8192, random_state=arguments.seed)
    clusters.fit(latents_of(tokenizer, images).numpy())
    with_codes(tokenizer, torch.from_numpy(clusters.cluster_centers_)).save_pretrained(arguments.output_dir)


@torch.no_grad()
def latents_of(tokenizer: VQModel, images: Tensor, batch_size: int = 250) -> Tensor:
    """(num_tokens, dim) latents before they are quantised."""
    channels, latents = tokenizer.config.in_channels, []
    for batch in tqdm(images.split(batch_size), desc="Encoding", leave=False):
        encoded = tokenizer.encode(as_grey(batch).expand(-1, channels, -1, -1)).latents
        latents.append(encoded.permute(0, 2, 3, 1).flatten(0, 2))
    return torch.cat(latents)


def with_codes(tokenizer: VQModel, codes: Tensor) -> VQModel:
    """The same tokenizer with a codebook of shape `(codebook_size, dim)`."""
    reduced = VQModel.from_config(tokenizer.config, num_vq_embeddings=len(codes))
    weights = tokenizer.state_dict() | {"quantize.embedding.weight": codes.to(tokenizer.dtype)}
    reduced.load_state_dict(weights)
    return reduced


if __name__ == "__main__":
    main()
