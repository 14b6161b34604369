"""
Trains the tokenizer, a stock diffusers VQModel, on the images of any `datasets` source.

The digits tokenizer:
    accelerate launch scripts/train_vqgan.py --config configs/vqgan_digits.yaml --dataset_name FOLDER
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from accelerate.utils import broadcast, set_seed
from diffusers import VQModel

from transformers_mage.training.arguments import TrainingArguments, argument, parse_arguments
from transformers_mage.training.augmentation import RandomViews
from transformers_mage.training.data import InMemoryImages, decode_images, load_images
from transformers_mage.training.run import TrainingRun, create_accelerator
from transformers_mage.training.tokenizer import TokenizerOutput, VQModelForTraining, code_perplexity


@dataclass
class TokenizerArguments(TrainingArguments):
    vq_config: dict = field(init=False, default_factory=dict)
    image_size: int = argument(256, "Side of the images, in pixels.")
    l1_share: float = argument(0.5, "Share of the absolute in the reconstruction error; the rest is squared.")
    codebook_weight: float = argument(1.0, "Weight of the loss that moves codes to their latents.")
    commitment_weight: float = argument(0.25, "Weight of the loss that holds latents to their codes.")
    revive_codes_every: int = argument(100, "Updates between revivals of dead codes; 0 never revives.")
    dead_code_share: float = argument(0.05, "A code is dead below this share of an evenly used code's frequency.")


def main(argv: list[str] | None = None):
    arguments = parse_arguments(TokenizerArguments, __doc__, argv)
    accelerator = create_accelerator(arguments)
    vqvae = VQModel(**arguments.vq_config)
    model = VQModelForTraining(vqvae, arguments.l1_share)
    dataset = load_images(arguments, arguments.train_split)
    size = (arguments.image_size, arguments.image_size)
    images = decode_images(dataset, arguments.image_column, vqvae.config.in_channels, size)
    views = RandomViews(size, arguments.crop_scale_min, arguments.crop_ratio_max, arguments.horizontal_flip)

    run = TrainingRun(arguments, InMemoryImages(images), accelerator)
    model = run.prepare(model)
    set_seed(arguments.seed, device_specific=True)
    run.start()
    for batch in run.batches():
        with accelerator.accumulate(model):
            output: TokenizerOutput = model(views(batch["pixel_values"]))
            loss = output.reconstruction_loss
            loss = loss + arguments.codebook_weight * output.codebook_loss
            loss = loss + arguments.commitment_weight * output.commitment_loss
            run.update(loss, {"loss": loss, **track_codes(run, output), **losses_of(output)})

    vqvae = run.finish().vqvae
    if accelerator.is_main_process:
        hub = {"repo_id": arguments.hub_model_id} if arguments.hub_model_id else {}
        vqvae.save_pretrained(arguments.output_dir, push_to_hub=arguments.push_to_hub, **hub)


def losses_of(output: TokenizerOutput) -> dict[str, torch.Tensor]:
    return {
        "reconstruction_loss": output.reconstruction_loss,
        "codebook_loss": output.codebook_loss,
        "commitment_loss": output.commitment_loss,
    }


def track_codes(run: TrainingRun, output: TokenizerOutput) -> dict[str, torch.Tensor]:
    """Counts codes over all processes and, when it is time, revives the dead ones with latents of the main process."""
    arguments, model = run.arguments, run.accelerator.unwrap_model(run.model)
    counts = F.one_hot(output.token_ids.flatten(), model.usage.numel()).sum(dim=0)
    counts = run.accelerator.reduce(counts, "sum")
    model.track_usage(counts)
    metrics = {"code_perplexity": code_perplexity(counts), "codes_used": (counts > 0).sum()}
    every = arguments.revive_codes_every
    if every and run.progress.step % every == 0 and run.progress.step < run.total_steps // 2:
        revived = model.revive_dead_codes(output.latents, arguments.dead_code_share)
        broadcast(model.vqvae.quantize.embedding.weight.data)
        metrics["codes_revived"] = torch.tensor(float(revived))
    return metrics


if __name__ == "__main__":
    main()
