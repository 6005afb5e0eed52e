"""Cameras in flight: smooth paths through keyframes, and a swing and a spiral around one camera."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.interpolate import CubicHermiteSpline
from torch import Tensor

from osn_gs.errors import OsnGsError
from osn_gs.geometry.cameras import orbit
from osn_gs.geometry.se3 import invert_rigid, quat_to_rotmat, rigid_matrix, rotmat_to_quat

SAME_KEYFRAME = 1e-9  # difference of two poses (centres in world units, unit quaternions) that nobody set on purpose


@dataclass(frozen=True)
class Keyframe:
    """A camera (OpenCV axes), its vertical field of view in radians, and the scene's time in frames."""

    cam_from_world: Float[Tensor, "4 4"]
    fov_y: float
    time: float


@dataclass(frozen=True)
class CameraPath:
    """The cameras of a video's pictures: poses in OpenCV axes, vertical fields of view in radians, times in frames.

    Pictures are `width` x `height` pixels with the principal point in the middle, `fps` of them a second. After the
    last view a `closed` path is back at its first.
    """

    cam_from_world: Float[Tensor, "n 4 4"]
    fov_y: Float[Tensor, "n"]
    times: Float[Tensor, "n"]
    fps: float
    width: int
    height: int
    closed: bool = False


def interpolate_keyframes(
    keyframes: Sequence[Keyframe], num_views: int, closed: bool = False, *, fps: float, width: int, height: int
) -> CameraPath:
    """A smooth path through keyframes, the same time from each to the next, in the first one's dtype and device.

    An open path begins at the first keyframe and ends at the last; a closed one goes on to the first again (its time
    too), and does not repeat it. Camera centres and unit quaternions follow Catmull-Rom splines, field of view and
    time are linear. Turning or moving the world turns or moves the path with it. Between two equal neighbours the
    camera rests. One keyframe makes a camera that stands still.

    Raises:
        OsnGsError: no keyframe, or no view.
    """
    if not keyframes:
        raise OsnGsError("A camera path needs at least one keyframe, got none; add one where the camera should begin.")
    if num_views < 1:
        raise OsnGsError(f"A camera path needs at least one view, got {num_views}; make it last longer.")
    like = keyframes[0].cam_from_world
    poses = torch.stack([keyframe.cam_from_world for keyframe in keyframes]).detach().cpu().double()
    lens_and_time = np.array([[keyframe.fov_y, keyframe.time] for keyframe in keyframes])

    num_segments = len(keyframes) if closed else len(keyframes) - 1
    at = np.linspace(0, num_segments, num_views, endpoint=not closed)
    world_from_cam = _smooth_poses(invert_rigid(poses), at, closed)
    if closed:
        lens_and_time = np.concatenate([lens_and_time, lens_and_time[:1]])
    knots = np.arange(len(lens_and_time))
    fov_y, times = (np.interp(at, knots, values) for values in lens_and_time.T)
    return CameraPath(
        cam_from_world=invert_rigid(world_from_cam).to(like),
        fov_y=like.new_tensor(fov_y),
        times=like.new_tensor(times),
        fps=fps,
        width=width,
        height=height,
        closed=closed,
    )


def swinging_path(
    cam_from_world: Float[Tensor, "4 4"],
    pivot_depth: float,
    num_views: int,
    yaw_degrees: float = 20.0,
    pitch_degrees: float = 6.0,
) -> Float[Tensor, "n 4 4"]:
    """One round of a camera about the point `pivot_depth` ahead of it, which it keeps in the middle (OpenCV axes).

    It starts and ends at the given camera, swings out by `yaw_degrees` to the right, then as far to the left, and rises
    on the way, by `pitch_degrees` where it passes the middle. It is never lower than the given camera: what stands on
    a floor was not seen from below.
    """
    turns = np.linspace(0, 2 * math.pi, num_views)
    return torch.stack(
        [
            orbit(cam_from_world, pivot_depth, yaw_degrees * math.sin(turn), pitch_degrees * (1 - math.cos(turn)) / 2)
            for turn in turns
        ]
    )


def spiral_path(
    cam_from_world: Float[Tensor, "4 4"],
    pivot_depth: float,
    num_views: int,
    turns: int = 2,
    yaw_degrees: float = 8.0,
    pitch_degrees: float = 4.0,
    depth_share: float = 0.15,
) -> Float[Tensor, "n 4 4"]:
    """A camera in circles about a given one, once nearer and once farther, as LLFF (Mildenhall et al. 2019) has it.

    It keeps the point `pivot_depth` ahead of the given camera in the middle (OpenCV axes). The circles are
    `yaw_degrees` and `pitch_degrees` wide to each side as seen from that point; the way along the axis is `depth_share`
    of its depth to each side.
    """
    cameras = []
    for share in np.linspace(0, 1, num_views):
        turn, along = 2 * math.pi * turns * share, math.sin(2 * math.pi * share)
        yaw, pitch = yaw_degrees * math.cos(turn), pitch_degrees * math.sin(turn)
        cameras.append(orbit(cam_from_world, pivot_depth, yaw, pitch, -depth_share * along * pivot_depth))
    return torch.stack(cameras)


def _smooth_poses(
    world_from_cam: Float[Tensor, "k 4 4"], at: Float[np.ndarray, "n"], closed: bool
) -> Float[Tensor, "n 4 4"]:
    """Poses at places along the keyframes: 0 is the first, 1 the second, k the first again where closed.

    Quaternions are splined like centres and normalized. SciPy's RotationSpline would keep the angular acceleration
    continuous as well, but it swings out beyond the keyframes, does not rest between equal ones and cannot be closed.
    """
    count = len(world_from_cam)
    if count == 1:
        return world_from_cam.expand(len(at), 4, 4)
    order = [count - 1, *range(count), 0, 1] if closed else list(range(count))
    quats = _with_aligned_signs(rotmat_to_quat(world_from_cam[:, :3, :3]).numpy()[order])
    values = np.concatenate([world_from_cam[:, :3, 3].numpy()[order], quats], axis=1)
    if not closed:  # neighbours of the ends: on the line through the last two
        values = np.concatenate([2 * values[:1] - values[1:2], values, 2 * values[-1:] - values[-2:-1]])
    splined = torch.from_numpy(_catmull_rom(values)(at))
    return rigid_matrix(quat_to_rotmat(splined[:, 3:]), splined[:, :3])


def _with_aligned_signs(quats: Float[np.ndarray, "k 4"]) -> Float[np.ndarray, "k 4"]:
    """The same rotations, each quaternion with the sign that is nearer to the one before: the shorter way round."""
    turned_over = (quats[1:] * quats[:-1]).sum(axis=1) < 0
    signs = np.cumprod(np.where(turned_over, -1.0, 1.0))
    return quats * np.concatenate([[1.0], signs])[:, None]


def _catmull_rom(values: Float[np.ndarray, "k d"]) -> CubicHermiteSpline:
    """The spline through all values but the first and the last, which only shape its ends; knots 0, 1, ..., k - 3."""
    tangents = (values[2:] - values[:-2]) / 2
    same_as_next = np.linalg.norm(np.diff(values, axis=0), axis=1) < SAME_KEYFRAME
    tangents[same_as_next[:-1] | same_as_next[1:]] = 0
    return CubicHermiteSpline(np.arange(len(tangents)), values[1:-1], tangents)
