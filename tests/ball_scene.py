"""A small ball in front of a big one, and views of it from the side."""

import math

import torch

from osn_gs.data.scene_data import HeldOutView
from osn_gs.export.previews import to_uint8
from osn_gs.gaussians.object_gaussians import ObjectGaussians
from osn_gs.geometry.cameras import orbit
from osn_gs.scene.render import render_view
from osn_gs.scene.scene import ObjectGroup, Scene

WIDTH, HEIGHT = 40, 32
TRAINING_CAMERA = torch.tensor([[40.0, 0, WIDTH / 2], [0, 40.0, HEIGHT / 2], [0, 0, 1]])
BALL_DEPTH = 3.0
FILMED = torch.tensor([1.0, 1.0])


def cloud(size: float, depth: float) -> tuple[ObjectGaussians, torch.Tensor]:
    """Opaque Gaussians of many colours, and their pose straight ahead of the camera."""
    generator = torch.Generator().manual_seed(0)
    points = size * torch.randn(300, 3, generator=generator)
    gaussians = ObjectGaussians.from_points(points, torch.rand(300, 3, generator=generator), sh_degree=0)
    with torch.no_grad():
        gaussians.params["opacities"].fill_(4.0)
        gaussians.params["scales"].fill_(math.log(0.15 * size))
    pose = torch.eye(4)
    pose[2, 3] = depth
    return gaussians, pose[None]


def ball_scene() -> Scene:
    """A small ball in front of a big one, for one camera that looks straight at them."""
    groups = [
        ObjectGroup(name, *cloud(size, depth), visible=torch.tensor([True]))
        for name, size, depth in (("background", 1.0, 6.0), ("ball", 0.2, BALL_DEPTH))
    ]
    return Scene(groups, TRAINING_CAMERA, WIDTH, HEIGHT, torch.tensor([[1.0, 1], [0.3, 1.7]]), near=1.0, far=8.0)


@torch.no_grad()
def film(
    scene: Scene, intrinsics: torch.Tensor = TRAINING_CAMERA, size: tuple[int, int] = (WIDTH, HEIGHT)
) -> HeldOutView:
    """A view from the side of the scene as it truly is, with full truth."""
    camera = orbit(scene.cam_from_world(0), BALL_DEPTH, yaw_degrees=20)
    picture = render_view(scene, FILMED, 0, camera, intrinsics, size)
    ids = picture.object_ids.to(torch.uint8)
    return HeldOutView(
        name="test/0",
        time_step=0,
        cam_from_background=camera,
        intrinsics=intrinsics,
        image=to_uint8(picture.rgb),
        object_ids=ids,
        depth=picture.depth,
    )
