"""
Trains MAGE on the images of any `datasets` source, with the recipe of the paper (appendix A).

The digits model:
    accelerate launch scripts/train_mage.py --config configs/mage_digits.yaml \
    --dataset_name FOLDER --tokenizer_name_or_path TOKENIZER_FOLDER
"""

from dataclasses import dataclass, field

from accelerate.utils import set_seed
from diffusers import VQModel

from transformers_mage import MageForMaskedImageModeling, sample_masks
from transformers_mage.training.arguments import TrainingArguments, argument, parse_arguments
from transformers_mage.training.augmentation import RandomViews
from transformers_mage.training.conditional import class_settings, freeze_encoder, load_for_training
from transformers_mage.training.data import InMemoryImages, InMemoryTokens, decode_images, load_images, read_labels
from transformers_mage.training.pretraining import (
    MageForPreTraining,
    build_model,
    image_size,
    save_model,
    tokenize,
    tokenize_views,
    training_labels,
)
from transformers_mage.training.run import TrainingRun, create_accelerator
from transformers_mage.training.tokenizer import load_tokenizer


@dataclass
class MageArguments(TrainingArguments):
    model: dict = field(init=False, default_factory=dict)
    tokenizer_name_or_path: str | None = argument(None, "A `VQModel`'s folder or Hub name, or that of a MAGE model.")
    pretrained_model_name_or_path: str | None = argument(
        None, "Go on from the weights of this MAGE model, with its tokenizer."
    )
    class_conditional: bool = argument(False, "Learn the classes of `--label_column` too, to generate images of them.")
    freeze_encoder: bool = argument(False, "Train only the decoder, and the classes' embeddings.")
    tokenized_views: int = argument(
        0, "Encode this many random views of each image once, before training; 0 encodes in each step."
    )
    mask_ratio_per_image: bool = argument(False, "Draw a masking ratio for each image, rather than for each pass.")
    contrastive_weight: float = argument(0.0, "Weight of the contrastive loss: 0.1 is MAGE-C, 0 is MAGE.")
    contrastive_temperature: float = argument(0.2, "Temperature of the contrastive loss.")
    gradient_checkpointing: bool = argument(False, "Save memory by computing activations twice.")

    def validate(self):
        super().validate()
        self.tokenizer_name_or_path = self.tokenizer_name_or_path or self.pretrained_model_name_or_path
        if not self.tokenizer_name_or_path:
            raise ValueError("Say which tokenizer to use: `--tokenizer_name_or_path FOLDER`.")
        if self.freeze_encoder and not self.pretrained_model_name_or_path:
            raise ValueError(
                "`--freeze_encoder` keeps a trained encoder: say `--pretrained_model_name_or_path FOLDER`."
            )


def main(argv: list[str] | None = None):
    arguments = parse_arguments(MageArguments, __doc__, argv)
    accelerator = create_accelerator(arguments)
    tokenizer = load_tokenizer(arguments.tokenizer_name_or_path).to(accelerator.device)
    mage = create_model(arguments, tokenizer)
    config, size = mage.config, image_size(mage.config)
    if arguments.gradient_checkpointing:
        mage.gradient_checkpointing_enable()

    dataset = load_images(arguments, arguments.train_split)
    labels = read_labels(dataset, arguments.label_column)
    images = decode_images(dataset, arguments.image_column, tokenizer.config.in_channels, size)
    num_views = 2 if arguments.contrastive_weight else 1
    views = RandomViews(size, arguments.crop_scale_min, arguments.crop_ratio_max, arguments.horizontal_flip)
    if arguments.tokenized_views:
        tokens = tokenize_views(tokenizer, images, views, arguments.tokenized_views)
        dataset = InMemoryTokens(tokens, labels, num_views)
    else:
        dataset = InMemoryImages(images, labels)

    run = TrainingRun(arguments, dataset, accelerator)
    model = run.prepare(MageForPreTraining(mage, arguments.contrastive_weight, arguments.contrastive_temperature))
    set_seed(arguments.seed, device_specific=True)
    run.start()
    for batch in run.batches():
        with accelerator.accumulate(model):
            input_ids = batch.get("input_ids")
            if input_ids is None:
                input_ids = tokenize(tokenizer, views(batch["pixel_values"].repeat(num_views, 1, 1, 1)))
            masks = sample_masks(
                config,
                batch_size=len(input_ids),
                generator=run.generator(),
                device=accelerator.device,
                per_image=arguments.mask_ratio_per_image,
            )
            run.update(*model(input_ids, masks, training_labels(config, batch.get("labels"), num_views)))

    hub = {"push_to_hub": arguments.push_to_hub, "repo_id": arguments.hub_model_id}
    save_model(run.finish().mage, tokenizer, arguments.output_dir, accelerator, **hub)


def create_model(arguments: MageArguments, tokenizer: VQModel) -> MageForMaskedImageModeling:
    """A new model, or a saved one to go on with, of the classes of the dataset where that is asked for."""
    values = dict(arguments.model)
    if arguments.class_conditional:
        values |= class_settings(load_images(arguments, arguments.train_split), arguments.label_column)
    if not arguments.pretrained_model_name_or_path:
        return build_model(values, tokenizer)
    mage = load_for_training(arguments.pretrained_model_name_or_path, values)
    if arguments.freeze_encoder:
        freeze_encoder(mage)
    return mage


if __name__ == "__main__":
    main()
