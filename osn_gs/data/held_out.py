"""Held-out views: images training never sees, their cameras brought into the background's frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from osn_gs.data.downscale import downscale_depth, downscale_ids, downscale_image
from osn_gs.data.osn_files import (
    FrameRecord,
    Transforms,
    read_depth_sequence,
    read_image_sequence,
    read_mask_sequence,
    read_transforms,
)
from osn_gs.data.pinhole import intrinsics_of
from osn_gs.data.scene_data import HeldOutView
from osn_gs.errors import DatasetError
from osn_gs.geometry.alignment import Similarity, align_poses
from osn_gs.geometry.se3 import invert_rigid, opengl_to_opencv, rigid_matrix

SPLITS = ("test", "stereo")
WORST_MISFIT = 0.25  # of the camera path; real reconstructions come within a few hundredths


def read_held_out(
    folder: Path,
    train: Transforms,
    cam_from_background: Float[Tensor, "t 4 4"],
    background_scale: float | None,
    num_objects: int,
    pixel_center: float,
    downscale: int,
) -> dict[str, tuple[HeldOutView, ...]]:
    """Views of every split the folder has, by split name; depths as they stand in the files, unknown ones included.

    `cam_from_background` are the training cameras (OpenCV axes) as training will use them;
    `background_scale` is the background's true scale where it is known exactly.
    """
    present = [split for split in SPLITS if (folder / f"transforms_{split}.json").is_file()]
    if not present:
        return {}
    world_from_cam = torch.stack([opengl_to_opencv(torch.from_numpy(frame.world_from_cam)) for frame in train.frames])
    background_from_world = align_cameras(
        world_from_cam, invert_rigid(cam_from_background), None if background_scale is None else 1 / background_scale
    )
    views = {
        split: _read_split(
            folder, split, train, cam_from_background, background_from_world, num_objects, pixel_center, downscale
        )
        for split in present
    }
    return {split: found for split, found in views.items() if found}


def align_cameras(
    world_from_cam: Float[Tensor, "t 4 4"], background_from_cam: Float[Tensor, "t 4 4"], scale: float | None = None
) -> Similarity:
    """`align_poses` from the true world to the background's frame, after checking that the two paths match.

    Raises:
        DatasetError: they do not, or a scale is wanted of a camera that stands still.
    """
    world_path, background_path = (_centred(poses[:, :3, 3]) for poses in (world_from_cam, background_from_cam))
    if scale is None and world_path.norm() == 0:
        raise DatasetError(
            "the training camera stands still, so held-out cameras cannot be placed; remove transforms_test.json "
            "and transforms_stereo.json."
        )
    aligned = align_poses(world_from_cam, background_from_cam, scale)
    misfit = float((aligned.scale * world_path @ aligned.rotation.T - background_path).norm())
    if misfit > WORST_MISFIT * float(background_path.norm()) + 1e-6:
        raise DatasetError(
            f"the camera path of transforms_train.json and the background's poses differ by {misfit:.3g} "
            f"over a path of {float(background_path.norm()):.3g}, so held-out cameras cannot be placed; "
            "check the poses, or remove transforms_test.json and transforms_stereo.json."
        )
    return aligned


def _centred(points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    return points - points.mean(0)


def camera_in_background(
    world_from_cam: Float[Tensor, "4 4"], background_from_world: Similarity
) -> Float[Tensor, "4 4"]:
    """cam_from_background of a camera that is known in the true world (OpenCV axes)."""
    rotation = background_from_world.rotation @ world_from_cam[:3, :3]
    centre = background_from_world.apply(world_from_cam[None, :3, 3])[0]
    return invert_rigid(rigid_matrix(rotation, centre))


def _read_split(
    folder: Path,
    split: str,
    train: Transforms,
    cam_from_background: Float[Tensor, "t 4 4"],
    background_from_world: Similarity,
    num_objects: int,
    pixel_center: float,
    downscale: int,
) -> tuple[HeldOutView, ...]:
    transforms = read_transforms(folder / f"transforms_{split}.json")
    if not transforms.frames:
        return ()
    images = read_image_sequence(folder / f"images_{split}", transforms)
    masks, depths = folder / f"segm_{split}", folder / f"depth_{split}"
    covis = folder / "covis_mask"
    ids = _read_ids(masks, transforms, num_objects) if masks.is_dir() else [None] * len(images)
    co_visible = read_mask_sequence(covis, transforms) if split == "test" and covis.is_dir() else [None] * len(images)
    depths = read_depth_sequence(depths, transforms) if depths.is_dir() else [None] * len(images)
    views = []
    for index, frame in enumerate(transforms.frames):
        where = f"{transforms.path}: frame {index}"
        camera = _camera(frame, split, cam_from_background, background_from_world, where)
        views.append(
            HeldOutView(
                name=f"{split}/{index:04d}",
                time_step=_time_step(frame, len(train.frames), where),
                cam_from_background=camera.float(),
                image=torch.from_numpy(downscale_image(images[index], downscale)),
                object_ids=None if ids[index] is None else torch.from_numpy(downscale_ids(ids[index], downscale)),
                depth=None if depths[index] is None else _depth_tensor(depths[index], downscale, ids[index]),
                co_visible=None if co_visible[index] is None else _co_visible_tensor(co_visible[index], downscale),
                intrinsics=intrinsics_of(transforms, pixel_center, downscale).float(),
            )
        )
    return tuple(views)


def _read_ids(masks: Path, transforms: Transforms, num_objects: int) -> UInt8[np.ndarray, "n h w"]:
    """True object ids of a split; an id that is no object's would count as one that is always missed."""
    ids = read_mask_sequence(masks, transforms)
    for index, highest in enumerate(ids.max(axis=(1, 2)).tolist()):
        if highest >= num_objects:
            raise DatasetError(
                f"{masks}: mask {index} has the id {highest}, but the scene's {num_objects} objects are 0 to "
                f"{num_objects - 1}; give such pixels an object's id, or remove {masks.name} to go without it."
            )
    return ids


def _time_step(frame: FrameRecord, num_frames: int, where: str) -> int:
    """The training frame whose object poses hold in a held-out frame."""
    if frame.time_step is None:
        raise DatasetError(
            f"{where}: has no `time_step`; expected the training frame (0 to {num_frames - 1}) where the objects stand "
            "as in this image."
        )
    if not 0 <= frame.time_step < num_frames:
        raise DatasetError(f"{where}: time_step is {frame.time_step}; expected a training frame 0 to {num_frames - 1}.")
    return frame.time_step


def _camera(
    frame: FrameRecord,
    split: str,
    cam_from_background: Float[Tensor, "t 4 4"],
    background_from_world: Similarity,
    where: str,
) -> Float[Tensor, "4 4"]:
    """A held-out camera: in synthetic test sets training camera number `view`, else the frame's own matrix.

    A `view` that is no training frame's number stands for a camera of its own, as in the sets `write_scene` writes.
    """
    if split == "test" and frame.world_from_obj is not None:
        if frame.view is None:
            raise DatasetError(
                f"{where}: has no `view`; expected the training frame whose camera this is, or a number from "
                f"{len(cam_from_background)} up to take the frame's own transform_matrix."
            )
        if 0 <= frame.view < len(cam_from_background):
            return cam_from_background[frame.view]
    return camera_in_background(opengl_to_opencv(torch.from_numpy(frame.world_from_cam)), background_from_world)


def _depth_tensor(depth: Float[np.ndarray, "h w"], downscale: int, ids: np.ndarray | None) -> Float[Tensor, "h2 w2"]:
    return torch.from_numpy(downscale_depth(depth, downscale, ids)).float()


def _co_visible_tensor(mask: UInt8[np.ndarray, "h w"], downscale: int) -> Bool[Tensor, "h2 w2"]:
    return torch.from_numpy(downscale_ids((mask > 0).astype(np.uint8), downscale)) > 0
