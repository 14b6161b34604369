from itertools import islice

import numpy as np
import pytest
import torch
from datasets import Dataset

from transformers_mage.data.batches import DataError, EndlessBatches, Loading, Share
from transformers_mage.data.indexed import (
    EncodedImages,
    IndexedSource,
    InMemoryTokens,
    decode_dataset,
    fits_in_memory,
    validation_images,
)
from transformers_mage.data.loading import Columns
from transformers_mage.data.views import Crops, ImageViews

VIEWS = ImageViews((4, 4), channels=1, num_views=2, crops=Crops(scale_min=0.5))


def global_batches(num_processes: int, batch_size: int, count: int, samples_seen: int = 0) -> list[list[int]]:
    parts = [
        list(islice(EndlessBatches(10, Loading(batch_size, share=Share(process, num_processes)), samples_seen), count))
        for process in range(num_processes)
    ]
    return [[draw for part in batch for draw in part] for batch in zip(*parts, strict=True)]


def test_each_epoch_has_each_sample_once_in_an_order_of_its_own():
    draws = np.array(global_batches(1, 4, 5)).flatten()
    assert sorted(draws[:10]) == list(range(10))
    assert sorted(draws[10:]) == list(range(10, 20))
    assert list(draws[:10]) != [draw - 10 for draw in draws[10:]]


@pytest.mark.parametrize("num_processes", [1, 2, 4])
def test_the_order_does_not_depend_on_the_topology(num_processes: int):
    assert global_batches(num_processes, 8 // num_processes, 5) == global_batches(1, 8, 5)


def test_a_run_can_be_entered_anywhere():
    assert global_batches(2, 3, 4, samples_seen=12) == global_batches(2, 3, 6)[2:]


def test_another_view_is_drawn_in_each_epoch():
    tokens = torch.arange(6).reshape(2, 3, 1)  # two images, three views
    one, two = InMemoryTokens(tokens), InMemoryTokens(tokens, views_per_image=2)
    assert [one.__getitems__([2 * epoch]).input_ids.item() for epoch in range(4)] == [0, 1, 2, 0]
    assert two.__getitems__([0, 1]).input_ids.flatten().tolist() == [0, 3, 1, 4]
    assert two.__getitems__([2, 3]).input_ids.flatten().tolist() == [2, 5, 0, 3]
    with pytest.raises(ValueError, match="4 different views"):
        InMemoryTokens(tokens, views_per_image=4)


def broken(images: Dataset, number: int) -> Dataset:
    """The first images, of which some are truncated."""
    rows = images.select(range(6)).to_list()
    for row in rows[:number]:
        row["image"]["bytes"] = row["image"]["bytes"][:40]
    return Dataset.from_list(rows, features=images.features)


def test_encoded_images_depend_on_the_draw_alone(numbered_images: Dataset):
    images = EncodedImages(numbered_images, VIEWS, Columns(), seed=0)
    first, second = images.__getitems__([3, 7, 53]), images.__getitems__([53, 3])
    assert first.pixels.shape == (6, 1, 4, 4)
    assert torch.equal(first.pixels[2], second.pixels[0])
    assert torch.equal(first.pixels[5], second.pixels[2])
    assert first.labels.tolist() == [3, 7, 3]


def test_a_broken_image_is_replaced_and_counted(numbered_images: Dataset):
    batch = EncodedImages(broken(numbered_images, 2), VIEWS, Columns(), seed=0).__getitems__([0, 4, 1, 5])
    assert batch.num_skipped == 2
    assert batch.labels.tolist() == [4, 4, 4, 5]
    with pytest.raises(DataError, match="None of 2 images"):
        EncodedImages(broken(numbered_images, 2), VIEWS, Columns(), seed=0).__getitems__([0, 1])


def test_small_datasets_are_decoded_once(numbered_images: Dataset):
    assert fits_in_memory(numbered_images, "image", (1, 4, 4), limit=1)
    assert not fits_in_memory(numbered_images, "image", (1, 4, 4), limit=1e-7)
    assert not fits_in_memory(numbered_images, "image", (1, 2, 2), limit=1)
    images, kept = decode_dataset(broken(numbered_images, 2), "image", (3, 8, 8))
    assert kept.tolist() == [2, 3, 4, 5]
    assert images.shape == (4, 3, 8, 8)
    assert images[:, 1, 2, 3].tolist() == [2, 3, 4, 5]


def test_held_out_images_are_whole(numbered_images: Dataset):
    images = validation_images(broken(numbered_images, 1), "image", (1, 4, 4), limit=3)
    assert images[:, 0, 0, 0].tolist() == [1, 2, 3]


def test_nothing_to_learn_from_is_said(numbered_images: Dataset):
    with pytest.raises(DataError, match="no images to train on"):
        IndexedSource(EncodedImages(numbered_images.select([]), VIEWS, Columns(), seed=0), Loading(4))
    with pytest.raises(DataError, match="no images to validate on"):
        validation_images(numbered_images.select([]), "image", (1, 4, 4), limit=3)
