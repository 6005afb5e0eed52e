"""Robust bundle adjustment of one object: its poses, its points and, where wanted, the focal length they share.

Levenberg-Marquardt on the reduced camera system (Triggs et al., "Bundle Adjustment - A Modern Synthesis", 2000), with
a Cauchy loss. Dense linear algebra: made for some hundred frames and some thousand points. Unlike COLMAP's, it can
hold the motion smooth, which is what poses of small objects need.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix
from scipy.spatial.transform import Rotation

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

    def in_camera(self, observations: Observations) -> Float[np.ndarray, "m 3"]:
        """Each observation's point in the coordinates of the camera that saw it."""
        pose = self.cam_from_obj[observations.frames]
        return np.einsum("mij,mj->mi", pose[:, :3, :3], self.points[observations.points]) + pose[:, :3, 3]

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


@dataclass(frozen=True)
class _System:
    """Normal equations: cameras [c c], their right-hand side, points [n 3 3], theirs, and what couples both."""

    cameras: Float[np.ndarray, "c c"]
    cameras_gradient: Float[np.ndarray, "c"]
    points: Float[np.ndarray, "n 3 3"]
    points_gradient: Float[np.ndarray, "n 3"]
    coupling: Float[np.ndarray, "n c 3"] = field(repr=False)


def adjust(geometry: Geometry, observations: Observations, options: AdjustmentOptions) -> Adjustment:
    """Minimize the robust reprojection error over points, poses and, where asked for, the focal length.

    Frames without observations keep their poses unless smoothness moves them. The object's frame and scale are
    left to drift along the directions that change nothing.
    """
    sums = _GroupSums(observations, len(geometry.cam_from_obj), len(geometry.points))
    cost = _cost(geometry, observations, options)
    damping, steps = 1e-4, 0
    while steps < options.max_steps:
        steps += 1
        system = _normal_equations(geometry, observations, options, sums)
        improved = False
        while damping < 1e8:
            candidate = _step(geometry, system, damping, options)
            candidate_cost = _cost(candidate, observations, options)
            if candidate_cost < cost:
                improved = True
                break
            damping *= 10
        if not improved:
            break
        gain, geometry, cost = cost - candidate_cost, candidate, candidate_cost
        damping = max(damping / 5, 1e-10)
        if gain <= options.tolerance * cost:
            break
    return Adjustment(geometry, cost, len(observations), steps)


def focal_deviation(geometry: Geometry, observations: Observations) -> float:
    """Relative standard deviation of an adjusted focal length, were the observations' errors independent."""
    options = AdjustmentOptions(adjust_focal=True)
    sums = _GroupSums(observations, len(geometry.cam_from_obj), len(geometry.points))
    system = _normal_equations(geometry, observations, options, sums)
    reduced, _, _ = _eliminate_points(system, damping=1e-9)
    kept = np.diag(reduced) > 0
    kept[:6] = False  # the first frame's pose fixes the object's frame; its scale stays free, which pinv copes with
    variance = np.linalg.pinv(reduced[np.ix_(kept, kept)], rcond=1e-12, hermitian=True)[-1, -1]
    squared = np.minimum((geometry.residuals(observations) ** 2).sum(1), 9 * options.loss_scale**2)
    return float(np.sqrt(max(variance, 0.0) * squared.mean() / 2))


class _GroupSums:
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
    residuals, _, _ = _clamped_residuals(geometry, observations)
    cost = float(np.log1p((residuals**2).sum(1) / options.loss_scale**2).sum())
    if options.smoothness is not None:
        prior, _ = _smoothness_terms(geometry, options.smoothness)
        cost += float((prior**2).sum())
    return cost


def _normal_equations(
    geometry: Geometry, observations: Observations, options: AdjustmentOptions, sums: _GroupSums
) -> _System:
    residuals, points_cam, depths = _clamped_residuals(geometry, observations)
    squared = (residuals**2).sum(1) / options.loss_scale**2
    weights = 1 / (1 + squared) / options.loss_scale**2  # of the Cauchy loss, re-weighted least squares
    num_frames, num_points, m = len(geometry.cam_from_obj), len(geometry.points), len(observations)

    projection = np.zeros((m, 2, 3))  # of the pixel by the point in the camera
    projection[:, 0, 0] = projection[:, 1, 1] = geometry.focal / depths
    projection[:, :, 2] = -geometry.focal * points_cam[:, :2] / depths[:, None] ** 2
    rotations = geometry.cam_from_obj[observations.frames, :3, :3]
    turned = points_cam - geometry.cam_from_obj[observations.frames, :3, 3]
    by_pose = np.concatenate([-projection @ _cross_matrices(turned), projection], axis=2)  # turn, then shift
    by_point = projection @ rotations

    weighted_pose, weighted_point = by_pose * weights[:, None, None], by_point * weights[:, None, None]
    size = 6 * num_frames + 1
    cameras, cameras_gradient = np.zeros((size, size)), np.zeros(size)
    coupling = np.zeros((num_points, size, 3))
    blocks = cameras[:-1, :-1].reshape(num_frames, 6, num_frames, 6)
    diagonal = (sums.by_frame @ (weighted_pose.swapaxes(-1, -2) @ by_pose).reshape(m, 36)).reshape(num_frames, 6, 6)
    blocks[np.arange(num_frames), :, np.arange(num_frames)] = diagonal
    cameras_gradient[:-1] = (sums.by_frame @ np.einsum("mij,mi->mj", weighted_pose, residuals)).ravel()
    points = (sums.by_point @ (weighted_point.swapaxes(-1, -2) @ by_point).reshape(m, 9)).reshape(num_points, 3, 3)
    points_gradient = sums.by_point @ np.einsum("mij,mi->mj", weighted_point, residuals)
    frame_coupling = coupling[:, :-1].reshape(num_points, num_frames, 6, 3)
    frame_coupling[observations.points, observations.frames] = weighted_pose.swapaxes(-1, -2) @ by_point

    if options.adjust_focal:  # by its logarithm
        by_focal = geometry.focal * points_cam[:, :2] / depths[:, None]
        weighted_focal = by_focal * weights[:, None]
        cameras[-1, -1] = (weighted_focal * by_focal).sum()
        cameras_gradient[-1] = (weighted_focal * residuals).sum()
        cross = (sums.by_frame @ np.einsum("mi,mij->mj", weighted_focal, by_pose)).ravel()
        cameras[-1, :-1] = cameras[:-1, -1] = cross
        coupling[:, -1] = sums.by_point @ np.einsum("mi,mij->mj", weighted_focal, by_point)
    if options.smoothness is not None:
        prior, by_prior = _smoothness_terms(geometry, options.smoothness)
        cameras[:-1, :-1] += by_prior.T @ by_prior
        cameras_gradient[:-1] += by_prior.T @ prior
    return _System(cameras, cameras_gradient, points, points_gradient, coupling)


def _step(geometry: Geometry, system: _System, damping: float, options: AdjustmentOptions) -> Geometry:
    """The geometry after one damped Gauss-Newton step: points eliminated first (Schur complement)."""
    reduced, gradient, inverse = _eliminate_points(system, damping)
    if options.adjust_poses:
        reduced += np.diag(damping * np.diag(system.cameras) + 1e-9 * np.diag(system.cameras).max())
        camera_step = -np.linalg.solve(reduced, gradient)
    else:
        camera_step = np.zeros(len(gradient))
    towards = system.points_gradient + np.einsum("nci,c->ni", system.coupling, camera_step)
    point_step = -np.einsum("nij,nj->ni", inverse, towards)
    turns, shifts = np.split(camera_step[:-1].reshape(-1, 6), 2, axis=1)
    poses = geometry.cam_from_obj.copy()
    poses[:, :3, :3] = Rotation.from_rotvec(turns).as_matrix() @ poses[:, :3, :3]
    poses[:, :3, 3] += shifts
    focal = geometry.focal * float(np.exp(np.clip(camera_step[-1], -0.2, 0.2)))
    return replace(geometry, cam_from_obj=poses, points=geometry.points + point_step, focal=focal)


def _eliminate_points(system: _System, damping: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The Schur complement [c c], its right-hand side [c] and the inverse point blocks [n 3 3]."""
    diagonal = np.einsum("nii->ni", system.points)
    inverse = np.linalg.inv(
        system.points + (damping * diagonal + 1e-12 * diagonal.max() + 1e-30)[:, :, None] * np.eye(3)
    )
    num_points, size, _ = system.coupling.shape
    carried = (system.coupling @ inverse).transpose(1, 0, 2).reshape(size, 3 * num_points)
    coupling = system.coupling.transpose(1, 0, 2).reshape(size, 3 * num_points)
    reduced = system.cameras - carried @ coupling.T
    return reduced, system.cameras_gradient - carried @ system.points_gradient.ravel(), inverse


def _smoothness_terms(geometry: Geometry, smoothness: Smoothness) -> tuple[np.ndarray, np.ndarray]:
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


def _cross_matrices(vectors: Float[np.ndarray, "m 3"]) -> Float[np.ndarray, "m 3 3"]:
    """[v]x with [v]x w = v x w."""
    matrices = np.zeros((len(vectors), 3, 3))
    x, y, z = vectors.T
    matrices[:, 0, 1], matrices[:, 0, 2], matrices[:, 1, 2] = -z, y, -x
    matrices[:, 1, 0], matrices[:, 2, 0], matrices[:, 2, 1] = z, -y, x
    return matrices
