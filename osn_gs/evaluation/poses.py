"""How far estimated poses of an object are from the true ones, once their frames and units are brought together."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from osn_gs.data.scene_data import SceneData
from osn_gs.data.set_truth import SetTruth, read_set_truth
from osn_gs.geometry.alignment import align_poses
from osn_gs.geometry.se3 import invert_rigid

LEAST_PATH = 1e-6  # of the distance: a camera that moves less about an object stands still


@dataclass(frozen=True)
class PoseErrors:
    """Errors in the r registered frames, after the best Sim(3) alignment of the camera's path about the object.

    `rotation` is in degrees; `centre` the distance between estimated and true camera centre, as a share of the
    distance between camera and object. `scale` is how many of the estimate's units make one true unit.
    """

    frames: Int[np.ndarray, "r"]
    rotation: Float[np.ndarray, "r"]
    centre: Float[np.ndarray, "r"]
    scale: float


@dataclass(frozen=True)
class ObjectPoseErrors:
    """One object's `PoseErrors` in a few numbers: rotations in degrees, centres in per cent of the distance.

    `frames` counts the frames that show the object, `registered` those of them that have a pose. Errors are None
    where fewer than two frames have one, and those of the centre where the camera does not move about the object (then
    no scale aligns its path) or the object's depth is known nowhere.
    """

    frames: int
    registered: int
    rotation_mean: float | None = None
    rotation_max: float | None = None
    centre_mean: float | None = None
    centre_max: float | None = None


def scene_pose_errors(data: SceneData) -> tuple[ObjectPoseErrors, ...] | None:
    """Errors of the poses that every object of a scene came with, against those its folder calls true.

    About zero for a scene loaded with true poses. None where the folder has no true poses and depths, or has them of
    another number of objects.

    Raises:
        DatasetError: a file of the truth is missing or broken.
    """
    truth = None if data.folder is None else read_set_truth(data.folder)
    if truth is None or len(truth.cam_from_obj) != data.num_objects:
        return None
    return tuple(object_pose_errors(data.cam_from_obj[k], data.visible[k], truth, k) for k in range(data.num_objects))


def object_pose_errors(
    cam_from_obj: Float[Tensor, "t 4 4"], visible: Bool[Tensor, "t"], truth: SetTruth, object_id: int
) -> ObjectPoseErrors:
    """Compare one object's poses (any frame and unit, OpenCV camera axes) with its true ones where it is shown."""
    shown = (truth.object_ids == object_id).any(axis=(1, 2))
    registered = visible.numpy() & shown
    found = ObjectPoseErrors(frames=int(shown.sum()), registered=int(registered.sum()))
    if found.registered < 2:
        return found
    distance = object_distance(truth.depths, truth.object_ids, object_id)
    errors = pose_errors(cam_from_obj.double().numpy(), registered, truth.cam_from_obj[object_id].numpy(), distance)
    found = replace(found, rotation_mean=float(errors.rotation.mean()), rotation_max=float(errors.rotation.max()))
    if not _path_length(truth.cam_from_obj[object_id].numpy()[registered]) > LEAST_PATH * distance:
        return found
    return replace(found, centre_mean=100 * float(errors.centre.mean()), centre_max=100 * float(errors.centre.max()))


def _path_length(cam_from_obj: Float[np.ndarray, "t 4 4"]) -> float:
    """Root mean square distance of the camera's places about the object from their middle."""
    centres = invert_rigid(torch.from_numpy(cam_from_obj))[:, :3, 3]
    return float((centres - centres.mean(0)).square().sum(1).mean().sqrt())


def pose_errors(
    cam_from_obj: Float[np.ndarray, "t 4 4"],
    registered: Bool[np.ndarray, "t"],
    true_cam_from_obj: Float[np.ndarray, "t 4 4"],
    distance: float,
) -> PoseErrors:
    """Compare an object's estimated poses with its true ones over the registered frames (at least two).

    A reconstruction's frame and unit of length are arbitrary. They are brought to the truth's by `align_poses`:
    the rotation from the orientations, which hold also where the camera hardly moves about the object, scale and
    translation from the centres.

    Args:
        cam_from_obj: estimated poses in any frame and unit; OpenCV camera axes, as the true ones.
        registered: frames whose estimate counts.
        true_cam_from_obj: true poses in true units.
        distance: of camera and object, in true units, to which centre errors are relative.
    """
    frames = np.flatnonzero(registered)
    assert len(frames) >= 2, "poses of one frame align with anything"
    true_from_cam = invert_rigid(torch.from_numpy(true_cam_from_obj[frames]))
    estimated_from_cam = invert_rigid(torch.from_numpy(cam_from_obj[frames]))
    aligned = align_poses(true_from_cam, estimated_from_cam)
    turned = (aligned.rotation @ true_from_cam[:, :3, :3]).mT @ estimated_from_cam[:, :3, :3]
    off_centre = (aligned.apply(true_from_cam[:, :3, 3]) - estimated_from_cam[:, :3, 3]).norm(dim=1) / abs(
        aligned.scale
    )
    return PoseErrors(frames, rotation_angles(turned.numpy()), (off_centre / distance).numpy(), aligned.scale)


def rotation_angles(rotations: Float[np.ndarray, "n 3 3"]) -> Float[np.ndarray, "n"]:
    """Angles in degrees, 0 to 180, by which rotation matrices turn.

    Sine and cosine together: the arc cosine alone loses half the digits at small angles.
    """
    axis = np.stack([rotations[:, j, i] - rotations[:, i, j] for i, j in ((1, 2), (2, 0), (0, 1))], axis=1)
    return np.degrees(np.arctan2(np.linalg.norm(axis, axis=1), np.trace(rotations, axis1=1, axis2=2) - 1))


def object_distance(depths: Float[np.ndarray, "t h w"], object_ids: Int[np.ndarray, "t h w"], object_id: int) -> float:
    """Median z-depth of an object's pixels over a clip, to which centre errors are relative; NaN if none is known."""
    seen = depths[(object_ids == object_id) & np.isfinite(depths) & (depths > 0)]
    return float(np.median(seen)) if seen.size > 0 else math.nan
