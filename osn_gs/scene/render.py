"""Pictures of a scene: object layers of a training view, and any view of one configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from osn_gs.gaussians.spherical_harmonics import evaluate_sh
from osn_gs.geometry.se3 import invert_rigid
from osn_gs.rendering.layers import CompositedLayers, composite_layers
from osn_gs.rendering.rasterize import rasterize
from osn_gs.scene.pixel_blur import missing_blur, pixel_blur
from osn_gs.scene.scene import NEAR_PLANE, ObjectGroup, PlacedGaussians, Placement, Scene


@dataclass(frozen=True)
class ObjectLayers:
    """Every object of one training frame rendered alone, at object scale 1.

    rgb [K, H, W, 3] is premultiplied by alpha [K, H, W]; depths [K, H, W] is the expected z-depth (0 where
    nothing is). `infos` are the rasterizer's, per object, None for an object without a pose in the frame.
    """

    rgb: Float[Tensor, "k h w 3"]
    alphas: Float[Tensor, "k h w"]
    depths: Float[Tensor, "k h w"]
    infos: tuple[dict[str, Any] | None, ...]

    def composite(self, object_scales: Float[Tensor, "m k"]) -> CompositedLayers:
        """The training view under m scale vectors, nearer layers over farther ones per pixel (METHOD 2.1).

        Exact where the objects' depth intervals do not interleave at a pixel.
        """
        return composite_layers(self.rgb, self.alphas, self.depths, object_scales)


class ObjectLayer(NamedTuple):
    """One object of one training frame rendered alone, at object scale 1; as `ObjectLayers` has it for all."""

    rgb: Float[Tensor, "h w 3"]
    alpha: Float[Tensor, "h w"]
    depth: Float[Tensor, "h w"]
    info: dict[str, Any] | None


def render_layers(scene: Scene, time_step: int) -> ObjectLayers:
    """Render each object alone into a training frame: ordinary Gaussian splatting in its own frame and units.

    Scaling an object about the camera centre changes nothing here but its depth, so this one picture per
    object serves all scale vectors.
    """
    layers = [render_layer(scene, group, time_step) for group in scene.objects]
    rgb, alphas, depths, infos = zip(*layers, strict=True)
    return ObjectLayers(torch.stack(rgb), torch.stack(alphas), torch.stack(depths), infos)


def render_layer(scene: Scene, group: ObjectGroup, time_step: int) -> ObjectLayer:
    """Render one object, of the scene or to be tried in it, alone into a training frame; blank without a pose there."""
    if not group.visible[time_step]:
        blank = scene.intrinsics.new_zeros(scene.height, scene.width)
        return ObjectLayer(blank[..., None].expand(-1, -1, 3), blank, blank, None)
    means, quats = group.at(time_step)
    gaussians = group.gaussians
    colors, alpha, info = rasterize(
        means,
        quats,
        gaussians.scales,
        gaussians.opacities,
        gaussians.sh,
        viewmats=group.cam_from_obj[time_step][None],
        Ks=scene.intrinsics[None],
        width=scene.width,
        height=scene.height,
        near_plane=NEAR_PLANE,
        sh_degree=gaussians.sh_degree,
        render_mode="RGB+ED",
    )
    return ObjectLayer(colors[0, ..., :3], alpha[0, ..., 0], colors[0, ..., 3], info)


@dataclass(frozen=True)
class RenderedView:
    """One picture of one configuration.

    rgb [H, W, 3] over black, alpha [H, W], depth [H, W] the expected z-depth in scene units, object_weights
    [H, W, K] the share of each object in the pixel (they sum to alpha).
    """

    rgb: Float[Tensor, "h w 3"]
    alpha: Float[Tensor, "h w"]
    depth: Float[Tensor, "h w"]
    object_weights: Float[Tensor, "h w k"]

    @property
    def object_ids(self) -> Int[Tensor, "h w"]:
        """The object that weighs most at each pixel; background where nothing was hit."""
        return self.object_weights.argmax(-1)


def render_view(
    scene: Scene,
    object_scales: Float[Tensor, "k"],
    time: float,
    cam_from_world: Float[Tensor, "4 4"] | None = None,
    intrinsics: Float[Tensor, "3 3"] | None = None,
    size: tuple[int, int] | None = None,
) -> RenderedView:
    """Render all objects at once under their similarity transforms: exact, interpenetration included.

    `time` is in frames, also between two. `cam_from_world` is an OpenCV camera in the background's frame, the training
    camera by default, and `size`
    (width, height) goes with `intrinsics`. In pictures with finer pixels than the training's, Gaussians are as wide as
    those were (`pixel_blur`).
    """
    if cam_from_world is None:
        cam_from_world = scene.cam_from_world(time)
    if intrinsics is None:
        intrinsics = scene.intrinsics
    width, height = size or (scene.width, scene.height)
    placed = scene.place(object_scales, time)
    camera_centre = invert_rigid(cam_from_world)[:3, 3]
    colors = _colors_seen_from(scene, camera_centre, scene.placement(object_scales, time), time)
    one_hot = torch.nn.functional.one_hot(placed.object_index, scene.num_objects).to(colors)
    rendered, alpha, _ = rasterize(
        placed.means,
        placed.quats,
        _scales_for_focal(scene, placed, object_scales, time, float(intrinsics[1, 1])),
        placed.opacities,
        torch.cat([colors, one_hot], dim=-1),
        viewmats=cam_from_world[None],
        Ks=intrinsics[None],
        width=width,
        height=height,
        near_plane=NEAR_PLANE,
        render_mode="RGB+ED",
    )
    return RenderedView(
        rgb=rendered[0, ..., :3],
        alpha=alpha[0, ..., 0],
        depth=rendered[0, ..., -1],
        object_weights=rendered[0, ..., 3:-1],
    )


def _scales_for_focal(
    scene: Scene, placed: PlacedGaussians, object_scales: Float[Tensor, "k"], time: float, focal: float
) -> Float[Tensor, "n 3"]:
    """Sizes of all visible objects' Gaussians for a picture: isotropic blur adds to the variance along every axis."""
    share = missing_blur(scene, focal)
    if share == 0:
        return placed.scales
    visible = scene.visible(time)
    blurs = [object_scales[k] * pixel_blur(scene, k) for k in range(scene.num_objects) if visible[k]]
    return (placed.scales**2 + share * torch.cat(blurs)[:, None] ** 2).sqrt()


def _colors_seen_from(
    scene: Scene, centre: Float[Tensor, "3"], placement: Placement, time: int
) -> Float[Tensor, "n 3"]:
    """Colours of all visible objects' Gaussians from a world point.

    The point is taken to each object's canonical frame, so no harmonics need to be rotated.
    """
    visible = scene.visible(time)
    colors = []
    for k, group in enumerate(scene.objects):
        if not visible[k]:
            continue
        means, _ = group.at(time)
        centre_obj = (centre - placement.translations[k]) @ placement.rotations[k] / placement.scales[k]
        harmonics = evaluate_sh(group.gaussians.sh_degree, means - centre_obj, group.gaussians.sh)
        colors.append((harmonics + 0.5).clamp_min(0))
    return torch.cat(colors)
