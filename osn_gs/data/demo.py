"""The built-in demo scene, written as a scene folder with full truth."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from osn_gs.data import demo_scene
from osn_gs.data.bending_truth import SurfaceBending
from osn_gs.data.carried_solids import bending_of_solids
from osn_gs.data.held_out import align_cameras, camera_in_background
from osn_gs.data.osn_writer import SyntheticTruth, write_scene
from osn_gs.data.ray_casting import PinholeGrid, RayCastView, Solid, cast_view
from osn_gs.data.reconstruction import ObjectReconstruction, to_scene_units
from osn_gs.data.scene_data import HeldOutView, SceneData, SceneTruth
from osn_gs.data.true_poses import reconstruct_from_truth
from osn_gs.geometry.se3 import invert_rigid
from osn_gs.threads import num_threads

Objects = tuple[list[Solid], ...]
"""The solids of every object at one time."""

NEAR, FAR = 1.0, 8.0
LIGHT = np.array([0.25, -0.3, 0.92])  # almost from above, so that turning on the table changes no colours


@dataclass(frozen=True)
class Viewpoint:
    """A camera (camera-to-world, OpenCV axes) at the time of a training frame."""

    world_from_cam: Float[np.ndarray, "4 4"]
    time_step: int


def write_demo_scene(
    folder: Path | str,
    num_frames: int = 24,
    width: int = 160,
    height: int = 120,
    seed: int = 0,
    num_held_out: int = 8,
    bending: bool = True,
) -> Path:
    """Ray-cast the demo scene into a new folder in the layout `load_scene` reads; deterministic.

    Background and three moving toys (K = 4) that hide each other in turn, `num_held_out` views each in the splits
    "test" (training cameras at other times) and "stereo" (cameras off the path), true depths, ids, poses and scales,
    and as an extra the depths of every object rendered alone. One toy, the ring tower, bends, and the folder says how
    (`bending_truth.py`); without `bending` all are rigid. The folder `sfm` in it stands for a preprocessed clip:
    exact poses in gauges of each object's own, and sparse points with noise, both drawn with `seed`.

    Raises:
        DatasetError: the folder exists already.
    """
    grid = PinholeGrid(width, height, 0.5 * width / math.tan(0.5 * demo_scene.FIELD_OF_VIEW))
    viewpoints = {
        "train": [Viewpoint(demo_scene.camera_pose(_progress(t, num_frames)), t) for t in range(num_frames)],
        "test": replayed_viewpoints(num_frames, num_held_out),
        "stereo": stereo_viewpoints(num_frames, num_held_out),
    }
    objects = [demo_scene.objects(_progress(t, num_frames), bending) for t in range(num_frames)]
    rendered = {split: _render(views, objects, grid) for split, views in viewpoints.items()}
    scene, truth = _assemble(Path(folder).name, viewpoints, rendered, grid, seed)
    if bending:
        truth = replace(truth, bending=_true_bending(objects, rendered["train"], truth, grid))
    write_scene(Path(folder), scene, truth=truth)
    return Path(folder)


def replayed_viewpoints(num_frames: int, count: int) -> list[Viewpoint]:
    """Training cameras at times half a clip away."""
    steps = np.linspace(0, num_frames, count, endpoint=False).astype(int).tolist()
    return [
        Viewpoint(demo_scene.camera_pose(_progress((t + num_frames // 2) % num_frames, num_frames)), t) for t in steps
    ]


def stereo_viewpoints(num_frames: int, count: int) -> list[Viewpoint]:
    """Cameras to the left and right of the path and above it."""
    steps = np.linspace(0, num_frames, count, endpoint=False).astype(int).tolist()
    offsets = [(-20.0, 0.15), (20.0, 0.0), (-10.0, 0.45), (14.0, 0.3)]
    return [
        Viewpoint(demo_scene.camera_pose(_progress(t, num_frames), *offsets[i % len(offsets)]), t)
        for i, t in enumerate(steps)
    ]


def _progress(time_step: int, num_frames: int) -> float:
    return time_step / max(num_frames - 1, 1)


def _render(viewpoints: list[Viewpoint], objects: list[Objects], grid: PinholeGrid) -> list[RayCastView]:
    """Views of `objects[t]` at the viewpoints' times."""

    def render(viewpoint: Viewpoint) -> RayCastView:
        t = viewpoint.time_step
        world_from_obj = demo_scene.object_poses(_progress(t, len(objects)))
        return cast_view(objects[t], world_from_obj, viewpoint.world_from_cam, grid, LIGHT)

    with ThreadPoolExecutor(max_workers=num_threads()) as pool:  # NumPy works outside the interpreter lock
        return list(pool.map(render, viewpoints))


def _true_bending(
    objects: list[Objects], rendered: list[RayCastView], truth: SyntheticTruth, grid: PinholeGrid
) -> dict[int, SurfaceBending]:
    """How the ring tower bends in the training frames."""
    k = demo_scene.RING_TOWER
    at_rest = demo_scene.objects(0.0, bending=False)[k]
    obj_from_cam = (invert_rigid(truth.world_from_obj[k]) @ truth.world_from_cam).numpy()
    return {k: bending_of_solids(k, at_rest, [solids[k] for solids in objects], rendered, obj_from_cam, grid)}


def _assemble(
    name: str,
    viewpoints: dict[str, list[Viewpoint]],
    rendered: dict[str, list[RayCastView]],
    grid: PinholeGrid,
    seed: int,
) -> tuple[SceneData, SyntheticTruth]:
    """The scene as structure-from-motion would know it, and its truth."""
    cameras = {
        split: torch.from_numpy(np.stack([v.world_from_cam for v in views])) for split, views in viewpoints.items()
    }
    num_frames = len(viewpoints["train"])
    poses = [demo_scene.object_poses(_progress(t, num_frames)) for t in range(num_frames)]
    world_from_obj = torch.from_numpy(np.stack(poses, axis=1))
    depths = torch.from_numpy(np.stack([view.depth for view in rendered["train"]])).double()
    object_ids = torch.from_numpy(np.stack([view.object_ids for view in rendered["train"]]))
    intrinsics = torch.from_numpy(grid.intrinsics)
    true_cam_from_obj = invert_rigid(cameras["train"]) @ world_from_obj
    reconstruction = reconstruct_from_truth(
        true_cam_from_obj, object_ids, depths, intrinsics, torch.Generator().manual_seed(seed)
    )
    objects = to_scene_units(reconstruction, NEAR, FAR)
    scene = SceneData(
        name=name,
        images=torch.from_numpy(np.stack([view.image for view in rendered["train"]])),
        object_ids=object_ids,
        intrinsics=intrinsics,
        cam_from_obj=torch.stack([obj.cam_from_obj for obj in objects]),
        visible=torch.stack([obj.visible for obj in objects]),
        sparse_points=tuple(obj.points for obj in objects),
        scale_ranges=torch.tensor([(1.0, 1.0), *(obj.scale_range for obj in objects[1:])], dtype=torch.float64),
        near=NEAR,
        far=FAR,
        object_names=demo_scene.OBJECT_NAMES,
        held_out=_held_out(viewpoints, rendered, cameras["train"], objects[0], intrinsics),
        truth=_truth(objects, rendered["train"]),
    )
    return scene, SyntheticTruth(cameras["train"], world_from_obj, depths, objects[0].true_scale, cameras)


def _held_out(
    viewpoints: dict[str, list[Viewpoint]],
    rendered: dict[str, list[RayCastView]],
    world_from_cam: Float[Tensor, "t 4 4"],
    background: ObjectReconstruction,
    intrinsics: Float[Tensor, "3 3"],
) -> dict[str, tuple[HeldOutView, ...]]:
    background_from_world = align_cameras(
        world_from_cam, invert_rigid(background.cam_from_obj), 1 / background.true_scale
    )
    held_out = {}
    for split in ("test", "stereo"):
        held_out[split] = tuple(
            HeldOutView(
                name=f"{split}/{i:04d}",
                time_step=viewpoint.time_step,
                cam_from_background=camera_in_background(
                    torch.from_numpy(viewpoint.world_from_cam), background_from_world
                ),
                image=torch.from_numpy(view.image),
                object_ids=torch.from_numpy(view.object_ids),
                depth=torch.from_numpy(view.depth),
                intrinsics=intrinsics,
            )
            for i, (viewpoint, view) in enumerate(zip(viewpoints[split], rendered[split], strict=True))
        )
    return held_out


def _truth(objects: tuple[ObjectReconstruction, ...], rendered: list[RayCastView]) -> SceneTruth:
    true_scales = torch.tensor([obj.true_scale for obj in objects], dtype=torch.float64)
    layer_depths = torch.from_numpy(np.stack([view.layer_depths for view in rendered]))
    return SceneTruth(
        object_scales=true_scales / true_scales[0],
        background_scale=float(true_scales[0]),
        layer_depths=layer_depths / true_scales.float()[:, None, None],
    )
