"""Tracks of points on known shapes under known motion, with the faults real tracks have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from osn_gs.preprocess.tracks import Tracks

Shape = Literal["egg", "plane", "room"]


@dataclass(frozen=True)
class SyntheticClip:
    """Tracks with the poses and points they were made from, and how far each point is from its place in every frame;
    the distance of camera and object is 4."""

    tracks: Tracks
    cam_from_obj: Float[np.ndarray, "t 4 4"]
    points: Float[np.ndarray, "n 3"]
    focal: float
    size: tuple[int, int]
    swings: Float[np.ndarray, "t n 3"]

    def intact(self, tolerance: float) -> Bool[np.ndarray, "n t"]:
        """Observations within `tolerance` pixels of the true projection."""
        true = project(self.points, self.cam_from_obj, self.focal, self.size)
        return self.tracks.visible & (np.linalg.norm(self.tracks.pixels - true, axis=-1) < tolerance)


DISTANCE = 4.0


def make_clip(
    shape: Shape = "egg",
    *,
    num_frames: int = 12,
    num_tracks: int = 500,
    extent: float = 1.0,
    sway: float = 0.0,
    arc: float = 30.0,
    noise: float = 0.2,
    outliers: float = 0.05,
    focal: float = 500.0,
    size: tuple[int, int] = (480, 360),
    hidden: tuple[int, ...] = (),
    object_id: int = 1,
    seed: int = 0,
) -> SyntheticClip:
    """A camera on an arc of `arc` degrees about a shape `extent` across, looking at it unsteadily.

    Each track lives for a stretch of frames in which its point faces the camera; `outliers` is the share of tracks
    that slide away. No track is seen in the `hidden` frames. With `sway` the shape is no longer rigid: its upper part
    swings by that much.
    """
    generator = np.random.default_rng(seed)
    points, normals = _surface(shape, num_tracks, generator)
    points *= extent
    poses = _arc(num_frames, arc, generator)
    swings = _swings(points, num_frames, sway)
    true = project(points + swings, poses, focal, size)
    centres = -np.einsum("tji,tj->ti", poses[:, :3, :3], poses[:, :3, 3])
    facing = np.einsum("ni,nti->nt", normals, centres - points[:, None]) > 0
    inside = ((true > 0) & (true < size)).all(-1)
    begins = generator.integers(-num_frames, num_frames - 2, num_tracks)
    ends = begins + generator.integers(num_frames // 2, 2 * num_frames, num_tracks)
    frames = np.arange(num_frames)
    visible = facing & inside & (frames >= begins[:, None]) & (frames < ends[:, None])
    visible[:, list(hidden)] = False
    pixels = true + generator.normal(0, noise, true.shape)
    sliding = generator.random(num_tracks) < outliers
    pixels[sliding] += np.cumsum(generator.normal(0, 2.0, (int(sliding.sum()), num_frames, 2)), axis=1)
    long = visible.sum(1) >= 3
    tracks = Tracks(pixels[long], visible[long], np.full(int(long.sum()), object_id))
    return SyntheticClip(tracks, poses, points[long], focal, size, swings[:, long])


def swung(clip: SyntheticClip) -> Float[np.ndarray, "t n 3"]:
    """Where the points are in the object's frame, in every frame."""
    return clip.points + clip.swings


def project(
    points: Float[np.ndarray, "*t n 3"], cam_from_obj: Float[np.ndarray, "t 4 4"], focal: float, size: tuple[int, int]
) -> Float[np.ndarray, "n t 2"]:
    points_cam = points @ cam_from_obj[:, :3, :3].swapaxes(1, 2) + cam_from_obj[:, None, :3, 3]
    points_cam = points_cam.swapaxes(0, 1)
    return focal * points_cam[..., :2] / points_cam[..., 2:] + np.array(size) / 2


def _surface(shape: Shape, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points within about half a unit of the origin and their outward normals."""
    if shape == "plane":
        points = generator.uniform(-0.5, 0.5, (count, 3)) * [1, 0.8, 0.01]
        return points, np.tile([0.0, 0.0, -1.0], (count, 1))
    if shape == "room":  # seen from inside, deep: walls about the camera's view
        axes, signs = generator.integers(0, 3, count), generator.choice([-1.0, 1.0], count)
        points, normals = generator.uniform(-0.5, 0.5, (count, 3)), np.zeros((count, 3))
        points[np.arange(count), axes], normals[np.arange(count), axes] = 0.5 * signs, -signs
        return points * [8, 6, 12], normals
    on_sphere = generator.normal(size=(count, 3))
    on_sphere /= np.linalg.norm(on_sphere, axis=1, keepdims=True)
    half_axes = np.array([0.5, 0.35, 0.4])
    return on_sphere * half_axes, on_sphere / half_axes


def _swings(points: np.ndarray, num_frames: int, amount: float) -> np.ndarray:
    """Offsets [t, n, 3] of points that swing across the view and along it, the more the higher they are (y is down)."""
    phases = 2 * np.pi * 1.8 * np.arange(num_frames) / num_frames
    swing = amount * np.stack([np.sin(phases), np.zeros(num_frames), 0.7 * np.cos(1.3 * phases)], axis=1)
    height = 0.5 - points[:, 1] / max(np.ptp(points[:, 1]), 1e-9)
    return swing[:, None] * height[:, None] ** 2


def _arc(num_frames: int, arc: float, generator: np.random.Generator) -> np.ndarray:
    angles = np.deg2rad(arc) * np.linspace(-0.5, 0.5, num_frames)
    heights = 0.3 - 0.3 * np.sin(4 * angles)
    poses = []
    for angle, height in zip(angles, heights, strict=True):
        centre = np.array([DISTANCE * np.sin(angle), -height, -DISTANCE * np.cos(angle)])
        ahead = generator.normal(0, 0.02, 3) - centre
        z = ahead / np.linalg.norm(ahead)
        x = np.cross([0, 1.0, 0], z)
        x /= np.linalg.norm(x)
        rotation = np.stack([x, np.cross(z, x), z])
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = rotation, -rotation @ centre
        poses.append(pose)
    return np.array(poses)
