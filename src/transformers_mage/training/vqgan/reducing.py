"""
Fewer codes for a trained tokenizer: the centres of k-means over the latents of images.

A tokenizer that is trained for exact pixels tells apart what no eye does, and a model of its tokens has to predict
that too. The decoder should learn the new codes afterwards.
"""

import torch
from diffusers import VQModel
from torch import Tensor

from ...image_tokens import pixel_range
from ...progress import progress_bar


def reduce_codes(tokenizer: VQModel, images: Tensor, codebook_size: int, seed: int = 0) -> VQModel:
    """
    The same tokenizer with fewer codes.

    Args:
        tokenizer (`VQModel`): trained.
        images (`torch.Tensor` of shape `(num_images, channels, height, width)`): uint8.
        codebook_size (`int`): codes that it gets.
        seed (`int`): of the clusters' first centres.

    Raises:
        ImportError: where scikit-learn is not installed.
        ValueError: where the images have fewer tokens than it would get codes.
    """
    from sklearn.cluster import MiniBatchKMeans

    latents = latents_of(tokenizer, images)
    if len(latents) < codebook_size:
        raise ValueError(f"{codebook_size} codes need as many tokens or more, and the images have {len(latents)}.")
    clusters = MiniBatchKMeans(codebook_size, n_init=3, batch_size=8192, random_state=seed)
    clusters.fit(latents.numpy())
    return with_codes(tokenizer, torch.from_numpy(clusters.cluster_centers_))


@torch.no_grad()
def latents_of(tokenizer: VQModel, images: Tensor, batch_size: int = 250) -> Tensor:
    """(num_tokens, dim) latents of images, uint8, before they are quantised."""
    low, high = pixel_range(tokenizer)
    latents = []
    for batch in progress_bar(images.split(batch_size), desc="Encoding", leave=False):
        pixels = batch.to(tokenizer.device).float() / 255 * (high - low) + low
        latents.append(tokenizer.encode(pixels).latents.permute(0, 2, 3, 1).flatten(0, 2).float().cpu())
    return torch.cat(latents)


def with_codes(tokenizer: VQModel, codes: Tensor) -> VQModel:
    """The same tokenizer with a codebook of shape `(codebook_size, dim)`."""
    reduced = VQModel.from_config(tokenizer.config, num_vq_embeddings=len(codes))
    weights = tokenizer.state_dict() | {"quantize.embedding.weight": codes.to(tokenizer.dtype)}
    reduced.load_state_dict(weights)
    return reduced
