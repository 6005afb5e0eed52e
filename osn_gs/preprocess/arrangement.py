"""Bringing the models of all objects into one scene: origins, units, scale ranges, boxes.

Structure from motion leaves every object in a frame and a unit of its own. Here the origin moves to the middle of the
object's points, poses of missing frames are filled, the background is scaled so that it ends before `far`, and every
other object so that the middle of its initial scale range is 1 (METHOD 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.spatial.transform import Rotation, Slerp
from torch import Tensor

from osn_gs.data.osn_writer import observed_points
from osn_gs.data.reconstruction import (
    ObjectReconstruction,
    change_units,
    depths_by_frame,
    error_weights,
    to_scene_units,
)
from osn_gs.data.scene_data import SparsePoints
from osn_gs.errors import DatasetError
from osn_gs.object_scales.ranges import FAR_MARGIN, NEAR_MARGIN, background_unit_factor, depth_extent
from osn_gs.preprocess.sfm.object_model import ObjectModel

USUAL_NEAR = 1 / 8  # of far (METHOD 3): for scenes whose depths span less than a factor of 8
CLEAR_OF_NEAR = 1.5  # times the usual near: a background that begins nearer says that the depths span more
NEAREST_OBJECT = 0.35  # of the depth at which such a background begins; in street traffic 0.45 was needed
NARROWEST_RANGE = 2.0  # largest over smallest scale that near must leave every object
SMALLEST_NEAR = 1 / 160  # of far; an object that needs less spans depths that no clip shows: its model is broken

BODY_SHARE = 0.95  # of an object's points lie in its body
OUTLYING = 2.0  # times the body's radius: farther points are mistakes
BOX_SHARE = 0.99  # of the observations lie in the box along each axis, before its margin
BOX_MARGIN = 0.05  # of the box's side, on either side


@dataclass(frozen=True)
class Arrangement:
    """All objects in the units of the scene folder, background first, with boxes [3, 2] around their points.

    `near` and `far` bound the depths, in the background's units, that the scale ranges let objects have.
    """

    objects: tuple[ObjectReconstruction, ...]
    boxes: tuple[Float[Tensor, "3 2"], ...]
    intrinsics: Float[Tensor, "3 3"]
    near: float
    far: float


def arrange_objects(models: Sequence[ObjectModel], near: float | None, far: float) -> Arrangement:
    """One scene of the models of all objects, background first; without `near` it is chosen by `choose_near`.

    Raises:
        DatasetError: a model has no points before its cameras, the background lacks a frame's pose, or no scale keeps
            an object between near and far.
    """
    missing = np.flatnonzero(~models[0].registered)
    if len(missing):
        raise DatasetError(
            f"background: {len(missing)} of {len(models[0].registered)} frames have no camera pose, the first is "
            f"{missing[0]}; every frame needs one: leave these frames out, or use a clip with more texture behind the "
            "objects."
        )
    objects = [canonical_object(model, _name(k)) for k, model in enumerate(models)]
    if near is None:
        near = choose_near(objects, far)
    objects = to_scene_units(objects, near, far)
    intrinsics = torch.from_numpy(models[0].intrinsics)
    boxes = tuple(bounding_box(observed_points(obj, intrinsics)) for obj in objects)
    return Arrangement(objects, boxes, intrinsics, near, far)


def canonical_object(model: ObjectModel, name: str) -> ObjectReconstruction:
    """The model with its origin in the middle of its points, mistaken points removed and missing poses filled.

    Raises:
        DatasetError: no frame is registered or no observation lies before its camera.
    """
    if not model.registered.any():
        raise DatasetError(f"{name}: no frame has a pose; its structure from motion failed.")
    kept = _body_points(model.points)[model.observed_points] & (model.observed_in_camera()[:, 2] > 0)
    kept &= model.registered[model.observed_frames]
    if not kept.any():
        raise DatasetError(f"{name}: its model has no points before its cameras; its structure from motion failed.")
    centre = np.median(model.points[np.unique(model.observed_points[kept])], axis=0)
    cam_from_obj = model.cam_from_obj.copy()
    cam_from_obj[:, :3, 3] += cam_from_obj[:, :3, :3] @ centre
    errors = torch.from_numpy(model.reprojection_errors()[kept])
    points = SparsePoints(
        frames=torch.from_numpy(model.observed_frames[kept].astype(np.int64)),
        pixels=torch.from_numpy(model.observed_pixels[kept].astype(np.float64)),
        depths=torch.from_numpy(model.observed_in_camera()[kept, 2]),
        errors=errors,
        weights=error_weights(errors),
    )
    filled = fill_missing_poses(cam_from_obj, model.registered)
    return ObjectReconstruction(torch.from_numpy(filled), torch.from_numpy(model.registered.astype(bool)), points)


def fill_missing_poses(
    cam_from_obj: Float[np.ndarray, "t 4 4"], registered: Bool[np.ndarray, "t"]
) -> Float[np.ndarray, "t 4 4"]:
    """Poses of missing frames between their registered neighbours, and like the nearest one before and after all.

    Rotation and the origin's place in the camera go at constant speed.
    """
    known, missing = np.flatnonzero(registered), np.flatnonzero(~registered)
    filled = cam_from_obj.copy()
    filled[missing] = cam_from_obj[known[0]]
    if len(known) > 1:
        frames = np.clip(missing, known[0], known[-1])
        filled[missing, :3, :3] = Slerp(known, Rotation.from_matrix(cam_from_obj[known, :3, :3]))(frames).as_matrix()
        for axis in range(3):
            filled[missing, axis, 3] = np.interp(frames, known, cam_from_obj[known, axis, 3])
    return filled


def choose_near(objects: Sequence[ObjectReconstruction], far: float) -> float:
    """The nearest depth objects may have when the background ends before `far`: far / 8 as in METHOD 3, or less.

    Less where the background itself begins hardly farther, as outdoors, since objects stand well before it; and
    where an object whose depth varies much over the clip would be left with no scale to choose. Two digits.
    """
    background = change_units(objects[0], background_unit_factor(depths_by_frame(objects[0].points), far))
    background_begins, _ = depth_extent(depths_by_frame(background.points))
    limits = [USUAL_NEAR * far]
    if background_begins < CLEAR_OF_NEAR * USUAL_NEAR * far:
        limits.append(NEAREST_OBJECT * background_begins)
    for obj in objects[1:]:
        close, inf = depth_extent(depths_by_frame(obj.points))
        limits.append(FAR_MARGIN * far * close / (NEAR_MARGIN * NARROWEST_RANGE * inf))
    smallest = max(min(limits), SMALLEST_NEAR * far)
    digit = 10.0 ** (math.floor(math.log10(smallest)) - 1)
    return round(math.floor(smallest / digit + 1e-9) * digit, 12)


def bounding_box(points_obj: Float[Tensor, "m 3"]) -> Float[Tensor, "3 2"]:
    """Lowest and highest coordinates of the object, the outermost points not counted and a margin added."""
    tail = (1 - BOX_SHARE) / 2
    lowest, highest = (torch.from_numpy(np.quantile(points_obj.numpy(), q, axis=0)) for q in (tail, 1 - tail))
    margin = BOX_MARGIN * (highest - lowest)
    return torch.stack([lowest - margin, highest + margin], dim=1)


def _body_points(points: Float[np.ndarray, "n 3"]) -> Bool[np.ndarray, "n"]:
    """Points that are not far out, seen from the middle of all."""
    finite = np.isfinite(points).all(axis=1)
    if not finite.any():
        return finite
    distances = np.linalg.norm(points - np.median(points[finite], axis=0), axis=1)
    radius = np.quantile(distances[finite], BODY_SHARE)
    return finite & (distances <= OUTLYING * radius)


def _name(k: int) -> str:
    return "background" if k == 0 else f"object {k}"
