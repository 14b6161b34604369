"""
Trains the tokenizer, a stock diffusers VQModel, on the images of any `datasets` source.

The digits tokenizer:
    accelerate launch scripts/train_vqgan.py --config configs/vqgan_digits.yaml --dataset_name FOLDER
"""

from dataclasses import dataclass, field

import torch
from accelerate.utils import broadcast, set_seed
from diffusers import VQModel

from transformers_mage.command_line import argument, parse_arguments, reports_errors
from transformers_mage.data.sources import create_source
from transformers_mage.data.views import ImageViews
from transformers_mage.training.arguments import TrainingArguments
from transformers_mage.training.run import TrainingRun, create_accelerator
from transformers_mage.training.tokenizer import TokenizerOutput, VQModelForTraining, code_counts, code_perplexity


@dataclass
class TokenizerArguments(TrainingArguments):
    vq_config: dict = field(init=False, default_factory=dict)
    image_size: int = argument(256, "Side of the images, in pixels.")
    l1_share: float = argument(0.5, "Share of the absolute in the reconstruction error; the rest is squared.")
    codebook_weight: float = argument(1.0, "Weight of the loss that moves codes to their latents.")
    commitment_weight: float = argument(0.25, "Weight of the loss that holds latents to their codes.")
    revive_codes_every: int = argument(100, "Updates between revivals of dead codes; 0 never revives.")
    dead_code_share: float = argument(0.05, "A code is dead below this share of an evenly used code's frequency.")


@reports_errors
def main(argv: list[str] | None = None):
    arguments = parse_arguments(TokenizerArguments, __doc__, argv)
    accelerator = create_accelerator(arguments)
    vqvae = VQModel(**arguments.vq_config)
    size = (arguments.image_size, arguments.image_size)
    views = ImageViews(size, vqvae.config.in_channels, crops=arguments.crops)
    source = create_source(arguments.train_data, views, arguments.loading(accelerator))
    draw_views = views.on_device()

    run = TrainingRun(arguments, source, accelerator)
    model = run.prepare(VQModelForTraining(vqvae, arguments.l1_share))
    set_seed(arguments.seed, device_specific=True)
    run.start()
    for batch in run.batches():
        with accelerator.accumulate(model):
            output: TokenizerOutput = model(draw_views.of(batch))
            loss = output.reconstruction_loss
            loss = loss + arguments.codebook_weight * output.codebook_loss
            loss = loss + arguments.commitment_weight * output.commitment_loss
            run.update(loss, {"loss": loss, **track_codes(run, output), **losses_of(output)})

    state = run.finish()
    if accelerator.is_main_process:
        vqvae = VQModel(**arguments.vq_config)
        vqvae.load_state_dict({name.removeprefix("vqvae."): state[name] for name in state if name != "usage"})
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
    counts = run.accelerator.reduce(code_counts(output.token_ids, model.usage.numel()), "sum")
    model.track_usage(counts)
    metrics = {"code_perplexity": code_perplexity(counts), "codes_used": (counts > 0).sum()}
    metrics["codes_revived"] = torch.zeros(())
    every = arguments.revive_codes_every
    if every and run.progress.step % every == 0 and run.progress.step < run.total_steps // 2:
        revived = model.revive_dead_codes(output.latents, arguments.dead_code_share)
        broadcast(model.vqvae.quantize.embedding.weight.data)
        metrics["codes_revived"] = torch.tensor(float(revived))
    return metrics


if __name__ == "__main__":
    main()
