"""The true bending of a ray-cast object whose solids move, each rigidly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from osn_gs.data.bending_truth import SurfaceBending
from osn_gs.data.ray_casting import PinholeGrid, RayCastView, Solid
from osn_gs.data.tessellation import tessellate

SPACING = 0.03  # of the stored surface's vertices, metres


def bending_of_solids(
    k: int,
    at_rest: Sequence[Solid],
    in_frames: Sequence[Sequence[Solid]],
    views: Sequence[RayCastView],
    obj_from_cam: Float[np.ndarray, "t 4 4"],
    grid: PinholeGrid,
) -> SurfaceBending:
    """How object k of the views bends: its solids at rest and, the same in the same order, in every frame."""
    vertices, faces, solid_of_vertex = tessellate(at_rest, SPACING)
    pixels = [np.flatnonzero(view.object_ids == k) for view in views]
    rays = grid.directions(samples=1)
    rest_points = []
    for seen, view, solids, matrix in zip(pixels, views, in_frames, obj_from_cam, strict=True):
        points_cam = view.layer_depths[k].ravel()[seen, None] * rays[seen]
        points = points_cam @ matrix[:3, :3].T + matrix[:3, 3]
        rest_points.append(moved_along(points, view.layer_solids[k].ravel()[seen], solids, at_rest))
    return SurfaceBending(
        rest=vertices,
        faces=faces,
        vertices=np.stack([moved_along(vertices, solid_of_vertex, at_rest, solids) for solids in in_frames]),
        pixels=tuple(pixels),
        rest_points=tuple(rest_points),
    )


def moved_along(
    points: Float[np.ndarray, "n 3"],
    solid_of_point: Int[np.ndarray, "n"],
    before: Sequence[Solid],
    after: Sequence[Solid],
) -> Float[np.ndarray, "n 3"]:
    """Where points, each fixed to one of the solids, are once these have moved; in the object's frame."""
    moved = np.empty_like(points)
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        on_it = solid_of_point == number
        moved[on_it] = new.in_object(old.in_own_axes(points[on_it]))
    return moved
