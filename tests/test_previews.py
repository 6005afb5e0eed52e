"""Preview pictures show what they are said to show."""

import cv2
import matplotlib
import pytest
import torch
from ball_scene import ball_scene, film

from osn_gs.data.scene_data import SceneData
from osn_gs.export.configurations import Configuration, ConfigurationSet
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
from osn_gs.geometry.se3 import invert_rigid, transform_points
from osn_gs.run.previews import (
    CONFIGURATIONS_SHOWN,
    busiest_frame,
    configurations_from_the_side,
    held_out_views,
    shown_configurations,
    side_camera,
)
from osn_gs.scene.scene import Scene


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


def test_rows_may_be_of_different_sizes():
    wide, narrow = (torch.full(size, 7, dtype=torch.uint8) for size in ((5, 40, 3), (8, 12, 3)))
    grid = image_grid([[wide], [narrow, narrow]])
    assert grid.shape == (5 + 4 + 8, 40, 3)
    assert torch.equal(grid[9:, 16:28], narrow)
    assert (grid[9:, 28:] == 255).all()


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


def configuration(ball_scale: float, name: str = "contact") -> Configuration:
    return Configuration(name, (1.0, ball_scale), score=0.9, oracle_accuracy=0.99)


def filmed(scene: Scene) -> SceneData:
    """One frame as the scene's camera sees it, and two splits of held-out views of different sizes."""
    other_camera = torch.tensor([[70.0, 0, 30.0], [0, 60.0, 22.0], [0, 0, 1]])
    view = film(scene)
    return SceneData(
        name="balls",
        images=view.image[None],
        object_ids=view.object_ids[None],
        intrinsics=scene.intrinsics,
        cam_from_obj=torch.stack([group.cam_from_obj for group in scene.objects]),
        visible=torch.stack([group.visible for group in scene.objects]),
        sparse_points=(),
        scale_ranges=scene.scale_ranges,
        near=scene.near,
        far=scene.far,
        object_names=scene.object_names,
        held_out={"test": (view,), "other camera": (film(scene, other_camera, (56, 44)),)},
    )


def test_the_busiest_frame_shows_every_moving_object():
    object_ids = torch.zeros(4, 6, 6, dtype=torch.uint8)
    object_ids[1, :5] = 1  # much of one, nothing of the other
    object_ids[2, :2], object_ids[2, 2:4] = 1, 2
    object_ids[3, 0], object_ids[3, 1] = 1, 2
    assert busiest_frame(object_ids) == 2
    assert busiest_frame(object_ids[:1]) == 0


@torch.no_grad()
def test_the_side_camera_looks_at_the_moving_object():
    scene = ball_scene()
    camera = side_camera(scene, configuration(1.0), 0)
    ball = scene.place(torch.ones(2), 0)
    centre = transform_points(camera, ball.means[ball.object_index == 1]).mean(0)
    assert centre[:2].abs().max() < 0.15 * centre[2]
    moved = transform_points(scene.cam_from_world(0), invert_rigid(camera)[:3, 3][None])[0]
    assert moved[0].abs() > 0.5
    assert moved[1] < -0.5  # y points down


@torch.no_grad()
def test_a_scene_whose_moving_object_is_not_there_can_be_drawn():
    scene = ball_scene()
    scene.objects[1].visible[0] = False
    assert side_camera(scene, configuration(1.0), 0).isfinite().all()
    picture = configurations_from_the_side(scene, filmed(scene), ConfigurationSet((), (), (configuration(1.0),)))
    assert picture.shape[2] == 3


@torch.no_grad()
def test_shown_configurations_differ_and_keep_the_objects_in_view():
    scene = ball_scene()
    camera = side_camera(scene, configuration(1.0), 0)
    out_of_view = [configuration(scale, f"out {scale}") for scale in (0.05, 0.06, 0.07)]
    in_view = [configuration(scale, f"in {scale}") for scale in (0.99, 1.01, 0.8, 0.9, 1.1, 1.2, 1.02)]
    shown = shown_configurations(scene, (configuration(1.0), *out_of_view, *in_view), camera, 0)
    assert len(shown) == CONFIGURATIONS_SHOWN
    assert shown[0].name == "contact"
    assert {"in 0.8", "in 1.2"} < {sample.name for sample in shown}
    assert all(sample.name.startswith("in") for sample in shown[1:])
    few = shown_configurations(scene, (configuration(1.0), *out_of_view[:1]), camera, 0)
    assert [sample.name for sample in few] == ["contact", out_of_view[0].name]


@torch.no_grad()
def test_held_out_views_are_drawn_through_their_own_cameras():
    """What a scene truly looks like stands beside its equal: colours of the last split's row, truth and rendered."""
    scene = ball_scene()
    data = filmed(scene)
    grid = held_out_views(scene, data, configuration(1.0))
    truth = data.held_out["other camera"][0].image
    height, width, _ = truth.shape
    assert (width, height) != (scene.width, scene.height)
    assert torch.equal(grid[-height:, :width], truth)
    assert torch.equal(grid[-height:, width + 4 : 2 * width + 4], truth)
