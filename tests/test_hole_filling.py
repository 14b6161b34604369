"""Holes are filled with what is nearest to them, and with nothing of what was there."""

import pytest
import torch

from transformers_mage.hole_filling import fill_from_around


@pytest.mark.parametrize("seed", range(5))
def test_every_pixel_of_a_hole_is_the_nearest_one_that_is_kept(seed: int):
    torch.manual_seed(seed)
    image, mask = torch.rand(1, 3, 23, 30), (torch.rand(1, 1, 23, 30) > 0.02).float()
    mask[..., 5, 7] = 0.0
    places = torch.cartesian_prod(torch.arange(23), torch.arange(30))
    kept = places[mask.flatten() == 0]
    squares = (places[:, None] - kept).square().sum(dim=2)
    filled = fill_from_around(image, mask).flatten(2)
    for number, row in enumerate(squares):
        nearest = kept[row == row.min()]
        assert any(torch.equal(filled[0, :, number], image[0, :, y, x]) for y, x in nearest.tolist())


def test_of_several_edges_the_nearest_one_counts():
    image, mask = torch.zeros(1, 1, 5, 12), torch.zeros(1, 1, 5, 12)
    image[..., :3], image[..., 9:], mask[..., 3:9] = 0.25, 0.75, 1.0
    assert fill_from_around(image, mask)[0, 0, 2].tolist() == [0.25] * 6 + [0.75] * 6


def test_what_is_kept_stays_and_what_was_there_does_not_matter():
    image, other, mask = torch.rand(2, 3, 20, 30), torch.rand(2, 3, 20, 30), (torch.rand(2, 1, 20, 30) > 0.3).float()
    filled, is_kept = fill_from_around(image, mask), (mask == 0).expand_as(image)
    assert torch.equal(filled[is_kept], image[is_kept])
    assert torch.equal(filled, fill_from_around(torch.where(is_kept, image, other), mask))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (5, 13), (64, 48)])
def test_a_hole_in_one_colour_is_filled_with_it(size: tuple[int, int]):
    mask = torch.zeros(1, 1, *size)
    mask[..., 1:, :] = mask[..., :, 1:] = 1.0
    assert (fill_from_around(torch.full((1, 3, *size), 0.7), mask) == 0.7).all()


def test_one_mask_serves_all_images():
    images, mask = torch.rand(3, 3, 8, 8), torch.zeros(1, 1, 8, 8)
    mask[..., 3:] = 1.0
    assert torch.equal(fill_from_around(images, mask), fill_from_around(images, mask.expand(3, -1, -1, -1)))


def test_of_nothing_nothing_is_filled_in():
    assert not fill_from_around(torch.rand(1, 3, 8, 8), torch.ones(1, 1, 8, 8)).any()
