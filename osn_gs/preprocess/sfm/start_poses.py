"""Start poses that need no two-view geometry: for objects too small or too flat for COLMAP's mappers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial.transform import Rotation

from osn_gs.preprocess.sfm.bundle_adjustment import Geometry

SMALLEST_SHARED = 6  # tracks two frames must share for a change of size to be read off them
PAIRS_OF_TRACKS = 400
THICKNESS = 0.6  # of the object's radius in the image: standard deviation of the random depths


def weak_perspective_start(
    pixels: Float[np.ndarray, "n t 2"],
    visible: Bool[np.ndarray, "n t"],
    focal: float,
    center: Float[np.ndarray, "2"],
    seed: int,
) -> Geometry:
    """Every frame posed without a turn: distances from how the image grows, random depths for the points.

    A bundle adjustment with smooth motion finds turns and depths from here. Needs two tracks in the first frame
    that has any.
    """
    generator = np.random.default_rng(seed)
    rays = (pixels - center) / focal
    num_tracks, num_frames = visible.shape
    distances = _relative_distances(rays, visible, generator)
    places = np.full((num_tracks, 2), np.nan)  # of the points, across the line of sight
    shifts = np.zeros((num_frames, 2))
    for frame in range(num_frames):
        seen = visible[:, frame]
        known = seen & ~np.isnan(places[:, 0])
        if known.sum() >= 3:
            shifts[frame] = np.median(rays[known, frame] * distances[frame] - places[known], axis=0)
        elif frame > 0:
            shifts[frame] = shifts[frame - 1]
        elif seen.any():
            shifts[frame] = np.median(rays[seen, frame], axis=0) * distances[frame]
        new = seen & np.isnan(places[:, 0])
        places[new] = rays[new, frame] * distances[frame] - shifts[frame]
    places = np.nan_to_num(places)
    radius = np.percentile(np.linalg.norm(places - np.median(places, axis=0), axis=1), 80)
    points = np.column_stack([places, generator.normal(0, THICKNESS * radius, num_tracks)])
    cam_from_obj = np.tile(np.eye(4), (num_frames, 1, 1))
    cam_from_obj[:, :3, 3] = np.column_stack([shifts, distances])
    return Geometry(cam_from_obj, points, focal, center)


def steadily_turned(geometry: Geometry, degrees: float) -> Geometry:
    """The same with the object turning evenly about its origin and the image's vertical axis, from -degrees / 2 in the
    first frame to degrees / 2 in the last. The points stay and are to be triangulated anew."""
    angles = np.deg2rad(degrees) * np.linspace(-0.5, 0.5, len(geometry.cam_from_obj))
    poses = geometry.cam_from_obj.copy()
    poses[:, :3, :3] = Rotation.from_euler("y", angles[:, None]).as_matrix() @ poses[:, :3, :3]
    return replace(geometry, cam_from_obj=poses)


def reversed_depth(geometry: Geometry) -> Geometry:
    """The other shape and motion that look the same under weak perspective: depths and turns mirrored.

    Mappers fall for it with small objects; it is a candidate of its own, told apart by perspective.
    """
    origin = np.median(geometry.points, axis=0)
    mirror = np.diag([1.0, 1.0, -1.0])
    poses = geometry.cam_from_obj.copy()
    first = poses[0, :3, :3]
    centres = poses[:, :3, :3] @ origin + poses[:, :3, 3]
    poses[:, :3, :3] = mirror @ poses[:, :3, :3] @ first.T @ mirror  # the frame is the first camera's, mirrored
    poses[:, :3, 3] = centres
    return replace(geometry, cam_from_obj=poses, points=(geometry.points - origin) @ first.T @ mirror)


def _relative_distances(
    rays: Float[np.ndarray, "n t 2"], visible: Bool[np.ndarray, "n t"], generator: np.random.Generator
) -> Float[np.ndarray, "t"]:
    """Distance in each frame over that in the first, from the distances between pairs of tracks in the image."""
    distances = np.ones(visible.shape[1])
    for frame in range(1, len(distances)):
        distances[frame] = distances[frame - 1]
        shared = np.flatnonzero(visible[:, frame] & visible[:, frame - 1])
        if len(shared) < SMALLEST_SHARED:
            continue
        one, other = generator.choice(shared, (2, PAIRS_OF_TRACKS))
        before = np.linalg.norm(rays[one, frame - 1] - rays[other, frame - 1], axis=1)
        after = np.linalg.norm(rays[one, frame] - rays[other, frame], axis=1)
        wide = (before > 0.5 * np.median(before)) & (after > 0)
        if wide.any():
            distances[frame] *= np.median(before[wide] / after[wide])
    return distances
