"""Pictures of a finished run: training views, several configurations from the side, the valid set."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from osn_gs.data.scene_data import SceneData
from osn_gs.export.configurations import Configuration, ConfigurationSet
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
from osn_gs.object_scales.nested_sets import sample_valid
from osn_gs.object_scales.oracle import ScaleOracle
from osn_gs.scene.render import RenderedView, render_view
from osn_gs.scene.scene import Scene

SIDE_YAW, SIDE_PITCH = 35.0, 12.0  # degrees: far enough that a wrong scale shows, near enough that few holes do
TRAIN_FRAMES_SHOWN = 3
CONFIGURATIONS_SHOWN = 5
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
    write_png(folder / "configurations.png", configurations_from_the_side(scene, configurations))
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
    for t in _spread_over(scene.num_frames, TRAIN_FRAMES_SHOWN):
        view = render_view(scene, _scales(scene, configuration), t)
        rows.append([data.images[t], *_pictures(view)])
        captions.append([f"frame {t}: input", "rendered", "depth", "objects"])
    return image_grid(rows, captions)


def held_out_views(scene: Scene, data: SceneData, configuration: Configuration) -> UInt8[Tensor, "h w 3"]:
    """The middle view of every held-out split: the truth beside what one configuration renders."""
    rows, captions = [], []
    for split, views in data.held_out.items():
        held_out = views[len(views) // 2]
        camera = held_out.cam_from_background.to(scene.intrinsics)
        view = render_view(scene, _scales(scene, configuration), held_out.time_step, camera)
        rows.append([held_out.image, *_pictures(view)])
        captions.append([f"{split}: truth", f"rendered, {configuration.name}", "depth", "objects"])
    return image_grid(rows, captions)


def configurations_from_the_side(scene: Scene, configurations: ConfigurationSet) -> UInt8[Tensor, "h w 3"]:
    """One moment under several configurations: alike for the training camera, different worlds from the side."""
    t = scene.num_frames // 2
    shown = configurations.configurations[:CONFIGURATIONS_SHOWN]
    front = [render_view(scene, _scales(scene, configuration), t) for configuration in shown]
    pivot_depth = float(front[0].depth[front[0].object_ids > 0].median())
    side_camera = orbit(scene.cam_from_world(t), pivot_depth, SIDE_YAW, SIDE_PITCH)
    side = [render_view(scene, _scales(scene, configuration), t, side_camera) for configuration in shown]
    rows = [[to_uint8(view.rgb) for view in front], [to_uint8(view.rgb) for view in side]]
    names = [configuration.name.removeprefix("configuration_") for configuration in shown]
    return image_grid(rows, [[f"{name}: camera" for name in names], [f"{name}: from the side" for name in names]])


def _pictures(view: RenderedView) -> list[UInt8[Tensor, "h w 3"]]:
    near, far = depth_range(view.depth)
    return [to_uint8(view.rgb), color_depth(view.depth, near, far), color_ids(view.object_ids)]


def _scales(scene: Scene, configuration: Configuration) -> Float[Tensor, "k"]:
    return torch.tensor(configuration.object_scales).to(scene.intrinsics)


def _spread_over(num_frames: int, count: int) -> list[int]:
    return sorted({round(i * (num_frames - 1) / max(count - 1, 1)) for i in range(count)})
