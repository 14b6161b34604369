"""Canvas sizes, padding, seams and windows, without a model."""

import pytest
import torch

from transformers_mage.editing import (
    Canvas,
    blend_seam,
    canvas_size,
    check_canvas_side,
    merge_windows,
    pad_with_unknown,
    parse_padding,
    split_into_windows,
    window_starts,
)


@pytest.mark.parametrize(
    ("image", "canvas"),
    [
        ((256, 256), (256, 256)),
        ((480, 640), (256, 336)),  # 341.3 pixels are 21.3 tokens of 16
        ((640, 480), (336, 256)),
        ((1, 1), (256, 256)),
        ((100, 101), (256, 256)),
        ((256, 2048), (256, 2048)),
    ],
)
def test_canvas_covers_the_trained_size_at_the_image_s_shape(image, canvas):
    assert canvas_size([image], (256, 256), patch_size=16) == canvas


def test_images_of_different_shapes_make_no_canvas():
    assert canvas_size([(32, 32), (64, 64)], (32, 32), 4) == (32, 32)
    with pytest.raises(ValueError, match=r"different shapes.*\(32, 32\), \(32, 64\)"):
        canvas_size([(32, 64), (32, 32)], (32, 32), 4)


def test_a_strip_makes_no_canvas():
    with pytest.raises(ValueError, match=r"image of \(1, 1000\).*more than 8 times as long"):
        canvas_size([(1, 1000)], (256, 256), 16)


@pytest.mark.parametrize(
    ("padding", "sides"),
    [(None, (0, 0, 0, 0)), (16, (16, 16, 16, 16)), ((0, 16, 32, 0), (0, 16, 32, 0)), ([16, 0, 0, 0], (16, 0, 0, 0))],
)
def test_padding_is_one_number_or_four(padding, sides):
    assert parse_padding(padding, patch_size=16) == sides


@pytest.mark.parametrize(
    ("padding", "message"),
    [
        (10, r"multiple of 16 pixels.*got 10\. \(16, 16, 16, 16\)"),
        ((0, 0, 40, 0), r"got \(0, 0, 40, 0\)\. \(0, 0, 32, 0\)"),
        (-16, "0 or a multiple"),
        ((16, 16), r"one number or \(left, top, right, bottom\), got \(16, 16\)"),
        ((0.5, 0, 0, 0), "one number or"),
    ],
)
def test_padding_that_makes_no_whole_token_is_refused(padding, message: str):
    with pytest.raises(ValueError, match=message):
        parse_padding(padding, patch_size=16)


@pytest.mark.parametrize(("side", "nearest"), [(100, 96), (0, 16), (-5, 16), (300.0, 304)])
def test_canvas_sides_are_whole_tokens(side, nearest: int):
    with pytest.raises(ValueError, match=f"`height` must be a multiple of 16 pixels.*{nearest} would do"):
        check_canvas_side("height", side, patch_size=16)


def test_a_canvas_hides_the_tokens_that_the_mask_touches():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 0, 0] = 1.0  # one pixel is enough
    mask[..., 5, 5] = 0.4  # mostly kept
    canvas = Canvas.from_image(torch.arange(4).view(1, 2, 2), torch.rand(1, 3, 8, 8), mask)
    assert canvas.is_hidden.tolist() == [[[True, False], [False, False]]]


def test_a_padded_canvas_keeps_what_is_known_in_its_place():
    pixels = torch.rand(1, 3, 8, 8)
    padded, mask = pad_with_unknown(pixels, torch.zeros(1, 1, 8, 8), (4, 0, 8, 4))
    canvas = Canvas.from_image(torch.arange(15).view(1, 3, 5), padded, mask)
    assert canvas.is_hidden[0].tolist() == [[True, False, False, True, True]] * 2 + [[True] * 5]
    assert torch.equal(canvas.pixels[..., :8, 4:12], pixels)
    assert canvas.mask.sum() == 12 * 20 - 64


def test_grey_of_the_mask_mixes_the_new_with_the_old():
    mask = torch.tensor([0.0, 0.25, 1.0, 1.0]).expand(1, 1, 4, 4)
    canvas = Canvas.from_image(torch.zeros(1, 1, 1, dtype=torch.long), torch.zeros(1, 1, 4, 4), mask)
    pasted = canvas.paste(torch.ones(1, 1, 4, 4), feather=0)
    assert pasted[0, 0, 0].tolist() == [0.0, 0.25, 1.0, 1.0]


def half_masked() -> tuple[torch.Tensor, torch.Tensor]:
    """A known picture with a slope, and a mask over its right half."""
    known = torch.linspace(0.3, 0.7, 64).expand(1, 1, 64, 64).contiguous()
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 32:] = 1
    return known, mask


def jump(image: torch.Tensor) -> float:
    """How much the pixels change across the seam."""
    return (image[..., 32] - image[..., 31]).abs().mean().item()


def test_the_seam_disappears_and_the_inside_stays():
    known, mask = half_masked()
    decoded = known + 0.2  # a tint, such as a tokenizer leaves
    canvas = Canvas.from_image(torch.zeros(1, 4, 4, dtype=torch.long), known, mask)
    hard, soft = canvas.paste(decoded, feather=0), canvas.paste(decoded, feather=16)
    assert jump(hard) == pytest.approx(0.2, abs=0.01)
    assert jump(soft) < 0.02
    for pasted in (hard, soft):
        assert torch.equal(pasted[..., :32], known[..., :32])
        assert torch.equal(pasted[..., 49:], decoded[..., 49:])


def test_the_seam_shows_nothing_of_what_the_mask_covers():
    known, mask = half_masked()
    decoded = torch.rand(1, 1, 64, 64)
    covered = torch.where(mask > 0, torch.rand(1, 1, 64, 64), known)
    assert torch.equal(blend_seam(decoded, known, mask, 8), blend_seam(decoded, covered, mask, 8))


def test_where_nothing_is_kept_nothing_changes():
    decoded = torch.rand(1, 3, 16, 16)
    assert torch.equal(blend_seam(decoded, torch.zeros(1, 3, 16, 16), torch.ones(1, 1, 16, 16), 4), decoded)


@pytest.mark.parametrize(
    ("length", "starts"), [(16, [0]), (17, [0, 1]), (24, [0, 8]), (32, [0, 8, 16]), (30, [0, 7, 14])]
)
def test_windows_cover_the_canvas_and_overlap_by_half(length: int, starts: list[int]):
    assert window_starts(length, 16) == starts


def test_merged_windows_are_the_canvas_again():
    canvas = torch.randn(2, 6, 10, 5)
    merged = merge_windows(split_into_windows(canvas, (4, 4)).flatten(1, 2), (6, 10), (4, 4))
    torch.testing.assert_close(merged, canvas.flatten(1, 2))


def test_overlapping_windows_are_averaged():
    logits = torch.stack([torch.zeros(4, 1), torch.ones(4, 1)])  # two 2 x 2 windows side by side over 2 x 3 tokens
    merged = merge_windows(logits, (2, 3), (2, 2)).view(2, 3)
    assert merged.tolist() == [[0.0, 0.5, 1.0]] * 2
