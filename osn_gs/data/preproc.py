"""Reading PREPROC folders: per-object poses and sparse points as the released pipeline writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from osn_gs.data.osn_files import check_rigid, read_array
from osn_gs.data.reconstruction import ObjectReconstruction
from osn_gs.data.scene_data import SparsePoints
from osn_gs.errors import DatasetError
from osn_gs.geometry.se3 import invert_rigid, opengl_to_opencv


def find_preproc(folder: Path, name: str | None) -> Path | None:
    """The PREPROC folder called `name`, or the only one there is; None if there is none.

    Raises:
        DatasetError: no folder of that name, or several to choose from.
    """
    found = sorted(path.parent.parent for path in folder.glob("*/poses/pose0.npy"))
    names = ", ".join(path.name for path in found) or "none"
    if name is not None:
        if folder / name not in found:
            raise DatasetError(
                f"{folder / name}: no preprocessed poses (poses/pose0.npy) there; folders with poses: {names}."
            )
        return folder / name
    if len(found) > 1:
        raise DatasetError(f"{folder}: has several preprocessed folders ({names}); name one with --preproc.")
    return found[0] if found else None


def count_objects(preproc: Path) -> int:
    """Number of objects with poses; they must be numbered without gaps.

    Raises:
        DatasetError: a number is missing.
    """
    numbers = sorted(int(path.stem[4:]) for path in (preproc / "poses").glob("pose*.npy") if path.stem[4:].isdigit())
    if numbers != list(range(len(numbers))):
        raise DatasetError(f"{preproc / 'poses'}: objects {numbers} have poses; expected 0, 1, 2, ... without gaps.")
    return len(numbers)


def read_preproc(preproc: Path, num_frames: int, pixel_shift: float) -> tuple[ObjectReconstruction, ...]:
    """Every object of a PREPROC folder, in OpenCV axes.

    `pixel_shift` is added to the file's pixel coordinates to reach ours (pixel centres at +0.5).

    Raises:
        DatasetError: a file is missing, or has another shape or unusable values.
    """
    num_objects = count_objects(preproc)
    true_scales = _read_true_scales(preproc / "depth" / "scales_gt.npy", num_objects)
    return tuple(
        _read_object(preproc, k, num_frames, pixel_shift, None if true_scales is None else true_scales[k])
        for k in range(num_objects)
    )


def _read_object(
    preproc: Path, k: int, num_frames: int, pixel_shift: float, true_scale: float | None
) -> ObjectReconstruction:
    visible = read_array(preproc / "poses" / f"vis{k}.npy", (num_frames,)).astype(bool)
    if k == 0 and not visible.all():
        raise DatasetError(
            f"{preproc / 'poses' / 'vis0.npy'}: the background is not visible in frame {int(visible.argmin())}; "
            "expected its pose, which is the camera's place, in every frame: reconstruct it again, or leave the frames "
            "without it out of the scene."
        )
    return ObjectReconstruction(
        cam_from_obj=_read_poses(preproc / "poses" / f"pose{k}.npy", visible),
        visible=torch.from_numpy(visible),
        points=_read_points(preproc / "depth", k, num_frames, pixel_shift),
        scale_range=_read_scale_range(preproc / "depth" / f"scale{k}.npy") if k > 0 else None,
        true_scale=true_scale,
    )


def _read_poses(path: Path, visible: Bool[np.ndarray, "t"]) -> Float[Tensor, "t 4 4"]:
    """cam_from_obj in OpenCV axes.

    Where the object is not visible the file may hold anything; that frame gets the nearest visible frame's pose.
    """
    obj_from_cam = read_array(path, (len(visible), 4, 4)).astype(np.float64)
    frames_visible = np.flatnonzero(visible)
    if len(frames_visible) == 0:
        raise DatasetError(f"{path}: the object is visible in no frame (visK.npy); expected at least one.")
    rigid = np.empty_like(obj_from_cam)
    for frame in range(len(visible)):
        source = frames_visible[np.abs(frames_visible - frame).argmin()]
        rigid[frame] = check_rigid(obj_from_cam[source], f"{path}: pose of frame {source}")
    return invert_rigid(opengl_to_opencv(torch.from_numpy(rigid)))


def _read_points(folder: Path, k: int, num_frames: int, pixel_shift: float) -> SparsePoints:
    path = folder / f"depth{k}.npy"
    rows = read_array(path, (None, 5)).astype(np.float64)
    frames = read_array(folder / f"vid{k}.npy", (len(rows),)).astype(np.int64)
    if len(rows) == 0:
        raise DatasetError(f"{path}: holds no points; reconstruct object {k} again or merge it into the background.")
    if not np.isfinite(rows).all() or rows[:, 2].min() <= 0:
        bad = int(np.flatnonzero(~np.isfinite(rows).all(1) | ~(rows[:, 2] > 0))[0])
        raise DatasetError(
            f"{path}: row {bad} is {rows[bad].tolist()}; expected u, v, depth > 0, error, weight without NaN."
        )
    if frames.min() < 0 or frames.max() >= num_frames:
        raise DatasetError(
            f"{folder / f'vid{k}.npy'}: frames {frames.min()} to {frames.max()}; expected 0 to {num_frames - 1}."
        )
    rows = torch.from_numpy(rows)
    return SparsePoints(torch.from_numpy(frames), rows[:, :2] + pixel_shift, rows[:, 2], rows[:, 3], rows[:, 4])


def _read_scale_range(path: Path) -> tuple[float, float] | None:
    if not path.is_file():
        return None
    lo, hi = read_array(path, (2,)).tolist()
    if not 0 < lo < hi < float("inf"):
        raise DatasetError(f"{path}: is [{lo}, {hi}]; expected 0 < lo < hi.")
    return lo, hi


def _read_true_scales(path: Path, num_objects: int) -> list[float] | None:
    if not path.is_file():
        return None
    scales = read_array(path, (num_objects,)).astype(np.float64)
    if not (np.isfinite(scales).all() and scales.min() > 0):
        raise DatasetError(f"{path}: is {scales.tolist()}; expected positive scales.")
    return scales.tolist()
