"""
Trains the tokenizer, a stock diffusers VQModel, as a VQGAN on the images of any `datasets` source.

The digits tokenizer:
    accelerate launch scripts/train_vqgan.py --config configs/vqgan_digits.yaml --dataset_name FOLDER
With a perceptual loss and a discriminator:
    accelerate launch scripts/train_vqgan.py --config configs/vqgan_fashion.yaml --dataset_name FOLDER
Only a sharper decoder, for a tokenizer whose tokens are cached, or modelled, already:
    accelerate launch scripts/train_vqgan.py --config configs/vqgan_fashion.yaml --dataset_name FOLDER \
        --pretrained_model_name_or_path TOKENIZER_FOLDER --freeze_encoder
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from diffusers import VQModel

from transformers_mage.command_line import argument, check_numbers, group, parse_arguments, reports_errors
from transformers_mage.data.indexed import validation_images
from transformers_mage.data.loading import load_images
from transformers_mage.data.sources import create_source
from transformers_mage.data.tokenization import (
    TokenizerError,
    build_tokenizer,
    check_image_size,
    load_tokenizer,
    tokenizer_values,
)
from transformers_mage.data.views import ImageViews
from transformers_mage.hub.model_card import write_card
from transformers_mage.hub.publishing import Publisher
from transformers_mage.image_tokens import PIXEL_RANGE, pixel_range
from transformers_mage.training.pictures import save_picture
from transformers_mage.training.resuming import check_output_dir
from transformers_mage.training.run import create_accelerator
from transformers_mage.training.vqgan.adversarial import LOSSES, Adversary
from transformers_mage.training.vqgan.autoencoder import VQModelForTraining
from transformers_mage.training.vqgan.differentiable_augmentation import KINDS
from transformers_mage.training.vqgan.discriminator import PatchDiscriminator
from transformers_mage.training.vqgan.held_out import HeldOutImages
from transformers_mage.training.vqgan.objective import LossWeights, VQGANForTraining
from transformers_mage.training.vqgan.perceptual import COMPARED, perceptual_distance
from transformers_mage.training.vqgan.run import VQGANRun, VQGANRunArguments


@dataclass
class VQGANArguments(VQGANRunArguments):
    vq_config: dict = field(
        init=False,
        default_factory=dict,
        metadata=group("what diffusers' VQModel is made of.", tokenizer_values),
    )
    image_size: int = argument(256, "Side of the images, in pixels.")
    pretrained_model_name_or_path: str | None = argument(
        None, "Start from the weights of this tokenizer: a `VQModel`'s folder or Hub name, or that of a MAGE model."
    )
    freeze_encoder: bool = argument(
        False, "Train only the decoder: images keep their tokens, so that caches and models of them stay valid."
    )

    l1_share: float = argument(0.5, "Share of the absolute in the reconstruction error; the rest is squared.")
    reconstruction_weight: float = argument(1.0, "Weight of the reconstruction error.")

    perceptual_weight: float = argument(0.0, "Weight of the perceptual loss; 0 leaves it out.")
    perceptual_network: str = argument(
        "efficientnet-lite0",
        'What it is seen with: "efficientnet-lite0", "lpips:vgg", "torchvision:resnet50", "timm:MODEL" or '
        '"transformers:MODEL".',
    )
    perceptual_compared: str = argument("features", "What of the network is compared.", choices=list(COMPARED))
    perceptual_image_size: int | None = argument(None, "Resize images to this for the network.")
    perceptual_stages: int | None = argument(None, "Compare the features of the finest resolutions only, so many.")

    adversarial_weight: float = argument(0.0, "Weight of the adversarial loss; 0 trains without a discriminator.")
    adversarial_loss: str = argument("hinge", "The game that is played.", choices=list(LOSSES))
    adaptive_adversarial_weight: bool = argument(
        False, "Let the adversarial loss pull at the decoder's last layer as hard as the image's other losses."
    )
    adversarial_start_step: int = argument(0, "Updates before the discriminator starts.")
    adversarial_ramp_steps: int = argument(0, "Updates in which the adversarial weight rises from there.")
    lecam_weight: float = argument(0.0, "Weight of LeCAM, which regularises the discriminator.")
    discriminator_channels: int = argument(64, "Channels of the discriminator's finest level.")
    discriminator_levels: int = argument(3, "Times that the discriminator halves the image.")
    discriminator_spectral_norm: bool = argument(False, "Hold its weights' spectral norms at one.")
    discriminator_learning_rate: float | None = argument(None, "Its peak learning rate, if it is another.")
    discriminator_augmentation: str = argument(
        "", f"What is changed at random in all that it sees, with commas between them: {', '.join(KINDS)}."
    )

    codebook_weight: float = argument(1.0, "Weight of the loss that moves codes to their latents.")
    commitment_weight: float = argument(0.25, "Weight of the loss that holds latents to their codes.")
    entropy_weight: float = argument(0.0, "Weight of the loss that spreads tokens over the codes.")
    normalize_codes: bool = argument(False, "Compare latents and codes at length one; for few `vq_embed_dim`.")
    revive_codes_every: int = argument(100, "Updates between revivals of dead codes; 0 never revives.")
    dead_code_share: float = argument(0.05, "A code is dead below this share of an evenly used code's frequency.")

    validation_split: str | None = argument(None, "Held-out split, for scores and pictures of reconstructions.")
    validation_steps: int = argument(1000, "Updates between looks at the held-out split.")
    max_validation_samples: int = argument(2048, "Held-out images to look at.")
    stop_at_psnr: float | None = argument(
        None, "End training when held-out images are reconstructed as well as this, in dB."
    )
    feature_network: str | None = argument(
        None, 'The network whose features give rFID: "inception", "efficientnet-lite0" or a model; none by default.'
    )

    @property
    def augmentation_kinds(self) -> tuple[str, ...]:
        return tuple(filter(None, self.discriminator_augmentation.split(",")))

    def check(self):
        super().check()
        unknown = [kind for kind in self.augmentation_kinds if kind not in KINDS]
        if unknown:
            raise ValueError(f"`--discriminator_augmentation` takes {', '.join(KINDS)}; got {', '.join(unknown)}.")
        if self.freeze_encoder and not self.pretrained_model_name_or_path:
            raise ValueError(
                "`--freeze_encoder` keeps a trained encoder: say `--pretrained_model_name_or_path FOLDER`."
            )
        check_numbers(self, "image_size discriminator_channels discriminator_levels", at_least=1)
        check_numbers(self, "max_validation_samples perceptual_image_size perceptual_stages", at_least=1)
        check_numbers(self, "discriminator_learning_rate stop_at_psnr", more_than=0)
        if self.stop_at_psnr and not (self.validation_split and self.validation_steps):
            raise ValueError(
                "`--stop_at_psnr` looks at held-out images: say `--validation_split NAME`, and `--validation_steps` "
                f"above 0, where {self.validation_steps} came."
            )
        check_numbers(self, "l1_share dead_code_share", at_least=0, at_most=1)
        check_numbers(self, "codebook_weight commitment_weight revive_codes_every reconstruction_weight", at_least=0)
        check_numbers(self, "adversarial_weight perceptual_weight entropy_weight lecam_weight", at_least=0)
        check_numbers(self, "adversarial_start_step adversarial_ramp_steps validation_steps", at_least=0)


@reports_errors
def main(argv: list[str] | None = None):
    arguments = parse_arguments(VQGANArguments, __doc__, argv)
    check_output_dir(arguments.output_dir, arguments.resume_from_checkpoint)
    accelerator = create_accelerator(arguments)
    vqgan = create_vqgan(arguments)
    size = (arguments.image_size, arguments.image_size)
    views = ImageViews(size, vqgan.vqvae.config.in_channels, crops=arguments.crops)
    source = create_source(arguments.train_data, views, arguments.loading(accelerator))
    draw_views = views.on_device()

    run = VQGANRun(arguments, source, accelerator)
    model = run.prepare(vqgan)
    if arguments.validation_split:
        held_out = held_out_images(arguments, accelerator, vqgan)
        run.call_every(arguments.validation_steps, lambda: validate(run, held_out))
    set_seed(arguments.seed, device_specific=True)
    run.start()
    for batch in run.batches():
        with accelerator.accumulate(model):
            run.learn_from(model(draw_views.of(batch), run.adversarial_share()))
    save_tokenizer(run, accelerator)


def create_vqvae(arguments: VQGANArguments) -> VQModel:
    """A new autoencoder, or a saved one to start from, with all of it to train or only the decoder."""
    if not arguments.pretrained_model_name_or_path:
        vqvae = build_tokenizer(arguments.vq_config)
        check_image_size(vqvae, arguments.image_size)
        return vqvae
    trained = load_tokenizer(arguments.pretrained_model_name_or_path)
    if pixel_range(trained) != PIXEL_RANGE:
        raise TokenizerError(
            f"{arguments.pretrained_model_name_or_path} takes pixels in {pixel_range(trained)}; only tokenizers of "
            f"pixels in {PIXEL_RANGE} can be trained further."
        )
    vqvae = VQModel.from_config(trained.config)
    vqvae.load_state_dict(trained.state_dict())
    if arguments.freeze_encoder:
        for part in (vqvae.encoder, vqvae.quant_conv, vqvae.quantize):
            part.requires_grad_(False)
    return vqvae


def create_vqgan(arguments: VQGANArguments) -> VQGANForTraining:
    """
    The autoencoder and what judges it.

    Raises:
        SystemExit: with a message, where the perceptual network is not to be had.
    """
    vqvae, perceptual, adversary = create_vqvae(arguments), None, None
    if arguments.perceptual_weight:
        compared = (arguments.perceptual_compared, arguments.perceptual_image_size, arguments.perceptual_stages)
        try:
            perceptual = perceptual_distance(arguments.perceptual_network, *compared)
        except (ImportError, ValueError) as error:
            raise SystemExit(
                f"`--perceptual_network {arguments.perceptual_network}` does not work: {error}"
            ) from error
    if arguments.adversarial_weight:
        discriminator = PatchDiscriminator(
            vqvae.config.out_channels,
            arguments.discriminator_channels,
            arguments.discriminator_levels,
            arguments.discriminator_spectral_norm,
        )
        adversary = Adversary(
            discriminator, arguments.adversarial_loss, arguments.lecam_weight, arguments.augmentation_kinds
        )
    weights = LossWeights(
        reconstruction=arguments.reconstruction_weight,
        codebook=arguments.codebook_weight,
        commitment=arguments.commitment_weight,
        entropy=arguments.entropy_weight,
        perceptual=arguments.perceptual_weight,
        adversarial=arguments.adversarial_weight,
    )
    choices = (arguments.adaptive_adversarial_weight, arguments.l1_share, arguments.normalize_codes)
    return VQGANForTraining(vqvae, weights, perceptual, adversary, *choices)


def held_out_images(arguments: VQGANArguments, accelerator: Accelerator, vqgan: VQGANForTraining) -> HeldOutImages:
    """The first images of `--validation_split`, and what scores their reconstructions."""
    dataset, columns = load_images(arguments.train_data.of_split(arguments.validation_split))
    shape = (vqgan.vqvae.config.in_channels, arguments.image_size, arguments.image_size)
    images = validation_images(dataset, columns.image, shape, arguments.max_validation_samples)
    network = None
    if arguments.feature_network:
        from transformers_mage.metrics import load_feature_network

        network = load_feature_network(arguments.feature_network)
    return HeldOutImages(
        images, accelerator, arguments.output_dir, arguments.train_batch_size, network, vqgan.perceptual
    )


def validate(run: VQGANRun, held_out: HeldOutImages):
    """Logs scores and a picture of what would be written now, and ends the run where that is good enough."""
    with run.evaluation_weights() as vqgan:
        tokenizer = vqgan.export().eval()
    scores = held_out.scores(tokenizer)
    if run.accelerator.is_main_process:
        picture = held_out.picture(tokenizer)
        save_picture(picture, "reconstructions", run.progress.step, run.arguments.output_dir, run.accelerator)
    run.log(scores)
    if run.arguments.stop_at_psnr:
        # The main process has the scores.
        [is_enough] = broadcast_object_list([scores.get("validation_psnr", 0.0) >= run.arguments.stop_at_psnr])
        if is_enough:
            run.end_early()


def save_tokenizer(run: VQGANRun, accelerator: Accelerator):
    publisher = Publisher.of(run.arguments, accelerator)
    with run.finished() as state:
        if state is not None:
            publisher.write(lambda folder: write_tokenizer(folder, trained_tokenizer(run, state), run, publisher.name))
    if accelerator.is_main_process:
        publisher.push()


def trained_tokenizer(run: VQGANRun, state: dict[str, torch.Tensor]) -> VQModel:
    model = VQModelForTraining(
        VQModel.from_config(run.vqgan.vqvae.config), normalize_codes=run.arguments.normalize_codes
    )
    model.load_state_dict({name: value for name, value in state.items() if not name.startswith("adversary.")})
    return model.export()


def write_tokenizer(folder: Path, vqvae: VQModel, run: VQGANRun, name: str):
    vqvae.save_pretrained(folder)
    write_card(folder, run.arguments.card_facts(name, "tokenization"))


if __name__ == "__main__":
    main()
