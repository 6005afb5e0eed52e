"""Stand-in for structure-from-motion made from a synthetic scene's truth.

Poses are exact; points carry noise. As after real structure-from-motion, every object has a gauge of its own:
its own rotation, origin and unit of length, which say nothing of its true size.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from osn_gs.data.pinhole import project, unproject
from osn_gs.data.reconstruction import ObjectReconstruction, error_weights
from osn_gs.data.scene_data import SparsePoints
from osn_gs.errors import DatasetError
from osn_gs.geometry.se3 import invert_rigid, quat_to_rotmat, transform_points

TRACKS_PER_OBJECT = 1000  # what a per-object reconstruction keeps (METHOD: about 1,000 tracks)
PIXEL_NOISE = 0.3  # standard deviation of an observation, and of a point across its ray, in pixels
DEPTH_NOISE = 0.004  # standard deviation of a point along its ray, relative to its depth
SAME_SURFACE = 0.01  # relative depth difference below which a point counts as seen


def reconstruct_from_truth(
    cam_from_obj: Float[Tensor, "k t 4 4"],
    object_ids: UInt8[Tensor, "t h w"],
    depths: Float[Tensor, "t h w"],
    intrinsics: Float[Tensor, "3 3"],
    generator: torch.Generator,
) -> tuple[ObjectReconstruction, ...]:
    """One reconstruction per object, each in a random gauge, from true poses, ids and z-depths (float64).

    Raises:
        DatasetError: an object is never seen.
    """
    objects = []
    for k, true_cam_from_obj in enumerate(cam_from_obj):
        seen = (object_ids == k) & depths.isfinite() & (depths > 0)
        points = observe_surface_points(true_cam_from_obj, seen, depths, intrinsics, generator, name=f"object {k}")
        visible = seen.flatten(1).any(1) | (k == 0)  # the background is there even behind all else
        objects.append(in_random_gauge(true_cam_from_obj, visible, points, generator))
    return tuple(objects)


def observe_surface_points(
    cam_from_obj: Float[Tensor, "t 4 4"],
    seen: Bool[Tensor, "t h w"],
    depths: Float[Tensor, "t h w"],
    intrinsics: Float[Tensor, "3 3"],
    generator: torch.Generator,
    name: str,
) -> SparsePoints:
    """Noisy sparse points of one object in true units, one row per point and frame that sees it.

    A surface point is drawn in one frame and followed by the true poses into every other frame where its
    predicted pixel shows this object at the predicted depth.
    """
    frames, drawn_pixels, drawn_depths = _draw_surface_pixels(seen, depths, generator, name)
    noisy_pixels = drawn_pixels + PIXEL_NOISE * _normal(drawn_pixels.shape, generator)
    noisy_depths = drawn_depths * (1 + DEPTH_NOISE * _normal(drawn_depths.shape, generator))
    true_cam = _move_to_all_frames(unproject(drawn_pixels, drawn_depths, intrinsics), frames, cam_from_obj)
    estimated_cam = _move_to_all_frames(unproject(noisy_pixels, noisy_depths, intrinsics), frames, cam_from_obj)

    true_pixels = project(true_cam, intrinsics)
    observed_frames, observed_points = torch.nonzero(_is_seen(true_cam, true_pixels, seen, depths), as_tuple=True)
    estimated_pixels = project(estimated_cam, intrinsics)[observed_frames, observed_points]
    pixels = true_pixels[observed_frames, observed_points]
    pixels = pixels + PIXEL_NOISE * _normal(pixels.shape, generator)
    errors = (pixels - estimated_pixels).norm(dim=-1)
    return SparsePoints(
        frames=observed_frames,
        pixels=pixels,
        depths=estimated_cam[observed_frames, observed_points, 2],
        errors=errors,
        weights=error_weights(errors),
    )


def in_random_gauge(
    true_cam_from_obj: Float[Tensor, "t 4 4"],
    visible: Bool[Tensor, "t"],
    points: SparsePoints,
    generator: torch.Generator,
) -> ObjectReconstruction:
    """The object with its frame turned and shifted at random, in a random unit of length.

    With x_gauge = g (Q x_true + q) the pose becomes R Q^T, g (t - R Q^T q): every p_cam is multiplied by g, so
    1 / g is the object's true scale.
    """
    turn = quat_to_rotmat(_normal((4,), generator))
    shift = _normal((3,), generator)
    length = math.exp(float(0.5 * _normal((1,), generator)))
    cam_from_obj = true_cam_from_obj.clone()
    cam_from_obj[:, :3, :3] = true_cam_from_obj[:, :3, :3] @ turn.T
    cam_from_obj[:, :3, 3] = length * (true_cam_from_obj[:, :3, 3] - cam_from_obj[:, :3, :3] @ shift)
    points = SparsePoints(points.frames, points.pixels, length * points.depths, points.errors, points.weights)
    return ObjectReconstruction(cam_from_obj, visible, points, true_scale=1 / length)


def _draw_surface_pixels(
    seen: Bool[Tensor, "t h w"], depths: Float[Tensor, "t h w"], generator: torch.Generator, name: str
) -> tuple[Int[Tensor, "n"], Float[Tensor, "n 2"], Float[Tensor, "n"]]:
    """Frames, pixels and depths of random surface points, about as many from every frame that sees the object."""
    frames_seen = torch.nonzero(seen.flatten(1).any(1)).squeeze(1).tolist()
    if not frames_seen:
        raise DatasetError(f"{name} is never seen in the masks; expected every object in at least one frame.")
    quota = math.ceil(TRACKS_PER_OBJECT / len(frames_seen))
    drawn = []
    for frame in frames_seen:
        rows_columns = torch.nonzero(seen[frame])
        chosen = rows_columns[torch.randperm(len(rows_columns), generator=generator)[:quota]]
        drawn.append(torch.cat([torch.full((len(chosen), 1), frame), chosen], dim=1))
    frames, rows, columns = torch.cat(drawn).unbind(1)
    pixels = torch.stack([columns, rows], dim=1).to(depths.dtype) + 0.5
    return frames, pixels, depths[frames, rows, columns]


def _move_to_all_frames(
    points_cam: Float[Tensor, "n 3"], frames: Int[Tensor, "n"], cam_from_obj: Float[Tensor, "t 4 4"]
) -> Float[Tensor, "t n 3"]:
    """Points known in the camera of one frame each, carried along by the object into every frame."""
    points_obj = transform_points(invert_rigid(cam_from_obj)[frames], points_cam[:, None])[:, 0]
    return transform_points(cam_from_obj, points_obj)


def _is_seen(
    points_cam: Float[Tensor, "t n 3"],
    pixels: Float[Tensor, "t n 2"],
    seen: Bool[Tensor, "t h w"],
    depths: Float[Tensor, "t h w"],
) -> Bool[Tensor, "t n"]:
    height, width = seen.shape[1:]
    inside = (points_cam[..., 2] > 0) & (pixels >= 0).all(-1) & (pixels[..., 0] < width) & (pixels[..., 1] < height)
    columns = pixels[..., 0].nan_to_num(0).clamp(0, width - 1).long()
    rows = pixels[..., 1].nan_to_num(0).clamp(0, height - 1).long()
    frames = torch.arange(len(seen))[:, None].expand_as(rows)
    surface = depths[frames, rows, columns]
    on_surface = (points_cam[..., 2] - surface).abs() < SAME_SURFACE * surface
    return inside & seen[frames, rows, columns] & on_surface


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, "..."]:
    return torch.randn(shape, generator=generator, dtype=torch.float64)
