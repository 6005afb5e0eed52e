"""The frames step: images of a clip, one camera and one size for all, from a video or a folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from osn_gs.data.osn_files import read_image, read_json
from osn_gs.errors import ConfigError, DatasetError
from osn_gs.files import write_json_atomic
from osn_gs.preprocess.camera import FrameWarp, SourceCamera, fit_warp
from osn_gs.preprocess.camera_files import read_camera
from osn_gs.preprocess.clip import FEWEST_FRAMES, Clip, open_folder, open_video
from osn_gs.preprocess.frame_quality import cell_means, find_blurred, same_picture, sharpness_of
from osn_gs.preprocess.image_folder import focal_from_exif
from osn_gs.preprocess.pictures import contact_sheet, write_picture
from osn_gs.preprocess.progress import Progress, no_progress

RECORD_FILE = Path("prepare") / "frames.json"
PICTURE_FILE = Path("prepare") / "frames.png"
IMAGES_FOLDER = "images_train"
MANY_FRAMES = 300  # from here on advice is given: time and memory grow with the frames, the result hardly does
LARGE_SIDE = 1280  # pixels; the same for size
FRAMES_SHOWN = 12  # on the sheet
LISTED = 8  # frames that advice names by number
FOCAL_LIMITS = (0.2, 20.0)  # of the longer side: 136 and 3 degrees; millimetres given for pixels lie below
SMALL_SHARE = 0.7  # of the source's pixels that the crop about the principal point keeps
SAME_FOCAL = 1.02  # ratio of EXIF focal lengths in a clip that was not zoomed

FocalSource = Literal["given", "camera file", "EXIF"]


@dataclass(frozen=True)
class FramesConfig:
    """Which images the clip is made of, and their camera. Either `video` or `images`."""

    video: Path | None = None
    """Video file."""
    images: Path | None = None
    """Folder of images, taken in the order of their names (2 before 10)."""
    start: float | None = None
    """Of a video: seconds from its begin at which the clip starts."""
    end: float | None = None
    """Of a video: seconds from its begin at which the clip ends."""
    every: int = 1
    """Take every n-th frame."""
    max_frames: int | None = None
    """Take at most this many frames, evenly spread over what is left after `every`."""
    longest_side: int | None = None
    """Make frames smaller, so that their longer side has this many pixels."""
    focal: float | None = None
    """Focal length in pixels of the source images; by default a camera file's, EXIF's as a hint, or estimated."""
    camera: Path | None = None
    """Intrinsics with distortion: a nerfstudio transforms.json or the folder of a COLMAP model."""

    def __post_init__(self) -> None:
        if self.video is not None and self.images is not None:
            raise ConfigError("video and images are both given; expected one of them.")
        if self.focal is not None and self.camera is not None:
            raise ConfigError("focal and camera are both given; expected one of them (the camera file has a focal).")
        if self.images is not None and (self.start is not None or self.end is not None):
            raise ConfigError("start and end are seconds of a video; for a folder of images use every and max_frames.")
        for name in ("start", "end"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ConfigError(f"{name} is {value:g}; expected seconds from the video's begin, 0 or more.")
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise ConfigError(f"end is {self.end:g} s, start {self.start:g} s; expected an end after the start.")
        for name, least in (("every", 1), ("max_frames", FEWEST_FRAMES), ("longest_side", 64)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}; expected {least} or more.")
        if self.focal is not None and not 0 < self.focal < float("inf"):
            raise ConfigError(f"focal is {self.focal:g}; expected pixels of the source image, more than 0.")


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
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; run the frames step first.")
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


def open_clip(config: FramesConfig) -> Clip:
    """Choose the frames that `config` asks for; no pixels are kept.

    Raises:
        ConfigError: no source is given, or the time range lies outside the video.
        DatasetError: the source cannot be read, or fewer than three frames are left.
    """
    if config.video is not None:
        return open_video(config.video, config.start, config.end, config.every, config.max_frames)
    if config.images is not None:
        return open_folder(config.images, config.every, config.max_frames)
    raise ConfigError("no clip is given; expected `--video FILE` or `--images FOLDER`.")


def load_frames(
    config: FramesConfig, progress: Progress = no_progress
) -> tuple[UInt8[np.ndarray, "t h w 3"], FramesRecord]:
    """The frames of a clip in memory, as `extract_frames` would write them, and their record.

    Raises:
        ConfigError, DatasetError: the clip cannot be used; see `open_clip`.
    """
    clip = open_clip(config)
    images: list[UInt8[np.ndarray, "h w 3"]] = []
    record, _ = _make_frames(clip, config, lambda _, image: images.append(image), progress)
    return np.stack(images), record


def extract_frames(
    scene: Path, staging: Path, config: FramesConfig, progress: Progress = no_progress
) -> tuple[str, ...]:
    """The frames step: images_train/%04d.png, prepare/frames.json and a sheet of frames; returns advice.

    It needs nothing of `scene`; everything is written under `staging`.

    Raises:
        ConfigError, DatasetError: the clip cannot be used; see `open_clip`.
    """
    clip = open_clip(config)
    shown = set(np.rint(np.linspace(0, len(clip) - 1, min(FRAMES_SHOWN, len(clip)))).astype(int).tolist())
    pictures: dict[int, UInt8[np.ndarray, "h w 3"]] = {}

    def write(number: int, image: UInt8[np.ndarray, "h w 3"]) -> None:
        write_picture(frame_path(staging, number), image)
        if number in shown:
            pictures[number] = image

    record, repeated = _make_frames(clip, config, write, progress)
    write_frames_record(staging, record)
    blurred = find_blurred([frame.sharpness for frame in record.frames])
    captions = [_caption(number, record.frames[number], bool(blurred[number])) for number in pictures]
    write_picture(staging / PICTURE_FILE, contact_sheet(list(pictures.values()), captions))
    return _advice(clip, record, np.flatnonzero(blurred).tolist(), repeated)


def _make_frames(
    clip: Clip, config: FramesConfig, keep: Callable[[int, UInt8[np.ndarray, "h w 3"]], None], progress: Progress
) -> tuple[FramesRecord, list[int]]:
    """Hand every frame to `keep(number, image)`; returns the record and the frames that repeat the one before."""
    warp, frames, repeated, previous = None, [], [], None
    for number, source_image in enumerate(clip.images()):
        if warp is None:
            warp, focal, focal_source = _camera_of(clip, config, (source_image.shape[1], source_image.shape[0]))
        image = warp.image(source_image)
        cells = cell_means(image)
        if previous is not None and same_picture(previous, cells):
            repeated.append(number)
        previous = cells
        frames.append(SourceFrame(clip.indices[number], clip.names[number], clip.times[number], sharpness_of(image)))
        keep(number, image)
        progress(number + 1, len(clip))
    return FramesRecord(tuple(frames), warp, focal, focal_source), repeated


def _camera_of(
    clip: Clip, config: FramesConfig, source_size: tuple[int, int]
) -> tuple[FrameWarp, float | None, FocalSource | None]:
    """How images become frames, the frames' focal length and where it is known from."""
    camera = None if config.camera is None else read_camera(config.camera, source_size)
    warp = fit_warp(source_size, camera, config.longest_side)
    if camera is None and config.focal is None:
        focals = _exif_focals(clip)
        return (warp, float(np.median(focals)) * warp.scale, "EXIF") if focals else (warp, None, None)
    focal = config.focal if camera is None else camera.focal
    least, most = (limit * max(source_size) for limit in FOCAL_LIMITS)
    if not least <= focal <= most:
        raise ConfigError(
            f"{'focal' if camera is None else config.camera}: focal length is {focal:g} pixels for images of "
            f"{_size(source_size)}; expected {least:.0f} to {most:.0f}. Give it in pixels of the source image, not in "
            "millimetres."
        )
    return warp, focal * warp.scale, "given" if camera is None else "camera file"


def _exif_focals(clip: Clip) -> list[float]:
    """Focal lengths, in pixels of the source, of all images that state one."""
    return [focal for focal in map(focal_from_exif, clip.files) if focal is not None]


def _caption(number: int, frame: SourceFrame, is_blurred: bool) -> str:
    place = f"#{frame.index}" if frame.time is None else f"{frame.time:.2f} s"
    return f"{number}  {place}{'  BLURRED' if is_blurred else ''}"


def _advice(clip: Clip, record: FramesRecord, blurred: list[int], repeated: list[int]) -> tuple[str, ...]:
    lines = []
    if clip.lost:
        lines.append(
            f"The last {clip.lost} frames that the video says it has cannot be decoded: it may be cut short or "
            "damaged. Play it to its end; if there is more than the sheet of frames shows, convert it to H.264 in .mp4."
        )
    if blurred:
        lines.append(
            f"{_name(blurred, record)} blurred compared with the frames around; few points can be followed through. "
            "Choose another time range or another `--every`, or delete the images."
        )
    if repeated:
        lines.append(
            f"{_name(repeated, record)} the same picture as the frame before. Leave them out by `--every`, or "
            "choose a time range in which camera and objects move."
        )
    if len(record.frames) > MANY_FRAMES:
        lines.append(f"{len(record.frames)} frames take long; 100 mostly do as well: try `--max-frames 100`.")
    if max(record.size) > LARGE_SIDE:
        lines.append(f"Frames of {_size(record.size)} pixels take long; try `--longest-side 960`.")
    kept = record.warp.crop[2] * record.warp.crop[3] / (record.source_size[0] * record.source_size[1])
    if kept < SMALL_SHARE:
        lines.append(
            f"Only {kept:.0%} of the {_size(record.source_size)} source pixels are left about the camera's principal "
            "point; check that the camera file belongs to these images."
        )
    focals = _exif_focals(clip)
    if focals and max(focals) > SAME_FOCAL * min(focals):
        lines.append(
            f"EXIF focal lengths go from {min(focals):.0f} to {max(focals):.0f} pixels: the clip was zoomed, but one "
            "focal length is assumed throughout. Use images of one."
        )
    return tuple(lines)


def _name(numbers: list[int], record: FramesRecord) -> str:
    """Frames as the subject of a sentence, with their source names or numbers: "Frames 3, 7 (source 30, 70) are"."""
    listed = numbers[:LISTED]
    sources = [record.frames[number].name or str(record.frames[number].index) for number in listed]
    more = f" and {len(numbers) - LISTED} more" if len(numbers) > LISTED else ""
    noun, verb = ("Frame", "is") if len(numbers) == 1 else ("Frames", "are")
    return f"{noun} {', '.join(map(str, listed))} (source {', '.join(sources)}){more} {verb}"


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
