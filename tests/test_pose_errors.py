"""Pose errors see what a reconstruction got wrong and nothing else: not its frame, not its unit of length."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from osn_gs.data.osn_files import read_transforms
from osn_gs.data.osn_layout import load_scene
from osn_gs.data.set_truth import SetTruth
from osn_gs.evaluation.poses import (
    object_distance,
    object_pose_errors,
    pose_errors,
    rotation_angles,
    scene_pose_errors,
)

NUM_FRAMES = 12
DISTANCE = 2.5
EVERY_FRAME = np.ones(NUM_FRAMES, dtype=bool)


def rigid(rotation: Rotation, translation: np.ndarray) -> np.ndarray:
    pose = np.tile(np.eye(4), (len(translation), 1, 1))
    pose[:, :3, :3], pose[:, :3, 3] = rotation.as_matrix(), translation
    return pose


def arc(degrees: float = 40.0) -> np.ndarray:
    """cam_from_obj of a camera on an arc about the object, which it looks at."""
    turns = Rotation.from_rotvec(np.linspace(0, np.radians(degrees), NUM_FRAMES)[:, None] * [0.0, 1.0, 0.0])
    return rigid(turns, np.tile([0.0, 0.0, DISTANCE], (NUM_FRAMES, 1)))


def in_another_gauge(cam_from_obj: np.ndarray, seed: int = 0) -> np.ndarray:
    """The same poses as a reconstruction would give them: its own rotation, origin and unit of length."""
    generator = np.random.default_rng(seed)
    gauge = rigid(Rotation.from_quat(generator.normal(size=(1, 4))), generator.normal(size=(1, 3)))[0]
    poses = cam_from_obj @ gauge
    poses[:, :3, 3] *= 3.7
    return poses


@pytest.mark.parametrize("degrees", [40.0, 4.0])
def test_the_gauge_of_a_reconstruction_is_no_error(degrees):
    true = arc(degrees)
    errors = pose_errors(in_another_gauge(true), EVERY_FRAME, true, DISTANCE)
    np.testing.assert_allclose(errors.rotation, 0, atol=1e-6)
    np.testing.assert_allclose(errors.centre, 0, atol=1e-9)
    assert errors.scale == pytest.approx(3.7)


def test_a_camera_turned_on_the_spot_is_a_rotation_error_of_that_angle_alone():
    true = arc()
    turned = true.copy()
    for degrees, frame in ((2.0, 3), (-2.0, 8)):  # opposite turns leave the mean orientation where it is
        turn = Rotation.from_rotvec([[0.0, 0.0, np.radians(degrees)]])
        turned[frame] = rigid(turn, np.zeros((1, 3)))[0] @ true[frame]
    errors = pose_errors(in_another_gauge(turned), EVERY_FRAME, true, DISTANCE)
    expected = np.zeros(NUM_FRAMES)
    expected[[3, 8]] = 2.0
    np.testing.assert_allclose(errors.rotation, expected, atol=0.1)
    np.testing.assert_allclose(errors.centre, 0, atol=2e-3)


def test_a_camera_out_of_place_is_a_centre_error_in_shares_of_the_distance():
    true = arc()
    shifted = true.copy()
    shifted[6, 2, 3] += 0.1 * DISTANCE  # farther from the object along the ray
    errors = pose_errors(in_another_gauge(shifted), EVERY_FRAME, true, DISTANCE)
    assert errors.centre.argmax() == 6
    assert errors.centre[6] == pytest.approx(0.1, rel=0.15)  # the alignment takes up its twelfth part of it
    np.testing.assert_allclose(errors.rotation, 0, atol=1e-6)
    halved = pose_errors(in_another_gauge(shifted), EVERY_FRAME, true, 2 * DISTANCE)
    np.testing.assert_allclose(halved.centre, errors.centre / 2)


def test_frames_that_are_not_registered_do_not_count():
    true = arc()
    estimated = in_another_gauge(true)
    estimated[[0, 5]] = np.eye(4)
    registered = EVERY_FRAME.copy()
    registered[[0, 5]] = False
    errors = pose_errors(estimated, registered, true, DISTANCE)
    assert errors.frames.tolist() == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert errors.rotation.max() < 1e-6
    assert pose_errors(estimated, EVERY_FRAME, true, DISTANCE).rotation.max() > 5


def test_a_reconstruction_turned_inside_out_does_not_pass():
    """Depth reversed about the object's middle: all points reproject almost as well, yet every turn is backwards."""
    true = arc()
    mirrored = arc(-40.0)
    errors = pose_errors(in_another_gauge(mirrored), EVERY_FRAME, true, DISTANCE)
    assert errors.rotation.max() > 30


@pytest.mark.parametrize("degrees", [1e-7, 0.3, 90.0, 179.9])
def test_small_and_large_angles_are_told_exactly(degrees):
    turns = Rotation.from_rotvec(np.radians(degrees) * np.array([[0.6, 0.0, 0.8], [0.0, -1.0, 0.0]]))
    np.testing.assert_allclose(rotation_angles(turns.as_matrix()), degrees, rtol=1e-6)


def test_a_camera_that_stands_still_has_no_path_to_compare(demo_folder):
    still = np.tile(np.eye(4), (6, 1, 1))
    still[:, :3, 3] = 0.1, 0.2, 3.0
    ids, depths = np.ones((6, 4, 4), np.uint8), np.full((6, 4, 4), 3.0)
    transforms = read_transforms(demo_folder / "transforms_train.json")
    truth = SetTruth(transforms, torch.from_numpy(np.stack([still, still])), ids, depths)
    errors = object_pose_errors(torch.from_numpy(still), torch.ones(6, dtype=torch.bool), truth, 1)
    assert errors.rotation_max == pytest.approx(0, abs=1e-6)
    assert errors.centre_mean is None


def test_the_distance_of_an_object_is_that_of_its_own_pixels():
    depths = np.full((2, 4, 4), 9.0)
    object_ids = np.zeros((2, 4, 4), dtype=np.uint8)
    object_ids[:, 1:3, 1:3] = 1
    depths[object_ids == 1] = 2.0
    depths[0, 1, 1] = np.inf
    assert object_distance(depths, object_ids, 1) == 2.0


def test_a_scene_is_compared_with_the_truth_in_its_folder(demo_folder):
    scene = load_scene(demo_folder)
    errors = scene_pose_errors(scene)
    assert [found.registered for found in errors] == [found.frames for found in errors]
    assert max(found.rotation_max for found in errors) < 0.01  # the demo's poses are exact, in gauges of their own
    assert max(found.centre_max for found in errors) < 0.01
    turned = scene.cam_from_obj.clone()
    turned[2, 4] = (
        torch.from_numpy(rigid(Rotation.from_rotvec([[0, 0, np.radians(5)]]), np.zeros((1, 3)))[0]).float()
        @ turned[2, 4]
    )
    assert scene_pose_errors(replace(scene, cam_from_obj=turned))[2].rotation_max == pytest.approx(5 * 7 / 8, rel=0.05)


def test_frames_without_a_pose_or_without_the_object_do_not_count(demo_folder):
    scene = load_scene(demo_folder)
    visible = scene.visible.clone()
    visible[1, :7] = False
    visible[3, :2] = False
    errors = scene_pose_errors(replace(scene, visible=visible))
    assert (errors[1].registered, errors[1].rotation_mean, errors[1].centre_max) == (1, None, None)
    assert errors[3].registered == errors[3].frames - 2


def test_a_scene_without_truth_has_no_errors(demo_folder, tmp_path):
    scene = load_scene(demo_folder)
    assert scene_pose_errors(replace(scene, folder=None)) is None
    folder = shutil.copytree(demo_folder, tmp_path / "blind", ignore=shutil.ignore_patterns("depth_train"))
    assert scene_pose_errors(load_scene(folder)) is None
