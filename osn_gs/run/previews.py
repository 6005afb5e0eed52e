"""Pictures of a finished run: training views, several configurations from the side, the valid set."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from osn_gs.data.scene_data import SceneData
from osn_gs.evaluation.views import render_held_out
from osn_gs.export.configurations import Configuration, ConfigurationSet, spread_over_frames
from osn_gs.export.previews import (
    color_depth,
    color_ids,
    depth_range,
    image_grid,
    plot_valid_set,
    to_uint8,
    write_png,
)
from osn_gs.geometry.cameras import orbit
from osn_gs.geometry.se3 import invert_rigid, transform_points
from osn_gs.object_scales.nested_sets import sample_valid
from osn_gs.object_scales.oracle import ScaleOracle
from osn_gs.object_scales.sampling import farthest_point_subset
from osn_gs.scene.render import RenderedView, render_view
from osn_gs.scene.scene import NEAR_PLANE, Scene

SIDE_YAW, SIDE_PITCH = 25.0, 20.0  # degrees: far enough that depth shows, near enough that few holes do
SIDE_RETREAT = 0.15  # of the objects' distance: small object scales bring them near the camera
IN_VIEW = 0.9  # share of an object's Gaussians from which on it counts as in view
SIDE_PICTURE_WIDTH = 400  # pixels
TRAIN_FRAMES_SHOWN = 3
CONFIGURATIONS_SHOWN = 4
ORACLE_SAMPLES = 1024


@torch.no_grad()
def write_previews(
    folder: Path,
    scene: Scene,
    data: SceneData,
    configurations: ConfigurationSet,
    learned_samples: Float[Tensor, "n k"],
    oracle: ScaleOracle,
    accuracy_threshold: float,
    generator: torch.Generator,
) -> None:
    """Write training_views.png, configurations.png (the same time from the training camera and from the side),
    held_out.png where the scene has held-out views, and valid_set.png."""
    write_png(folder / "training_views.png", training_views(scene, data, configurations.configurations[0]))
    write_png(folder / "configurations.png", configurations_from_the_side(scene, data, configurations))
    if data.held_out:
        write_png(folder / "held_out.png", held_out_views(scene, data, configurations.configurations[0]))
    plot_valid_set(
        learned_samples,
        sample_valid(oracle.accuracy, accuracy_threshold, data.scale_ranges, ORACLE_SAMPLES, generator),
        None if data.truth is None else data.truth.object_scales,
        torch.tensor(configurations.configurations[0].object_scales),
        data.scale_ranges,
        data.object_names,
        folder / "valid_set.png",
    )


def training_views(scene: Scene, data: SceneData, configuration: Configuration) -> UInt8[Tensor, "h w 3"]:
    """A few training frames: the input beside what one configuration renders (colour, depth, object ids)."""
    rows, captions = [], []
    for t in spread_over_frames(scene.num_frames, TRAIN_FRAMES_SHOWN):
        view = render_view(scene, configuration.scales_like(scene.intrinsics), t)
        rows.append([data.images[t], *_pictures(view)])
        captions.append([f"frame {t}: input", "rendered", "depth", "objects"])
    return image_grid(rows, captions)


def held_out_views(scene: Scene, data: SceneData, configuration: Configuration) -> UInt8[Tensor, "h w 3"]:
    """The middle view of every held-out split: the truth beside what one configuration renders."""
    rows, captions = [], []
    for split, views in data.held_out.items():
        held_out = views[len(views) // 2]
        view = render_held_out(scene, held_out, configuration.scales_like(scene.intrinsics))
        rows.append([held_out.image, *_pictures(view)])
        captions.append([f"{split}: truth", f"rendered, {configuration.name}", "depth", "objects"])
    return image_grid(rows, captions)


def configurations_from_the_side(
    scene: Scene, data: SceneData, configurations: ConfigurationSet
) -> UInt8[Tensor, "h w 3"]:
    """One moment under several configurations: alike for the training camera, different worlds from the side.

    The first configuration, and those far from it and each other whose objects stay in view from the side.
    """
    t = busiest_frame(data.object_ids)
    first = configurations.configurations[0]
    side = side_camera(scene, first, t)
    shown = shown_configurations(scene, configurations.configurations, side, t)
    magnification = SIDE_PICTURE_WIDTH / scene.width
    intrinsics = scene.intrinsics * scene.intrinsics.new_tensor([[magnification], [magnification], [1]])
    size = (SIDE_PICTURE_WIDTH, round(magnification * scene.height))
    rows = [
        [
            to_uint8(render_view(scene, sample.scales_like(scene.intrinsics), t, camera, intrinsics, size).rgb)
            for sample in shown
        ]
        for camera in (scene.cam_from_world(t), side)
    ]
    names = [sample.name.replace("_", " ") for sample in shown]
    return image_grid(rows, [[f"{name}: as filmed" for name in names], [f"{name}: from the side" for name in names]])


def busiest_frame(object_ids: Int[Tensor, "t h w"]) -> int:
    """The frame whose masks show most of the moving objects: the product of their pixel counts decides."""
    moving = range(1, int(object_ids.max()) + 1)
    log_counts = [(object_ids == k).sum((1, 2)).double().log1p() for k in moving]
    return int(sum(log_counts, torch.zeros(len(object_ids), dtype=torch.float64)).argmax())


def side_camera(scene: Scene, configuration: Configuration, time_step: int) -> Float[Tensor, "4 4"]:
    """A camera beside the training camera and above it, that looks at the moving objects.

    Where a frame shows none it looks at what there is. It stands on the side where more of the room has been seen: the
    one nearer to a training camera of any time.
    """
    front = render_view(scene, configuration.scales_like(scene.intrinsics), time_step)
    hit = front.depth > 0
    moving = hit & (front.object_ids > 0)
    pivot_depth = float(front.depth[moving if moving.any() else hit].median())
    cameras = [
        orbit(scene.cam_from_world(time_step), pivot_depth, yaw, SIDE_PITCH, SIDE_RETREAT * pivot_depth)
        for yaw in (SIDE_YAW, -SIDE_YAW)
    ]
    filmed_from = invert_rigid(scene.objects[0].cam_from_obj)[:, :3, 3]
    return min(cameras, key=lambda camera: float((filmed_from - invert_rigid(camera)[:3, 3]).norm(dim=1).min()))


def shown_configurations(
    scene: Scene, configurations: tuple[Configuration, ...], cam_from_world: Float[Tensor, "4 4"], time_step: int
) -> list[Configuration]:
    """The first configuration, and a few that differ clearly but keep the moving objects in a camera's view."""
    return _far_apart(_in_view(scene, configurations, cam_from_world, time_step))


def _in_view(
    scene: Scene, configurations: tuple[Configuration, ...], cam_from_world: Float[Tensor, "4 4"], time_step: int
) -> list[Configuration]:
    """The first configuration and those whose moving objects a camera all sees, or those it sees best if too few."""
    first, *others = configurations
    shares = [_least_share_in_view(scene, sample, cam_from_world, time_step) for sample in others]
    best_first = sorted(range(len(others)), key=lambda i: -shares[i])
    num_kept = max(CONFIGURATIONS_SHOWN, sum(share >= IN_VIEW for share in shares))
    return [first, *(others[i] for i in best_first[:num_kept])]


def _least_share_in_view(
    scene: Scene, configuration: Configuration, cam_from_world: Float[Tensor, "4 4"], time_step: int
) -> float:
    """The share of its Gaussians whose centres a camera sees, of the moving object of which it sees least."""
    placed = scene.place(configuration.scales_like(scene.intrinsics), time_step)
    points = transform_points(cam_from_world, placed.means)
    pixels = points @ scene.intrinsics.T
    size = pixels.new_tensor([scene.width, scene.height])
    u_v = pixels[:, :2] / pixels[:, 2:]
    seen = (points[:, 2] > NEAR_PLANE) & (u_v > 0).all(1) & (u_v < size).all(1)
    shares = [float(seen[placed.object_index == k].float().mean()) for k in placed.object_index.unique() if k > 0]
    return min(shares, default=1.0)


def _far_apart(configurations: list[Configuration]) -> list[Configuration]:
    """The first configuration and a few far from it and from each other."""
    scales = torch.tensor([sample.object_scales for sample in configurations])
    picks = farthest_point_subset(scales, CONFIGURATIONS_SHOWN)
    distances = (scales[picks].log() - scales[0].log()).norm(dim=1)
    others = [int(pick) for pick in picks[distances.argsort()[1:]].sort().values]  # for the nearest stands the first
    return [configurations[i] for i in (0, *others)]


def _pictures(view: RenderedView) -> list[UInt8[Tensor, "h w 3"]]:
    near, far = depth_range(view.depth)
    return [to_uint8(view.rgb), color_depth(view.depth, near, far), color_ids(view.object_ids)]
