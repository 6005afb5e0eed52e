"""Writing scene folders in the layout of the released OSN code (METHOD 5).

What is written loads with `load_scene` and has the files the released code reads. Some keys are our own: the
transforms files say under `pixel_center` where the first pixel's centre lies (see `osn_layout.py`), those of the
training frames under `near` and `far` which depths the scene's scale ranges keep to.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from osn_gs.data.bending_truth import SurfaceBending, write_bending_truth
from osn_gs.data.pinhole import unproject
from osn_gs.data.reconstruction import ObjectReconstruction
from osn_gs.data.scene_data import HeldOutView, SceneData
from osn_gs.errors import DatasetError
from osn_gs.files import write_json_atomic
from osn_gs.geometry.se3 import invert_rigid, opengl_to_opencv, transform_points


@dataclass(frozen=True)
class SyntheticTruth:
    """What only a synthetic scene knows; OpenCV camera axes, true units.

    `background_scale` times the scene's units gives true units. `held_out_cameras` has one camera for each view of
    `SceneData.held_out`, `bending` how the objects with these numbers bend.
    """

    world_from_cam: Float[Tensor, "t 4 4"]
    world_from_obj: Float[Tensor, "k t 4 4"]
    depths: Float[Tensor, "t h w"]
    background_scale: float
    held_out_cameras: dict[str, Float[Tensor, "n 4 4"]] = field(default_factory=dict)
    bending: dict[int, SurfaceBending] = field(default_factory=dict)


def write_scene(folder: Path, scene: SceneData, preproc: str = "sfm", truth: SyntheticTruth | None = None) -> None:
    """Write `scene` to `folder`, whole or not at all: the synthetic variant with `truth`, else the real one.

    Raises:
        DatasetError: `folder` exists already, or the camera model does not fit the layout (one focal length,
            principal point in the middle).
    """
    folder = Path(folder)
    if folder.exists():
        raise DatasetError(f"{folder}: exists already; choose another folder or delete it.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        _write_training_frames(temporary, scene, truth)
        for split, views in scene.held_out.items():
            _write_held_out(temporary, scene, split, views, truth)
        _write_preproc(temporary / preproc, scene, 1.0 if truth is None else truth.background_scale)
        write_json_atomic(temporary / "scene.json", {"name": folder.name, "objects": list(scene.object_names)})
        os.chmod(temporary, 0o755)
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_training_frames(folder: Path, scene: SceneData, truth: SyntheticTruth | None) -> None:
    world_from_cam = invert_rigid(scene.cam_from_obj[0].double()) if truth is None else truth.world_from_cam
    frames = [_frame(world_from_cam[t], t, t, scene.num_frames, truth) for t in range(scene.num_frames)]
    model = _camera_model(scene.intrinsics, scene.height, scene.width, truth is not None)
    content = {**model, "near": scene.near, "far": scene.far, "frames": frames}
    write_json_atomic(folder / "transforms_train.json", content)
    write_images(folder / "images_train", [image.numpy() for image in scene.images])
    _write_arrays(folder / "segm_sam", list(scene.object_ids))
    if truth is not None:
        _write_arrays(folder / "segm_train", list(scene.object_ids))
        _write_arrays(folder / "depth_train", list(truth.depths.float()))
        for k, bending in truth.bending.items():
            write_bending_truth(folder, k, bending)
    if scene.truth is not None and scene.truth.layer_depths is not None:
        true_scales = _true_scales(scene, 1.0 if truth is None else truth.background_scale)
        (folder / "layers_train").mkdir()
        for t, layers in enumerate(scene.truth.layer_depths):
            depth = layers * true_scales.float()[:, None, None]
            np.savez_compressed(folder / "layers_train" / f"{t:04d}.npz", depth=depth.numpy())


def _write_held_out(
    folder: Path, scene: SceneData, split: str, views: tuple[HeldOutView, ...], truth: SyntheticTruth | None
) -> None:
    training_cameras = None if truth is None else truth.world_from_cam
    frames = []
    for i, view in enumerate(views):
        if truth is None:
            world_from_cam = invert_rigid(view.cam_from_background.double())
        else:
            world_from_cam = truth.held_out_cameras[split][i]
        number = _training_view(world_from_cam, training_cameras, otherwise=scene.num_frames + i)
        frames.append(_frame(world_from_cam, number, view.time_step, scene.num_frames, truth))
    model = _camera_model(views[0].intrinsics, *views[0].image.shape[:2], truth is not None)
    write_json_atomic(folder / f"transforms_{split}.json", {**model, "frames": frames})
    write_images(folder / f"images_{split}", [view.image.numpy() for view in views])
    if all(view.object_ids is not None for view in views):
        _write_arrays(folder / f"segm_{split}", [view.object_ids for view in views])
    if all(view.depth is not None for view in views):
        _write_arrays(folder / f"depth_{split}", [view.depth for view in views])


def _write_preproc(folder: Path, scene: SceneData, background_scale: float) -> None:
    pixel_center = _pixel_center(scene.intrinsics, scene.width)
    for k, points in enumerate(scene.sparse_points):
        cam_from_obj = scene.cam_from_obj[k].double()
        scale_range = tuple(scene.scale_ranges[k].tolist()) if k > 0 else None
        obj = ObjectReconstruction(cam_from_obj, scene.visible[k], points, scale_range)
        points_obj = observed_points(obj, scene.intrinsics.double())
        box = torch.stack([points_obj.amin(0), points_obj.amax(0)], dim=1)
        write_object(folder, k, obj, box, pixel_center)
    if scene.truth is not None:
        np.save(folder / "depth" / "scales_gt.npy", _true_scales(scene, background_scale).numpy())


def write_object(
    preproc: Path, k: int, obj: ObjectReconstruction, bounding_box: Float[Tensor, "3 2"], pixel_center: float
) -> None:
    """Write one object's files into a PREPROC folder; `bounding_box` is its lowest and highest coordinates.

    Files count pixels so that the principal point is (W/2, H/2) and the first pixel's centre lies at `pixel_center`.
    """
    poses, depth = preproc / "poses", preproc / "depth"
    poses.mkdir(parents=True, exist_ok=True)
    depth.mkdir(exist_ok=True)
    np.save(poses / f"pose{k}.npy", opengl_to_opencv(invert_rigid(obj.cam_from_obj)).numpy())
    np.save(poses / f"vis{k}.npy", obj.visible.numpy())
    np.save(poses / f"bbox{k}.npy", bounding_box.numpy())
    points = obj.points
    pixels = points.pixels - (0.5 - pixel_center)
    columns = [pixels, points.depths[:, None], points.errors[:, None], points.weights[:, None]]
    np.save(depth / f"depth{k}.npy", torch.cat(columns, dim=1).numpy())
    np.save(depth / f"vid{k}.npy", points.frames.numpy())
    if obj.scale_range is not None:
        np.save(depth / f"scale{k}.npy", np.array(obj.scale_range))


def observed_points(obj: ObjectReconstruction, intrinsics: Float[Tensor, "3 3"]) -> Float[Tensor, "m 3"]:
    """Every observation's pixel at its depth, in the object's frame."""
    points_cam = unproject(obj.points.pixels.double(), obj.points.depths.double(), intrinsics)
    obj_from_cam = invert_rigid(obj.cam_from_obj)[obj.points.frames]
    return transform_points(obj_from_cam, points_cam[:, None])[:, 0]


def _true_scales(scene: SceneData, background_scale: float) -> Float[Tensor, "k"]:
    """Factors from every object's units to true units."""
    return scene.truth.object_scales.double() * background_scale


def _camera_model(intrinsics: Float[Tensor, "3 3"], height: int, width: int, synthetic: bool) -> dict[str, float]:
    focal = float(intrinsics[0, 0])
    pixel_center = _pixel_center(intrinsics, width)
    off_middle = abs(float(intrinsics[1, 2]) - (0.5 * height + 0.5 - pixel_center))
    if abs(focal - float(intrinsics[1, 1])) > 1e-4 * focal or off_middle > 1e-3:
        raise DatasetError(
            "the scene folder layout holds one focal length and a principal point in the middle of the image; got "
            f"intrinsics {intrinsics.tolist()}: undistort, or crop the images about the principal point."
        )
    if not synthetic:
        return real_camera_model(focal, height, width, pixel_center)
    return {"camera_angle_x": 2 * math.atan(0.5 * width / focal), **_image_grid(height, width, pixel_center)}


def real_camera_model(focal: float, height: int, width: int, pixel_center: float) -> dict[str, float]:
    """The keys of a real set's transforms file that hold for all its frames; `focal` in pixels."""
    return {"focal": focal, **_image_grid(height, width, pixel_center)}


def _image_grid(height: int, width: int, pixel_center: float) -> dict[str, float]:
    return {"img_h": height, "img_w": width, "pixel_center": pixel_center}


def _pixel_center(intrinsics: Float[Tensor, "3 3"], width: int) -> float:
    """Where the first pixel's centre lies in coordinates whose principal point is (W/2, H/2)."""
    return round(0.5 - (float(intrinsics[0, 2]) - 0.5 * width), 3)


def _frame(
    world_from_cam: Float[Tensor, "4 4"], view: int, time_step: int, num_frames: int, truth: SyntheticTruth | None
) -> dict[str, Any]:
    frame = real_frame(world_from_cam, view, time_step, num_frames)
    if truth is not None:
        frame["object_poses"] = truth.world_from_obj[:, time_step].tolist()
    return frame


def real_frame(world_from_cam: Float[Tensor, "4 4"], view: int, time_step: int, num_frames: int) -> dict[str, Any]:
    """One entry of a real set's transforms file: a camera (OpenCV axes), its number, and one of `num_frames` times."""
    return {
        "transform_matrix": opengl_to_opencv(world_from_cam).tolist(),
        "view": view,
        "time_step": time_step,
        "time": time_step / max(num_frames - 1, 1),
    }


def _training_view(
    world_from_cam: Float[Tensor, "4 4"], training_cameras: Float[Tensor, "t 4 4"] | None, otherwise: int
) -> int:
    """Index of the training camera that stands just here; `otherwise` if there is none."""
    if training_cameras is None:
        return otherwise
    differences = (training_cameras - world_from_cam).abs().amax(dim=(1, 2))
    return int(differences.argmin()) if float(differences.min()) < 1e-9 else otherwise


def write_images(folder: Path, images: Sequence[UInt8[np.ndarray, "h w 3"]]) -> None:
    """RGB images as %04d.png in a new folder."""
    folder.mkdir()
    for i, image in enumerate(images):
        _, encoded = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))
        (folder / f"{i:04d}.png").write_bytes(encoded.tobytes())


def _write_arrays(folder: Path, arrays: list[Shaped[Tensor, "h w"]]) -> None:
    folder.mkdir()
    for i, array in enumerate(arrays):
        np.save(folder / f"{i:04d}.npy", array.numpy())
