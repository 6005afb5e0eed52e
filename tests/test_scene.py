"""Placing objects: scale about the camera centre changes depth and nothing else a training camera sees."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from osn_gs.gaussians.object_gaussians import ObjectGaussians
from osn_gs.geometry.cameras import orbit
from osn_gs.geometry.se3 import invert_rigid, quat_to_rotmat, rigid_matrix, transform_points
from osn_gs.scene.render import render_layers, render_view
from osn_gs.scene.scene import ObjectGroup, Scene

WIDTH, HEIGHT = 48, 40
BALL_DEPTH = 3.0


def random_pose(generator: torch.Generator, depth: float) -> torch.Tensor:
    rotation = quat_to_rotmat(torch.randn(4, generator=generator))
    return rigid_matrix(rotation, torch.tensor([0.1, -0.05, depth]))


def solid(generator: torch.Generator, size: float, count: int, sh_degree: int) -> ObjectGaussians:
    """A cloud of opaque Gaussians with view-dependent colours around the origin of its own frame."""
    points = size * torch.randn(count, 3, generator=generator)
    gaussians = ObjectGaussians.from_points(points, torch.rand(count, 3, generator=generator), sh_degree)
    with torch.no_grad():
        gaussians.params["opacities"].fill_(4.0)
        gaussians.params["quats"].copy_(torch.randn(count, 4, generator=generator))
        gaussians.params["scales"].fill_(math.log(0.15 * size))
        gaussians.params["shN"].copy_(0.1 * torch.randn(gaussians.params["shN"].shape, generator=generator))
    return gaussians


@pytest.fixture
def scene() -> Scene:
    """A small ball in front of a big one, each in a frame of its own, over two times."""
    generator = torch.Generator().manual_seed(0)
    groups = [
        ObjectGroup(
            name,
            solid(generator, size, 200, sh_degree=2),
            torch.stack([random_pose(generator, depth) for _ in range(2)]),
            torch.tensor([True, True]),
        )
        for name, size, depth in (("background", 0.6, 6.0), ("ball", 0.15, BALL_DEPTH))
    ]
    intrinsics = torch.tensor([[60.0, 0, WIDTH / 2], [0, 60.0, HEIGHT / 2], [0, 0, 1]])
    return Scene(groups, intrinsics, WIDTH, HEIGHT, torch.tensor([[1.0, 1.0], [0.3, 1.7]]), near=1.0, far=8.0)


@torch.no_grad()
def test_a_training_view_does_not_change_with_an_objects_scale(scene: Scene):
    near, far = (render_view(scene, torch.tensor([1.0, s]), time=1) for s in (0.6, 1.2))
    assert_close(near.rgb, far.rgb, atol=5e-3, rtol=0)
    ball = near.object_weights[..., 1] > 0.98
    assert ball.sum() > 20
    assert_close(far.depth[ball] / near.depth[ball], torch.full_like(far.depth[ball], 2.0), atol=0.05, rtol=0)


@torch.no_grad()
def test_another_camera_sees_the_scale(scene: Scene):
    side = orbit(scene.cam_from_world(1), BALL_DEPTH, yaw_degrees=20)
    near, far = (render_view(scene, torch.tensor([1.0, s]), 1, side) for s in (0.6, 1.2))
    assert (near.rgb - far.rgb).abs().max() > 0.1


def test_objects_grow_about_the_camera_centre(scene: Scene):
    camera = scene.cam_from_world(0)
    unit, double = (scene.place(torch.tensor([1.0, s]), 0) for s in (1.0, 2.0))
    ball = unit.object_index == 1
    unit_in_camera, double_in_camera = (transform_points(camera, placed.means[ball]) for placed in (unit, double))
    assert_close(double_in_camera, 2 * unit_in_camera, atol=1e-4, rtol=1e-4)
    assert_close(double.scales[ball], 2 * unit.scales[ball])
    assert_close(double.means[~ball], unit.means[~ball])
    assert_close(double.opacities, unit.opacities)


def test_placed_rotations_turn_with_the_object(scene: Scene):
    placed = scene.place(torch.tensor([1.0, 1.0]), 0)
    world_from_obj = invert_rigid(scene.cam_from_world(0)) @ scene.objects[1].cam_from_obj[0]
    expected = world_from_obj[:3, :3] @ quat_to_rotmat(scene.objects[1].gaussians.quats)
    assert_close(quat_to_rotmat(placed.quats[placed.object_index == 1]), expected, atol=1e-5, rtol=1e-5)


def test_the_background_stands_still_while_the_camera_moves(scene: Scene):
    scales = torch.tensor([1.0, 1.3])
    first, second = (scene.place(scales, t) for t in (0, 1))
    background = first.object_index == 0
    assert_close(first.means[background], scene.objects[0].gaussians.means.detach(), atol=1e-4, rtol=1e-4)
    assert_close(first.means[background], second.means[background], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_layers_composited_are_the_view_rendered_at_once(scene: Scene):
    """Where the objects are apart in depth, one picture per object serves every scale vector."""
    layers = render_layers(scene, 0)
    object_scales = torch.tensor([[1.0, 0.6], [1.0, 1.2]])
    composited = layers.composite(object_scales)
    for i, scales in enumerate(object_scales):
        exact = render_view(scene, scales, 0)
        assert (composited.features[i] - exact.rgb).abs().mean() < 1e-3
        assert (composited.object_weights[i] - exact.object_weights).abs().mean() < 1e-3


@torch.no_grad()
def test_an_object_without_a_pose_is_not_there(scene: Scene):
    scene.objects[1].visible[0] = False
    view = render_view(scene, torch.tensor([1.0, 1.0]), 0)
    assert float(view.object_weights[..., 1].max()) == 0
    layers = render_layers(scene, 0)
    assert layers.infos[1] is None
    assert float(layers.alphas[1].max()) == 0
    assert float(layers.composite(torch.ones(1, 2)).object_weights[..., 1].max()) == 0


@torch.no_grad()
def test_a_finer_picture_is_as_blurred_as_the_training_pixels(scene: Scene):
    """Gaussians far thinner than a pixel: what a coarse picture shows of them, a fine one shows as wide."""
    for group in scene.objects:
        group.gaussians.params["scales"].fill_(math.log(1e-4))
    fineness = 4
    fine_intrinsics = scene.intrinsics * torch.tensor([[fineness], [fineness], [1]])
    scales = torch.tensor([1.0, 0.8])
    coarse = render_view(scene, scales, 0)
    fine = render_view(scene, scales, 0, intrinsics=fine_intrinsics, size=(fineness * WIDTH, fineness * HEIGHT))
    averaged = torch.nn.functional.avg_pool2d(fine.alpha[None], fineness)[0]
    assert_close(averaged.mean(), coarse.alpha.mean(), rtol=0.1, atol=0)
    narrow = render_view(scene, scales, 0, intrinsics=scene.intrinsics, size=(WIDTH, HEIGHT))
    assert_close(narrow.alpha, coarse.alpha)


@torch.no_grad()
def test_between_frames_everything_is_on_its_way(scene: Scene):
    scales = torch.tensor([1.0, 0.7])
    first, last = (scene.placement(scales, t) for t in (0, 1))
    half = scene.placement(scales, 0.5)
    assert_close(half.translations, (first.translations + last.translations) / 2)
    assert_close(half.rotations @ half.rotations.transpose(1, 2), torch.eye(3).expand(2, 3, 3), atol=1e-5, rtol=0)
    before, after = (
        (a.transpose(1, 2) @ b) for a, b in ((first.rotations, half.rotations), (half.rotations, last.rotations))
    )
    assert_close(before, after, atol=1e-4, rtol=0)  # the same turn in each half
    camera = scene.cam_from_world(0.25)
    centres = [invert_rigid(scene.cam_from_world(t))[:3, 3] for t in (0, 1)]
    assert_close(invert_rigid(camera)[:3, 3], torch.lerp(*centres, 0.25), atol=1e-5, rtol=0)
    assert_close(scene.placement(scales, 1.0).translations, last.translations)


@torch.no_grad()
def test_an_object_without_a_pose_in_a_frame_is_gone_on_the_way_to_it(scene: Scene):
    scene.objects[1].visible[1] = False
    assert scene.visible(0).tolist() == [True, True]
    assert scene.visible(0.5).tolist() == [True, False]
    assert len(scene.place(torch.ones(2), 0.5).means) == len(scene.objects[0].gaussians)
