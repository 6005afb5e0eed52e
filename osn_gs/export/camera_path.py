"""Camera paths on disk, in the format of nerfstudio: what its viewer writes and `ns-render camera-path` reads.

A JSON object. `camera_path` lists the cameras of the video's pictures: `camera_to_world` (16 numbers row by row, OpenGL
axes), `fov` (vertical, degrees), `aspect` (width over height) and, where the scene moves, `render_time` from 0 (the
scene's begin) to 1 (its end). `keyframes` lists what they were interpolated from, with `matrix` in place of
`camera_to_world`: a list row by row, too; nerfstudio's first viewer, in JavaScript, wrote a string instead, with the
numbers column by column as three.js keeps them. The world is the run's own, unscaled and unturned. We take and give
poses in OpenCV axes and times in frames; a scene of T frames lasts from 0 to T - 1. What is read comes in float64.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from osn_gs.data.osn_files import check_rigid
from osn_gs.errors import OsnGsError
from osn_gs.files import write_json_atomic
from osn_gs.geometry.camera_path import CameraPath, Keyframe
from osn_gs.geometry.se3 import invert_rigid, opengl_to_opencv

CATMULL_ROM_TENSION = 0.0  # nerfstudio's `smoothness_value` is the tension of a Kochanek-Bartels spline
# What a file may say.
FOV_DEGREES = (0.1, 179.9)
FRAMES_PER_SECOND = (0.001, 1000)
PIXELS = (1, 65536)
RENDER_TIME = (0, 1)


def write_camera_path(path: Path, camera_path: CameraPath, keyframes: Sequence[Keyframe], num_frames: int) -> None:
    """Write a path through a scene of `num_frames` frames, and the keyframes it was made of (none is fine)."""
    seconds = len(camera_path.times) / camera_path.fps
    aspect = camera_path.width / camera_path.height
    cameras = zip(
        _matrices(camera_path.cam_from_world),
        camera_path.fov_y.rad2deg().tolist(),
        (camera_path.times / _duration(num_frames)).tolist(),
        strict=True,
    )
    content = {
        "camera_type": "perspective",
        "render_height": camera_path.height,
        "render_width": camera_path.width,
        "fps": camera_path.fps,
        "seconds": seconds,
        "is_cycle": camera_path.closed,
        "smoothness_value": CATMULL_ROM_TENSION,
        "default_fov": math.degrees(float(camera_path.fov_y[0])),
        "default_time": 0.0,
        "default_transition_sec": seconds / max(len(keyframes) - (not camera_path.closed), 1),
        "camera_path": [
            {"camera_to_world": matrix, "fov": fov, "aspect": aspect, "render_time": time}
            for matrix, fov, time in cameras
        ],
        "keyframes": [
            {
                "matrix": _matrices(keyframe.cam_from_world[None])[0],
                "fov": math.degrees(keyframe.fov_y),
                "aspect": aspect,
                "render_time": keyframe.time / _duration(num_frames),
                "override_time_enabled": True,  # nerfstudio's viewer would show `default_time` at every keyframe
                "override_transition_enabled": False,
                "override_transition_sec": None,
            }
            for keyframe in keyframes
        ],
    }
    write_json_atomic(path, content)


def read_camera_path(path: Path, num_frames: int) -> CameraPath:
    """The cameras of a file, for a scene of `num_frames` frames; one without times is spread over the whole scene.

    Keyframes need not be there, nor `camera_type` (perspective) and `is_cycle` (False). As for `ns-render`, pixels are
    square whatever `aspect` says.

    Raises:
        OsnGsError: no such file, no JSON, no perspective cameras, or a value that is missing or cannot be.
    """
    content = _read_object(path)
    camera_type = content.get("camera_type", "perspective")
    if camera_type != "perspective":
        raise OsnGsError(f"{path}: camera_type is {camera_type!r}; only 'perspective' cameras can be rendered.")
    cameras = _read_keyframes(path, content, "camera_path", "camera_to_world", num_frames)
    if not cameras:
        raise OsnGsError(f"{path}: camera_path is empty; add keyframes to the path and save it again.")
    return CameraPath(
        cam_from_world=torch.stack([camera.cam_from_world for camera in cameras]),
        fov_y=torch.tensor([camera.fov_y for camera in cameras], dtype=torch.float64),
        times=torch.tensor([camera.time for camera in cameras], dtype=torch.float64),
        fps=_number(content.get("fps"), FRAMES_PER_SECOND, f"{path}: fps"),
        width=_pixels(path, content, "render_width"),
        height=_pixels(path, content, "render_height"),
        closed=bool(content.get("is_cycle", False)),
    )


def read_keyframes(path: Path, num_frames: int) -> tuple[Keyframe, ...]:
    """The keyframes of a file, of any version of nerfstudio; the same holds for times as in `read_camera_path`.

    Raises:
        OsnGsError: no such file, no JSON, or a value that is missing or cannot be.
    """
    return _read_keyframes(path, _read_object(path), "keyframes", "matrix", num_frames)


def _matrices(cam_from_world: Float[Tensor, "n 4 4"]) -> list[list[float]]:
    """Camera-to-world in OpenGL axes, 16 numbers each."""
    return opengl_to_opencv(invert_rigid(cam_from_world.detach().cpu().double())).flatten(1).tolist()


def _duration(num_frames: int) -> int:
    """Frames from a scene's begin to its end; a scene of one frame does not move, so any will do."""
    return max(num_frames - 1, 1)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise OsnGsError(f"{path}: no such file; expected a camera path as nerfstudio's viewer saves it.") from None
    except ValueError as error:
        raise OsnGsError(f"{path}: not a JSON file ({error}).") from None
    if not isinstance(content, dict):
        raise OsnGsError(f"{path}: holds a {type(content).__name__}; expected an object with `camera_path`.")
    return content


def _read_keyframes(
    path: Path, content: dict[str, Any], list_key: str, matrix_key: str, num_frames: int
) -> tuple[Keyframe, ...]:
    entries = content.get(list_key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise OsnGsError(f"{path}: has no `{list_key}`, a list of objects with `{matrix_key}` and `fov`.")
    places = [f"{path}: {list_key}[{index}]" for index in range(len(entries))]
    times = _times(entries, places, num_frames)
    return tuple(
        Keyframe(
            cam_from_world=_cam_from_world(entry.get(matrix_key), f"{place}: {matrix_key}"),
            fov_y=math.radians(_number(entry.get("fov"), FOV_DEGREES, f"{place}: fov")),
            time=time,
        )
        for entry, place, time in zip(entries, places, times, strict=True)
    )


def _times(entries: list[dict[str, Any]], places: list[str], num_frames: int) -> list[float]:
    """In frames; spread evenly over the scene where no entry states its time."""
    stated = ["render_time" in entry for entry in entries]
    if not any(stated):
        return np.linspace(0, num_frames - 1, len(entries)).tolist()
    if not all(stated):
        raise OsnGsError(
            f"{places[stated.index(False)]}: has no render_time, though {sum(stated)} of {len(entries)} entries have "
            "one; expected one in all of them or in none."
        )
    return [
        (num_frames - 1) * _number(entry["render_time"], RENDER_TIME, f"{place}: render_time")
        for entry, place in zip(entries, places, strict=True)
    ]


def _cam_from_world(numbers: Any, where: str) -> Float[Tensor, "4 4"]:
    """OpenCV axes, from 16 numbers row by row, or column by column in a string."""
    by_columns = isinstance(numbers, str)
    try:
        matrix = np.asarray(json.loads(numbers) if by_columns else numbers, dtype=np.float64)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    if matrix.size != 16 or not np.isfinite(matrix).all():
        raise OsnGsError(f"{where}: expected a camera-to-world matrix of 16 numbers, none NaN or infinite.")
    matrix = matrix.reshape(4, 4).T if by_columns else matrix.reshape(4, 4)
    if not np.allclose(matrix[3], (0, 0, 0, 1)):
        raise OsnGsError(f"{where}: the last row is {matrix[3].tolist()}; expected 0, 0, 0, 1, so rows, not columns.")
    return invert_rigid(opengl_to_opencv(torch.from_numpy(check_rigid(matrix, where))))


def _pixels(path: Path, content: dict[str, Any], key: str) -> int:
    pixels = _number(content.get(key), PIXELS, f"{path}: {key}")
    if pixels != round(pixels):
        raise OsnGsError(f"{path}: {key}: expected whole pixels, got {pixels}.")
    return round(pixels)


def _number(value: Any, bounds: tuple[float, float], where: str) -> float:
    lo, hi = bounds
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not lo <= value <= hi:
        arrived = "nothing" if value is None else repr(value)
        raise OsnGsError(f"{where}: expected a number from {lo:g} to {hi:g}, got {arrived}.")
    return float(value)
