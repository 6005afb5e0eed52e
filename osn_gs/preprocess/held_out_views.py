"""Test images: when they were taken, through which lens, and where from; what the scene folder holds of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from osn_gs.data.osn_files import read_json
from osn_gs.data.osn_writer import real_camera_model, real_frame, write_images
from osn_gs.errors import DatasetError
from osn_gs.files import write_json_atomic
from osn_gs.geometry.se3 import invert_rigid
from osn_gs.preprocess.covisibility import covisible_pixels, write_covisible
from osn_gs.preprocess.feature_map import (
    FEWEST_MATCHES,
    PlacedCamera,
    build_feature_map,
    intrinsics_at_middle,
    place_camera,
    training_homographies,
)
from osn_gs.preprocess.frames import FramesRecord
from osn_gs.preprocess.image_folder import list_images, read_picture
from osn_gs.preprocess.progress import Progress, no_progress

PIXEL_CENTER = 0.5  # of the first pixel, as in the training frames
BORDER = 4  # pixels around objects whose features may belong to either side
LARGEST_PLAIN_ERROR = 1.0  # pixels, median of one image: above, something is wrong with its lens
SAME_SHAPE = 0.01  # relative difference of width over height between images of one lens


@dataclass(frozen=True)
class HeldOutImages:
    """Held-out images of one size and lens, the training frame each belongs to, and the names they came under.

    `advice` says what could not be used.
    """

    names: tuple[str, ...]
    images: UInt8[np.ndarray, "n h w 3"]
    time_steps: tuple[int, ...]
    focal: float
    advice: tuple[str, ...] = ()


def read_test_images(
    folder: Path, times: Path | None, focal: float | None, record: FramesRecord, training_focal: float
) -> HeldOutImages:
    """The images of a folder that show moments of the clip; see `LayoutConfig` on `times` and `focal`.

    Images of the source's size go through the same lens correction and crop as the clip's frames. Others count as
    free of distortion; without `focal`, they must have the frames' shape, and their focal length is in proportion.

    Raises:
        DatasetError: there are none, sizes differ, or it cannot be told when or through which lens they were taken.
    """
    paths = list_images(folder)
    images = [read_picture(path) for path in paths]
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            raise DatasetError(
                f"{path}: image is {_size(image)} but {paths[0].name} is {_size(images[0])}; test images must have one "
                "size: put each size into a folder of its own."
            )
    numbers = _numbers_from_names(paths) if times is None else _numbers_from_file(times, paths)
    frame_of_number = {frame.index: t for t, frame in enumerate(record.frames)}
    chosen = [i for i, number in enumerate(numbers) if number in frame_of_number]
    if not chosen:
        numbered = sorted(frame_of_number)
        raise DatasetError(
            f"{times or folder}: no test image shows a frame of this clip: they belong to frames {min(numbers)} to "
            f"{max(numbers)} but the clip's are numbered {numbered[0]} to {numbered[-1]}; give their frame numbers in "
            "a file with --layout.test-times."
        )
    advice = ()
    if len(chosen) < len(paths):
        advice = (
            f"{len(paths) - len(chosen)} of {len(paths)} test images show moments that are no frames of this clip and "
            f"were left out, the first is {next(p.name for i, p in enumerate(paths) if i not in chosen)}.",
        )
    height, width = images[0].shape[:2]
    if focal is None and (width, height) == record.source_size:
        images, focal = [record.warp_image(image) for image in images], training_focal
    elif focal is None:
        focal = _proportional_focal(paths[0], (width, height), record.size, training_focal)
    return HeldOutImages(
        names=tuple(paths[i].name for i in chosen),
        images=np.stack([images[i] for i in chosen]),
        time_steps=tuple(frame_of_number[numbers[i]] for i in chosen),
        focal=focal,
        advice=advice,
    )


def write_test_views(
    staging: Path,
    tests: HeldOutImages,
    images: UInt8[np.ndarray, "t h w 3"],
    object_ids: UInt8[np.ndarray, "t h w"],
    cam_from_background: Float[np.ndarray, "t 4 4"],
    focal: float,
    covisibility: bool,
    progress: Progress = no_progress,
) -> tuple[str, ...]:
    """Place the test images' cameras among the training cameras; write transforms_test.json, images_test, covis_mask.

    Returns advice, also on images that could not be placed and were left out.

    Raises:
        DatasetError: none can be placed.
    """
    usable = background_inside(object_ids)
    feature_map = build_feature_map(images, usable, cam_from_background, focal, _portion(progress, 0, 30))
    placed = []
    for image in tests.images:
        placed.append(place_camera(image, tests.focal, feature_map))
        _portion(progress, 30, 60)(len(placed), len(tests.images))
    kept = [i for i, camera in enumerate(placed) if camera is not None]
    if not kept:
        raise DatasetError(
            f"{tests.names[0]} and {len(placed) - 1} more: no test image could be placed: fewer than {FEWEST_MATCHES} "
            "points of the clip's background were found in each; are they of the same place? Give --layout.test-focal, "
            "or leave --layout.test-images out."
        )
    cameras = np.stack([placed[i].cam_from_background for i in kept])
    write_json_atomic(staging / "transforms_test.json", held_out_transforms(tests, kept, cameras, len(images)))
    write_images(staging / "images_test", tests.images[kept])
    if covisibility:
        test_intrinsics = intrinsics_at_middle(tests.focal, *tests.images.shape[1:3])
        intrinsics = intrinsics_at_middle(focal, *images.shape[1:3])
        for number, (i, camera) in enumerate(zip(kept, cameras, strict=True)):
            homographies = training_homographies(
                feature_map.points, camera, test_intrinsics, cam_from_background, intrinsics
            )
            mask = covisible_pixels(tests.images[i], images, homographies)
            write_covisible(staging / "covis_mask" / f"{number:04d}.png", mask)
            _portion(progress, 60, 100)(number + 1, len(kept))
    progress(100, 100)
    return tests.advice + _placement_advice(tests, placed)


def held_out_transforms(
    tests: HeldOutImages, kept: list[int], cam_from_background: Float[np.ndarray, "n 4 4"], num_frames: int
) -> dict[str, Any]:
    """Content of transforms_test.json for the images that were `kept`, in that order.

    Their views are numbered behind the training frames'. `source` is a key of our own: the image's file name.
    """
    world_from_cam = invert_rigid(torch.from_numpy(cam_from_background))
    frames = [
        {**real_frame(world_from_cam[n], num_frames + n, tests.time_steps[i], num_frames), "source": tests.names[i]}
        for n, i in enumerate(kept)
    ]
    return {**real_camera_model(tests.focal, *tests.images.shape[1:3], PIXEL_CENTER), "frames": frames}


def _portion(progress: Progress, begin: int, end: int) -> Progress:
    """Progress of a part of the work that lies between two percentages of the whole."""
    return lambda done, total: progress(begin + round((end - begin) * done / total), 100)


def background_inside(object_ids: UInt8[np.ndarray, "t h w"]) -> Bool[np.ndarray, "t h w"]:
    """Background pixels away from the objects' borders."""
    kernel = np.ones((2 * BORDER + 1, 2 * BORDER + 1), np.uint8)
    return np.stack([cv2.dilate((ids > 0).astype(np.uint8), kernel) == 0 for ids in object_ids])


def _numbers_from_names(paths: list[Path]) -> list[int]:
    """The last number in each file name."""
    numbers = [re.findall(r"\d+", path.stem) for path in paths]
    for path, found in zip(paths, numbers, strict=True):
        if not found:
            raise DatasetError(
                f"{path}: the name holds no number, so it is not known which frame of the clip it belongs to; give "
                "frame numbers in a file with --layout.test-times."
            )
    return [int(found[-1]) for found in numbers]


def _numbers_from_file(times: Path, paths: list[Path]) -> list[int]:
    """Frame numbers from a list in the images' order, {name: number}, or a transforms file."""
    content = read_json(times)
    if isinstance(content, dict) and isinstance(content.get("frames"), list):
        frames = content["frames"]
        values: Any = [frame.get("time_step") if isinstance(frame, dict) else None for frame in frames]
    elif isinstance(content, dict):
        values = [content.get(path.name, content.get(path.stem)) for path in paths]
        for path, value in zip(paths, values, strict=True):
            if value is None:
                raise DatasetError(f"{times}: says nothing of {path.name}; expected its frame number.")
    else:
        values = content
    if not isinstance(values, list) or len(values) != len(paths):
        count = len(values) if isinstance(values, list) else "no list of"
        raise DatasetError(f"{times}: holds {count} frame numbers for {len(paths)} test images; expected one for each.")
    for path, value in zip(paths, values, strict=True):
        if isinstance(value, bool) or not isinstance(value, int):
            raise DatasetError(f"{times}: frame number of {path.name} is {value!r}; expected a whole number.")
    return values


def _proportional_focal(path: Path, size: tuple[int, int], frame_size: tuple[int, int], training_focal: float) -> float:
    """Focal length of images that show the frames' field of view at another size."""
    ratio = size[0] / frame_size[0]
    if abs(size[1] / frame_size[1] / ratio - 1) > SAME_SHAPE:
        raise DatasetError(
            f"{path}: image is {size[0]}x{size[1]} but the clip's frames are {frame_size[0]}x{frame_size[1]}, which is "
            "another shape, so it has another field of view; give its focal length with --layout.test-focal."
        )
    return training_focal * ratio


def _placement_advice(tests: HeldOutImages, placed: list[PlacedCamera | None]) -> tuple[str, ...]:
    missing = [name for name, camera in zip(tests.names, placed, strict=True) if camera is None]
    found = [camera for camera in placed if camera is not None]
    advice = ()
    if missing:
        advice += (
            f"{len(missing)} of {len(placed)} test images could not be placed and were left out, the first is "
            f"{missing[0]}: too few background points are seen in both.",
        )
    worst = max(found, key=lambda camera: camera.error)
    if worst.error > LARGEST_PLAIN_ERROR:
        advice += (
            f"The cameras of the test images fit the background to {worst.error:.1f} pixels at worst (good: below "
            f"{LARGEST_PLAIN_ERROR:g}), so scores on them suffer; check their focal length (now {tests.focal:.0f}).",
        )
    return advice


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
