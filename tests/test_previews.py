"""Preview pictures show what they are said to show."""

import cv2
import matplotlib
import pytest
import torch

from osn_gs.export.previews import (
    BACKGROUND_COLOR,
    NO_DEPTH_COLOR,
    OBJECT_COLORS,
    color_depth,
    color_ids,
    depth_range,
    image_grid,
    plot_valid_set,
    to_uint8,
    write_png,
)


def test_a_written_picture_reads_back_equal(tmp_path):
    image = torch.randint(0, 256, (7, 9, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_png(tmp_path / "preview" / "image.png", image)
    read = cv2.cvtColor(cv2.imread(str(tmp_path / "preview" / "image.png")), cv2.COLOR_BGR2RGB)
    assert torch.equal(torch.from_numpy(read), image)


def test_colours_outside_the_range_are_clamped():
    rgb = torch.tensor([[[-0.5, 0.5, 1.5]]])
    assert to_uint8(rgb).tolist() == [[[0, 128, 255]]]


def test_near_is_bright_far_is_dark_and_no_depth_is_told_apart():
    depth = torch.tensor([[1.0, 2.0, 3.0, 0.0, torch.inf, torch.nan]])
    colors = color_depth(depth, near=1, far=3)[0].float()
    brightness = colors[:3].sum(-1)
    assert brightness[0] > brightness[1] > brightness[2]
    assert (colors[3:] == torch.tensor(NO_DEPTH_COLOR)).all()


def test_the_depth_range_leaves_outliers_and_empty_pixels_out():
    depth = torch.linspace(2, 4, 1000).reshape(20, 50)
    depth[0, :5], depth[0, 5], depth[0, 6] = 0, 1e6, torch.inf
    near, far = depth_range(depth)
    assert near == pytest.approx(2, abs=0.1)
    assert far == pytest.approx(4, abs=0.1)
    assert depth_range(torch.zeros(2, 3)) == (0, 1)


def test_every_object_has_its_own_colour_and_the_background_is_grey():
    ids = torch.arange(len(OBJECT_COLORS) + 2)[None]
    colors = [tuple(color) for color in color_ids(ids)[0].tolist()]
    assert colors[0] == BACKGROUND_COLOR
    assert colors[1:-1] == list(OBJECT_COLORS)
    assert colors[-1] == OBJECT_COLORS[0]  # more objects than colours: again from the first, never the background's


def test_a_grid_shows_its_images_unchanged():
    images = [torch.full((12, 40, 3), 20 * n, dtype=torch.uint8) for n in range(5)]
    grid = image_grid([images[:3], images[3:]])
    assert grid.shape == (12 * 2 + 4, 40 * 3 + 4 * 2, 3)
    assert torch.equal(grid[:12, 44:84], images[1])
    assert torch.equal(grid[16:, :40], images[3])
    assert (grid[16:, 88:] == 255).all()


def test_captions_stand_above_their_images_and_fit():
    image = torch.zeros(12, 60, 3, dtype=torch.uint8)
    grid = image_grid([[image, image]], [["", "a caption much longer than its image is wide"]])
    assert torch.equal(grid[-12:, :60], image)
    caption_rows = grid[:-12]
    assert (caption_rows[:, :60] == 255).all()
    assert (caption_rows[:, 64:] < 128).any()
    assert (caption_rows[:, [64, -1]] == 255).all()


@pytest.mark.parametrize("num_objects", [2, 4])
@pytest.mark.parametrize("with_truth", [True, False])
def test_the_valid_set_is_drawn(tmp_path, num_objects, with_truth):
    generator = torch.Generator().manual_seed(0)
    scales = 0.5 + torch.rand(300, num_objects, generator=generator)
    scales[:, 0] = 1
    ranges = torch.tensor([[0.4, 1.6]]).repeat(num_objects, 1)
    mark = scales.mean(0) if with_truth else None
    names = ["room", "globe", "kettle", "lamp"][:num_objects]
    settings = dict(matplotlib.rcParams)
    plot_valid_set(scales[:50], scales, mark, mark, ranges, names, tmp_path / "set.png")
    assert dict(matplotlib.rcParams) == settings
    picture = cv2.cvtColor(cv2.imread(str(tmp_path / "set.png")), cv2.COLOR_BGR2RGB)
    red = torch.tensor([193, 18, 31])  # the truth's
    assert bool((torch.from_numpy(picture) == red).all(-1).any()) == with_truth


def test_an_empty_set_is_drawn_as_empty(tmp_path):
    ranges = torch.tensor([[1.0, 1.0], [0.5, 2.0], [0.5, 2.0]])
    nothing = torch.zeros(0, 3)
    plot_valid_set(nothing, nothing, None, None, ranges, ["room", "globe", "kettle"], tmp_path / "set.png")
    assert cv2.imread(str(tmp_path / "set.png")) is not None
