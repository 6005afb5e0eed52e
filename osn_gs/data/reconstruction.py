"""What structure-from-motion (or truth in its stead) knows of every object, and the units it is brought to."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from osn_gs.data.scene_data import SparsePoints
from osn_gs.errors import DatasetError


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


def initial_scale_range(points: SparsePoints, near: float, far: float) -> tuple[float, float]:
    """Scales that keep an object's points between near and far: [1.05 near / close, 0.95 far / inf] (METHOD 3)."""
    close, distant = depth_extent(points)
    return 1.05 * near / close, 0.95 * far / distant


def depth_extent(points: SparsePoints) -> tuple[float, float]:
    """Smallest 5th and largest 95th percentile of the points' depths over the frames."""
    percentiles = [
        torch.quantile(points.depths[points.frames == frame], torch.tensor([0.05, 0.95], dtype=points.depths.dtype))
        for frame in points.frames.unique()
    ]
    lows, highs = torch.stack(percentiles).unbind(-1)
    return float(lows.min()), float(highs.max())


def normalize_background(background: ObjectReconstruction, far: float) -> ObjectReconstruction:
    """The background in the scene's units: its far points stand at 0.95 far, so that its scale is 1."""
    _, distant = depth_extent(background.points)
    return change_units(background, 0.95 * far / distant)


def normalize_object(obj: ObjectReconstruction, near: float, far: float, name: str) -> ObjectReconstruction:
    """A moving object in units in which the middle of its initial scale range is 1.

    Raises:
        DatasetError: no scale keeps the object's points between near and far.
    """
    lo, hi = obj.scale_range or initial_scale_range(obj.points, near, far)
    if not 0 < lo < hi:
        raise DatasetError(
            f"{name}: initial scale range [{lo:.3g}, {hi:.3g}] is empty: its depths do not fit between near {near:g} "
            f"and far {far:g}; lower near or raise far."
        )
    return change_units(replace(obj, scale_range=(lo, hi)), 0.5 * (lo + hi))
