"""Loading a scene folder in the layout of the released OSN code (METHOD 5).

All conventions change here and nowhere else:

* Cameras: OpenGL axes (x right, y up, z backward), camera-to-world, become OpenCV axes and world-to-camera.
* Pixels: inside the package the centre of the first pixel is at 0.5. A file's own pixel coordinates u put the
  principal point at W/2 and the first pixel's centre at `pixel_center`; u + 0.5 - pixel_center is our coordinate,
  so the principal point moves by 0.5 - pixel_center. The released code uses integer pixel numbers as they stand:
  pixel_center 0. Images of Blender and of real cameras taken at their word: 0.5.
* Units: each object in units in which the middle of its initial scale range is 1, the background in those of the
  scene (METHOD 3). A preprocessed folder with a scaleK.npy for every object has its background in the scene's units;
  without them units and ranges come from the points, as for a fresh reconstruction. Depths are z-depths on both sides.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from osn_gs.data.downscale import downscale_depth, downscale_ids, downscale_image
from osn_gs.data.held_out import read_held_out
from osn_gs.data.osn_files import (
    Transforms,
    check_object_ids,
    check_training_time_steps,
    read_depth_sequence,
    read_image_sequence,
    read_json,
    read_mask_sequence,
    read_transforms,
)
from osn_gs.data.pinhole import intrinsics_of
from osn_gs.data.preproc import count_objects, find_preproc, read_preproc
from osn_gs.data.reconstruction import ObjectReconstruction, to_scene_units
from osn_gs.data.scene_data import SceneData, SceneTruth, SparsePoints
from osn_gs.data.set_truth import true_cam_from_obj
from osn_gs.data.true_poses import reconstruct_from_truth
from osn_gs.errors import DatasetError

PoseSource = Literal["auto", "preproc", "truth"]
DEFAULT_NEAR, DEFAULT_FAR = 1.0, 8.0  # released code, all scenes
SMALLEST_IMAGE = 16  # pixels a side after downscaling


def load_scene(
    folder: Path | str,
    preproc: str | None = None,
    poses: PoseSource = "auto",
    downscale: int = 1,
    seed: int = 0,
    near: float | None = None,
    far: float | None = None,
    pixel_center: float | None = None,
) -> SceneData:
    """Read a scene folder, synthetic or real.

    Args:
        folder: the scene.
        preproc: name of its folder with per-object poses; not needed where there is only one.
        poses: "preproc" reads them, "truth" makes stand-ins from a synthetic set's true `object_poses` (each object
            in a random gauge, with noisy points), "auto" takes "preproc".
        downscale: whole factor by which images, masks and depths shrink; see `downscale.py`.
        seed: for the gauges and the noise of poses="truth".
        near: nearest z-depth any object may have, in the scene's units. By default what the training transforms file
            says under this key, else 1 (METHOD 3). Another value than the folder's has all scale ranges found anew
            from the sparse points, whatever the PREPROC folder says.
        far: farthest; by default the file's, else 8.
        pixel_center: see above. By default what the training transforms file says under this key, else 0.5 with true
            poses and 0 with preprocessed ones, which the released pipeline has estimated that way.

    Raises:
        DatasetError: the folder cannot be used; the message names file and index, and what to try.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; expected a scene with transforms_train.json and images_train.")
    if downscale < 1:
        raise DatasetError(f"downscale is {downscale}; expected a whole number from 1 up.")
    transforms = read_transforms(folder / "transforms_train.json")
    if not transforms.frames:
        raise DatasetError(f"{transforms.path}: has no frames.")
    check_training_time_steps(transforms)
    if min(transforms.height, transforms.width) // downscale < SMALLEST_IMAGE:
        raise DatasetError(
            f"downscale {downscale} leaves less than {SMALLEST_IMAGE} of {transforms.height}x{transforms.width} pixels "
            "a side; choose a smaller one."
        )
    preproc_folder = _choose_poses(folder, preproc, poses, transforms)
    folder_near, folder_far = _depth_limits(transforms)
    near, far = folder_near if near is None else near, folder_far if far is None else far
    _check_depth_limits(near, far, "near and far")
    if pixel_center is None:
        default = 0.5 if preproc_folder is None else 0.0
        pixel_center = default if transforms.pixel_center is None else transforms.pixel_center

    images = read_image_sequence(folder / "images_train", transforms)
    object_ids = _read_object_ids(folder, transforms, preproc_folder)
    reconstruction = _read_reconstructions(folder, transforms, preproc_folder, object_ids, pixel_center, seed)
    if (near, far) != (folder_near, folder_far):
        reconstruction = tuple(replace(obj, scale_range=None) for obj in reconstruction)
    objects = to_scene_units(reconstruction, near, far)
    cam_from_background = objects[0].cam_from_obj
    known_scale = objects[0].true_scale if preproc_folder is None else None
    return SceneData(
        name=folder.resolve().name,
        images=torch.from_numpy(np.stack([downscale_image(image, downscale) for image in images])),
        object_ids=torch.from_numpy(np.stack([downscale_ids(ids, downscale) for ids in object_ids])),
        intrinsics=intrinsics_of(transforms, pixel_center, downscale).float(),
        cam_from_obj=torch.stack([obj.cam_from_obj for obj in objects]).float(),
        visible=torch.stack([obj.visible for obj in objects]),
        sparse_points=tuple(_to_single_precision(obj.points, downscale) for obj in objects),
        scale_ranges=torch.tensor([(1.0, 1.0), *(obj.scale_range for obj in objects[1:])]),
        near=near,
        far=far,
        object_names=read_object_names(folder, len(objects)),
        held_out=read_held_out(
            folder, transforms, cam_from_background, known_scale, len(objects), pixel_center, downscale
        ),
        truth=_read_truth(folder, objects, object_ids, downscale),
        folder=folder,
    )


def _depth_limits(transforms: Transforms) -> tuple[float, float]:
    """The folder's own near and far."""
    near = DEFAULT_NEAR if transforms.near is None else transforms.near
    far = DEFAULT_FAR if transforms.far is None else transforms.far
    _check_depth_limits(near, far, f"{transforms.path}: `near` and `far`")
    return near, far


def _check_depth_limits(near: float, far: float, what: str) -> None:
    if not 0 < near < far:
        raise DatasetError(f"{what}: expected 0 < near < far, got {near:g} and {far:g}.")


def _choose_poses(folder: Path, preproc: str | None, poses: PoseSource, transforms: Transforms) -> Path | None:
    """The PREPROC folder to read, or None for true poses."""
    if poses == "truth":
        if not transforms.has_object_poses:
            raise DatasetError(
                f"{transforms.path}: has no `object_poses`, so --poses truth is not possible; use a PREPROC folder."
            )
        return None
    found = find_preproc(folder, preproc)
    if found is None:
        hint = (
            "this set has true object_poses: try --poses truth"
            if transforms.has_object_poses
            else "prepare the clip first"
        )
        raise DatasetError(f"{folder}: no PREPROC folder (poses/pose0.npy, depth/depth0.npy, ...); {hint}.")
    return found


def _read_object_ids(folder: Path, transforms: Transforms, preproc: Path | None) -> UInt8[np.ndarray, "t h w"]:
    """Training masks: segm_sam; with true poses segm_train where there is one, whose ids are those of object_poses."""
    masks = folder / "segm_sam"
    if preproc is None:
        num_objects = len(transforms.frames[0].world_from_obj)
        if (folder / "segm_train").is_dir():
            masks = folder / "segm_train"
    else:
        num_objects = count_objects(preproc)
    object_ids = read_mask_sequence(masks, transforms)
    check_object_ids(object_ids, masks, num_objects)
    return object_ids


def _read_reconstructions(
    folder: Path,
    transforms: Transforms,
    preproc: Path | None,
    object_ids: UInt8[np.ndarray, "t h w"],
    pixel_center: float,
    seed: int,
) -> tuple[ObjectReconstruction, ...]:
    if preproc is not None:
        return read_preproc(preproc, len(transforms.frames), 0.5 - pixel_center)
    return reconstruct_from_truth(
        true_cam_from_obj(transforms),
        torch.from_numpy(object_ids),
        torch.from_numpy(_read_training_depths(folder / "depth_train", transforms)),
        intrinsics_of(transforms, pixel_center, downscale=1),
        torch.Generator().manual_seed(seed),
    )


def _read_training_depths(folder: Path, transforms: Transforms) -> Float[np.ndarray, "t h w"]:
    """True training depths, from which points are drawn: where a pixel sees nothing they may be infinite or zero."""
    depths = read_depth_sequence(folder, transforms)
    for index, depth in enumerate(depths):
        _refuse_nan(depth, folder / f"{index:04d}.npy")
    return depths


def _refuse_nan(depth: Float[np.ndarray, "..."], path: Path) -> None:
    if np.isnan(depth).any():
        raise DatasetError(
            f"{path}: {int(np.isnan(depth).sum())} of {depth.size} depths are NaN; expected inf where nothing is seen: "
            "render them again."
        )


def _read_truth(
    folder: Path, objects: tuple[ObjectReconstruction, ...], object_ids: UInt8[np.ndarray, "t h w"], downscale: int
) -> SceneTruth | None:
    if any(obj.true_scale is None for obj in objects):
        return None
    true_scales = torch.tensor([obj.true_scale for obj in objects])
    return SceneTruth(
        object_scales=true_scales / true_scales[0],
        background_scale=float(true_scales[0]),
        layer_depths=_read_layer_depths(folder / "layers_train", true_scales, object_ids.shape, downscale),
    )


def _read_layer_depths(
    folder: Path, true_scales: Float[Tensor, "k"], shape: tuple[int, int, int], downscale: int
) -> Float[Tensor, "t k h w"] | None:
    """Depths of every object alone, in its own units.

    The files are an extra of our own: layers_train/%04d.npz with an array `depth` (k, h, w) in true units.
    """
    if not folder.is_dir():
        return None
    frames = []
    for index in range(shape[0]):
        path = folder / f"{index:04d}.npz"
        try:
            with np.load(path, allow_pickle=False) as content:
                layers = content["depth"]
        except (OSError, ValueError, KeyError):
            raise DatasetError(
                f"{path}: missing or without an array `depth`; delete {folder.name} to go without it."
            ) from None
        if layers.shape != (len(true_scales), *shape[1:]):
            raise DatasetError(f"{path}: has shape {layers.shape}; expected {(len(true_scales), *shape[1:])}.")
        _refuse_nan(layers, path)
        frames.append(np.stack([downscale_depth(layer, downscale) for layer in layers]))
    return torch.from_numpy(np.stack(frames)).float() / true_scales[:, None, None]


def read_object_names(folder: Path, num_objects: int) -> tuple[str, ...]:
    """Names from scene.json (`objects`, an extra of our own), else numbered ones."""
    if (folder / "scene.json").is_file():
        content = read_json(folder / "scene.json")
        names = content.get("objects") if isinstance(content, dict) else None
        if isinstance(names, list) and len(names) == num_objects and all(isinstance(name, str) for name in names):
            return tuple(names)
    return ("background", *(f"object {k}" for k in range(1, num_objects)))


def _to_single_precision(points: SparsePoints, downscale: int) -> SparsePoints:
    return SparsePoints(
        points.frames,
        (points.pixels / downscale).float(),
        points.depths.float(),
        (points.errors / downscale).float(),
        points.weights.float(),
    )
