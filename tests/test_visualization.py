"""Pictures of images side by side, and of decoding."""

import numpy as np
import PIL.Image
import pytest
import torch

from transformers_mage import MagePipeline
from transformers_mage.visualization import draw_frames, draw_grid, draw_steps, save_gif

MASK = 9


def three_steps() -> tuple[list[PIL.Image.Image], torch.Tensor]:
    """Two images of 2 x 2 tokens, 4 x 4 pixels each, filled in from the top left."""
    images = [PIL.Image.new("L", (8, 8), 0), PIL.Image.new("L", (8, 8), 255)]
    steps = torch.tensor([[[1, MASK], [MASK, MASK]], [[1, 1], [1, MASK]], [[1, 1], [1, 1]]])
    return images, steps[:, None].expand(3, 2, 2, 2)


def test_grid_fills_its_last_row_with_white():
    black, white = three_steps()[0]
    drawn = np.asarray(draw_grid([white, black, black], num_columns=2, scale=2))

    assert drawn.shape == (2 * 16 + 2, 2 * 16 + 2, 3)
    assert (drawn[:16, :16] == 255).all()
    assert (drawn[:16, 18:] == 0).all()
    assert (drawn[18:, 18:] == 255).all()


def test_steps_run_from_left_to_right():
    drawn = np.asarray(draw_steps(*three_steps(), MASK, scale=1))
    assert drawn.shape == (2 * 8 + 2, 3 * 8 + 2 * 2, 3)
    first, last = drawn[:8, :8], drawn[:8, 20:]
    assert (first[:4, :4] == 0).all()
    assert (first[4:] == 128).all()
    assert (first[:, 4:] == 128).all()
    assert (last == 0).all()


def test_fewer_columns_end_with_the_last_step():
    images, steps = three_steps()
    assert draw_steps(images, steps, MASK, num_columns=1, scale=1).size == (8, 18)
    assert (np.asarray(draw_steps(images[:1], steps[:, :1], MASK, num_columns=1)) == 0).all()


def test_frames_show_all_images_and_scale():
    frames = draw_frames(*three_steps(), MASK, scale=3)
    assert [frame.size for frame in frames] == [(2 * 24 + 2, 24)] * 3
    three = draw_frames([three_steps()[0][0]] * 3, three_steps()[1][:, :1].expand(3, 3, 2, 2), MASK, scale=1)
    assert three[0].size == (18, 18)  # 2 x 2 places, one empty


def test_a_gif_of_a_pipeline_s_steps(small_pipeline: MagePipeline, tmp_path):
    output = small_pipeline(num_images=2, return_steps=True)
    frames = draw_frames(output.images, output.steps, small_pipeline.model.config.mask_token_id, scale=1)
    save_gif(frames, tmp_path / "steps.gif")
    with PIL.Image.open(tmp_path / "steps.gif") as gif:
        assert (gif.n_frames, gif.size) == (4, (66, 32))


def test_steps_of_other_images_are_refused():
    images, steps = three_steps()
    with pytest.raises(ValueError, match=r"shape \(num_steps, 1, rows, columns\) for 1 images, got \(3, 2, 2, 2\)"):
        draw_steps(images[:1], steps, MASK)


# Grids


def coloured(*colours: int, size: tuple[int, int] = (8, 6)) -> list[PIL.Image.Image]:
    return [PIL.Image.new("L", size, colour) for colour in colours]


def test_a_grid_runs_row_by_row_with_white_between():
    grid = np.asarray(draw_grid(coloured(10, 20, 30), num_columns=2, scale=1, gap=1))
    assert grid.shape == (2 * 6 + 1, 2 * 8 + 1, 3)
    assert (grid[:6, :8] == 10).all()
    assert (grid[:6, 9:] == 20).all()
    assert (grid[7:, :8] == 30).all()
    assert (grid[7:, 9:] == 255).all()
    assert (grid[6] == 255).all()
    assert (grid[:, 8] == 255).all()


@pytest.mark.parametrize(("number", "size"), [(1, (8, 6)), (4, (16, 12)), (5, (24, 12))])
def test_a_grid_is_about_a_square(number: int, size: tuple[int, int]):
    assert draw_grid(coloured(*range(number)), scale=1, gap=0).size == size


@pytest.mark.parametrize(
    ("side", "columns", "scale"), [(28, 4, 3), (8, 4, 8), (64, 4, 1), (256, 4, 1), (16, 20, 3), (28, 100, 1)]
)
def test_small_images_are_enlarged_as_far_as_the_picture_stays_handy(side: int, columns: int, scale: int):
    picture = draw_grid(coloured(*[0] * columns, size=(side, side)), num_columns=columns, gap=0)
    assert picture.size == (columns * side * scale, side * scale)


@pytest.mark.parametrize("images", [[], [*coloured(1), *coloured(1, size=(4, 4))]])
def test_images_of_several_sizes_make_no_grid(images):
    with pytest.raises(ValueError, match="`images` must hold images of one size, got the sizes"):
        draw_grid(images)
