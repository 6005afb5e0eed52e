"""A small ray caster for textured solids, enough to make the demo scene. NumPy, one pinhole at a time.

Rays are origin + t direction with directions of z = 1 in the camera, so t is the z-depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int, UInt8

Texture = Callable[[Float[np.ndarray, "n 3"], Float[np.ndarray, "n 3"]], Float[np.ndarray, "n 3"]]
"""Colours in [0, 1] of points, given with their normals in the solid's own axes, metres from its centre."""

NEAREST = 1e-3
BUNDLE = 32  # rays tested together against the ball around a solid
AMBIENT, DIFFUSE = 0.62, 0.4


class Shape(Protocol):
    """A surface about the origin, of size about 1."""

    radius: float
    """of a ball about the origin that holds the shape"""

    def hit(self, origin: Float[np.ndarray, "3"], directions: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
        """First t > NEAREST at which each ray meets the surface, inf for none."""

    def normals(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """Outward normals of any length at points of the surface."""


@dataclass(frozen=True)
class Ball:
    """The unit ball."""

    radius: float = 1.0

    def hit(self, origin, directions):
        a, b = _dot(directions, directions), directions @ origin
        return _first_root(a, b, origin @ origin - 1)

    def normals(self, points):
        return points


@dataclass(frozen=True)
class Cube:
    """The cube [-1, 1]^3; with `inside` its walls are seen from within, as in a room."""

    inside: bool = False
    radius: float = 1.74

    def hit(self, origin, directions):
        enter, leave = np.float32(-np.inf), np.float32(np.inf)
        for axis in range(3):
            with np.errstate(divide="ignore", invalid="ignore"):
                inverse = 1 / directions[:, axis]
                low, high = (-1 - origin[axis]) * inverse, (1 - origin[axis]) * inverse
            enter = np.maximum(enter, np.minimum(low, high))
            leave = np.minimum(leave, np.maximum(low, high))
        if self.inside:
            return leave
        return np.where((enter < leave) & (enter > NEAREST), enter, np.inf)

    def normals(self, points):
        axis = np.abs(points).argmax(1)
        normals = np.zeros_like(points)
        rows = np.arange(len(points))
        normals[rows, axis] = np.sign(points[rows, axis])
        return -normals if self.inside else normals


@dataclass(frozen=True)
class Frustum:
    """Around the z axis from radius 1 at z = -1 to radius `top` at z = 1, with both lids: a cylinder or a cone."""

    top: float = 1.0
    radius: float = 1.42

    def hit(self, origin, directions):
        slope = 0.5 * (self.top - 1)
        middle = 0.5 * (self.top + 1) + slope * origin[2]  # the side's radius at the origin's height
        a = directions[:, 0] ** 2 + directions[:, 1] ** 2 - (slope * directions[:, 2]) ** 2
        b = directions[:, :2] @ origin[:2] - slope * middle * directions[:, 2]
        c = origin[0] ** 2 + origin[1] ** 2 - middle**2
        nearest = np.full(len(directions), np.inf, directions.dtype)
        for t in _both_roots(a, b, c):
            on_side = (np.abs(origin[2] + t * directions[:, 2]) <= 1) & (t > NEAREST)
            nearest = np.where(on_side & (t < nearest), t, nearest)
        for height, lid in ((-1.0, 1.0), (1.0, self.top)):
            with np.errstate(divide="ignore", invalid="ignore"):
                t = (height - origin[2]) / directions[:, 2]
                across = (origin[0] + t * directions[:, 0]) ** 2 + (origin[1] + t * directions[:, 1]) ** 2
            nearest = np.where((across <= lid**2) & (t > NEAREST) & (t < nearest), t, nearest)
        return nearest

    def normals(self, points):
        normals = points.copy()
        slope = 0.5 * (self.top - 1)
        normals[:, 2] = -slope * np.hypot(points[:, 0], points[:, 1])
        lids = np.abs(points[:, 2]) > 1 - 1e-4
        normals[lids] = np.sign(points[lids]) * np.array([0, 0, 1], points.dtype)
        return normals


@dataclass(frozen=True)
class Ring:
    """A torus around the z axis: centre line of radius 1, tube of radius `tube`. Met by marching."""

    tube: float
    radius: float = field(init=False)
    steps: int = 16

    def __post_init__(self):
        object.__setattr__(self, "radius", 1 + self.tube)

    def hit(self, origin, directions):
        lengths = np.sqrt(_dot(directions, directions))
        t = np.maximum(-(directions @ origin) / lengths**2 - self.radius / lengths, NEAREST)
        for _ in range(self.steps):
            distance = self._distance(origin + t[:, None] * directions)
            t = t + distance / lengths
        return np.where(np.abs(distance) < 2e-3, t, np.inf)

    def _distance(self, points):
        from_centre_line = np.sqrt(points[:, 0] ** 2 + points[:, 1] ** 2) - 1
        return np.sqrt(from_centre_line**2 + points[:, 2] ** 2) - self.tube

    def normals(self, points):
        centre_line = points * np.array([1, 1, 0], points.dtype)
        return points - centre_line / np.maximum(np.linalg.norm(centre_line, axis=1, keepdims=True), 1e-6)


@dataclass(frozen=True)
class Solid:
    """A shape stretched by `half_size` along its own axes, then turned and moved into an object's frame."""

    shape: Shape
    centre: Float[np.ndarray, "3"]
    half_size: Float[np.ndarray, "3"]
    rotation: Float[np.ndarray, "3 3"]
    texture: Texture

    def hit(self, origin: Float[np.ndarray, "3"], directions: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
        """First t at which each ray of the object's frame meets the solid, inf for none."""
        to_shape = self.rotation / self.half_size
        return self.shape.hit((origin - self.centre) @ to_shape, directions @ to_shape)

    def in_own_axes(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """Points of the object's frame, from the solid's centre along its own axes."""
        return (points - self.centre) @ self.rotation

    def in_object(self, own: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """The inverse of `in_own_axes`."""
        return own @ self.rotation.T + self.centre

    def carried(self, motion: Float[np.ndarray, "4 4"]) -> Solid:
        """The solid under a rigid motion in the object's frame; its texture goes along."""
        rotation, translation = motion[:3, :3], motion[:3, 3]
        centre = (rotation @ self.centre + translation).astype(self.centre.dtype)
        return replace(self, centre=centre, rotation=(rotation @ self.rotation).astype(self.rotation.dtype))

    def colours_and_normals(
        self, points: Float[np.ndarray, "n 3"]
    ) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n 3"]]:
        """Colours and unit normals, in the object's frame, at points of the surface."""
        own = self.in_own_axes(points)
        normals = self.shape.normals(own / self.half_size) / self.half_size
        normals /= np.sqrt(np.maximum(_dot(normals, normals), 1e-18))[:, None]
        return self.texture(own, normals), normals @ self.rotation.T


@dataclass(frozen=True)
class _RayBundles:
    """Neighbouring rays of one origin taken together as cones, so that most solids are ruled out by the bundle."""

    num_rays: int
    axes: Float[np.ndarray, "bundles 3"]
    half_angles: Float[np.ndarray, "bundles"]

    @staticmethod
    def of(directions: Float[np.ndarray, "n 3"]) -> _RayBundles:
        padding = -len(directions) % BUNDLE
        padded = np.concatenate([directions, np.repeat(directions[-1:], padding, axis=0)]).reshape(-1, BUNDLE, 3)
        unit = padded / np.sqrt(np.einsum("bni,bni->bn", padded, padded))[..., None]
        axes = unit.mean(axis=1)
        axes /= np.linalg.norm(axes, axis=1, keepdims=True)
        half_angles = np.arccos(np.clip(np.einsum("bni,bi->bn", unit, axes).min(axis=1), -1, 1))
        return _RayBundles(len(directions), axes, half_angles)

    def rays_near(self, to_centre: Float[np.ndarray, "3"], radius: float) -> Int[np.ndarray, "m"]:
        """Numbers of the rays whose bundle may meet the ball of that radius about origin + `to_centre`."""
        distance = float(np.linalg.norm(to_centre))
        if distance <= radius:
            return np.arange(self.num_rays)
        angles = np.arccos(np.clip(self.axes @ to_centre / distance, -1, 1))
        near = angles <= self.half_angles + math.asin(radius / distance) + 1e-3
        return np.flatnonzero(np.repeat(near, BUNDLE)[: self.num_rays])


def cast(
    solids: Sequence[Solid], origin: Float[np.ndarray, "3"], directions: Float[np.ndarray, "n 3"]
) -> tuple[Float[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """Depth of the first solid along every ray (inf for none) and its number (-1 for none)."""
    depth = np.full(len(directions), np.inf, directions.dtype)
    which = np.full(len(directions), -1)
    bundles = _RayBundles.of(directions)
    for number, solid in enumerate(solids):
        rays = bundles.rays_near(solid.centre - origin, solid.shape.radius * float(solid.half_size.max()))
        candidate = solid.hit(origin, directions[rays])
        nearer = candidate < depth[rays]
        depth[rays[nearer]], which[rays[nearer]] = candidate[nearer], number
    return depth, which


def _dot(a: Float[np.ndarray, "n 3"], b: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
    return np.einsum("ni,ni->n", a, b)


def _both_roots(a, b, c) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Solutions of a t^2 + 2 b t + c = 0, NaN (which no comparison lets pass) where there are none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        root = np.sqrt(b * b - a * c)
        return (-b - root) / a, (-b + root) / a


def _first_root(a, b, c) -> Float[np.ndarray, "n"]:
    first, second = _both_roots(a, b, c)
    return np.where(first > NEAREST, first, np.where(second > NEAREST, second, np.inf))


@dataclass(frozen=True)
class RayCastView:
    """One view of several objects. Depths are z-depths, inf where an object does not cover the pixel; `layer_solids`
    are numbers of the solids of an object that lie there, -1 where it does not cover the pixel."""

    image: UInt8[np.ndarray, "h w 3"]
    object_ids: UInt8[np.ndarray, "h w"]
    layer_depths: Float[np.ndarray, "k h w"]
    layer_solids: Int[np.ndarray, "k h w"]

    @property
    def depth(self) -> Float[np.ndarray, "h w"]:
        """Depth of what is seen."""
        return self.layer_depths.min(axis=0)


@dataclass(frozen=True)
class PinholeGrid:
    """A pinhole camera of one focal length, principal point in the middle of the image, pixel centres at +0.5."""

    width: int
    height: int
    focal: float

    @property
    def intrinsics(self) -> Float[np.ndarray, "3 3"]:
        """The camera matrix."""
        return np.array([[self.focal, 0, 0.5 * self.width], [0, self.focal, 0.5 * self.height], [0, 0, 1]])

    def directions(self, samples: int) -> Float[np.ndarray, "rays 3"]:
        """Ray directions with z = 1, OpenCV axes, through a regular grid of samples x samples points a pixel."""
        columns = (np.arange(self.width * samples) + 0.5) / samples - 0.5 * self.width
        rows = (np.arange(self.height * samples) + 0.5) / samples - 0.5 * self.height
        x, y = np.meshgrid(columns / self.focal, rows / self.focal)
        return np.stack([x, y, np.ones_like(x)], axis=-1).reshape(-1, 3)


def cast_view(
    objects: Sequence[Sequence[Solid]],
    world_from_obj: Float[np.ndarray, "k 4 4"],
    world_from_cam: Float[np.ndarray, "4 4"],
    grid: PinholeGrid,
    light: Float[np.ndarray, "3"],
    samples: int = 2,
) -> RayCastView:
    """Colours averaged over samples x samples rays a pixel; ids and depths of the rays through pixel centres.

    `light` is the world direction towards a soft light; nothing casts a shadow, so that an object looks the same
    wherever it stands.
    """
    obj_from_cam = np.linalg.inv(world_from_obj) @ world_from_cam
    centre_rays = grid.directions(samples=1)
    pairs = list(zip(objects, obj_from_cam, strict=True))
    hits = [_cast_from_camera(solids, matrix, centre_rays) for solids, matrix in pairs]
    colours = _shade_rays(objects, world_from_obj, obj_from_cam, grid.directions(samples), light)
    averaged = colours.reshape(grid.height, samples, grid.width, samples, 3).mean(axis=(1, 3))
    layers, numbers = (np.stack(part).reshape(-1, grid.height, grid.width) for part in zip(*hits, strict=True))
    return RayCastView(
        image=np.rint(255 * np.clip(averaged, 0, 1)).astype(np.uint8),
        object_ids=layers.argmin(axis=0).astype(np.uint8),
        layer_depths=layers,
        layer_solids=numbers,
    )


def _cast_from_camera(
    solids: Sequence[Solid], obj_from_cam: Float[np.ndarray, "4 4"], directions: Float[np.ndarray, "n 3"]
) -> tuple[Float[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    turned = directions @ obj_from_cam[:3, :3].T
    return cast(solids, obj_from_cam[:3, 3].astype(np.float32), turned.astype(np.float32))


def _shade_rays(
    objects: Sequence[Sequence[Solid]],
    world_from_obj: Float[np.ndarray, "k 4 4"],
    obj_from_cam: Float[np.ndarray, "k 4 4"],
    directions: Float[np.ndarray, "n 3"],
    light: Float[np.ndarray, "3"],
) -> Float[np.ndarray, "n 3"]:
    """Colour of what each ray meets first, black where it meets nothing."""
    hits = [_cast_from_camera(solids, m, directions) for solids, m in zip(objects, obj_from_cam, strict=True)]
    first = np.stack([depth for depth, _ in hits]).argmin(axis=0)
    colours = np.zeros((len(directions), 3), np.float32)
    for k, (solids, (depth, which)) in enumerate(zip(objects, hits, strict=True)):
        light_in_object = (world_from_obj[k, :3, :3].T @ light).astype(np.float32)
        for number, solid in enumerate(solids):
            rays = np.flatnonzero((first == k) & (which == number))
            if len(rays) == 0:
                continue
            points_cam = depth[rays, None] * directions[rays]
            points = (points_cam @ obj_from_cam[k, :3, :3].T + obj_from_cam[k, :3, 3]).astype(np.float32)
            albedo, normals = solid.colours_and_normals(points)
            colours[rays] = albedo * (AMBIENT + DIFFUSE * (0.5 + 0.5 * normals @ light_in_object))[:, None]
    return colours
