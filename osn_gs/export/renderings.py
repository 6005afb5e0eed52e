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


def draw_worlds(
    scene: Scene,
    worlds: Sequence[World],
    time: float,
    camera: Camera,
    width: int,
    height: int,
    colouring: Colouring = "colour",
) -> UInt8[Tensor, "grid_h grid_w 3"]:
    """One world at one time from one camera, or several in a grid, each `width` x `height` under its name.

    Colours are over white, as browsers show them; depth is in one range for all worlds, so that they compare. A scene
    of which nothing is shown (`with_shown`) is white.
    """
    views = _views(scene, worlds, time, camera, width, height)
    return _composed(worlds, views, colouring, _depth_limits(views))


def fly_through(
    scene: Scene, worlds: Sequence[World], path: CameraPath, colouring: Colouring = "colour"
) -> Iterator[UInt8[Tensor, "h w 3"]]:
    """The pictures of a camera path, one after the other, as `draw_worlds` makes them, all in one depth range."""
    limits = None
    for cam_from_world, fov_y, at in zip(path.cam_from_world, path.fov_y.tolist(), path.times.tolist(), strict=True):
        time = min(max(at, 0.0), scene.num_frames - 1.0)
        views = _views(scene, worlds, time, Camera(cam_from_world, fov_y), path.width, path.height)
        limits = limits or _depth_limits(views)
        yield _composed(worlds, views, colouring, limits)


@torch.no_grad()
def _views(
    scene: Scene, worlds: Sequence[World], time: float, camera: Camera, width: int, height: int
) -> list[RenderedView]:
    if not bool(scene.visible(time).any()):
        nothing = torch.zeros(height, width)
        blank = RenderedView(nothing[..., None].expand(-1, -1, 3), nothing, nothing, nothing[..., None])
        return [blank] * len(worlds)
    like = scene.intrinsics
    cam_from_world, intrinsics = camera.cam_from_world.to(like), camera.intrinsics(width, height).to(like)
    return [
        render_view(scene, like.new_tensor(world.object_scales), time, cam_from_world, intrinsics, (width, height))
        for world in worlds
    ]


def _depth_limits(views: Sequence[RenderedView]) -> tuple[float, float]:
    return depth_range(torch.stack([view.depth for view in views]))


def _composed(
    worlds: Sequence[World], views: Sequence[RenderedView], colouring: Colouring, depth_limits: tuple[float, float]
) -> UInt8[Tensor, "grid_h grid_w 3"]:
    pictures = [_coloured(view, colouring, depth_limits).cpu() for view in views]
    if len(pictures) == 1:
        return pictures[0]
    names = [world.name.replace("_", " ") for world in worlds]
    columns = grid_columns(len(pictures))
    starts = range(0, len(pictures), columns)
    return image_grid([pictures[i : i + columns] for i in starts], [names[i : i + columns] for i in starts])


def grid_columns(count: int) -> int:
    """Columns of a nearly square grid of pictures: one more than that where it leaves no place empty."""
    columns = math.ceil(math.sqrt(count))
    return columns + 1 if count % columns and count % (columns + 1) == 0 else columns


def with_shown(scene: Scene, shown: Sequence[bool]) -> Scene:
    """The scene with some objects left out of its pictures; the Gaussians are shared, not copied."""
    if all(shown):
        return scene
    objects = [
        ObjectGroup(group.name, group.gaussians, group.cam_from_obj, group.visible & is_shown)
        for group, is_shown in zip(scene.objects, shown, strict=True)
    ]
    return Scene(objects, scene.intrinsics, scene.width, scene.height, scene.scale_ranges, scene.near, scene.far)


def _coloured(view: RenderedView, colouring: Colouring, depth_limits: tuple[float, float]) -> UInt8[Tensor, "h w 3"]:
    if colouring == "depth":
        return color_depth(view.depth, *depth_limits)
    if colouring == "objects":
        return color_ids(view.object_ids)
    return to_uint8(view.rgb + 1 - view.alpha[..., None])
