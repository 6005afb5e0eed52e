"""How well points on the surface of an object that bends are followed in 3D."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from osn_gs.data.bending_truth import BendingTruth, SurfaceTracks, bending_objects, read_bending_truth
from osn_gs.data.pinhole import unproject
from osn_gs.data.scene_data import SceneData
from osn_gs.geometry.se3 import invert_rigid, quat_to_rotmat, transform_points
from osn_gs.scene.render import render_layer
from osn_gs.scene.scene import ObjectGroup, Scene

NUM_FRAMES, NUM_POINTS = 4, 400  # that points are followed from, and points of each of these frames
SEEN = 0.5  # opacity of the object's layer from which on a pixel shows it


@dataclass(frozen=True)
class TrackingError:
    """How far tracked surface points are from the truth, in % of the object's size: mean and median of the distances,
    and the means of their parts across and along the camera axis. `num_pairs` of point and frame were compared; None
    where there is no pair."""

    mean: float | None
    median: float | None
    across: float | None
    along: float | None
    num_pairs: int


def scene_tracking_errors(scene: Scene, data: SceneData) -> dict[str, TrackingError]:
    """Of every object whose true bending the scene's folder stores, by name, at the true object scales."""
    if data.folder is None or data.truth is None:
        return {}
    frames = torch.linspace(0, scene.num_frames - 1, min(NUM_FRAMES, scene.num_frames)).round().long().tolist()
    return {
        data.object_names[k]: tracking_error(
            scene, k, float(data.truth.object_scales[k]), read_bending_truth(data.folder, k, tuple(frames), NUM_POINTS)
        )
        for k in bending_objects(data.folder)
        if k < data.num_objects
    }


@torch.no_grad()
def tracking_error(scene: Scene, k: int, object_scale: float, truth: BendingTruth) -> TrackingError:
    """Carry what pixels of object k show into all other frames with the Gaussian nearest to it, and compare.

    A pixel's point is where the object's layer lies in depth. `object_scale` is the true one; the background's unit is
    found from the cameras' ways. Its pose from the reconstruction and its deformation both count.
    """
    group = scene.objects[k]
    unit = _background_unit(scene, truth) * object_scale
    errors = [_track_errors(scene, group, unit, tracks) for tracks in truth.tracks]
    percent = 100 / truth.size * torch.cat(errors)
    if len(percent) == 0:
        return TrackingError(None, None, None, None, 0)
    distances = percent.norm(dim=1)
    return TrackingError(
        mean=float(distances.mean()),
        median=float(distances.median()),
        across=float(percent[:, :2].norm(dim=1).mean()),
        along=float(percent[:, 2].abs().mean()),
        num_pairs=len(percent),
    )


def _background_unit(scene: Scene, truth: BendingTruth) -> float:
    """True length of one unit of the background: the camera's travel in both."""
    centres = invert_rigid(scene.objects[0].cam_from_obj.cpu().double())[:, :3, 3]
    spread = [(path - path.mean(dim=0)).norm() for path in (truth.camera_centres.double(), centres)]
    return float(spread[0] / spread[1])


def _track_errors(scene: Scene, group: ObjectGroup, unit: float, tracks: SurfaceTracks) -> Float[Tensor, "n 3"]:
    """Differences from the truth in the cameras of all other frames with a pose, in true units."""
    if not group.visible[tracks.frame]:
        return torch.zeros(0, 3, dtype=torch.float64)
    layer = render_layer(scene, group, tracks.frame)
    size = torch.tensor([scene.width, scene.height])
    pixels = tracks.pixels * size
    columns, rows = pixels.floor().long().unbind(-1)
    shown = layer.alpha[rows, columns].cpu() > SEEN
    depths = layer.depth[rows, columns].cpu().double()
    in_camera = unproject(pixels, depths, scene.intrinsics.cpu().double())[shown]
    start = transform_points(invert_rigid(group.cam_from_obj[tracks.frame].cpu().double()), in_camera)
    means, turns = _gaussians_at(group, tracks.frame)
    nearest = torch.cdist(start, means).argmin(dim=1)
    held = turns[nearest].transpose(1, 2) @ (start - means[nearest])[:, :, None]  # in the Gaussian's own axes
    errors = []
    for t in range(scene.num_frames):
        if t == tracks.frame or not group.visible[t]:
            continue
        means, turns = _gaussians_at(group, t)
        carried = means[nearest] + (turns[nearest] @ held).squeeze(-1)
        arrived = transform_points(group.cam_from_obj[t].cpu().double(), carried)
        errors.append(unit * arrived - tracks.in_camera[t, shown])
    return torch.cat(errors)


def _gaussians_at(group: ObjectGroup, time_step: int) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3 3"]]:
    means, quats = group.at(time_step)
    return means.cpu().double(), quat_to_rotmat(quats.cpu().double())
