"""Reading single files of the released OSN layout, each with the checks that belong to it.

Arrays come back as the files hold them: numpy, OpenGL camera axes, full size.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from osn_gs.errors import DatasetError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class FrameRecord:
    """One entry of `frames` in a transforms file; poses in OpenGL axes and the file's world.

    `view` (the training frame whose camera this is) and `time_step` (the training frame whose object poses hold) are
    None where the file does not say.
    """

    world_from_cam: Float[np.ndarray, "4 4"]
    view: int | None
    time_step: int | None
    world_from_obj: Float[np.ndarray, "k 4 4"] | None


@dataclass(frozen=True)
class Transforms:
    """A transforms_*.json: one camera model (pixels of the original size) and its frames.

    `pixel_center`, `near`, `far` (see `osn_layout.py`) and `true_focal` are keys of our own, None where the file lacks
    them. `true_focal` is that of the camera that took the images, where training goes by an estimate of it.
    """

    path: Path
    height: int
    width: int
    focal: float
    frames: tuple[FrameRecord, ...]
    pixel_center: float | None
    near: float | None
    far: float | None
    true_focal: float | None

    @property
    def has_object_poses(self) -> bool:
        return len(self.frames) > 0 and all(frame.world_from_obj is not None for frame in self.frames)


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        DatasetError: the file is missing or is not JSON.
    """
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; a scene folder needs it (see the README on scene folders).")
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: not valid JSON ({error}).") from None


def read_transforms(path: Path) -> Transforms:
    """Camera model and frames of a transforms file, synthetic (camera_angle_x) or real (focal) variant.

    Raises:
        DatasetError: a key is missing or of a wrong kind, or a pose holds NaN or is no 4x4 matrix.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("frames"), list):
        raise DatasetError(f"{path}: expected an object with a list `frames`.")
    height, width = (_whole_number(content, key, str(path)) for key in ("img_h", "img_w"))
    if "camera_angle_x" in content:
        focal = 0.5 * width / math.tan(0.5 * _number(content, "camera_angle_x", str(path)))
    elif "focal" in content:
        focal = _number(content, "focal", str(path))
    else:
        raise DatasetError(f"{path}: has neither `camera_angle_x` (radians) nor `focal` (pixels); add one.")
    if not 0 < focal < 100 * width:
        raise DatasetError(
            f"{path}: focal length comes to {focal:g} px for images {width} px wide; expected 0 to 100 x."
        )
    ours = {
        key: _number(content, key, str(path)) if key in content else None
        for key in ("pixel_center", "near", "far", "true_focal")
    }
    frames = tuple(_read_frame(frame, f"{path}: frame {i}") for i, frame in enumerate(content["frames"]))
    counts = [None if frame.world_from_obj is None else len(frame.world_from_obj) for frame in frames]
    for index, count in enumerate(counts):
        if count != counts[0]:
            raise DatasetError(
                f"{path}: frame {index}: {count} object_poses but frame 0 has {counts[0]}; expected as many."
            )
    return Transforms(path, height, width, focal, frames, **ours)


def _number(content: dict[str, Any], key: str, where: str) -> float:
    value = content.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise DatasetError(f"{where}: expected a finite number for `{key}`, got {value!r}.")
    return float(value)


def _whole_number(content: dict[str, Any], key: str, where: str) -> int:
    value = _number(content, key, where)
    if not value.is_integer():
        raise DatasetError(f"{where}: expected a whole number for `{key}`, got {value:g}.")
    return int(value)


def _read_frame(frame: Any, where: str) -> FrameRecord:
    if not isinstance(frame, dict) or "transform_matrix" not in frame:
        raise DatasetError(f"{where}: has no `transform_matrix` (4x4 camera-to-world).")
    world_from_cam = check_rigid(_array(frame["transform_matrix"], where), f"{where}: transform_matrix")
    world_from_obj = None
    if "object_poses" in frame:
        world_from_obj = _array(frame["object_poses"], where)
        if world_from_obj.ndim != 3:
            raise DatasetError(f"{where}: object_poses has shape {world_from_obj.shape}; expected (K, 4, 4).")
        for k, pose in enumerate(world_from_obj):
            check_rigid(pose, f"{where}: object_poses[{k}]")
    view, time_step = (_whole_number(frame, key, where) if key in frame else None for key in ("view", "time_step"))
    return FrameRecord(world_from_cam, view, time_step, world_from_obj)


def check_training_time_steps(transforms: Transforms) -> None:
    """Check that training frames that name a `time_step` name their own number: per-frame files are in that order.

    Raises:
        DatasetError: a frame names another number.
    """
    for index, frame in enumerate(transforms.frames):
        if frame.time_step not in (None, index):
            raise DatasetError(
                f"{transforms.path}: frame {index}: time_step is {frame.time_step}; expected {index}, as images, masks "
                "and poses go by a frame's place in the list. Sort and number the training frames 0, 1, 2, ... and "
                "held-out time steps alike."
            )


def _array(values: Any, where: str) -> Float[np.ndarray, "..."]:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise DatasetError(f"{where}: a pose is not a matrix of numbers.") from None


def check_rigid(pose: Float[np.ndarray, "4 4"], where: str) -> Float[np.ndarray, "4 4"]:
    """`pose` with an exactly orthogonal rotation, after checking that it is a rigid transform.

    Raises:
        DatasetError: wrong shape, NaN or infinity, or a rotation that is off by more than 1e-2.
    """
    if pose.shape != (4, 4):
        raise DatasetError(f"{where}: has shape {pose.shape}; expected a 4x4 matrix.")
    if not np.isfinite(pose).all():
        raise DatasetError(f"{where}: holds NaN or infinity; leave the frame out or mark it in visK.npy.")
    left, _, right = np.linalg.svd(pose[:3, :3])
    rotation = left @ right
    if np.linalg.det(rotation) < 0 or np.abs(rotation - pose[:3, :3]).max() > 1e-2:
        raise DatasetError(f"{where}: the 3x3 part is no rotation; expected a rigid transform without scale.")
    rigid = np.eye(4)
    rigid[:3, :3], rigid[:3, 3] = rotation, pose[:3, 3]
    return rigid


def read_image(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """An RGB image.

    Raises:
        DatasetError: the file cannot be decoded.
    """
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if pixels is None:
        raise DatasetError(f"{path}: cannot be read as an image.")
    return np.ascontiguousarray(pixels[..., ::-1])


def read_image_sequence(folder: Path, transforms: Transforms) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Images %04d.png (or .jpg) of `folder`, one per frame of `transforms` and of its size.

    Raises:
        DatasetError: a frame is missing or has another size.
    """
    images = []
    for index in range(len(transforms.frames)):
        path = _frame_image(folder, index, len(transforms.frames))
        image = read_image(path)
        expected = (transforms.height, transforms.width)
        if image.shape[:2] != expected:
            raise DatasetError(
                f"{path}: image is {_size(image.shape)} but {transforms.path.name} says {_size(expected)} "
                "(height x width); correct img_h and img_w or resize the image."
            )
        images.append(image)
    return images


def _frame_image(folder: Path, index: int, count: int) -> Path:
    for suffix in IMAGE_SUFFIXES:
        path = folder / f"{index:04d}{suffix}"
        if path.is_file():
            return path
    raise DatasetError(
        f"{folder / f'{index:04d}.png'}: image of frame {index} is missing; expected {count} images "
        f"0000 to {count - 1:04d} (.png or .jpg)."
    )


def read_mask_sequence(folder: Path, transforms: Transforms) -> UInt8[np.ndarray, "t h w"]:
    """Object ids of every frame: the .npy or indexed .png files of `folder` in the order of their names.

    Raises:
        DatasetError: their number is not the number of frames, or one has another size or other values.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; expected one mask (.npy or indexed .png) per frame in it.")
    paths = sorted(path for path in folder.iterdir() if path.suffix == ".npy")
    paths = paths or sorted(path for path in folder.iterdir() if path.suffix == ".png")
    if len(paths) != len(transforms.frames):
        raise DatasetError(
            f"{folder}: holds {len(paths)} masks but {transforms.path.name} has {len(transforms.frames)} frames; "
            "expected one mask per frame."
        )
    return np.stack([_read_mask(path, (transforms.height, transforms.width)) for path in paths])


def _read_mask(path: Path, expected_size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    ids = read_array(path) if path.suffix == ".npy" else _read_indexed_png(path)
    if ids.shape != expected_size:
        raise DatasetError(
            f"{path}: mask is {_size(ids.shape, None)} but the images are {_size(expected_size)} (height x width); "
            "masks must have the images' size."
        )
    if not (np.isfinite(ids).all() and (ids == np.floor(ids)).all() and ids.min() >= 0 and ids.max() <= 255):
        raise DatasetError(f"{path}: mask values must be whole object ids 0 to 255; got {ids.min()} to {ids.max()}.")
    return ids.astype(np.uint8)


def _read_indexed_png(path: Path) -> UInt8[np.ndarray, "h w"]:
    """Palette indices (not colours) of a PNG, or the values of a grey one."""
    from PIL import Image  # OpenCV resolves palettes to colours

    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L", "I", "I;16", "1"):
                raise DatasetError(
                    f"{path}: mask is a {image.mode} picture; expected an indexed or grey PNG of object ids."
                )
            return np.asarray(image)
    except OSError:
        raise DatasetError(f"{path}: cannot be read as an image.") from None


def check_object_ids(ids: UInt8[np.ndarray, "t h w"], folder: Path, num_objects: int) -> None:
    """Check that masks show exactly the ids 0 to num_objects - 1, background included.

    Raises:
        DatasetError: an id is never seen, or has no poses, or there is nothing besides one object.
    """
    seen = np.flatnonzero(np.bincount(ids.ravel())).tolist()
    missing = sorted(set(range(seen[-1])) - set(seen))
    if missing:
        raise DatasetError(
            f"{folder}: mask ids have a gap: {missing} never occur but {seen[-1]} does; number the objects "
            "0 (background), 1, 2, ... without holes."
        )
    if seen == [0]:
        raise DatasetError(
            f"{folder}: masks show only one object (id 0); expected the background (0) "
            "and at least one moving object (1)."
        )
    if len(seen) != num_objects:
        raise DatasetError(
            f"{folder}: masks show {len(seen)} objects (ids 0 to {seen[-1]}) but there are poses of {num_objects}; "
            "expected one id per posed object, background included."
        )


def read_array(path: Path, shape: tuple[int | None, ...] | None = None) -> np.ndarray:
    """A .npy array, its shape checked against `shape` (None for any length).

    Raises:
        DatasetError: missing, unreadable, or of another shape.
    """
    if not path.is_file():
        raise DatasetError(f"{path}: no such file.")
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError):
        raise DatasetError(f"{path}: cannot be read as a .npy array of numbers.") from None
    if shape is not None:
        fits = len(array.shape) == len(shape) and all(
            n is None or n == m for n, m in zip(shape, array.shape, strict=True)
        )
        if not fits:
            expected = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"
            raise DatasetError(f"{path}: has shape {array.shape}; expected {expected}.")
    return array


def read_depth_sequence(folder: Path, transforms: Transforms) -> Float[np.ndarray, "t h w"]:
    """True z-depths %04d.npy of every frame, float64.

    Raises:
        DatasetError: a file is missing or of another size.
    """
    size = (transforms.height, transforms.width)
    paths = [folder / f"{index:04d}.npy" for index in range(len(transforms.frames))]
    return np.stack([read_array(path, size).astype(np.float64) for path in paths])


@dataclass(frozen=True)
class MeshSequence:
    """The true mesh of an object that deforms: its faces, and its vertices in the object's frame at every frame."""

    faces: Int[np.ndarray, "f 3"]
    vertices: Float[np.ndarray, "t v 3"]


def read_mesh_sequence(path: Path, num_frames: int) -> MeshSequence | None:
    """The mesh in a deform_obj%d.npz (an extra of synthetic sets: `faces`, `verts` in true units); None without file.

    Raises:
        DatasetError: the file cannot be read, or its arrays do not fit each other or the number of frames.
    """
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as content:
            faces, vertices = content["faces"], content["verts"].astype(np.float64)
    except (OSError, ValueError, KeyError):
        raise DatasetError(f"{path}: cannot be read, or is without the arrays `faces` and `verts`.") from None
    if vertices.ndim != 3 or vertices.shape[::2] != (num_frames, 3) or faces.ndim != 2 or faces.shape[1] != 3:
        raise DatasetError(
            f"{path}: has verts {vertices.shape} and faces {faces.shape}; expected ({num_frames}, V, 3) and (F, 3)."
        )
    if faces.size == 0 or faces.min() < 0 or faces.max() >= vertices.shape[1] or not np.isfinite(vertices).all():
        raise DatasetError(f"{path}: expected faces of vertices 0 to {vertices.shape[1] - 1} and finite vertices.")
    return MeshSequence(faces.astype(np.int64), vertices)


def _size(shape: tuple[int, ...], dimensions: int | None = 2) -> str:
    return "x".join(str(n) for n in shape[:dimensions])
