"""What stands in the demo scene and how it moves: three toys on a table in a furnished room, filmed along an arc.

Metres, world z up. Every toy's own origin is the middle of its underside, so it stands on the table at height 0.
Over a clip, `progress` runs from 0 to 1. The ring tower's parts sit on a flexible spine and sway with it.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from osn_gs.data.ray_casting import Ball, Cube, Frustum, Ring, Shape, Solid, Texture
from osn_gs.data.textures import bricks, checked, dotted, mosaic, mottled, sectors, striped, wood

OBJECT_NAMES = ("background", "engine", "ring tower", "teapot")
RING_TOWER = OBJECT_NAMES.index("ring tower")  # which bends
TABLE_HEIGHT = 0.72
FIELD_OF_VIEW = math.radians(44)  # horizontal
SPINE_FOOT = 0.055  # height of the ring tower's base, on which its spine begins
SWAY, SWAY_IN_DEPTH = 1.8, 0.3  # greatest bends of the spine [rad/m], across the view and along it


def turn(axis: int, degrees: float) -> Float[np.ndarray, "3 3"]:
    """Rotation about a coordinate axis."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = cosine, -sine, sine, cosine
    return matrix


ALONG_X, ALONG_Y = turn(1, 90), turn(0, 90)  # turn a shape's z axis to x or y


def solid(shape: Shape, centre, half_size, texture: Texture, rotation=None) -> Solid:
    """A solid from plain numbers."""
    rotation = np.eye(3) if rotation is None else rotation
    arrays = (np.asarray(values, np.float32) for values in (centre, half_size, rotation))
    return Solid(shape, *arrays, texture)


def resized(parts: list[Solid], factor: float) -> list[Solid]:
    """The same object `factor` times as large, its texture as fine as before."""
    return [replace(part, centre=factor * part.centre, half_size=factor * part.half_size) for part in parts]


def engine() -> list[Solid]:
    """A toy locomotive heading along +x: 0.50 long, 0.33 high."""
    frame, boiler = striped("2c3e50", "e8b23a", 0, 0.055, 1), striped("c0392b", "f0c75e", 0, 0.06, 2)
    cabin, wheel = dotted("1f6fb2", "f4f1e4", 0.08, 0.028, 3), sectors("2b2b33", "d9d4c7", 6, 4)
    parts = [
        solid(Cube(), (0, 0, 0.085), (0.24, 0.085, 0.028), frame),
        solid(Frustum(), (0.075, 0, 0.175), (0.074, 0.074, 0.15), boiler, ALONG_X),
        solid(Ball(), (0.225, 0, 0.175), (0.035, 0.06, 0.06), sectors("f4f1e4", "c0392b", 6, 5), ALONG_X),
        solid(Cube(), (-0.15, 0, 0.19), (0.08, 0.085, 0.095), cabin),
        solid(Cube(), (-0.15, 0, 0.30), (0.1, 0.105, 0.016), striped("c0392b", "8e2a20", 1, 0.04, 6)),
        solid(Frustum(1.5), (0.15, 0, 0.285), (0.026, 0.026, 0.05), striped("2c3e50", "e8b23a", 2, 0.03, 7)),
        solid(Ball(), (0.03, 0, 0.25), (0.036, 0.036, 0.036), sectors("e8b23a", "a9791c", 4, 8)),
    ]
    for x, size in ((0.17, 0.05), (0.04, 0.05), (-0.14, 0.07)):
        for y in (-0.1, 0.1):
            parts.append(solid(Frustum(), (x, y, size), (size, size, 0.018), wheel, ALONG_Y))
    return parts


def ring_tower() -> list[Solid]:
    """Stacked wooden rings with a ball on top: 0.34 wide, 0.50 high."""
    parts = [solid(Frustum(0.92), (0, 0, 0.022), (0.165, 0.165, 0.022), wood("d8a45f", "8f5a2b", 0, 0.08, 11))]
    rings = (
        ("d6453d", "f7e8c8", 8),
        ("ee9b2f", "7a3b1d", 6),
        ("f2d64b", "3d7d5a", 10),
        ("43a06b", "f4f1e4", 4),
        ("3577b8", "f2d64b", 6),
    )
    height = 0.044
    for i, (first, second, count) in enumerate(rings):
        tube = 0.043 - 0.003 * i
        centre_line = 0.118 - 0.017 * i
        height += tube
        texture = sectors(first, second, count, 12 + i)
        parts.append(solid(Ring(tube / centre_line), (0, 0, height), (centre_line,) * 3, texture))
        parts.append(solid(Frustum(), (0, 0, height), (centre_line, centre_line, 0.02), texture))
        height += 0.86 * tube
    parts.append(solid(Ball(), (0, 0, height + 0.04), (0.052,) * 3, sectors("8e44ad", "f4c9e0", 4, 19)))
    return parts


def teapot() -> list[Solid]:
    """A painted teapot, spout along +x: 0.50 long, 0.33 high."""
    glaze = dotted("2aa198", "fdf1d6", 0.085, 0.03, 21)
    trim = striped("fdf1d6", "d35f3d", 2, 0.03, 22)
    spout = striped("fdf1d6", "1b6f8a", 0, 0.035, 23)
    handle = striped("d35f3d", "fdf1d6", 0, 0.04, 24)
    return [
        solid(Frustum(0.85), (0, 0, 0.014), (0.09, 0.09, 0.014), trim),
        solid(Ball(), (0, 0, 0.135), (0.155, 0.155, 0.125), glaze),
        solid(Frustum(0.55), (0.185, 0, 0.165), (0.042, 0.042, 0.085), spout, turn(1, 52)),
        solid(Ring(0.16), (-0.155, 0, 0.15), (0.085, 0.085, 0.085), handle, ALONG_Y),
        solid(Ball(), (0, 0, 0.245), (0.085, 0.085, 0.035), sectors("d35f3d", "fdf1d6", 8, 25)),
        solid(Ball(), (0, 0, 0.297), (0.03, 0.03, 0.03), sectors("1b6f8a", "fdf1d6", 4, 26)),
    ]


def objects(progress: float, bending: bool = True) -> tuple[list[Solid], ...]:
    """Background, engine, ring tower and teapot, each in its own frame; the tower is straight without `bending`.

    The solids are the same at all times and stand in the same order.
    """
    tower = resized(ring_tower(), 1.25)
    if bending:
        tower = on_bent_spine(tower, tower_bend(progress))
    return room(), resized(engine(), 0.92), tower, resized(teapot(), 1.12)


def on_bent_spine(parts: list[Solid], bend: Float[np.ndarray, "2"]) -> list[Solid]:
    """The same object with its spine, the z axis, bent: every part is carried by its middle."""
    return [part.carried(spine_motion(float(part.centre[2]), bend)) for part in parts]


def spine_motion(height: float, bend: Float[np.ndarray, "2"]) -> Float[np.ndarray, "4 4"]:
    """Rigid motion, in the object's frame, of what sits at some height of a spine that was straight.

    From `SPINE_FOOT` on the spine is an arc of constant curvature that leans by `bend` [rad/m] towards x and y; below
    it stays as it is. An arc's chord leans half as far as its end.
    """
    above = max(height - SPINE_FOOT, 0.0)
    turn_vector = above * np.array([-bend[1], bend[0], 0.0])
    chord_length = above * np.sinc(np.linalg.norm(turn_vector) / (2 * math.pi))
    chord = chord_length * Rotation.from_rotvec(0.5 * turn_vector).as_matrix()[:, 2]
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_rotvec(turn_vector).as_matrix()
    motion[:3, 3] = chord + np.array([0, 0, height - above]) - motion[:3, :3] @ [0, 0, height]
    return motion


def tower_bend(progress: float) -> Float[np.ndarray, "2"]:
    """Bend of the ring tower's spine, rad/m towards its own x and y.

    In a clip it sways to one side, back and to the other: in the world, like a pendulum, across the view and a little
    in depth, however the tower turns.
    """
    phase = 1.5 * math.pi * progress
    in_world = np.array([SWAY * math.sin(phase), SWAY_IN_DEPTH * math.cos(phase), 0])
    return (object_poses(progress)[RING_TOWER, :3, :3].T @ in_world)[:2]


def room() -> list[Solid]:
    """Walls, floor and furniture, in world coordinates."""
    return [*_walls(), *_table(), *_things_on_the_table(), *_furniture(), *_pictures()]


def _walls() -> list[Solid]:
    floor = wood("c08a56", "7b4d2a", 1, 0.22, 31)
    wall = bricks("b5654a", "d9cbb8", 0.36, 0.14, 32)
    ceiling = mottled("efe9dc", "dcd3c2", 0.4, 33)

    def texture(points, normals):
        colours = wall(points, normals)
        for on_it, other in ((normals[:, 2] > 0.5, floor), (normals[:, 2] < -0.5, ceiling)):
            colours[on_it] = other(points[on_it], normals[on_it])
        return colours

    return [solid(Cube(inside=True), (0, 0, 1.4), (2.4, 2.5, 1.4), texture)]


def _table() -> list[Solid]:
    top = wood("b9824d", "6e4220", 0, 0.26, 41)
    leg = wood("8a5a30", "5b3818", 0, 0.2, 42)
    cloth = checked("f3eddf", "3e7a94", 0.11, 43)
    parts = [
        solid(Cube(), (0, 0, TABLE_HEIGHT - 0.035), (1.25, 0.9, 0.03), top),
        solid(Cube(), (0, 0.05, TABLE_HEIGHT - 0.004), (1.0, 0.6, 0.004), cloth),
    ]
    for x in (-1.15, 1.15):
        for y in (-0.8, 0.8):
            parts.append(solid(Cube(), (x, y, 0.33), (0.05, 0.05, 0.33), leg))
    return parts


def _things_on_the_table() -> list[Solid]:
    height = TABLE_HEIGHT
    lower_book, upper_book = mosaic(["7c3b52", "e9d8a6"], 0.06, 51), mosaic(["2f5d50", "f1c453"], 0.05, 52)
    pot = striped("d9c7a3", "8a5a44", 2, 0.045, 54)
    return [
        solid(Cube(), (0.83, 0.5, height + 0.03), (0.17, 0.12, 0.03), lower_book, turn(2, 20)),
        solid(Cube(), (0.85, 0.5, height + 0.085), (0.15, 0.11, 0.025), upper_book, turn(2, -12)),
        solid(Ball(), (0.84, 0.5, height + 0.16), (0.055,) * 3, mottled("d1483b", "e9a13b", 0.05, 53)),
        solid(Frustum(1.25), (-0.92, 0.55, height + 0.09), (0.085, 0.085, 0.09), pot),
        *[
            solid(
                Ball(),
                (-0.92 + 0.1 * math.cos(angle), 0.55 + 0.1 * math.sin(angle), height + 0.26 + 0.05 * (i % 2)),
                (0.05, 0.05, 0.13),
                mottled("3f8f4a", "9ccc65", 0.04, 55 + i),
                turn(2, math.degrees(angle)) @ turn(1, 32),
            )
            for i, angle in enumerate(np.linspace(0, 2 * math.pi, 7)[:-1])
        ],
    ]


def _furniture() -> list[Solid]:
    parts = [
        solid(Cube(), (1.45, 2.15, 0.5), (0.65, 0.28, 0.5), wood("a56a43", "5e361d", 1, 0.3, 61)),
        solid(Frustum(0.6), (1.25, 2.1, 1.33), (0.2, 0.2, 0.14), striped("f3d9a4", "cf8f4e", 2, 0.06, 62)),
        solid(Frustum(), (1.25, 2.1, 1.1), (0.035, 0.035, 0.1), mottled("4b5563", "9ca3af", 0.05, 63)),
        solid(Cube(), (-1.6, 2.3, 0.95), (0.55, 0.17, 0.02), wood("d1a06a", "8a5a30", 0, 0.2, 64)),
        solid(Cube(), (-1.6, 2.3, 0.45), (0.6, 0.19, 0.45), wood("8c5b3a", "55331c", 1, 0.3, 65)),
    ]
    covers = ["7c3b52", "2f5d50", "c48f3a", "33658a", "a23b2e", "5b4b8a", "d9c7a3", "3d7d5a"]
    for i, cover in enumerate(covers):
        height = 0.13 + 0.03 * ((3 * i) % 4)
        book = striped(cover, "ede0c4", 2, 0.07 + 0.01 * (i % 3), 66 + i)
        parts.append(solid(Cube(), (-2.03 + 0.115 * i, 2.27, 0.97 + height), (0.05, 0.1, height), book))
    return parts


def _pictures() -> list[Solid]:
    frame = wood("5b3818", "2f1c0c", 0, 0.3, 81)
    pictures = (
        ((-0.35, 1.62), (0.3, 0.22), ["e9d8a6", "0a9396", "ca6702", "ae2012"]),
        ((0.42, 1.7), (0.26, 0.3), ["264653", "e9c46a", "e76f51", "2a9d8f"]),
        ((-1.35, 1.85), (0.3, 0.24), ["f4a261", "3d405b", "81b29a"]),
    )
    parts = []
    for i, ((x, z), (width, height), codes) in enumerate(pictures):
        parts.append(solid(Cube(), (x, 2.49, z), (width + 0.04, 0.02, height + 0.04), frame))
        parts.append(solid(Cube(), (x, 2.475, z), (width, 0.02, height), mosaic(codes, 0.12, 82 + 5 * i)))
    return parts


def object_poses(progress: float) -> Float[np.ndarray, "4 4 4"]:
    """Object-to-world poses of background, engine, ring tower and teapot.

    The engine crosses in front of both others; the teapot circles the ring tower, first behind it, then before it.
    """
    orbit = math.radians(118 - 235 * progress)
    tower = np.array([0.06 * math.cos(4 * progress) - 0.04, 0.2 + 0.05 * math.sin(4 * progress)])
    return np.stack(
        [
            np.eye(4),
            on_table(-0.57 + 1.17 * progress, -0.6 + 0.16 * (2 * progress - 1) ** 2, -14 + 28 * progress),
            on_table(*tower, 100 * progress),
            on_table(tower[0] + 0.47 * math.cos(orbit), tower[1] + 0.43 * math.sin(orbit), 200 - 220 * progress),
        ]
    )


def on_table(x: float, y: float, heading: float) -> Float[np.ndarray, "4 4"]:
    """Pose of a toy that stands on the table, its x axis turned by `heading` degrees from the world's."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn(2, heading), (x, y, TABLE_HEIGHT)
    return pose


def camera_pose(progress: float, sideways: float = 0.0, upwards: float = 0.0) -> Float[np.ndarray, "4 4"]:
    """Camera-to-world pose, OpenCV axes: an arc about the table; `sideways` degrees and `upwards` metres off it."""
    angle = math.radians(-90 - 17 + 34 * progress + sideways)
    centre = np.array([2.2 * math.cos(angle), 2.2 * math.sin(angle), 1.42 + 0.1 * math.sin(3 * progress) + upwards])
    return look_at(centre, np.array([0.0, 0.08, 0.86]))


def look_at(centre: Float[np.ndarray, "3"], target: Float[np.ndarray, "3"]) -> Float[np.ndarray, "4 4"]:
    """Camera-to-world pose, OpenCV axes, of a level camera."""
    forward = (target - centre) / np.linalg.norm(target - centre)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = centre
    return pose
