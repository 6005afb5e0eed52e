"""The demo scene: truth that agrees with itself, and occlusions that bound the scales."""

import filecmp
import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from osn_gs.data import demo, demo_scene
from osn_gs.data.demo import write_demo_scene
from osn_gs.data.downscale import downscale_depth, downscale_ids
from osn_gs.data.osn_layout import load_scene
from osn_gs.data.pinhole import project, unproject
from osn_gs.data.ray_casting import Ball, Cube, Frustum, Ring, Solid, cast
from osn_gs.geometry.se3 import invert_rigid, transform_points
from osn_gs.threads import set_num_threads


@pytest.fixture(scope="module")
def scene(demo_folder):
    return load_scene(demo_folder)


@pytest.fixture
def one_thread():
    set_num_threads(1)
    yield
    set_num_threads(None)


def test_the_demo_is_made_on_as_many_threads_as_were_asked_for(tmp_path, monkeypatch, one_thread):
    asked = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, max_workers):
            asked.append(max_workers)
            super().__init__(max_workers)

    monkeypatch.setattr(demo, "ThreadPoolExecutor", Pool)
    write_demo_scene(tmp_path / "tiny", 2, 64, 48, num_held_out=1)
    assert set(asked) == {1}


def true_layers(scene):
    return scene.truth.layer_depths * scene.truth.object_scales[:, None, None]


def test_the_scene_is_the_same_every_time(demo_folder, tmp_path):
    again = write_demo_scene(tmp_path / "demo", 8, 64, 48, num_held_out=3)
    names = [os.path.relpath(path, again) for path in again.rglob("*") if path.is_file()]
    _, different, missing = filecmp.cmpfiles(again, demo_folder, names, shallow=False)
    assert (different, missing) == ([], [])
    assert len(names) == sum(path.is_file() for path in demo_folder.rglob("*"))


def test_every_pair_of_toys_occludes_and_the_background_is_behind(scene):
    """Each toy hides or is hidden in several frames; two of them hide each other, one at a time."""
    covers = scene.truth.layer_depths.isfinite()
    frames_hidden = {
        (i, j): int(((scene.object_ids == i) & covers[:, j]).flatten(1).sum(1).ge(3).sum())
        for i in range(1, 4)
        for j in range(1, 4)
        if i != j
    }
    engine, tower, teapot = 1, 2, 3
    assert frames_hidden[engine, tower] >= 3
    assert frames_hidden[engine, teapot] >= 2
    assert frames_hidden[tower, teapot] >= 2
    assert frames_hidden[teapot, tower] >= 2


def test_toys_are_of_good_size(scene):
    for k in range(1, 4):
        widths = scene.truth.layer_depths[:, k].isfinite().any(1).sum(1) / scene.width
        assert widths.min() > 0.14
        assert widths.max() < 0.42


def test_a_larger_toy_sinks_into_the_table_it_stands_on(scene):
    """True scales are at the upper edge of the valid set (METHOD 2.3); a little below it nothing changes."""
    for k in range(1, 4):
        accuracies = {}
        for factor in (0.97, 1.0, 1.1):
            layers = true_layers(scene)
            layers[:, k] *= factor
            accuracies[factor] = (layers.argmin(1) == scene.object_ids).float().mean()
        assert accuracies[1.0] == 1
        assert accuracies[0.97] > 0.998
        assert accuracies[1.1] < 0.998


def test_poses_carry_each_rigid_object_from_frame_to_frame(scene):
    """Pixels moved by the poses at true scale land on the same object at its depth, where it is not hidden."""
    rows, columns = torch.meshgrid(torch.arange(scene.height), torch.arange(scene.width), indexing="ij")
    pixels = torch.stack([columns, rows], dim=-1) + 0.5
    for k in (0, 1, 3):  # object 2 bends
        depths = scene.truth.layer_depths[:, k]
        on_object = depths[0].isfinite()
        carry = scene.cam_from_obj[k, 1] @ invert_rigid(scene.cam_from_obj[k, 0])
        moved = transform_points(carry, unproject(pixels[on_object], depths[0][on_object], scene.intrinsics))
        columns_to, rows_to = project(moved, scene.intrinsics).floor().long().unbind(-1)
        inside = (columns_to >= 0) & (rows_to >= 0) & (columns_to < scene.width) & (rows_to < scene.height)
        there = depths[1][rows_to[inside], columns_to[inside]]
        same = (moved[inside, 2] / there - 1).abs() < 0.02
        assert same.float().mean() > 0.8


def test_toys_stand_on_the_table():
    """The lowest point of every toy is at height 0 of its own frame, which its poses put at the table's height."""
    x, y = np.meshgrid(np.linspace(-0.35, 0.35, 71), np.linspace(-0.35, 0.35, 71))
    upwards = np.stack([x.ravel(), y.ravel(), np.full(x.size, 50.0)], axis=1) / 50  # from a point 50 m below
    for progress in (0, 0.3, 1):
        for solids in demo_scene.objects(progress)[1:]:
            depth, _ = cast(solids, np.array([0.0, 0.0, -50.0]), upwards)
            assert_allclose(depth.min() - 50, 0, atol=3e-3)
        assert_allclose(demo_scene.object_poses(progress)[1:, 2, 3], demo_scene.TABLE_HEIGHT)


def plain(shape, half_size=(1.0, 1.0, 1.0), centre=(0.0, 0.0, 0.0)):
    return Solid(shape, np.array(centre), np.array(half_size), np.eye(3), lambda points, normals: points)


@pytest.mark.parametrize(
    ("shape", "origin", "direction", "expected"),
    [
        (Ball(), (0, 0, -3), (0, 0, 1), 2),
        (Ball(), (0.6, 0, -3), (0, 0, 1), 2.2),
        (Ball(), (0, 0, -3), (0, 1, 1), math.inf),
        (Cube(), (0.5, -0.5, -3), (0, 0, 1), 2),
        (Cube(), (0.5, -0.5, 3), (0, 0, 1), math.inf),
        (Cube(inside=True), (0, 0, 0), (0, 0.5, 1), 1),
        (Frustum(), (-3, 0, 0.5), (1, 0, 0.0), 2),
        (Frustum(0.5), (-3, 0, 0), (1, 0, 0.0), 2.25),
        (Frustum(0.5), (0.7, 0, 3), (0, 0, -1), 2.8),
        (Frustum(0.5), (0.2, 0, 3), (0, 0, -1), 2),
        (Ring(0.25), (-3, 0, 0), (1, 0, 0.0), 1.75),
        (Ring(0.25), (1, 0, -3), (0, 0, 1), 2.75),
        (Ring(0.25), (0, 0, -3), (0, 0, 1), math.inf),
    ],
)
def test_rays_meet_shapes_where_geometry_says(shape, origin, direction, expected):
    depth, _ = cast([plain(shape)], np.array(origin, float), np.array([direction], float))
    assert_allclose(depth, expected, atol=3e-3)


@pytest.mark.parametrize("shape", [Ball(), Cube(), Frustum(), Frustum(0.4), Ring(0.3)])
def test_normals_are_square_to_the_surface(shape):
    """Two rays beside one another meet the surface in its tangent plane."""
    solid = plain(shape, half_size=(0.7, 0.9, 0.5))
    generator = np.random.default_rng(0)
    origin = np.array([0.3, -2.5, 1.1])
    directions = generator.normal([0, 1, -0.4], 0.12, (400, 3))
    beside = directions + 1e-4 * generator.normal(size=(400, 3))
    depth, depth_beside = solid.hit(origin, directions), solid.hit(origin, beside)
    met = np.isfinite(depth) & np.isfinite(depth_beside)
    met[met] = np.abs(depth[met] - depth_beside[met]) < 3e-3
    points = origin + depth[met, None] * directions[met]
    steps = origin + depth_beside[met, None] * beside[met] - points
    _, normals = solid.colours_and_normals(points)
    slopes = np.abs((normals * steps).sum(1)) / np.linalg.norm(steps, axis=1)
    assert met.sum() > 50
    assert np.median(slopes) < 0.02


def test_the_nearer_solid_hides_the_farther():
    solids = [plain(Ball(), centre=(0, 0, 5)), plain(Cube(), centre=(0, 0, 2))]
    depth, which = cast(solids, np.zeros(3), np.array([[0, 0, 1.0], [1.0, 0, 0]]))
    assert_allclose(depth, [1, np.inf])
    assert which.tolist() == [1, -1]


def test_downscaled_ids_are_majorities_and_depths_belong_to_them():
    ids = np.array([[1, 1, 0, 3], [1, 2, 3, 3], [0, 0, 2, 2], [2, 2, 2, 2]], np.uint8)
    depth = np.arange(16.0).reshape(4, 4)
    assert downscale_ids(ids, 2).tolist() == [[1, 3], [2, 2]]
    small = downscale_depth(depth, 2, ids)
    assert small[0, 0] in (0, 1, 4)
    assert small[0, 1] == 7
    assert downscale_ids(np.zeros((5, 7), np.uint8), 2).shape == (2, 3)
