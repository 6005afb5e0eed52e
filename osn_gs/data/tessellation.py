"""Triangle meshes of the ray caster's solids of revolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

from osn_gs.data.ray_casting import Ball, Frustum, Ring, Shape, Solid

LEAST_STEPS = 8  # around an axis or a tube


def tessellate(
    solids: Sequence[Solid], spacing: float
) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"], Int[np.ndarray, "v"]]:
    """Vertices on the surfaces, in the object's frame and about `spacing` apart, faces, and each vertex's solid.

    The solids may be balls, frusta and rings, round about their own z axes.
    """
    meshes = [_tessellate_own(solid, spacing) for solid in solids]
    counts = [len(vertices) for vertices, _ in meshes]
    firsts = np.cumsum([0, *counts[:-1]])
    return (
        np.concatenate([solid.in_object(own) for solid, (own, _) in zip(solids, meshes, strict=True)]),
        np.concatenate([faces + first for first, (_, faces) in zip(firsts, meshes, strict=True)]),
        np.repeat(np.arange(len(solids)), counts),
    )


def _tessellate_own(solid: Solid, spacing: float) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"]]:
    """Mesh of one solid along its own axes: its profile at evenly spaced angles about its z axis."""
    size = solid.half_size.astype(np.float64)
    profile = _profile(solid.shape, spacing / size[[0, 2]])
    around = _steps(2 * math.pi * profile[:, 0].max() * size[0], spacing)
    angles = np.linspace(0, 2 * math.pi, around, endpoint=False)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    flat = profile[:, None, :1] * directions
    vertices = np.concatenate([flat, np.broadcast_to(profile[:, None, 1:], (*flat.shape[:2], 1))], axis=2)
    numbers = np.arange(len(profile) * around).reshape(len(profile), around)
    numbers[profile[:, 0] == 0] = numbers[profile[:, 0] == 0, :1]  # on the axis all angles are one vertex
    return _without_unused(size * vertices.reshape(-1, 3), _faces_of_grid(numbers, isinstance(solid.shape, Ring)))


def _profile(shape: Shape, spacing: Float[np.ndarray, "2"]) -> Float[np.ndarray, "p 2"]:
    """Half of a shape's cross section, from below upwards on its outer side: radii and heights of points on it.

    `spacing` is how far apart they are to be in radius and in height.
    """
    match shape:
        case Ball():
            polar = np.linspace(0, math.pi, _steps(math.pi, spacing.min()) + 1)
            radii = np.sin(polar)
            radii[-1] = 0
            return np.stack([radii, -np.cos(polar)], axis=1)
        case Frustum():
            corners = np.array([[0, -1], [1, -1], [shape.top, 1], [0, 1]])
            parts = [
                np.linspace(a, b, max(1, math.ceil(np.linalg.norm((b - a) / spacing))), endpoint=False)
                for a, b in pairwise(corners)
            ]
            return np.concatenate([*parts, corners[-1:]])
        case Ring():
            polar = np.linspace(0, 2 * math.pi, _steps(2 * math.pi * shape.tube, spacing.min()), endpoint=False)
            return np.stack([1 + shape.tube * np.cos(polar), shape.tube * np.sin(polar)], axis=1)
    raise TypeError(f"{shape} is not round about its z axis")


def _steps(length: float, spacing: float) -> int:
    return max(LEAST_STEPS, math.ceil(length / spacing))


def _faces_of_grid(numbers: Int[np.ndarray, "p a"], closed: bool) -> Int[np.ndarray, "f 3"]:
    """Two triangles, seen from outside counterclockwise, for each cell of a grid of vertices that closes around the
    axis, and with `closed` along the profile too. Cells on the axis have one."""
    upper = np.roll(numbers, -1, axis=0) if closed else numbers[1:]
    lower = numbers if closed else numbers[:-1]
    corners = lower, np.roll(lower, -1, axis=1), np.roll(upper, -1, axis=1), upper
    triangles = [np.stack([corners[0], corners[i], corners[i + 1]], axis=-1).reshape(-1, 3) for i in (1, 2)]
    faces = np.concatenate(triangles)
    a, b, c = faces.T
    return faces[(a != b) & (b != c) & (c != a)]


def _without_unused(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]
) -> tuple[Float[np.ndarray, "u 3"], Int[np.ndarray, "f 3"]]:
    used, numbers = np.unique(faces, return_inverse=True)
    return vertices[used], numbers.reshape(faces.shape)
