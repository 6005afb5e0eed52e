"""A scene as the browser draws it: arrays that do not change with object scales, and where they stand for any.

Scaling an object about the camera centre moves it along a fixed ray: x_world = centre_t + s * ray_t. So a slider
changes the pose and the scale of one node per object and nothing is sent again (METHOD 2). Only an object that bends
has other splats in another frame: `ObjectSnapshot.bending` makes those when they are looked at.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from osn_gs.gaussians.spherical_harmonics import evaluate_sh
from osn_gs.geometry.se3 import invert_rigid, quat_to_rotmat, rotmat_to_quat
from osn_gs.scene.pixel_blur import pixel_blur
from osn_gs.scene.scene import ObjectGroup, Scene

LEAST_DEVIATION = 0.1  # of a splat as wide as a training pixel's blur; its variance has 3 digits in half precision
LARGEST_DEVIATION = 250.0  # variances above 65,504 are infinite in half precision; wider splats fill the picture


class NodePose(NamedTuple):
    """x_world = scale * rotation(wxyz) @ x_node + position, for splats as the snapshot holds them."""

    scale: float
    wxyz: Float[np.ndarray, "4"]
    position: Float[np.ndarray, "3"]


class BendingSplats:
    """The splats of an object that bends, frame by frame, in its own frame and in `unit`s."""

    def __init__(self, group: ObjectGroup, deviations: Float[Tensor, "n 3"], unit: float) -> None:
        """`deviations` are the splats' own, in units; the object is copied, for training goes on."""
        self._group = copy.deepcopy(group)
        self._deviations = deviations
        self._unit = unit

    @torch.no_grad()
    def at(self, time_step: int) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n 3 3"]]:
        """Means and covariances in a frame."""
        means, quats = self._group.at(time_step)
        return _numpy(means / self._unit), _numpy(_covariances(quats, self._deviations))


@dataclass(frozen=True)
class ObjectSnapshot:
    """One object: splats in its own frame, and its pose in the world over time, at scale 1 from the camera.

    `means` and `covariances` are in `unit`s (of its own units): the browser keeps covariances in half precision, which
    resolves a training pixel then. `rays[t]` leads from the camera centre to the object's origin, `middle_rays[t]` to
    the middle of its splats. `bending` has the means and covariances of another frame than the first for an object that
    bends, None for a rigid one. `rgbs` are seen from the mean direction of the training cameras: the browser draws no
    spherical harmonics.
    """

    name: str
    unit: float
    means: Float[np.ndarray, "n 3"]
    covariances: Float[np.ndarray, "n 3 3"]
    rgbs: Float[np.ndarray, "n 3"]
    opacities: Float[np.ndarray, "n"]
    wxyz: Float[np.ndarray, "t 4"]
    rays: Float[np.ndarray, "t 3"]
    middle_rays: Float[np.ndarray, "t 3"]
    visible: Bool[np.ndarray, "t"]
    bending: BendingSplats | None = None

    def splats(self, time_step: int) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n 3 3"]]:
        """Means and covariances in a frame."""
        return (self.means, self.covariances) if self.bending is None else self.bending.at(time_step)


@dataclass(frozen=True)
class SceneSnapshot:
    """All objects, and the training cameras: `cam_from_world` [T, 4, 4] and what they see; `up` is the world's."""

    objects: tuple[ObjectSnapshot, ...]
    cam_from_world: Float[np.ndarray, "t 4 4"]
    camera_centres: Float[np.ndarray, "t 3"]
    fov_y: float  # radians
    aspect: float  # width over height
    up: Float[np.ndarray, "3"]

    @property
    def num_frames(self) -> int:
        return len(self.camera_centres)

    @property
    def num_splats(self) -> int:
        return sum(len(part.means) for part in self.objects)

    def pose(self, k: int, object_scale: float, time_step: int) -> NodePose:
        """Where object k stands at a time."""
        part = self.objects[k]
        position = self.camera_centres[time_step] + object_scale * part.rays[time_step]
        return NodePose(object_scale * part.unit, part.wxyz[time_step], position)

    def trajectory(self, k: int, object_scale: float) -> Float[np.ndarray, "v 3"]:
        """The way of object k's middle through the world, over the frames in which it has a pose."""
        part = self.objects[k]
        return (self.camera_centres + object_scale * part.middle_rays)[part.visible]

    @property
    def distance(self) -> float:
        """How far the moving objects are from the camera at scale 1, the background where none moves: a median."""
        moving = [np.linalg.norm(part.middle_rays[part.visible], axis=1) for part in self.objects[1:]]
        known = np.concatenate(moving) if moving else np.zeros(0)
        return float(np.median(known if len(known) else np.linalg.norm(self.objects[0].middle_rays, axis=1)))


@torch.no_grad()
def take_snapshot(scene: Scene, up: Float[Tensor, "3"] | None = None) -> SceneSnapshot:
    """Copy what the browser needs out of a scene; splats are as wide as the training pixels.

    `up` is the world's; without it the training cameras' mean up.
    """
    world_from_cam = invert_rigid(scene.objects[0].cam_from_obj)
    fy = float(scene.intrinsics[1, 1])
    if up is None:
        up = -world_from_cam[:, :3, 1].mean(dim=0)
    return SceneSnapshot(
        objects=tuple(_object_snapshot(scene, k, world_from_cam) for k in range(scene.num_objects)),
        cam_from_world=_numpy(scene.objects[0].cam_from_obj),
        camera_centres=_numpy(world_from_cam[:, :3, 3]),
        fov_y=2 * math.atan(scene.height / (2 * fy)),
        aspect=scene.width / scene.height * fy / float(scene.intrinsics[0, 0]),
        up=_numpy(torch.nn.functional.normalize(up, dim=0)),
    )


def _object_snapshot(scene: Scene, k: int, world_from_cam: Float[Tensor, "t 4 4"]) -> ObjectSnapshot:
    group, blur = scene.objects[k], pixel_blur(scene, k)
    means, quats = group.at(0)
    unit = max(float(blur.median()), 1e-9) / LEAST_DEVIATION
    deviations = (group.gaussians.scales**2 + blur[:, None] ** 2).sqrt() / unit
    deviations = deviations.clamp(max=LARGEST_DEVIATION)
    turn = world_from_cam[:, :3, :3]
    middle = group.gaussians.means.quantile(0.5, dim=0)
    in_camera = group.cam_from_obj[:, :3, :3] @ middle + group.cam_from_obj[:, :3, 3]
    return ObjectSnapshot(
        name=group.name,
        unit=unit,
        means=_numpy(means / unit),
        covariances=_numpy(_covariances(quats, deviations)),
        rgbs=_numpy(_colors_as_filmed(group)),
        opacities=_numpy(group.gaussians.opacities),
        wxyz=_numpy(rotmat_to_quat(turn @ group.cam_from_obj[:, :3, :3])),
        rays=_numpy((turn @ group.cam_from_obj[:, :3, 3:])[..., 0]),
        middle_rays=_numpy((turn @ in_camera[..., None])[..., 0]),
        visible=group.visible.cpu().numpy().copy(),
        bending=None if group.deformation is None else BendingSplats(group, deviations, unit),
    )


def _covariances(quats: Float[Tensor, "n 4"], deviations: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3 3"]:
    stretched = quat_to_rotmat(quats) * deviations[:, None, :]
    return stretched @ stretched.transpose(1, 2)


def _colors_as_filmed(group: ObjectGroup) -> Float[Tensor, "n 3"]:
    """One colour per Gaussian: what it shows toward the mean of the cameras that saw the object, in its own frame."""
    cameras = invert_rigid(group.cam_from_obj[group.visible])[:, :3, 3]
    gaussians = group.gaussians
    centre = cameras.mean(dim=0) if len(cameras) else gaussians.means.new_zeros(3)
    harmonics = evaluate_sh(gaussians.sh_degree, gaussians.means - centre, gaussians.sh)
    return (harmonics + 0.5).clamp(0, 1)


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy().astype(np.float64)
