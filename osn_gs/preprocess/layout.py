"""The layout step: every object's model as the released OSN code, and training, read it (METHOD 5)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from osn_gs.data.osn_writer import real_camera_model, real_frame, write_object
from osn_gs.errors import ConfigError, DatasetError
from osn_gs.files import write_json_atomic
from osn_gs.geometry.se3 import invert_rigid
from osn_gs.preprocess.arrangement import USUAL_NEAR, Arrangement, arrange_objects
from osn_gs.preprocess.frames import read_frames, read_frames_record
from osn_gs.preprocess.held_out_views import read_test_images, write_test_views
from osn_gs.preprocess.masks import read_object_ids
from osn_gs.preprocess.pictures import contact_sheet, write_picture
from osn_gs.preprocess.progress import Progress, no_progress
from osn_gs.preprocess.sfm.colmap_model import read_model
from osn_gs.preprocess.sfm.object_model import ObjectModel
from osn_gs.preprocess.sfm.objects import model_folder

PREPROC = "sfm"
PIXEL_CENTER = 0.5  # of the first pixel; frames are cropped so that the principal point is (W/2, H/2)
PICTURED_FRAMES = 6


@dataclass(frozen=True)
class LayoutConfig:
    """How the scene folder is finished."""

    near: float | None = None
    """Nearest depth at which an object may stand, in units in which the background ends before `far`; by default an
    eighth of that, or less where the clip shows things nearer."""
    far: float = 8.0
    """Farthest depth of the scene; it sets the unit of length."""
    test_images: Path | None = None
    """Folder of held-out images of the same moments from other places: their cameras are found and written too."""
    test_times: Path | None = None
    """JSON that says at which frame of the clip each test image was taken, by the clip's own frame numbers: a list in
    the images' order, an object {file name: number}, or a transforms file with `time_step`. By default the last number
    in each file name."""
    test_focal: float | None = None
    """Focal length of the test images in pixels; by default the clip's."""
    covisibility: bool = True
    """Mark in each test image the pixels that the clip shows too, which is where it can be judged."""

    def __post_init__(self) -> None:
        for name in ("near", "far", "test_focal"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name}: expected a number above 0, got {value:g}.")
        if self.near is not None and not self.near < self.far:
            raise ConfigError(f"near and far: expected 0 < near < far, got {self.near:g} and {self.far:g}.")
        for name in ("test_times", "test_focal"):
            if getattr(self, name) is not None and self.test_images is None:
                raise ConfigError(f"{name}: says something of test images, but test_images is not given.")


def write_layout(scene: Path, staging: Path, config: LayoutConfig, progress: Progress = no_progress) -> tuple[str, ...]:
    """Write poses, depths, boxes, scale ranges, transforms_train.json and, with test images, what belongs to them.

    Raises:
        DatasetError: an object has no usable model, the background lacks a frame's pose, no scale keeps an object
            between near and far, or test images cannot be used.
    """
    images, object_ids = read_frames(scene), read_object_ids(scene)
    models = read_models(scene, int(object_ids.max()) + 1, len(images))
    arrangement = arrange_objects(models, config.near, config.far)
    for k, (obj, box) in enumerate(zip(arrangement.objects, arrangement.boxes, strict=True)):
        write_object(staging / PREPROC, k, obj, box, PIXEL_CENTER)
    write_json_atomic(staging / "transforms_train.json", training_transforms(arrangement, *images.shape[1:3]))
    write_picture(staging / "prepare" / "layout.png", picture_points(images, arrangement))
    advice = _advice(arrangement, config)
    if config.test_images is None:
        progress(1, 1)
        return advice
    tests = read_test_images(
        config.test_images, config.test_times, config.test_focal, read_frames_record(scene), models[0].focal
    )
    cam_from_background = arrangement.objects[0].cam_from_obj.numpy()
    return advice + write_test_views(
        staging, tests, images, object_ids, cam_from_background, models[0].focal, config.covisibility, progress
    )


def read_models(scene: Path, num_objects: int, num_frames: int) -> list[ObjectModel]:
    """The models of all objects, background first.

    Raises:
        DatasetError: an object has none.
    """
    folders = [model_folder(scene, k) for k in range(num_objects)]
    for k, folder in enumerate(folders):
        if not folder.is_dir():
            raise DatasetError(
                f"{folder}: object {k} has no model, so it has no place in the scene; read the sfm step's advice, or "
                "let the masks count the object as background."
            )
    return [read_model(folder, num_frames) for folder in folders]


def training_transforms(arrangement: Arrangement, height: int, width: int) -> dict[str, Any]:
    """Content of transforms_train.json, real variant: the world is the background's frame."""
    world_from_cam = invert_rigid(arrangement.objects[0].cam_from_obj)
    num_frames = len(world_from_cam)
    return {
        **real_camera_model(float(arrangement.intrinsics[0, 0]), height, width, PIXEL_CENTER),
        "near": arrangement.near,
        "far": arrangement.far,
        "frames": [real_frame(world_from_cam[t], t, t, num_frames) for t in range(num_frames)],
    }


def picture_points(images: UInt8[np.ndarray, "t h w 3"], arrangement: Arrangement) -> UInt8[np.ndarray, "hs ws 3"]:
    """Sheet of frames with every object's points, coloured by inverse depth at scale 1: red near, blue far."""
    frames = np.unique(np.linspace(0, len(images) - 1, PICTURED_FRAMES).round().astype(int))
    pictures = [images[t] // 2 for t in frames]
    for obj in arrangement.objects:
        colors = _depth_colors(obj.points.depths.numpy(), arrangement.near, arrangement.far)
        for picture, t in zip(pictures, frames, strict=True):
            here = obj.points.frames.numpy() == t
            for (x, y), color in zip(obj.points.pixels.numpy()[here], colors[here].tolist(), strict=True):
                cv2.circle(picture, (int(x), int(y)), 2, color, -1, cv2.LINE_AA)
    return contact_sheet(pictures, [f"frame {t}: depth of points at scale 1" for t in frames], columns=3)


def _depth_colors(depths: np.ndarray, near: float, far: float) -> UInt8[np.ndarray, "n 3"]:
    nearness = (1 / depths - 1 / far) / (1 / near - 1 / far)
    levels = (255 * np.clip(nearness, 0, 1)).astype(np.uint8)
    return cv2.applyColorMap(levels[:, None], cv2.COLORMAP_TURBO)[:, 0, ::-1]


def _advice(arrangement: Arrangement, config: LayoutConfig) -> tuple[str, ...]:
    usual_near = USUAL_NEAR * arrangement.far
    if config.near is not None or arrangement.near > 0.9 * usual_near:
        return ()
    return (
        f"Depths of this clip span a wide range: with the background ending at {arrangement.far:g}, objects may stand "
        f"as near as {arrangement.near:g} (usually {usual_near:g}), which bounds what no occlusion bounds.",
    )
