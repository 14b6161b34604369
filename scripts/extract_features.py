"""
Computes the features of all images of a dataset, once.

    accelerate launch scripts/extract_features.py --model_name_or_path mage-vit-base --dataset_name imagenet-1k \
        --splits train validation --output_dir features

`datasets.load_dataset("features")` then has the columns "layer_12_mean", "label" and "index", the row in the dataset.
Several layers and poolings come from the same pass. The same command resumes after a kill.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from transformers_mage.command_line import argument, check_numbers, parse_arguments, reports_errors
from transformers_mage.data.arguments import DataArguments
from transformers_mage.data.batches import Loading
from transformers_mage.data.labelled_images import EvaluationImages, LabelledImages, encoded_images
from transformers_mage.data.labels import Classes
from transformers_mage.data.loading import find_columns, load_split
from transformers_mage.files import explains_full_disk, fingerprint
from transformers_mage.precision import chosen_precision
from transformers_mage.representation import (
    ExtractionReport,
    FeatureExtractor,
    FeatureStore,
    extract_features,
    load_encoder,
)
from transformers_mage.representation.classifiers import image_shape
from transformers_mage.representation.feature_store import FORMATS


@dataclass
class ExtractionArguments(DataArguments):
    model_name_or_path: str | None = argument(None, "A MAGE model's folder or Hub name.")
    splits: list[str] = argument(["train"], "The splits to read.")
    layers: list[int] = argument([-1], "Layers: 0 are the embeddings, -1 is the last one, before the final norm.")
    poolings: list[str] = argument(["mean"], "Among mean, cls, and tokens, which is every token.")
    image_size: int | None = argument(None, "Side of the images, if it is not the model's.")
    max_samples: int | None = argument(None, "Read the first images only.")
    batch_size: int = argument(64, "Images in one forward pass of one process.")
    images_per_shard: int = argument(2000, "Images in one file.")
    output_format: str = argument("parquet", "What the files are.", choices=list(FORMATS))
    dtype: str = argument("float32", "How the features are stored.", choices=["float32", "float16", "bfloat16"])
    mixed_precision: str | None = argument(
        None,
        "The default is what `accelerate config` says; `auto` is bf16 where that is fast, and otherwise no.",
        choices=["no", "fp16", "bf16", "auto"],
    )

    def check(self):
        super().check()
        if not self.model_name_or_path:
            raise ValueError("Say which model to use: `--model_name_or_path FOLDER_OR_NAME`.")
        if self.streaming:
            raise ValueError("Features are kept by an image's row in the dataset: leave `--streaming` out.")
        check_numbers(self, "batch_size images_per_shard max_samples image_size", at_least=1)
        if self.dtype == "bfloat16" and self.output_format == "parquet":
            raise ValueError("Parquet files have no bfloat16: say `--dtype float16` or `--output_format safetensors`.")


@reports_errors
def main(argv: list[str] | None = None):
    arguments = parse_arguments(ExtractionArguments, __doc__, argv)
    accelerator = Accelerator(mixed_precision=chosen_precision(arguments.mixed_precision))
    model = load_encoder(arguments.model_name_or_path).to(accelerator.device)
    extractor = FeatureExtractor(model, arguments.layers, arguments.poolings)
    shape = image_shape(model.config, arguments.image_size)
    for split in arguments.splits:
        with explains_full_disk(arguments.output_dir):
            report = extract_split(arguments, split, extractor, shape, accelerator)
        accelerator.print(
            f"{split}: {report.num_images} images in {report.seconds:.1f} s, {report.images_per_second:.0f} a second; "
            f"{report.num_broken} broken ones left out. The features are in {arguments.output_dir}."
        )


def extract_split(
    arguments: ExtractionArguments,
    split: str,
    extractor: FeatureExtractor,
    shape: tuple[int, int, int],
    accelerator: Accelerator,
) -> ExtractionReport:
    """Computes what the folder does not hold yet of one split."""
    images, class_names = open_images(arguments, split, shape)
    made_of = {
        "model": fingerprint(extractor.model),
        "features": extractor.names,
        "dtype": arguments.dtype,
        "dataset_name": arguments.dataset_name,
        "dataset_config_name": arguments.dataset_config_name,
        "image_shape": shape,
    }
    sizes = (arguments.images_per_shard, arguments.output_format)
    store = FeatureStore(Path(arguments.output_dir), split, len(images), made_of, *sizes, class_names)
    on_gpu = accelerator.device.type == "cuda"
    loading = Loading(
        arguments.batch_size, num_workers=arguments.dataloader_num_workers, timeout=600, pin_memory=on_gpu
    )
    return extract_features(extractor, images, store, accelerator, loading, getattr(torch, arguments.dtype))


def open_images(
    arguments: ExtractionArguments, split: str, shape: tuple[int, int, int]
) -> tuple[EvaluationImages, list[str]]:
    """A split's images, and the names of their classes where it has them."""
    spec = arguments.train_data.of_split(split, arguments.max_samples)
    dataset = load_split(spec)
    columns = find_columns(dataset, spec.columns)
    if columns.label is None:
        return EvaluationImages(encoded_images(dataset, columns.image), columns, shape), []
    labelled = LabelledImages.of(dataset, columns, Classes.of(dataset, columns.label))
    return EvaluationImages.of(labelled, shape), labelled.classes.names


if __name__ == "__main__":
    main()
