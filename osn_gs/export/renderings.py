"""Pictures of worlds from any camera: one world, or several side by side, in colour, depth or object ids."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from osn_gs.export.previews import color_depth, color_ids, depth_range, image_grid, to_uint8
from osn_gs.geometry.camera_path import CameraPath
from osn_gs.scene.render import RenderedView, render_view
from osn_gs.scene.scene import ObjectGroup, Scene

Colouring = Literal["colour", "objects", "depth"]
COLOURINGS: tuple[Colouring, ...] = ("colour", "objects", "depth")


class Camera(NamedTuple):
    """A pinhole camera in the world: `cam_from_world` [4, 4] with OpenCV axes, vertical field of view in radians."""

    cam_from_world: Float[Tensor, "4 4"]
    fov_y: float

    def intrinsics(self, width: int, height: int) -> Float[Tensor, "3 3"]:
        """The K matrix for square pixels and a principal point in the middle."""
        focal = height / (2 * math.tan(self.fov_y / 2))
        return self.cam_from_world.new_tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])


@dataclass(frozen=True)
class World:
    """One configuration under a name."""

    name: str
    object_scales: tuple[float, ...]


@torch.no_grad()
def draw_world(
    scene: Scene, world: World, time: float, camera: Camera, width: int, height: int, colouring: Colouring = "colour"
) -> UInt8[Tensor, "h w 3"]:
    """One world at one time over white, as browsers show it; all white where nothing is shown (`with_shown`)."""
    if not bool(scene.visible(time).any()):
        return torch.full((height, width, 3), 255, dtype=torch.uint8)
    like = scene.intrinsics
    view = render_view(
        scene,
        like.new_tensor(world.object_scales),
        time,
        camera.cam_from_world.to(like),
        camera.intrinsics(width, height).to(like),
        (width, height),
    )
    return _coloured(view, colouring).cpu()


def draw_side_by_side(
    scene: Scene,
    worlds: Sequence[World],
    time: float,
    camera: Camera,
    width: int,
    height: int,
    colouring: Colouring = "colour",
) -> UInt8[Tensor, "grid_h grid_w 3"]:
    """Several worlds from one camera in a grid, each under its name; a picture is `width` x `height`."""
    columns = math.ceil(math.sqrt(len(worlds)))
    rows = [worlds[first : first + columns] for first in range(0, len(worlds), columns)]
    pictures = [[draw_world(scene, world, time, camera, width, height, colouring) for world in row] for row in rows]
    return image_grid(pictures, [[world.name.replace("_", " ") for world in row] for row in rows])


def fly_through(
    scene: Scene, worlds: Sequence[World], path: CameraPath, colouring: Colouring = "colour"
) -> Iterator[UInt8[Tensor, "h w 3"]]:
    """The pictures of a camera path, one after the other: of one world, or of several side by side."""
    for cam_from_world, fov_y, at in zip(path.cam_from_world, path.fov_y.tolist(), path.times.tolist(), strict=True):
        time = min(max(at, 0.0), scene.num_frames - 1.0)
        camera = Camera(cam_from_world, fov_y)
        if len(worlds) == 1:
            yield draw_world(scene, worlds[0], time, camera, path.width, path.height, colouring)
        else:
            yield draw_side_by_side(scene, worlds, time, camera, path.width, path.height, colouring)


def with_shown(scene: Scene, shown: Sequence[bool]) -> Scene:
    """The scene with some objects left out of its pictures; the Gaussians are shared, not copied."""
    if all(shown):
        return scene
    objects = [
        ObjectGroup(group.name, group.gaussians, group.cam_from_obj, group.visible & is_shown)
        for group, is_shown in zip(scene.objects, shown, strict=True)
    ]
    return Scene(objects, scene.intrinsics, scene.width, scene.height, scene.scale_ranges, scene.near, scene.far)


def _coloured(view: RenderedView, colouring: Colouring) -> UInt8[Tensor, "h w 3"]:
    if colouring == "depth":
        return color_depth(view.depth, *depth_range(view.depth))
    if colouring == "objects":
        return color_ids(view.object_ids)
    return to_uint8(view.rgb + 1 - view.alpha[..., None])
