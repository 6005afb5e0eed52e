"""Intrinsics that other programs wrote: a nerfstudio transforms.json or a COLMAP model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pycolmap

from osn_gs.errors import ConfigError
from osn_gs.preprocess.camera import SourceCamera

NERFSTUDIO_MODELS = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "OPENCV_FISHEYE")
INTRINSICS = ("fl_x", "fl_y", "cx", "cy", "w", "h", "k1", "k2", "k3", "k4", "p1", "p2", "camera_angle_x")
COLMAP_PLACES = ("", "0", "sparse/0", "colmap/sparse/0")
SAME_SHAPE = 0.01  # relative difference of aspect ratios that rounding of a size may make


def read_camera(path: Path, image_size: tuple[int, int]) -> SourceCamera:
    """The one camera in `path`, for images of `image_size` (w, h); a camera for another size is enlarged or reduced.

    Args:
        path: a nerfstudio transforms.json (`fl_x`, or `camera_angle_x` in radians; and optionally `fl_y`, `cx`, `cy`,
            `w`, `h`, `k1` to `k4`, `p1`, `p2`, `camera_model`), or the folder of a COLMAP model.
        image_size: of the source images.

    Raises:
        ConfigError: nothing is there, several cameras differ, or the images have another shape.
    """
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder; expected a transforms.json or a COLMAP model.")
    camera = _read_colmap(path) if path.is_dir() else _read_nerfstudio(path, image_size)
    if not (math.isfinite(sum(camera.params)) and camera.focal > 0):
        raise ConfigError(f"{path}: camera {camera.model} has parameters {camera.params}; expected a focal length > 0.")
    (width, height), (image_width, image_height) = camera.size, image_size
    if abs(width * image_height / (height * image_width) - 1) > SAME_SHAPE:
        raise ConfigError(
            f"{path}: camera is for images of {width}x{height} but they are {image_width}x{image_height} (width x "
            "height); give the camera of these images, uncropped and turned as they are."
        )
    return camera if camera.size == image_size else camera.rescaled(image_size)


def _read_colmap(folder: Path) -> SourceCamera:
    for place in COLMAP_PLACES:
        if any((folder / place / f"cameras{suffix}").is_file() for suffix in (".bin", ".txt")):
            model = folder / place
            break
    else:
        raise ConfigError(f"{folder}: holds no COLMAP model; expected cameras, images and points3D (.bin or .txt).")
    try:
        cameras = pycolmap.Reconstruction(str(model)).cameras.values()
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ConfigError(f"{model}: cannot be read as a COLMAP model ({reason}).") from None
    found = {SourceCamera(c.model_name, (c.width, c.height), tuple(map(float, c.params))) for c in cameras}
    if len(found) != 1:
        raise ConfigError(f"{model}: has {len(found)} different cameras; expected one for all images of the clip.")
    camera = found.pop()
    if camera.model == "EQUIRECTANGULAR":
        raise ConfigError(f"{model}: panoramas (EQUIRECTANGULAR) cannot be used; make perspective images of them.")
    return camera


def _read_nerfstudio(path: Path, image_size: tuple[int, int]) -> SourceCamera:
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid JSON ({error}); expected a nerfstudio transforms.json.") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected an object with `fl_x` in it, as in a nerfstudio transforms.json.")
    values = _intrinsics(path, content)
    width, height = int(values.get("w", image_size[0])), int(values.get("h", image_size[1]))
    if "fl_x" in values:
        fx = values["fl_x"]
    elif "camera_angle_x" in values:
        fx = 0.5 * width / math.tan(0.5 * values["camera_angle_x"])
    else:
        raise ConfigError(f"{path}: has neither `fl_x` (pixels) nor `camera_angle_x` (radians); add one.")
    lens = (fx, values.get("fl_y", fx), values.get("cx", width / 2), values.get("cy", height / 2))
    k1, k2, k3, k4, p1, p2 = (values.get(key, 0.0) for key in ("k1", "k2", "k3", "k4", "p1", "p2"))
    name = content.get("camera_model", "OPENCV")
    if name not in NERFSTUDIO_MODELS:
        raise ConfigError(f"{path}: camera_model is {name!r}; expected one of {', '.join(NERFSTUDIO_MODELS)}.")
    if name == "OPENCV_FISHEYE":
        return SourceCamera(name, (width, height), (*lens, k1, k2, k3, k4))
    if k4:
        raise ConfigError(f"{path}: k4 is {k4:g}, but cameras of model {name} go up to k3; undistort the images.")
    # OpenCV's rational model with an empty denominator: the polynomial k1, k2, k3 that nerfstudio uses.
    return SourceCamera("FULL_OPENCV", (width, height), (*lens, k1, k2, p1, p2, k3, 0.0, 0.0, 0.0))


def _intrinsics(path: Path, content: dict[str, Any]) -> dict[str, float]:
    """Values at the top of the file; where the frames carry them instead, those that all frames agree on."""
    holders = [content]
    if not {"fl_x", "camera_angle_x"} & content.keys():
        holders += [frame for frame in content.get("frames", []) if isinstance(frame, dict)]
    values: dict[str, float] = {}
    for holder in holders:
        for key in INTRINSICS:
            value = holder.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ConfigError(f"{path}: `{key}` is {value!r}; expected a number.")
            if values.setdefault(key, float(value)) != value:
                raise ConfigError(
                    f"{path}: `{key}` is {values[key]:g} for one frame and {value:g} for another; expected one camera "
                    "for the whole clip."
                )
    return values
