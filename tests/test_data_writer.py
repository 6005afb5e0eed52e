"""What is written as a scene folder loads as it was, or nothing is left behind."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from osn_gs.data import osn_writer
from osn_gs.data.osn_layout import load_scene
from osn_gs.data.osn_writer import write_scene
from osn_gs.errors import DatasetError


@pytest.fixture(scope="module")
def scene(demo_folder):
    return load_scene(demo_folder)


def assert_same_scene(loaded, expected):
    for name in ("images", "object_ids", "intrinsics", "cam_from_obj", "visible", "scale_ranges"):
        assert_close(getattr(loaded, name), getattr(expected, name), rtol=1e-5, atol=1e-5)
    assert loaded.object_names == expected.object_names
    for a, b in zip(loaded.sparse_points, expected.sparse_points, strict=True):
        for field in fields(a):
            assert_close(getattr(a, field.name), getattr(b, field.name), rtol=1e-5, atol=1e-4)
    assert loaded.held_out.keys() == expected.held_out.keys()
    for split, views in expected.held_out.items():
        for a, b in zip(loaded.held_out[split], views, strict=True):
            assert (a.name, a.time_step) == (b.name, b.time_step)
            assert torch.equal(a.image, b.image)
            assert torch.equal(a.object_ids, b.object_ids)
            assert_close(a.depth, b.depth)
            assert_close(a.cam_from_background, b.cam_from_background, rtol=1e-4, atol=1e-4)
            assert_close(a.intrinsics, b.intrinsics)


@pytest.mark.parametrize("pixel_center", [0.0, 0.5])
def test_a_real_scene_reads_back(scene, tmp_path, pixel_center):
    shift = 0.5 - pixel_center
    moved = scene.intrinsics + torch.tensor([[0, 0, shift], [0, 0, shift], [0, 0, 0]])
    held_out = {
        split: tuple(replace(view, intrinsics=moved) for view in views) for split, views in scene.held_out.items()
    }
    expected = replace(scene, intrinsics=moved, held_out=held_out)
    write_scene(tmp_path / "clip", expected)
    loaded = load_scene(tmp_path / "clip")
    assert_same_scene(loaded, expected)
    assert_close(loaded.truth.object_scales, scene.truth.object_scales)
    assert_close(loaded.truth.layer_depths, scene.truth.layer_depths)


def test_the_demo_reads_the_same_from_its_preprocessed_and_its_true_poses(demo_folder, scene):
    """Both come from one generator seed, so nothing was lost on the way through the preprocessed folder."""
    assert_same_scene(load_scene(demo_folder, poses="truth"), scene)


def test_files_are_as_the_released_code_reads_them(demo_folder):
    """METHOD 5: camera-to-object poses in OpenGL axes; a point's ray is ((u - W/2)/f, -(v - H/2)/f, -1)."""
    scene = load_scene(demo_folder)
    for k in range(scene.num_objects):
        poses = np.load(demo_folder / "sfm" / "poses" / f"pose{k}.npy")
        rows = np.load(demo_folder / "sfm" / "depth" / f"depth{k}.npy")
        frames = np.load(demo_folder / "sfm" / "depth" / f"vid{k}.npy")
        box = np.load(demo_folder / "sfm" / "poses" / f"bbox{k}.npy")
        focal = float(scene.intrinsics[0, 0])
        rays = np.stack([(rows[:, 0] - 32) / focal, -(rows[:, 1] - 24) / focal, -np.ones(len(rows))], axis=1)
        points = np.einsum("mij,mj->mi", poses[frames][:, :3, :3], rays * rows[:, 2:3]) + poses[frames][:, :3, 3]
        assert_close(points.min(0), box[:, 0], rtol=1e-4, atol=1e-4)
        assert_close(points.max(0), box[:, 1], rtol=1e-4, atol=1e-4)
        assert_close(rows[:, 4], 2 * np.exp(-((rows[:, 3] / rows[:, 3].mean()) ** 2)), rtol=1e-3, atol=1e-3)


def test_an_existing_folder_is_left_alone(scene, tmp_path):
    (tmp_path / "clip").mkdir()
    with pytest.raises(DatasetError, match="exists already"):
        write_scene(tmp_path / "clip", scene)


def test_a_failure_on_the_way_leaves_nothing(scene, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(osn_writer, "_write_preproc", fail)
    with pytest.raises(OSError, match="disk full"):
        write_scene(tmp_path / "clip", scene)
    assert list(tmp_path.iterdir()) == []


def test_cameras_the_layout_cannot_hold_are_refused(scene, tmp_path):
    off_middle = scene.intrinsics.clone()
    off_middle[1, 2] += 3
    with pytest.raises(DatasetError, match="principal point in the middle"):
        write_scene(tmp_path / "clip", replace(scene, intrinsics=off_middle))
