"""What structure-from-motion (or truth in its stead) knows of every object, and the units it is brought to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from osn_gs.data.scene_data import SparsePoints
from osn_gs.object_scales.ranges import background_unit_factor, initial_scale_range


@dataclass(frozen=True)
class ObjectReconstruction:
    """One object's poses and points, in its own gauge; float64.

    `cam_from_obj` maps to OpenCV camera axes. `scale_range` is the initial range in this object's units
    (None for the background). `true_scale` times the object's units gives true units, where known.
    """

    cam_from_obj: Float[Tensor, "t 4 4"]
    visible: Bool[Tensor, "t"]
    points: SparsePoints
    scale_range: tuple[float, float] | None = None
    true_scale: float | None = None


def error_weights(errors: Float[Tensor, "m"]) -> Float[Tensor, "m"]:
    """Weights of observations by reprojection error, 2 exp(-(e / mean e)^2), as in the released code (METHOD 3)."""
    return 2 * torch.exp(-((errors / errors.mean().clamp_min(1e-12)) ** 2))


def change_units(obj: ObjectReconstruction, factor: float) -> ObjectReconstruction:
    """The same object in units `factor` times smaller: lengths grow by `factor`, scales shrink by it."""
    cam_from_obj = obj.cam_from_obj.clone()
    cam_from_obj[:, :3, 3] *= factor
    return replace(
        obj,
        cam_from_obj=cam_from_obj,
        points=replace(obj.points, depths=obj.points.depths * factor),
        scale_range=None if obj.scale_range is None else (obj.scale_range[0] / factor, obj.scale_range[1] / factor),
        true_scale=None if obj.true_scale is None else obj.true_scale / factor,
    )


def normalize_object(obj: ObjectReconstruction, near: float, far: float, name: str) -> ObjectReconstruction:
    """A moving object in units in which the middle of its initial scale range is 1 (METHOD 3).

    Raises:
        DatasetError: no scale keeps the object's points between near and far.
    """
    if obj.scale_range is not None:
        return change_units(obj, 0.5 * sum(obj.scale_range))
    initial = initial_scale_range(depths_by_frame(obj.points), near, far, name)
    return replace(change_units(obj, initial.unit_factor), scale_range=(initial.lo, initial.hi))


def to_scene_units(
    objects: Sequence[ObjectReconstruction], near: float, far: float
) -> tuple[ObjectReconstruction, ...]:
    """Every object in the units training expects; the background comes first.

    The background's far points come to stand at 0.95 far, which is the unit in which near and far are given; its
    scale is then 1. Only where every object brings a range are the background's units the scene's already, and stay.
    """
    background, moving = objects[0], objects[1:]
    if any(obj.scale_range is None for obj in moving):
        factor = background_unit_factor(depths_by_frame(background.points), far)
        background = change_units(background, factor)
        moving = [_in_grown_scene(obj, factor) for obj in moving]
    return (background, *(normalize_object(obj, near, far, f"object {k}") for k, obj in enumerate(moving, start=1)))


def _in_grown_scene(obj: ObjectReconstruction, factor: float) -> ObjectReconstruction:
    """The object, in units of its own as before, where all lengths of the scene have grown by `factor`."""
    if obj.scale_range is None:
        return obj
    return replace(obj, scale_range=(obj.scale_range[0] * factor, obj.scale_range[1] * factor))


def depths_by_frame(points: SparsePoints) -> list[Float[Tensor, "n"]]:
    """Depths of the points of every frame that has some."""
    return [points.depths[points.frames == frame] for frame in points.frames.unique()]
