"""What a synthetic set, or a prepared clip that was given its truth, knows of its training frames."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from osn_gs.data.osn_files import Transforms, read_depth_sequence, read_mask_sequence, read_transforms
from osn_gs.geometry.se3 import invert_rigid, opengl_to_opencv


@dataclass(frozen=True)
class SetTruth:
    """True poses (OpenCV camera axes), ids and z-depths of the training frames, in true units and full size."""

    transforms: Transforms
    cam_from_obj: Float[Tensor, "k t 4 4"]
    object_ids: UInt8[np.ndarray, "t h w"]
    depths: Float[np.ndarray, "t h w"]

    @property
    def focal(self) -> float:
        """Of the camera that took the images, in pixels of the full size."""
        return self.transforms.focal if self.transforms.true_focal is None else self.transforms.true_focal


def read_set_truth(folder: Path) -> SetTruth | None:
    """The truth of a scene folder; None where it has no true object_poses or no depth_train.

    Raises:
        DatasetError: a file of it is missing or broken.
    """
    transforms = read_transforms(folder / "transforms_train.json")
    if not transforms.has_object_poses or not (folder / "depth_train").is_dir():
        return None
    masks = folder / "segm_train" if (folder / "segm_train").is_dir() else folder / "segm_sam"
    return SetTruth(
        transforms=transforms,
        cam_from_obj=true_cam_from_obj(transforms),
        object_ids=read_mask_sequence(masks, transforms),
        depths=read_depth_sequence(folder / "depth_train", transforms),
    )


def true_cam_from_obj(transforms: Transforms) -> Float[Tensor, "k t 4 4"]:
    """True object-to-camera poses of a synthetic set, OpenCV axes."""
    world_from_cam = torch.from_numpy(np.stack([frame.world_from_cam for frame in transforms.frames]))
    world_from_obj = torch.from_numpy(np.stack([frame.world_from_obj for frame in transforms.frames], axis=1))
    return invert_rigid(opengl_to_opencv(world_from_cam)) @ world_from_obj
