"""Rotations, rigid transforms and alignment obey the algebra they stand for."""

import math

import pytest
import torch

from osn_gs.geometry.alignment import Similarity, align_points
from osn_gs.geometry.cameras import orbit
from osn_gs.geometry.se3 import (
    invert_rigid,
    opengl_to_opencv,
    quat_multiply,
    quat_to_rotmat,
    rigid_matrix,
    rotmat_to_quat,
    transform_points,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_rotations(*shape: int, seed: int = 0) -> torch.Tensor:
    return quat_to_rotmat(normal(*shape, 4, seed=seed))


def random_poses(*shape: int, seed: int = 0) -> torch.Tensor:
    return rigid_matrix(random_rotations(*shape, seed=seed), normal(*shape, 3, seed=seed + 1))


def half_turns() -> torch.Tensor:
    """Quaternions with w = 0, where dividing by w would fail: about the axes and about others."""
    axes = torch.cat([torch.eye(3, dtype=torch.float64), normal(20, 3)])
    return torch.cat([torch.zeros(len(axes), 1, dtype=torch.float64), torch.nn.functional.normalize(axes, dim=-1)], -1)


def test_rotation_matrices_are_rotations():
    rotations = random_rotations(5, 20)
    torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3, dtype=torch.float64).expand(5, 20, 3, 3))
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(5, 20, dtype=torch.float64))


def test_a_quaternion_turns_by_its_angle_about_its_axis():
    angle = 0.3
    quat = torch.tensor([math.cos(angle / 2), 0.0, 0.0, math.sin(angle / 2)], dtype=torch.float64)
    turned = quat_to_rotmat(quat) @ torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(turned, torch.tensor([math.cos(angle), math.sin(angle), 0.0], dtype=torch.float64))


def test_the_length_and_the_sign_of_a_quaternion_do_not_matter():
    quats = normal(50, 4)
    torch.testing.assert_close(quat_to_rotmat(-3.5 * quats), quat_to_rotmat(quats))


@pytest.mark.parametrize("quats", [normal(200, 4), half_turns(), torch.eye(4, dtype=torch.float64)])
def test_matrix_to_quaternion_inverts_quaternion_to_matrix(quats):
    rotations = quat_to_rotmat(quats)
    recovered = rotmat_to_quat(rotations)
    torch.testing.assert_close(recovered.norm(dim=-1), torch.ones(len(quats), dtype=torch.float64))
    assert (recovered[:, 0] >= 0).all()
    torch.testing.assert_close(quat_to_rotmat(recovered), rotations, atol=1e-12, rtol=0)


def test_matrix_to_quaternion_has_finite_gradients_everywhere():
    rotations = quat_to_rotmat(torch.cat([half_turns(), torch.eye(4, dtype=torch.float64)])).requires_grad_()
    rotmat_to_quat(rotations).sum().backward()
    assert torch.isfinite(rotations.grad).all()


def test_the_product_of_quaternions_is_the_product_of_matrices():
    first, second = normal(50, 4), normal(50, 4, seed=1)
    product = quat_to_rotmat(quat_multiply(first, second))
    torch.testing.assert_close(product, quat_to_rotmat(first) @ quat_to_rotmat(second))


def test_transforming_points_is_multiplying_homogeneous_vectors():
    poses, points = random_poses(4), normal(4, 30, 3)
    homogeneous = torch.cat([points, torch.ones(4, 30, 1, dtype=torch.float64)], dim=-1)
    torch.testing.assert_close(transform_points(poses, points), (homogeneous @ poses.mT)[..., :3])


def test_transforms_compose_as_their_names_read():
    cam_from_world, world_from_obj = random_poses(), random_poses(seed=5)
    points = normal(30, 3)
    cam_from_obj = cam_from_world @ world_from_obj
    step_by_step = transform_points(cam_from_world, transform_points(world_from_obj, points))
    torch.testing.assert_close(transform_points(cam_from_obj, points), step_by_step)


def test_the_inverse_undoes_a_rigid_transform():
    poses = random_poses(3, 4)
    torch.testing.assert_close(invert_rigid(poses), torch.linalg.inv(poses))
    points = normal(3, 4, 10, 3)
    torch.testing.assert_close(transform_points(invert_rigid(poses), transform_points(poses, points)), points)


def test_an_opengl_camera_looks_along_minus_z_and_an_opencv_camera_along_z():
    opengl = random_poses(6)
    opencv = opengl_to_opencv(opengl)
    torch.testing.assert_close(opencv[:, :3, 2], -opengl[:, :3, 2])  # forward
    torch.testing.assert_close(opencv[:, :3, 1], -opengl[:, :3, 1])  # down against up
    torch.testing.assert_close(opencv[:, :3, 0], opengl[:, :3, 0])  # right
    torch.testing.assert_close(opencv[:, :3, 3], opengl[:, :3, 3])  # the camera stands where it stood
    torch.testing.assert_close(torch.linalg.det(opencv[:, :3, :3]), torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(opengl_to_opencv(opencv), opengl)


def test_an_orbiting_camera_keeps_its_distance_and_its_aim():
    cam_from_world, depth = random_poses(), 2.5
    pivot = transform_points(invert_rigid(cam_from_world), torch.tensor([[0, 0, depth]], dtype=torch.float64))
    moved = orbit(cam_from_world, depth, yaw_degrees=40, pitch_degrees=-25)
    seen = transform_points(moved, pivot)
    torch.testing.assert_close(seen, torch.tensor([[0, 0, depth]], dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(moved @ invert_rigid(moved), torch.eye(4, dtype=torch.float64), atol=1e-12, rtol=0)


def test_positive_yaw_goes_right_and_positive_pitch_goes_up():
    start = torch.eye(4, dtype=torch.float64)
    right = invert_rigid(orbit(start, 2.0, yaw_degrees=30))[:3, 3]
    up = invert_rigid(orbit(start, 2.0, yaw_degrees=0, pitch_degrees=30))[:3, 3]
    s, c = math.sin(math.radians(30)), math.cos(math.radians(30))
    expected_right = torch.tensor([2 * s, 0, 2 * (1 - c)], dtype=torch.float64)
    expected_up = torch.tensor([0, -2 * s, 2 * (1 - c)], dtype=torch.float64)
    torch.testing.assert_close(right, expected_right, atol=1e-12, rtol=0)
    torch.testing.assert_close(up, expected_up, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_keep_the_dtype_of_their_input(dtype):
    poses = random_poses(2).to(dtype)
    results = (invert_rigid(poses), opengl_to_opencv(poses), rotmat_to_quat(poses[:, :3, :3]))
    assert all(result.dtype == dtype for result in results)
    assert align_points(normal(5, 3).to(dtype), normal(5, 3, seed=1).to(dtype)).rotation.dtype == dtype


@pytest.mark.parametrize("seed", range(5))
def test_alignment_recovers_the_similarity_that_made_the_points(seed):
    true = Similarity(0.3 + seed, random_rotations(seed=seed), normal(3, seed=seed + 1))
    points = normal(20, 3, seed=seed + 2)
    found = align_points(points, true.apply(points))
    assert found.scale == pytest.approx(true.scale)
    torch.testing.assert_close(found.rotation, true.rotation)
    torch.testing.assert_close(found.translation, true.translation)


def test_alignment_of_points_in_a_plane_is_a_rotation_and_no_mirror():
    points = normal(10, 3)
    points[:, 2] = 0
    true = Similarity(2.0, random_rotations(), normal(3))
    found = align_points(points, true.apply(points))
    torch.testing.assert_close(found.rotation, true.rotation)


def test_alignment_to_mirrored_points_is_the_best_rotation_there_is():
    points = normal(40, 3) * torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    mirrored = points * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    found = align_points(points, mirrored)
    assert float(torch.linalg.det(found.rotation)) == pytest.approx(1)
    best = (found.apply(points) - mirrored).square().sum()
    for seed in range(20):
        tilt = quat_to_rotmat(torch.tensor([1.0, 0, 0, 0], dtype=torch.float64) + 0.05 * normal(4, seed=seed))
        nearby = Similarity(found.scale * 1.01, tilt @ found.rotation, found.translation)
        assert (nearby.apply(points) - mirrored).square().sum() > best


def test_no_similarity_nearby_fits_noisy_points_better():
    points = normal(30, 3)
    noisy = Similarity(1.7, random_rotations(), normal(3)).apply(points) + 0.2 * normal(30, 3, seed=9)
    found = align_points(points, noisy)
    best = (found.apply(points) - noisy).square().sum()
    for seed in range(20):
        tilt = quat_to_rotmat(torch.tensor([1.0, 0, 0, 0], dtype=torch.float64) + 0.02 * normal(4, seed=seed))
        shift = 0.02 * normal(3, seed=seed + 50)
        nearby = Similarity(found.scale * (1 + 0.02 * (-1) ** seed), tilt @ found.rotation, found.translation + shift)
        assert (nearby.apply(points) - noisy).square().sum() > best
