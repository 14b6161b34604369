"""
Class-conditional MAGE: classes from a dataset's labels, and the weights of an unconditional model to start from, all
of them trained on, or the decoder alone with the encoder kept.
"""

from typing import Any

import torch
from datasets import ClassLabel, Dataset, IterableDataset
from torch import nn

from ..configuration_mage import MageConfig
from ..data.batches import DataError
from ..files import FolderError
from ..hub_folders import UNREADABLE, model_folder
from ..modeling_mage import MageForMaskedImageModeling, interpolate_position_embeddings
from ..progress import load_report_hidden

NEW_PARAMETERS = ("mage.embeddings.class_embeddings.", "mage.embeddings.representation_embeddings.")


def class_settings(dataset: Dataset | IterableDataset, label_column: str | None) -> dict[str, Any]:
    """
    `num_classes` and `id2label` of [`MageConfig`] for the labels of a dataset.

    Raises:
        DataError: where the data set has no labels, or labels that are not classes.
    """
    features = dataset.features or {}
    if label_column not in features:
        raise DataError(
            f'There are no classes to condition on: the data set has no column "{label_column}" but {list(features)}. '
            "Say `--label_column NAME`, or leave out `--class_conditional`."
        )
    feature = features[label_column]
    if isinstance(feature, ClassLabel):
        return {"num_classes": feature.num_classes, "id2label": dict(enumerate(feature.names))}
    if not str(feature.dtype).startswith("int") or isinstance(dataset, IterableDataset):
        raise DataError(
            f'The column "{label_column}" must hold classes (`datasets.ClassLabel`), got {feature}. Convert it with '
            "`dataset.class_encode_column`, or say how many there are: `--model.num_classes N`."
        )
    labels = torch.tensor(dataset[label_column][:])
    if labels.min() < 0:
        raise DataError(f'The column "{label_column}" must hold classes from 0 on, got {int(labels.min())}.')
    return {"num_classes": int(labels.max()) + 1}


def load_for_training(name_or_path: str, values: dict[str, Any]) -> MageForMaskedImageModeling:
    """
    A saved model, without its tokenizer, to continue training. Embeddings of classes and of representations that it
    does not have are new, and positions of another grid than it has are interpolated.

    Args:
        name_or_path (`str`): a model's folder or Hub name.
        values (`dict`): fields of its [`MageConfig`] that shall be others, as `num_classes` or `image_size`.

    Raises:
        FolderError: where there is no such model or the values make another model of it.
    """
    try:
        folder = model_folder(name_or_path)
        saved = MageConfig.from_pretrained(folder)
        names = {"id2label": None, "label2id": None} if "num_classes" in values else {}
        config = MageConfig(**saved.to_dict() | names | values)
        image_size, config.image_size = config.image_size, saved.image_size
        with load_report_hidden():
            model, loading = MageForMaskedImageModeling.from_pretrained(
                folder, config=config, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except OSError as error:
        raise FolderError(f"{name_or_path} cannot be trained further: {error}") from error
    except UNREADABLE as error:
        raise FolderError(f"{name_or_path} cannot be trained further: {error.__cause__ or error}") from error
    missing = sorted(name for name in loading["missing_keys"] if not name.startswith(NEW_PARAMETERS))
    other = [f"{name} {tuple(there)} as {tuple(here)}" for name, there, here in sorted(loading["mismatched_keys"])]
    if missing or other:
        raise FolderError(
            f"{name_or_path} is another model than `model` says: {len(missing or other)} of its weights cannot be "
            f"taken over, {(missing or other)[0]} for one. Leave out what it decides itself."
        )
    model.mage.vqvae = None
    change_image_size(model, image_size)
    return model


@torch.no_grad()
def change_image_size(model: MageForMaskedImageModeling, image_size: int | list[int] | tuple[int, int]):
    """Makes a model one of larger or smaller images: its positions are interpolated, all else stays."""
    trained_grid = model.config.grid_size
    model.config.image_size = image_size
    for part in (model.mage.embeddings, model.decoder):
        positions = interpolate_position_embeddings(part.position_embeddings, trained_grid, model.config.grid_size)
        part.position_embeddings = nn.Parameter(positions.clone())


def freeze_encoder(model: MageForMaskedImageModeling):
    """Leaves the decoder, the head and the embeddings of classes and representations to be trained."""
    model.mage.requires_grad_(False)
    embeddings = model.mage.embeddings
    for learned in (embeddings.class_embeddings, embeddings.representation_embeddings):
        if learned is not None:
            learned.requires_grad_(True)
