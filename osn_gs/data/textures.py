"""Procedural 3-D textures for the demo scene: enough detail to tell every spot apart, none finer than a few pixels.

Points are in metres. Edges are blended over `SOFT` metres so that a picture has nothing to alias.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from osn_gs.data.ray_casting import Texture

SOFT = 0.006
LATTICE = 32  # period of the noise, in cells


def colour(code: str) -> Float[np.ndarray, "3"]:
    """RGB in [0, 1] of a hexadecimal code such as "c0392b"."""
    return np.array([int(code[i : i + 2], 16) for i in (0, 2, 4)], np.float32) / 255


def noise(points: Float[np.ndarray, "n 3"], cell: float, seed: int) -> Float[np.ndarray, "n"]:
    """Smooth random values in [0, 1]: random numbers on a lattice of spacing `cell`, blended between."""
    lattice = np.random.default_rng(seed).random((LATTICE, LATTICE, LATTICE), np.float32).ravel()
    position = points / np.float32(cell) + np.float32(7.31)
    corner = np.floor(position)
    weight = position - corner
    weight = weight * weight * (3 - 2 * weight)
    low = corner.astype(np.int32) % LATTICE
    high = (low + 1) % LATTICE
    steps = np.array([LATTICE * LATTICE, LATTICE, 1], np.int32)
    low, high = low * steps, high * steps

    def along_z(x, y):
        near, far = lattice[x + y + low[:, 2]], lattice[x + y + high[:, 2]]
        return near + weight[:, 2] * (far - near)

    def along_y(x):
        near, far = along_z(x, low[:, 1]), along_z(x, high[:, 1])
        return near + weight[:, 1] * (far - near)

    near, far = along_y(low[:, 0]), along_y(high[:, 0])
    return near + weight[:, 0] * (far - near)


def step(values: Float[np.ndarray, "n"], soft: float = SOFT) -> Float[np.ndarray, "n"]:
    """0 below, 1 above zero, blended over `soft`."""
    ramp = np.clip(values / soft + 0.5, 0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def blend(below, above, weight: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n 3"]:
    """From one colour to another."""
    weight = weight[:, None]
    return below * (1 - weight) + above * weight


def bands(coordinate: Float[np.ndarray, "n"], width: float, soft: float = SOFT) -> Float[np.ndarray, "n"]:
    """Alternately 0 and 1 along a coordinate, each `width` wide."""
    distance = np.abs((coordinate / width) % 2 - 1) - 0.5  # -0.5 to 0.5, zero at the edges
    return step(distance * width, soft)


def mottled(base: str, other: str, cell: float, seed: int, edge: float = 0.12) -> Texture:
    """Irregular patches of two colours, lightly shaded."""
    low, high = colour(base), colour(other)

    def texture(points, normals):
        patches = blend(low, high, step(noise(points, cell, seed) - 0.5, edge))
        return patches * (0.86 + 0.28 * noise(points, 2.3 * cell, seed + 1))[:, None]

    return texture


def mosaic(codes: list[str], cell: float, seed: int) -> Texture:
    """Patches of several colours, like a glazed quilt."""
    colours = [colour(code) for code in codes]

    def texture(points, normals):
        result = np.broadcast_to(colours[0], points.shape)
        for i, patch in enumerate(colours[1:]):
            result = blend(result, patch, step(noise(points, cell, seed + i) - 0.56, 0.06))
        return result

    return texture


def dotted(base: str, dot: str, spacing: float, size: float, seed: int) -> Texture:
    """Round dots at the corners of a tilted cubic lattice, on a lightly mottled ground."""
    ground, spot = colour(base), colour(dot)
    tilt = np.array([[0.80, 0.36, 0.48], [-0.60, 0.48, 0.64], [0.0, -0.80, 0.60]], np.float32)

    def texture(points, normals):
        turned = points @ tilt
        offset = turned - spacing * np.rint(turned / spacing)
        distance = np.linalg.norm(offset, axis=1)
        shade = 0.85 + 0.3 * noise(points, 0.8 * spacing, seed)
        return blend(ground * shade[:, None], spot, step(size - distance))

    return texture


def striped(first: str, second: str, axis: int, width: float, seed: int) -> Texture:
    """Stripes across one axis, lightly mottled."""
    low, high = colour(first), colour(second)

    def texture(points, normals):
        shade = 0.85 + 0.3 * noise(points, 1.5 * width, seed)
        return blend(low, high, bands(points[:, axis], width)) * shade[:, None]

    return texture


def sectors(first: str, second: str, count: int, seed: int) -> Texture:
    """Alternating sectors around the z axis, like a beach ball."""
    low, high = colour(first), colour(second)

    def texture(points, normals):
        angle = np.arctan2(points[:, 1], points[:, 0])
        arc = np.sin(0.5 * count * angle) * np.hypot(points[:, 0], points[:, 1]) / (0.5 * count)
        shade = 0.82 + 0.36 * noise(points, 0.05, seed)
        return blend(low, high, step(arc)) * shade[:, None]

    return texture


def checked(first: str, second: str, width: float, seed: int) -> Texture:
    """A woven check across x and y."""
    low, high = colour(first), colour(second)

    def texture(points, normals):
        weave = 0.5 * (bands(points[:, 0], width) + bands(points[:, 1], width))
        shade = 0.88 + 0.24 * noise(points, 0.35 * width, seed)
        return blend(low, high, weave) * shade[:, None]

    return texture


def wood(light: str, dark: str, axis: int, plank: float, seed: int) -> Texture:
    """Planks along `axis` (0 or 1) with a grain."""
    pale, deep = colour(light), colour(dark)

    def texture(points, normals):
        stretched = points * np.where(np.arange(3) == axis, 0.18, 1.0).astype(np.float32)
        grain = 0.6 * noise(stretched, 0.035, seed) + 0.4 * noise(stretched, 0.09, seed + 1)
        across = points[:, 1 - axis]
        number = np.floor(across / plank)
        tone = 0.8 + 0.4 * np.abs(np.sin(12.9898 * number + seed))
        gap = step(0.008 - np.abs(across - plank * np.rint(across / plank)), 0.012)
        return blend(pale, deep, grain) * (tone * (1 - 0.45 * gap))[:, None]

    return texture


def bricks(brick: str, mortar: str, length: float, height: float, seed: int) -> Texture:
    """Bricks in running bond on upright walls."""
    clay, joint = colour(brick), colour(mortar)

    def texture(points, normals):
        along = np.where(np.abs(normals[:, 0]) > 0.5, points[:, 1], points[:, 0])
        row = np.floor(points[:, 2] / height)
        shifted = along + 0.5 * length * (row % 2)
        number = np.floor(shifted / length)
        tone = 0.78 + 0.44 * np.abs(np.sin(12.9898 * number + 78.233 * row + seed))
        edge = np.minimum(
            np.abs(points[:, 2] - height * np.rint(points[:, 2] / height)),
            np.abs(shifted - length * np.rint(shifted / length)),
        )
        shade = tone * (0.85 + 0.3 * noise(points, 0.06, seed))
        return blend(joint, clay * shade[:, None], step(edge - 0.012, 0.012))

    return texture
