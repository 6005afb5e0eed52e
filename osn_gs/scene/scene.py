"""K object groups of Gaussians and where they stand for given object scales and a time."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from osn_gs.gaussians.deformation import NodeDeformation
from osn_gs.gaussians.object_gaussians import ObjectGaussians
from osn_gs.geometry.se3 import invert_rigid, quat_multiply, quat_to_rotmat, rigid_matrix, rotmat_to_quat, slerp

NEAR_PLANE = 0.01  # in scene units: only what touches the camera is cut; the scale ranges keep to near and far


class ObjectGroup(nn.Module):
    """One object: canonical Gaussians, its pose in the camera of every training frame, and a name.

    `cam_from_obj[t]` [T, 4, 4] is rigid and in the object's own units (OpenCV camera axes). A `deformation` moves the
    canonical Gaussians of an object that bends; None for a rigid one.
    """

    def __init__(
        self,
        name: str,
        gaussians: ObjectGaussians,
        cam_from_obj: Float[Tensor, "t 4 4"],
        visible: Bool[Tensor, "t"],
        deformation: NodeDeformation | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.gaussians = gaussians
        self.register_module("deformation", deformation)
        self.register_buffer("cam_from_obj", cam_from_obj)
        self.register_buffer("visible", visible)

    def at(self, time: float) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 4"]]:
        """Means and quaternions in the object's frame at a time: the canonical ones at all times for a rigid object.

        Sizes, opacities and colours stay the canonical ones. Colours are seen from the direction of the deformed mean
        without turning it back by the Gaussian's own turn: what bends by some ten degrees shows the same low harmonics.
        """
        if self.deformation is None:
            return self.gaussians.means, self.gaussians.quats
        return self.deformation.move(self.gaussians.means, self.gaussians.quats, time)


class Placement(NamedTuple):
    """Similarities x_world = scale_k * rotation_k @ x_obj + translation_k of K objects; world = background frame."""

    scales: Float[Tensor, "k"]
    rotations: Float[Tensor, "k 3 3"]
    translations: Float[Tensor, "k 3"]


class PlacedGaussians(NamedTuple):
    """All objects' Gaussians in one world frame, in the order of the objects."""

    means: Float[Tensor, "n 3"]
    quats: Float[Tensor, "n 4"]
    scales: Float[Tensor, "n 3"]
    opacities: Float[Tensor, "n"]
    object_index: Int[Tensor, "n"]


class Scene(nn.Module):
    """K objects filmed by one camera; object 0 is the background, whose frame is the world.

    `scale_ranges` [K, 2] holds the initial (lo, hi) of each object scale, `intrinsics` [3, 3] the camera's
    K matrix in pixels for images of `width` x `height`. Times are in frames; between two of them the camera and the
    objects go straight ahead and turn evenly.
    """

    def __init__(
        self,
        objects: list[ObjectGroup],
        intrinsics: Float[Tensor, "3 3"],
        width: int,
        height: int,
        scale_ranges: Float[Tensor, "k 2"],
        near: float,
        far: float,
    ) -> None:
        super().__init__()
        self.objects = nn.ModuleList(objects)
        self.width, self.height = width, height
        self.near, self.far = near, far
        self.register_buffer("intrinsics", intrinsics)
        self.register_buffer("scale_ranges", scale_ranges)

    @property
    def num_objects(self) -> int:
        return len(self.objects)

    @property
    def num_frames(self) -> int:
        return len(self.objects[0].cam_from_obj)

    @property
    def num_gaussians(self) -> int:
        return sum(len(group.gaussians) for group in self.objects)

    @property
    def object_names(self) -> tuple[str, ...]:
        return tuple(group.name for group in self.objects)

    def cam_from_world(self, time: float) -> Float[Tensor, "4 4"]:
        """The training camera at a time, in the background's frame."""
        frame, share = divmod(time, 1)
        before = self.objects[0].cam_from_obj[int(frame)]
        if share == 0:
            return before
        ends = invert_rigid(torch.stack([before, self.objects[0].cam_from_obj[int(frame) + 1]]))
        quats = rotmat_to_quat(ends[:, :3, :3])
        rotation = quat_to_rotmat(slerp(quats[0], quats[1], share))
        return invert_rigid(rigid_matrix(rotation, torch.lerp(ends[0, :3, 3], ends[1, :3, 3], share)))

    def visible(self, time: float) -> Bool[Tensor, "k"]:
        """Which objects have a pose at a time: in its frame, or the two around it; the others cannot be placed."""
        frames = [math.floor(time), math.ceil(time)]
        return torch.stack([group.visible[frames].all() for group in self.objects])

    def placement(self, object_scales: Float[Tensor, "k"], time: float) -> Placement:
        """Where the objects stand in the world at a time (METHOD 2).

        Each object is scaled about the camera centre, p_cam = s (R x_obj + t), then taken to the world.
        """
        frame, share = divmod(time, 1)
        before = self._placement_in_frame(object_scales, int(frame))
        if share == 0:
            return before
        after = self._placement_in_frame(object_scales, int(frame) + 1)
        quats = slerp(rotmat_to_quat(before.rotations), rotmat_to_quat(after.rotations), share)
        return Placement(
            scales=object_scales,
            rotations=quat_to_rotmat(quats),
            translations=torch.lerp(before.translations, after.translations, share),
        )

    def _placement_in_frame(self, object_scales: Float[Tensor, "k"], time_step: int) -> Placement:
        cam_from_obj = torch.stack([group.cam_from_obj[time_step] for group in self.objects])
        world_from_cam = invert_rigid(self.cam_from_world(time_step))
        scaled_translations = object_scales[:, None] * cam_from_obj[:, :3, 3]
        rotation = world_from_cam[:3, :3]
        return Placement(
            scales=object_scales,
            rotations=rotation @ cam_from_obj[:, :3, :3],
            translations=scaled_translations @ rotation.T + world_from_cam[:3, 3],
        )

    def place(self, object_scales: Float[Tensor, "k"], time: float) -> PlacedGaussians:
        """All visible objects' Gaussians in the world, for object scales and a time.

        Means as in `placement`, sizes times the object scale, rotations turned with the object.
        """
        placement = self.placement(object_scales, time)
        visible = self.visible(time)
        groups = []
        for k, group in enumerate(self.objects):
            if not visible[k]:
                continue
            means, quats = group.at(time)
            rotation = placement.rotations[k]
            turned = quat_multiply(rotmat_to_quat(rotation).expand_as(quats), quats)
            groups.append(
                PlacedGaussians(
                    means=placement.scales[k] * means @ rotation.T + placement.translations[k],
                    quats=turned,
                    scales=placement.scales[k] * group.gaussians.scales,
                    opacities=group.gaussians.opacities,
                    object_index=torch.full((len(means),), k, device=means.device),
                )
            )
        return PlacedGaussians(*(torch.cat(parts) for parts in zip(*groups, strict=True)))
