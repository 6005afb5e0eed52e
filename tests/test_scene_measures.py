"""Lengths in own units, and what a ray hits, in scenes whose measures are known."""

from __future__ import annotations

import math

import pytest
import torch
from ball_scene import BALL_DEPTH, ball_scene
from jaxtyping import Float
from torch import Tensor

from osn_gs.errors import OsnGsError
from osn_gs.gaussians.object_gaussians import ObjectGaussians
from osn_gs.geometry.cameras import orbit
from osn_gs.geometry.se3 import invert_rigid, rigid_matrix
from osn_gs.scene.measures import (
    Picked,
    camera_height,
    camera_travel,
    ground_plane,
    length_between,
    object_length,
    pick_point,
)
from osn_gs.scene.render import render_view
from osn_gs.scene.scene import ObjectGroup, Scene

RANGES = torch.tensor([[1.0, 1.0], [0.3, 1.7]])
CAMERA = torch.tensor([0.0, 0.0, -6.0])  # of the ball scene
BLEND = 0.04  # a floor of coarse Gaussians is seen a little too near, as nearer ones are blended over farther ones
EYE = torch.tensor([0.0, 0.0, 1.6])  # above a floor at z = 0


def opaque(points: Float[Tensor, "n 3"]) -> ObjectGaussians:
    gaussians = ObjectGaussians.from_points(points, torch.full_like(points, 0.5), sh_degree=0)
    with torch.no_grad():
        gaussians.params["opacities"].fill_(4.0)
    return gaussians


def sheet(corner: Float[Tensor, "3"], sides: Float[Tensor, "3"], side: float) -> Float[Tensor, "n 6"]:
    """Centres on a grid over a rectangle (one of the `sides` is 0), and the sizes of flat Gaussians that cover it."""
    steps = [torch.arange(0.0, length + 1e-6, side) for length in sides.tolist()]
    centres = corner + torch.cartesian_prod(*steps)
    return torch.cat([centres, torch.where(sides > 0, 0.7 * side, 1e-3).expand_as(centres)], dim=1)


def looking_along_y(pitch_degrees: float, centre: Float[Tensor, "3"] = EYE) -> Float[Tensor, "4 4"]:
    """cam_from_world of a camera that looks along the world's y axis, z up, pitched down."""
    down, ahead = math.sin(math.radians(pitch_degrees)), math.cos(math.radians(pitch_degrees))
    axes = torch.tensor([[1.0, 0, 0], [0, -down, -ahead], [0, ahead, -down]]).T  # right, down, forward
    return invert_rigid(rigid_matrix(axes, centre))


def scene_of(background: Float[Tensor, "n 6"], cam_from_world: Float[Tensor, "t 4 4"]) -> Scene:
    """A scene with a background of flat Gaussians [centre, size], filmed with a field of view of 90 degrees."""
    visible = torch.ones(len(cam_from_world), dtype=torch.bool)
    gaussians = opaque(background[:, :3])
    with torch.no_grad():
        gaussians.params["scales"].copy_(background[:, 3:].log())
    groups = [ObjectGroup("background", gaussians, cam_from_world, visible)]
    groups.append(ObjectGroup("toy", opaque(torch.rand(50, 3)), cam_from_world, visible))
    intrinsics = torch.tensor([[32.0, 0, 32], [0, 32.0, 24], [0, 0, 1]])
    return Scene(groups, intrinsics, 64, 48, RANGES, near=1.0, far=8.0)


FLOOR = sheet(torch.tensor([-3.0, -1, 0]), torch.tensor([6.0, 7.0, 0]), 0.1)
WALL = sheet(torch.tensor([-3.0, 6, 0]), torch.tensor([6.0, 0, 4]), 0.1)
CEILING = FLOOR + torch.tensor([0.0, 0, 3, 0, 0, 0])
ROOM = torch.cat([FLOOR, WALL])


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("pitch", [0.0, 40.0])
def test_the_cameras_height_is_that_over_the_floor_not_the_wall(pitch: float) -> None:
    scene = scene_of(ROOM, looking_along_y(pitch)[None])
    assert camera_height(scene) == pytest.approx(1.6, rel=BLEND)
    torch.testing.assert_close(
        ground_plane(scene).normal, torch.tensor([0.0, 0, 1], dtype=torch.float64), atol=BLEND, rtol=0
    )


def test_the_height_is_in_background_units() -> None:
    scene = scene_of(2.5 * ROOM, looking_along_y(20.0, 2.5 * EYE)[None])
    assert camera_height(scene) == pytest.approx(2.5 * 1.6, rel=BLEND)


def test_the_ground_is_seen_where_centres_do_not_lie_in_it() -> None:
    """Opaque layers hide what is below them, however much it is."""
    below = [FLOOR - torch.tensor([0.0, 0, depth, 0, 0, 0]) for depth in (0.3, 0.31, 0.32, 0.33)]
    scene = scene_of(torch.cat([ROOM, *below]), looking_along_y(30.0)[None])
    assert camera_height(scene) == pytest.approx(1.6, rel=BLEND)


@pytest.mark.parametrize(
    ("background", "why"),
    [
        (torch.cat([CEILING, WALL]), "a ceiling is above the camera"),
        (WALL, "a wall is not level"),
        (torch.cat([FLOOR[FLOOR[:, 1] > 5.5], WALL]), "too little of what is seen is floor"),
    ],
)
def test_without_a_ground_there_is_no_height(background: torch.Tensor, why: str) -> None:
    assert camera_height(scene_of(background, looking_along_y(0.0)[None])) is None, why


def test_the_height_is_the_median_over_the_path_and_the_travel_its_length() -> None:
    steps = [torch.tensor([0.1 * t, 0.0, 0.3 if t == 2 else 0.0]) for t in range(5)]
    cameras = torch.stack([looking_along_y(20.0, EYE + step) for step in steps])
    scene = scene_of(ROOM, cameras)
    assert camera_height(scene) == pytest.approx(1.6, rel=BLEND)
    assert camera_travel(scene) == pytest.approx(2 * 0.1 + 2 * math.hypot(0.1, 0.3), rel=1e-5)


def test_frames_without_a_pose_are_left_out() -> None:
    cameras = torch.stack([looking_along_y(20.0, EYE + torch.tensor([x, 0.0, x])) for x in (0.0, 50.0, 0.2)])
    scene = scene_of(ROOM, cameras)
    scene.objects[0].visible[1] = False
    assert camera_travel(scene) == pytest.approx(0.2 * 2**0.5, rel=1e-4)
    assert camera_height(scene) == pytest.approx(1.6, rel=BLEND)


def test_an_objects_length_is_its_longest_side_whatever_its_pose_and_floaters(generator: torch.Generator) -> None:
    box = torch.rand(4_000, 3, generator=generator) * torch.tensor([3.0, 1.0, 0.5])
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator))
    floaters = 20 * torch.randn(15, 3, generator=generator)
    scene = ball_scene()
    scene.objects[1].gaussians = opaque(torch.cat([box @ turn.T, floaters]))
    assert object_length(scene, 1) == pytest.approx(0.98 * 3.0, rel=0.03)
    with torch.no_grad():
        scene.objects[1].gaussians.params["means"] *= 4
    assert object_length(scene, 1) == pytest.approx(4 * 0.98 * 3.0, rel=0.03)


def test_faint_gaussians_do_not_lengthen_an_object(generator: torch.Generator) -> None:
    box = torch.rand(1_000, 3, generator=generator) * torch.tensor([3.0, 1.0, 0.5])
    scene = ball_scene()
    scene.objects[1].gaussians = opaque(torch.cat([box, box + torch.tensor([10.0, 0, 0])]))
    with torch.no_grad():
        scene.objects[1].gaussians.params["opacities"][1_000:] = -8.0
    assert object_length(scene, 1) == pytest.approx(0.98 * 3.0, rel=0.03)


def pick_from_camera(scene: Scene, scale: float, x: float, y: float) -> Picked | None:
    """What the training camera sees at normalized image coordinates; it stands at (0, 0, -6), axes as the world's."""
    return pick_point(scene, torch.tensor([1.0, scale]), 0, CAMERA, torch.tensor([x, y, 1.0]))


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.2])
def test_a_training_ray_hits_the_same_point_of_an_object_at_any_scale(scale: float) -> None:
    """In the object's own frame and units; in the world the point moves away from the camera with the scale."""
    scene = ball_scene()
    hit, reference = (pick_from_camera(scene, s, 0.02, -0.03) for s in (scale, 1.0))
    assert hit.object == reference.object == 1
    torch.testing.assert_close(hit.point, reference.point, atol=1e-5, rtol=0)
    torch.testing.assert_close(hit.world_point - CAMERA, scale * (reference.world_point - CAMERA), atol=1e-5, rtol=0)
    depth = reference.world_point[2] - CAMERA[2]
    assert BALL_DEPTH - 0.6 < depth < BALL_DEPTH, "on the front of a ball of standard deviation 0.2"
    torch.testing.assert_close(reference.world_point[:2], depth * torch.tensor([0.02, -0.03]).double())


def test_a_pick_sees_what_the_picture_shows() -> None:
    scene = ball_scene()
    with torch.no_grad():
        picture = render_view(scene, torch.ones(2), 0)
    rows, columns = (torch.arange(2, count, 4).tolist() for count in (scene.height, scene.width))
    seen = 0
    for v in rows:
        for u in columns:
            hit = pick_from_camera(scene, 1.0, (u + 0.5 - 20) / 40, (v + 0.5 - 16) / 40)
            if picture.object_weights[v, u].max() < 0.9:  # an outline, where it takes little to differ
                continue
            seen += 1
            assert hit.object == picture.object_ids[v, u]
            assert hit.world_point[2] - CAMERA[2] == pytest.approx(float(picture.depth[v, u]), rel=0.15)
    assert seen > 20


def test_a_ray_beside_the_ball_hits_what_is_behind_it_or_nothing() -> None:
    scene = ball_scene()
    past = pick_from_camera(scene, 1.0, 0.2, 0.0)
    assert past.object == 0
    torch.testing.assert_close(past.point, past.world_point, atol=1e-5, rtol=0)
    assert pick_from_camera(scene, 1.0, 3.0, 0.0) is None
    assert pick_point(scene, torch.ones(2), 0, CAMERA, torch.tensor([0.0, 0.0, -1.0])) is None, "behind the camera"


def test_a_ray_from_the_side_hits_the_side() -> None:
    scene, scales = ball_scene(), torch.tensor([1.0, 0.8])
    camera = invert_rigid(orbit(scene.cam_from_world(0), 0.8 * BALL_DEPTH, yaw_degrees=80))
    hit = pick_point(scene, scales, 0, camera[:3, 3], camera[:3, 2])
    assert hit.object == 1
    middle = CAMERA + torch.tensor([0.0, 0, 0.8 * BALL_DEPTH])
    toward_camera = (camera[:3, 3] - middle).double()
    assert torch.nn.functional.cosine_similarity(hit.point, toward_camera, dim=0) > 0.99


def test_two_picks_on_one_object_are_a_length_in_its_own_units() -> None:
    scene = ball_scene()
    left, right = (pick_from_camera(scene, 1.0, x, 0.0) for x in (-0.05, 0.05))
    length = length_between(left, right)
    assert length == pytest.approx(float((left.world_point - right.world_point).norm()), rel=1e-4)
    smaller = length_between(pick_from_camera(scene, 0.5, -0.05, 0.0), pick_from_camera(scene, 0.5, 0.05, 0.0))
    assert smaller == pytest.approx(length, rel=1e-3)
    with pytest.raises(OsnGsError, match=r"on objects 1 and 0; pick both on one object"):
        length_between(left, pick_from_camera(scene, 1.0, 0.2, 0.0))
