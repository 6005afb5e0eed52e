"""Robust bundle adjustment of one object: its poses, its points and, where wanted, the focal length they share.

Levenberg-Marquardt with a Cauchy loss. Unlike COLMAP's, it can hold the motion smooth, which is what poses of small
objects need.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix
from scipy.spatial.transform import Rotation

from osn_gs.preprocess.sfm.levenberg_marquardt import System, minimize

SMALLEST_DEPTH = 1e-3  # of the median depth; nearer points, or points behind, are held there while they are adjusted


@dataclass(frozen=True)
class Observations:
    """Point `points[m]` seen in frame `frames[m]` at `pixels[m]`, at most once in a frame (pixel centres at +0.5)."""

    frames: Int[np.ndarray, "m"]
    points: Int[np.ndarray, "m"]
    pixels: Float[np.ndarray, "m 2"]

    def __len__(self) -> int:
        return len(self.frames)

    def select(self, chosen: Bool[np.ndarray, "m"]) -> Observations:
        return Observations(self.frames[chosen], self.points[chosen], self.pixels[chosen])


@dataclass(frozen=True)
class Geometry:
    """Poses [t 4 4], points [n 3] and the focal length in pixels; the principal point is at `center`."""

    cam_from_obj: Float[np.ndarray, "t 4 4"]
    points: Float[np.ndarray, "n 3"]
    focal: float
    center: Float[np.ndarray, "2"]

    def in_object(self, observations: Observations) -> Float[np.ndarray, "m 3"]:
        """Where each observation's point was in the object's frame when it was seen."""
        return self.points[observations.points]

    def in_camera(self, observations: Observations) -> Float[np.ndarray, "m 3"]:
        """Each observation's point in the coordinates of the camera that saw it."""
        pose = self.cam_from_obj[observations.frames]
        return np.einsum("mij,mj->mi", pose[:, :3, :3], self.in_object(observations)) + pose[:, :3, 3]

    def residuals(self, observations: Observations) -> Float[np.ndarray, "m 2"]:
        """Projection minus observation in pixels; infinite for points behind the camera."""
        points_cam = self.in_camera(observations)
        with np.errstate(divide="ignore", invalid="ignore"):
            projected = self.focal * points_cam[:, :2] / points_cam[:, 2:] + self.center
        return np.where(points_cam[:, 2:] > 0, projected - observations.pixels, np.inf)


@dataclass(frozen=True)
class Smoothness:
    """How much the motion may change from frame to frame; standard deviations of second differences."""

    rotation: float
    """In radians."""
    translation: float
    """Of the object's origin in the camera, as a share of its median depth."""


@dataclass(frozen=True)
class AdjustmentOptions:
    """What is adjusted, and when it is good enough."""

    loss_scale: float = 1.0
    """Error in pixels where the Cauchy loss begins to forgive."""
    smoothness: Smoothness | None = None
    adjust_focal: bool = False
    adjust_poses: bool = True
    max_steps: int = 50
    tolerance: float = 1e-6
    """Stop when a step lowers the cost by less than this share."""


@dataclass(frozen=True)
class Adjustment:
    """A bundle adjustment's outcome; `cost` is the sum of robust squared errors over loss_scale^2, plus the prior's."""

    geometry: Geometry
    cost: float
    num_observations: int
    steps: int


def adjust(geometry: Geometry, observations: Observations, options: AdjustmentOptions) -> Adjustment:
    """Minimize the robust reprojection error over points, poses and, where asked for, the focal length.

    Frames without observations keep their poses unless smoothness moves them. The object's frame and scale are
    left to drift along the directions that change nothing.
    """
    sums = GroupSums(observations, len(geometry.cam_from_obj), len(geometry.points))
    geometry, cost, steps = minimize(
        geometry,
        lambda geometry: _cost(geometry, observations, options),
        lambda geometry: _normal_equations(geometry, observations, options, sums),
        lambda geometry, system, damping: _step(geometry, system, damping, options),
        options.max_steps,
        options.tolerance,
    )
    return Adjustment(geometry, cost, len(observations), steps)


def focal_deviation(geometry: Geometry, observations: Observations) -> float:
    """Relative standard deviation of an adjusted focal length, were the observations' errors independent."""
    options = AdjustmentOptions(adjust_focal=True)
    sums = GroupSums(observations, len(geometry.cam_from_obj), len(geometry.points))
    system = _normal_equations(geometry, observations, options, sums)
    reduced, _, _ = system.without_points(damping=1e-9)
    kept = np.diag(reduced) > 0
    kept[:6] = False  # the first frame's pose fixes the object's frame; its scale stays free, which pinv copes with
    variance = np.linalg.pinv(reduced[np.ix_(kept, kept)], rcond=1e-12, hermitian=True)[-1, -1]
    squared = np.minimum((geometry.residuals(observations) ** 2).sum(1), 9 * options.loss_scale**2)
    return float(np.sqrt(max(variance, 0.0) * squared.mean() / 2))


class GroupSums:
    """Sums over the observations of each frame, and of each point."""

    def __init__(self, observations: Observations, num_frames: int, num_points: int) -> None:
        ones, order = np.ones(len(observations)), np.arange(len(observations))
        self.by_frame = csr_matrix((ones, (observations.frames, order)), (num_frames, len(order)))
        self.by_point = csr_matrix((ones, (observations.points, order)), (num_points, len(order)))


def _clamped_depths(points_cam: Float[np.ndarray, "m 3"]) -> Float[np.ndarray, "m"]:
    return np.maximum(points_cam[:, 2], SMALLEST_DEPTH * np.median(np.abs(points_cam[:, 2])))


def _clamped_residuals(geometry: Geometry, observations: Observations) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finite residuals [m 2], the points in the cameras [m 3] and their positive depths [m]."""
    points_cam = geometry.in_camera(observations)
    depths = _clamped_depths(points_cam)
    projected = geometry.focal * points_cam[:, :2] / depths[:, None] + geometry.center
    return projected - observations.pixels, points_cam, depths


def _cost(geometry: Geometry, observations: Observations, options: AdjustmentOptions) -> float:
    cost = robust_cost(geometry, observations, options.loss_scale)
    if options.smoothness is not None:
        prior, _ = smoothness_terms(geometry, options.smoothness)
        cost += float((prior**2).sum())
    return cost


@dataclass(frozen=True)
class ObservationTerms:
    """What the observations contribute to the normal equations: residuals in pixels, their weights under the Cauchy
    loss, and the residuals' derivatives by the frame's pose (turn, then shift, both in the camera) and by where the
    point is in the object's frame."""

    residuals: Float[np.ndarray, "m 2"]
    weights: Float[np.ndarray, "m"]
    by_pose: Float[np.ndarray, "m 2 6"]
    by_place: Float[np.ndarray, "m 2 3"]


def observation_terms(geometry: Geometry, observations: Observations, loss_scale: float) -> ObservationTerms:
    """Residuals with their derivatives, linearized for re-weighted least squares."""
    residuals, points_cam, depths = _clamped_residuals(geometry, observations)
    weights = 1 / (1 + (residuals**2).sum(1) / loss_scale**2) / loss_scale**2
    projection = np.zeros((len(observations), 2, 3))  # of the pixel by the point in the camera
    projection[:, 0, 0] = projection[:, 1, 1] = geometry.focal / depths
    projection[:, :, 2] = -geometry.focal * points_cam[:, :2] / depths[:, None] ** 2
    poses = geometry.cam_from_obj[observations.frames]
    turned = points_cam - poses[:, :3, 3]
    by_pose = np.concatenate([-projection @ cross_matrices(turned), projection], axis=2)
    return ObservationTerms(residuals, weights, by_pose, projection @ poses[:, :3, :3])


def robust_cost(geometry: Geometry, observations: Observations, loss_scale: float) -> float:
    """Sum of the observations' Cauchy losses, over loss_scale^2."""
    residuals, _, _ = _clamped_residuals(geometry, observations)
    return float(np.log1p((residuals**2).sum(1) / loss_scale**2).sum())


def pose_and_point_equations(
    geometry: Geometry,
    observations: Observations,
    sums: GroupSums,
    terms: ObservationTerms,
    by_point: Float[np.ndarray, "m 2 3"],
    smoothness: Smoothness | None,
    num_others: int,
) -> System:
    """What poses and points contribute; their 6 t unknowns come first, room for `num_others` is left behind them.

    `by_point` are the residuals' derivatives by the points.
    """
    num_frames, num_points, m = len(geometry.cam_from_obj), len(geometry.points), len(observations)
    by_pose, weights, residuals = terms.by_pose, terms.weights, terms.residuals
    weighted_pose, weighted_point = by_pose * weights[:, None, None], by_point * weights[:, None, None]
    num_poses, size = 6 * num_frames, 6 * num_frames + num_others
    cameras, cameras_gradient = np.zeros((size, size)), np.zeros(size)
    coupling = np.zeros((num_points, size, 3))
    each = np.arange(num_frames)
    diagonal = sums.by_frame @ (weighted_pose.swapaxes(-1, -2) @ by_pose).reshape(m, 36)
    blocks = np.zeros((num_frames, 6, num_frames, 6))
    blocks[each, :, each] = diagonal.reshape(num_frames, 6, 6)
    cameras[:num_poses, :num_poses] = blocks.reshape(num_poses, num_poses)
    cameras_gradient[:num_poses] = (sums.by_frame @ np.einsum("mij,mi->mj", weighted_pose, residuals)).ravel()
    points = (sums.by_point @ (weighted_point.swapaxes(-1, -2) @ by_point).reshape(m, 9)).reshape(num_points, 3, 3)
    points_gradient = sums.by_point @ np.einsum("mij,mi->mj", weighted_point, residuals)
    frame_coupling = coupling[:, :num_poses].reshape(num_points, num_frames, 6, 3)
    frame_coupling[observations.points, observations.frames] = weighted_pose.swapaxes(-1, -2) @ by_point
    if smoothness is not None:
        prior, by_prior = smoothness_terms(geometry, smoothness)
        cameras[:num_poses, :num_poses] += by_prior.T @ by_prior
        cameras_gradient[:num_poses] += by_prior.T @ prior
    return System(cameras, cameras_gradient, points, points_gradient, coupling)


def _normal_equations(
    geometry: Geometry, observations: Observations, options: AdjustmentOptions, sums: GroupSums
) -> System:
    terms = observation_terms(geometry, observations, options.loss_scale)
    by_point = terms.by_place
    system = pose_and_point_equations(geometry, observations, sums, terms, by_point, options.smoothness, num_others=1)
    if options.adjust_focal:  # by its logarithm
        by_focal = terms.residuals + observations.pixels - geometry.center
        weighted_focal = by_focal * terms.weights[:, None]
        system.cameras[-1, -1] = (weighted_focal * by_focal).sum()
        system.cameras_gradient[-1] = (weighted_focal * terms.residuals).sum()
        cross = (sums.by_frame @ np.einsum("mi,mij->mj", weighted_focal, terms.by_pose)).ravel()
        system.cameras[-1, :-1] = system.cameras[:-1, -1] = cross
        system.coupling[:, -1] = sums.by_point @ np.einsum("mi,mij->mj", weighted_focal, by_point)
    return system


def _step(geometry: Geometry, system: System, damping: float, options: AdjustmentOptions) -> Geometry:
    """The geometry after one damped Gauss-Newton step."""
    camera_step, point_step = system.step(damping, hold_cameras=not options.adjust_poses)
    poses = moved_poses(geometry.cam_from_obj, camera_step[:-1])
    focal = geometry.focal * float(np.exp(np.clip(camera_step[-1], -0.2, 0.2)))
    return replace(geometry, cam_from_obj=poses, points=geometry.points + point_step, focal=focal)


def moved_poses(cam_from_obj: Float[np.ndarray, "t 4 4"], step: Float[np.ndarray, "6t"]) -> Float[np.ndarray, "t 4 4"]:
    """Poses after a turn and a shift in each camera."""
    turns, shifts = np.split(step.reshape(-1, 6), 2, axis=1)
    poses = cam_from_obj.copy()
    poses[:, :3, :3] = Rotation.from_rotvec(turns).as_matrix() @ poses[:, :3, :3]
    poses[:, :3, 3] += shifts
    return poses


def smoothness_terms(geometry: Geometry, smoothness: Smoothness) -> tuple[np.ndarray, np.ndarray]:
    """Second differences of the poses over their standard deviations [6(t-2)], and their Jacobian [6(t-2), 6t].

    The Jacobian takes a turn to be small from one frame to the next but one.
    """
    rotations, shifts = geometry.cam_from_obj[:, :3, :3], geometry.cam_from_obj[:, :3, 3]
    num_frames = len(rotations)
    between = rotations[1:] @ rotations[:-1].swapaxes(-1, -2)
    turns = Rotation.from_matrix(between).as_rotvec()
    depth = max(float(np.median(np.abs(shifts[:, 2]))), 1e-12)
    rotation_terms = np.diff(turns, axis=0) / smoothness.rotation
    shift_terms = np.diff(shifts, 2, axis=0) / (smoothness.translation * depth)
    jacobian = np.zeros((2, num_frames - 2, 3, num_frames, 6))
    frames = np.arange(num_frames - 2)
    eye = np.eye(3)
    jacobian[0, frames, :, frames + 2, :3] = eye / smoothness.rotation
    jacobian[0, frames, :, frames + 1, :3] = -(eye + between[1:]) / smoothness.rotation
    jacobian[0, frames, :, frames, :3] = between[:-1] / smoothness.rotation
    for offset, factor in ((0, 1.0), (1, -2.0), (2, 1.0)):
        jacobian[1, frames, :, frames + offset, 3:] = factor * eye / (smoothness.translation * depth)
    terms = np.concatenate([rotation_terms.ravel(), shift_terms.ravel()])
    return terms, jacobian.reshape(len(terms), 6 * num_frames)


def cross_matrices(vectors: Float[np.ndarray, "m 3"]) -> Float[np.ndarray, "m 3 3"]:
    """[v]x with [v]x w = v x w."""
    matrices = np.zeros((len(vectors), 3, 3))
    x, y, z = vectors.T
    matrices[:, 0, 1], matrices[:, 0, 2], matrices[:, 1, 2] = -z, y, -x
    matrices[:, 1, 0], matrices[:, 2, 0], matrices[:, 2, 1] = z, -y, x
    return matrices
