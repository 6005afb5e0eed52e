"""Points of tracks from known poses."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from osn_gs.preprocess.sfm.bundle_adjustment import Geometry, Observations

SOFT_ERROR = 2.0  # pixels: errors beyond weigh less and less
ROUNDS = 6


def triangulate(
    pixels: Float[np.ndarray, "n t 2"],
    used: Bool[np.ndarray, "n t"],
    cam_from_obj: Float[np.ndarray, "t 4 4"],
    focal: float,
    center: Float[np.ndarray, "2"],
) -> Float[np.ndarray, "n 3"]:
    """The point of every track: linear triangulation, re-weighted towards the robust reprojection error.

    A track that is `used` in fewer than two frames gets a meaningless point.
    """
    rays = (pixels - center) / focal
    rows_x = rays[..., :1] * cam_from_obj[None, :, 2] - cam_from_obj[None, :, 0]  # n t 4
    rows_y = rays[..., 1:] * cam_from_obj[None, :, 2] - cam_from_obj[None, :, 1]
    weights = used.astype(float)
    for _ in range(ROUNDS):
        normal = (rows_x * weights[..., None]).swapaxes(-1, -2) @ rows_x + (rows_y * weights[..., None]).swapaxes(
            -1, -2
        ) @ rows_y
        left, right = normal[:, :3, :3], -normal[:, :3, 3]
        ridge = 1e-12 * np.trace(left, axis1=1, axis2=2) + 1e-30
        points = np.linalg.solve(left + ridge[:, None, None] * np.eye(3), right[..., None])[..., 0]
        points_cam = np.einsum("tij,nj->nti", cam_from_obj[:, :3, :3], points) + cam_from_obj[:, :3, 3]
        depths = points_cam[..., 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            errors = np.linalg.norm(points_cam[..., :2] / depths[..., None] - rays, axis=-1) * focal
        forgiving = 1 / (1 + (np.nan_to_num(errors, nan=1e6) / SOFT_ERROR) ** 2)
        smallest = 1e-3 * np.median(np.abs(depths[used])) if used.any() else 1.0
        weights = used * forgiving / np.maximum(np.abs(depths), smallest) ** 2
    return points


def observations_of(pixels: Float[np.ndarray, "n t 2"], used: Bool[np.ndarray, "n t"]) -> Observations:
    """The dense table of tracks as a list of observations, ordered by point, then frame."""
    points, frames = np.nonzero(used)
    return Observations(frames, points, pixels[points, frames])


def triangulated(
    pixels: Float[np.ndarray, "n t 2"],
    used: Bool[np.ndarray, "n t"],
    cam_from_obj: Float[np.ndarray, "t 4 4"],
    focal: float,
    center: Float[np.ndarray, "2"],
) -> Geometry:
    """Poses with the points all tracks triangulate to under them."""
    return Geometry(cam_from_obj, triangulate(pixels, used, cam_from_obj, focal, center), focal, center)
