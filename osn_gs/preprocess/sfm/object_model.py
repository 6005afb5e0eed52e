"""What structure from motion found out about one object."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class ObjectModel:
    """One object's poses and points, in its own frame and units; float64, OpenCV camera axes.

    `cam_from_obj[t]` means nothing where not `registered[t]`. An observation m says that point
    `observed_points[m]` was seen in frame `observed_frames[m]` at `observed_pixels[m]` (pixel centres at +0.5);
    only observations the model explains are kept.
    """

    cam_from_obj: Float[np.ndarray, "t 4 4"]
    registered: Bool[np.ndarray, "t"]
    points: Float[np.ndarray, "n 3"]
    observed_frames: Int[np.ndarray, "m"]
    observed_points: Int[np.ndarray, "m"]
    observed_pixels: Float[np.ndarray, "m 2"]
    focal: float
    size: tuple[int, int]
    """Width and height of the images; the principal point is at their middle."""
    displacements: Float[np.ndarray, "m 3"] | None = None
    """Of an object that bends: how far from its place in `points` each observation's point was, in the object's frame;
    None for a rigid object."""

    @property
    def intrinsics(self) -> Float[np.ndarray, "3 3"]:
        width, height = self.size
        return np.array([[self.focal, 0, width / 2], [0, self.focal, height / 2], [0, 0, 1.0]])

    def observed_in_camera(self) -> Float[np.ndarray, "m 3"]:
        """Every observation's point in the coordinates of the camera that saw it."""
        pose, places = self.cam_from_obj[self.observed_frames], self.points[self.observed_points]
        if self.displacements is not None:
            places = places + self.displacements
        return np.einsum("mij,mj->mi", pose[:, :3, :3], places) + pose[:, :3, 3]

    def reprojection_errors(self) -> Float[np.ndarray, "m"]:
        """Distance in pixels between every observation and its point's projection."""
        points_cam = self.observed_in_camera()
        projected = self.focal * points_cam[:, :2] / points_cam[:, 2:] + np.array(self.size) / 2
        return np.linalg.norm(projected - self.observed_pixels, axis=1)
