"""The frames step: images of a clip, one camera and one size for all, from a video or a folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from osn_gs.data.osn_files import read_image, read_json
from osn_gs.errors import DatasetError
from osn_gs.files import write_json_atomic
from osn_gs.preprocess.camera import FrameWarp, SourceCamera

RECORD_FILE = Path("prepare") / "frames.json"
IMAGES_FOLDER = "images_train"

FocalSource = Literal["given", "camera file", "EXIF"]


@dataclass(frozen=True)
class SourceFrame:
    """Where a frame comes from.

    `index` is its number in the source, from 0: frame of the video, place in the sorted folder. `name` is the image's
    file name ("" in a video), `time` its time in the video in seconds (None for an image). `sharpness` compares
    frames of one clip only.
    """

    index: int
    name: str
    time: float | None
    sharpness: float


@dataclass(frozen=True)
class FramesRecord:
    """What the frames step did. `focal` is in pixels of the frames; None where nothing is known of it.

    A focal length from EXIF is a hint, good to a few per cent; the other sources are to be taken at their word.
    """

    frames: tuple[SourceFrame, ...]
    warp: FrameWarp
    focal: float | None
    focal_source: FocalSource | None

    @property
    def source_size(self) -> tuple[int, int]:
        """Width and height of the source images."""
        return self.warp.source_size

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the frames."""
        return self.warp.size

    def warp_image(self, image: UInt8[np.ndarray, "hs ws 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """A source image as a frame."""
        return self.warp.image(image)

    def warp_ids(self, ids: UInt8[np.ndarray, "hs ws"]) -> UInt8[np.ndarray, "h w"]:
        """Ids over a source image as ids over the frame."""
        return self.warp.ids(ids)


def write_frames_record(scene: Path, record: FramesRecord) -> None:
    """Write `record` to prepare/frames.json of a scene folder."""
    write_json_atomic(scene / RECORD_FILE, dataclasses.asdict(record))


def read_frames_record(scene: Path) -> FramesRecord:
    """Read what `write_frames_record` wrote.

    Raises:
        DatasetError: the file is missing or is not such a record.
    """
    path = scene / RECORD_FILE
    content = read_json(path)
    try:
        return _parse_record(content)
    except (KeyError, TypeError, ValueError):
        raise DatasetError(f"{path}: not a record of the frames step; run that step again.") from None


def _parse_record(content: dict[str, Any]) -> FramesRecord:
    warp = content["warp"]
    camera = warp["camera"]
    if camera is not None:
        camera = SourceCamera(camera["model"], tuple(camera["size"]), tuple(camera["params"]))
    return FramesRecord(
        frames=tuple(SourceFrame(**frame) for frame in content["frames"]),
        warp=FrameWarp(tuple(warp["source_size"]), tuple(warp["crop"]), tuple(warp["size"]), camera),
        focal=content["focal"],
        focal_source=content["focal_source"],
    )


def read_frames(scene: Path) -> UInt8[np.ndarray, "t h w 3"]:
    """All frames of a scene folder, RGB.

    Raises:
        DatasetError: an image is missing, cannot be read or has another size than the record says.
    """
    record = read_frames_record(scene)
    width, height = record.size
    images = np.empty((len(record.frames), height, width, 3), dtype=np.uint8)
    for number in range(len(images)):
        path = frame_path(scene, number)
        image = read_image(path)
        if image.shape != images.shape[1:]:
            raise DatasetError(
                f"{path}: image is {image.shape[1]}x{image.shape[0]} but {RECORD_FILE} says {width}x{height}; "
                "run the frames step again."
            )
        images[number] = image
    return images


def frame_path(scene: Path, number: int) -> Path:
    """Where the image of a frame lies."""
    return scene / IMAGES_FOLDER / f"{number:04d}.png"
