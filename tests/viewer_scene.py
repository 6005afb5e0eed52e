"""A small run for the viewer: fat splats that software WebGL can draw, a ball that moves before a wall."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from osn_gs.export.configurations import Configuration
from osn_gs.export.previews import to_uint8
from osn_gs.gaussians.object_gaussians import ObjectGaussians
from osn_gs.geometry.se3 import invert_rigid, rigid_matrix
from osn_gs.object_scales.learning import fit_to_oracle
from osn_gs.object_scales.network import ObjectScaleNetwork
from osn_gs.scene.render import render_view
from osn_gs.scene.scene import ObjectGroup, Scene
from osn_gs.training.observed_layers import oracle_of_scene
from osn_gs.viewer.snapshot import take_snapshot
from osn_gs.viewer.viewer import Viewed
from osn_gs.viewer.worlds import Worlds

WIDTH, HEIGHT, FRAMES = 64, 48, 6
WALL_DEPTH, BALL_DEPTH = 5.0, 4.0
RANGES = torch.tensor([[1.0, 1.0], [0.5, 1.5]])
THRESHOLD = 0.97


def wall_and_ball() -> Scene:
    """A camera that moves to the right past a wall of many colours; a red ball crosses its view to the left.

    Beyond a scale of `WALL_DEPTH / BALL_DEPTH` the ball is behind the wall.
    """
    generator = torch.Generator().manual_seed(0)
    world_from_cam = rigid_matrix(torch.eye(3).expand(FRAMES, 3, 3), torch.zeros(FRAMES, 3))
    world_from_cam[:, 0, 3] = torch.linspace(-0.3, 0.3, FRAMES)
    x, y = torch.meshgrid(torch.linspace(-4, 4, 33), torch.linspace(-3, 3, 25), indexing="ij")
    wall = torch.stack([x.flatten(), y.flatten(), torch.full((x.numel(),), WALL_DEPTH)], dim=1)
    tiles = 0.35 + 0.5 * torch.rand(len(wall), 3, generator=generator) * torch.tensor([0.3, 1.0, 1.0])
    ball = torch.nn.functional.normalize(torch.randn(200, 3, generator=generator), dim=1) * 0.45
    cam_from_ball = torch.eye(4).repeat(FRAMES, 1, 1)
    cam_from_ball[:, 0, 3] = torch.linspace(1.0, -1.0, FRAMES)
    cam_from_ball[:, 2, 3] = BALL_DEPTH
    visible = torch.ones(FRAMES, dtype=torch.bool)
    groups = [
        ObjectGroup("background", _splats(wall, tiles, 0.16), invert_rigid(world_from_cam), visible),
        ObjectGroup("ball", _splats(ball, torch.tensor([0.9, 0.1, 0.1]).expand(200, 3), 0.12), cam_from_ball, visible),
    ]
    intrinsics = torch.tensor([[60.0, 0, WIDTH / 2], [0, 60.0, HEIGHT / 2], [0, 0, 1]])
    return Scene(groups, intrinsics, WIDTH, HEIGHT, RANGES, near=1.0, far=8.0)


def _splats(points: Tensor, colors: Tensor, size: float) -> ObjectGaussians:
    gaussians = ObjectGaussians.from_points(points, colors, sh_degree=0)
    with torch.no_grad():
        gaussians.params["opacities"].fill_(4.0)
        gaussians.params["scales"].fill_(math.log(size))
    return gaussians


@torch.no_grad()
def film(scene: Scene) -> tuple[UInt8[Tensor, "t h w"], UInt8[np.ndarray, "t h w 3"]]:
    """Object ids and pictures of all frames, all scales being 1."""
    views = [render_view(scene, torch.ones(scene.num_objects), t) for t in range(scene.num_frames)]
    ids = torch.stack([view.object_ids.to(torch.uint8) for view in views])
    return ids, torch.stack([to_uint8(view.rgb) for view in views]).numpy()


def viewed_wall_and_ball() -> Viewed:
    """The run: a network that was taught what the occlusions allow, and three configurations."""
    scene = wall_and_ball()
    object_ids, frames = film(scene)
    oracle = oracle_of_scene(scene, object_ids)
    generator = torch.Generator().manual_seed(0)
    network = ObjectScaleNetwork(RANGES, generator)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    fit_to_oracle(network, optimizer, oracle, THRESHOLD, 150, generator)
    scales = ((1.0, 1.0), (1.0, 0.6), (1.0, 1.1))
    configurations = tuple(
        Configuration(name, vector, 0.99, float(oracle.accuracy(torch.tensor([vector]))[0]))
        for name, vector in zip(("contact", "configuration_000", "configuration_001"), scales, strict=True)
    )
    worlds = Worlds(scene.object_names, RANGES, network, oracle, THRESHOLD, configurations)
    return Viewed("wall and ball", scene, take_snapshot(scene), worlds, frames)
