"""A video file as a clip: which frames it has when, and their pixels, upright."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from osn_gs.errors import DatasetError
from osn_gs.preprocess.image_folder import IMAGE_SUFFIXES

FFMPEG_LOG_LEVEL = "OPENCV_FFMPEG_LOGLEVEL"  # environment variable that OpenCV's reader looks at
FFMPEG_QUIET = "-8"
SQUARE = 0.01  # by which a pixel's width over its height may differ from 1


def video_times(path: Path, end: float | None = None) -> list[float]:
    """Seconds from the clip's begin at which each frame is shown, up to the first after `end`.

    The whole video is decoded: frame counts and rates that containers state are often wrong, and phones vary the rate.

    Raises:
        DatasetError: there is no such file, it is not a video, or its pixels are not square.
    """
    with _open(path) as video:
        rate = video.get(cv2.CAP_PROP_FPS)
        times = []
        while video.grab():
            times.append(video.get(cv2.CAP_PROP_POS_MSEC) / 1000)
            if len(times) > 1 and times[-1] <= times[-2]:  # a stream without time stamps
                times[-1] = times[-2] + (1 / rate if rate > 0 else 1 / 30)
            if end is not None and times[-1] > end:
                break
    if not times:
        raise DatasetError(f"{path}: holds no frame that can be decoded; convert it to H.264 in .mp4, or to images.")
    return times


def stated_frame_count(path: Path) -> int:
    """How many frames the container says there are, rightly or not; 0 where it says nothing.

    Raises:
        DatasetError: as `video_times`.
    """
    with _open(path) as video:
        return max(int(video.get(cv2.CAP_PROP_FRAME_COUNT)), 0)


def read_video_frames(path: Path, indices: Sequence[int]) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """RGB images of the frames with these numbers (from 0, increasing), rotated as the file says.

    Raises:
        DatasetError: a frame cannot be decoded.
    """
    with _open(path) as video:
        position = -1
        for index in indices:
            while position < index and video.grab():
                position += 1
            decoded, pixels = video.retrieve() if position == index else (False, None)
            if not decoded:
                raise DatasetError(f"{path}: frame {index} cannot be decoded; convert the video or end before it.")
            yield np.ascontiguousarray(pixels[..., ::-1])


@contextmanager
def _open(path: Path) -> Iterator[cv2.VideoCapture]:
    if not path.exists():
        raise DatasetError(f"{path}: no such file; expected a video.")
    if path.is_dir():
        raise DatasetError(f"{path}: is a folder; expected a video file (for a folder of images use `--images`).")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise DatasetError(f"{path}: is an image; expected a video file (for a folder of images use `--images`).")
    os.environ.setdefault(FFMPEG_LOG_LEVEL, FFMPEG_QUIET)  # its complaints about bad files say less than ours
    video = cv2.VideoCapture(str(path))
    try:
        if not video.isOpened():
            raise DatasetError(
                f"{path}: cannot be opened as a video ({path.stat().st_size} bytes); it is cut short, of an unknown "
                "format or no video at all. Play it to check, convert it to H.264 in .mp4, or use `--images`."
            )
        _check_square_pixels(path, video)
        video.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
        yield video
    finally:
        video.release()


def _check_square_pixels(path: Path, video: cv2.VideoCapture) -> None:
    """Frames come as they are stored; where a player would stretch them, one focal length would not fit both axes."""
    width, height = video.get(cv2.CAP_PROP_SAR_NUM), video.get(cv2.CAP_PROP_SAR_DEN)
    if width > 0 and height > 0 and abs(width / height - 1) > SQUARE:
        raise DatasetError(
            f"{path}: its pixels are {width:g}:{height:g}, not square; convert it first, e.g. with `ffmpeg -i IN -vf "
            '"scale=iw*sar:ih,setsar=1" OUT`, and make masks of the result.'
        )
