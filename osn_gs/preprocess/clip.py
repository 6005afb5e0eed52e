"""The chosen frames of a video file or an image folder, and their pixels one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from osn_gs.errors import ConfigError, DatasetError
from osn_gs.preprocess.image_folder import list_images, read_picture
from osn_gs.preprocess.video import read_video_frames, stated_frame_count, video_times

LOST_SHARE = 0.05  # of the frames a video says it has; containers are often off by a few
FEWEST_FRAMES = 3  # structure needs three views; masks and tracks rely on neighbours too


@dataclass(frozen=True)
class Clip:
    """Frames of the video or folder `path`, in order.

    `indices` number them in the source from 0: frame of the video, place in the sorted folder. `names` are file
    names, "" in a video; `times` seconds from the video's begin, None in a folder. `lost` counts the last
    frames of a video that cannot be decoded although it says it has them.
    """

    path: Path
    indices: tuple[int, ...]
    names: tuple[str, ...]
    times: tuple[float | None, ...]
    lost: int = 0

    def __len__(self) -> int:
        return len(self.indices)

    def images(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """The source images, RGB, upright, all of one size.

        Raises:
            DatasetError: an image cannot be read or has another size than the first.
        """
        is_folder = self.path.is_dir()
        images = map(read_picture, self.files) if is_folder else read_video_frames(self.path, self.indices)
        first = None
        for number, image in enumerate(images):
            first = _size(image) if first is None else first
            if _size(image) != first:
                raise DatasetError(
                    f"{self._place(number)}: is {_size(image)} pixels but {self._place(0)} is {first}; the frames of "
                    "a clip must have one size. Leave out or resize those that differ."
                )
            yield image

    @property
    def files(self) -> tuple[Path, ...]:
        """The image files of a folder; none of a video."""
        return tuple(self.path / name for name in self.names if name)

    def _place(self, number: int) -> str:
        return str(self.files[number]) if self.files else f"{self.path}: frame {self.indices[number]}"


def open_video(path: Path, start: float | None, end: float | None, every: int, max_frames: int | None) -> Clip:
    """Frames of a video from `start` to `end` (seconds), every n-th of these, of them `max_frames` spread evenly.

    Raises:
        ConfigError: the time range lies outside the video.
        DatasetError: the video cannot be read, or fewer than three frames are left.
    """
    times = video_times(path, end)
    is_whole = end is None or times[-1] <= end
    lost = _lost_frames(path, len(times)) if is_whole else 0
    first, last = start or 0.0, times[-1] if end is None else end
    in_range = [index for index, time in enumerate(times) if first <= time <= last]
    if not in_range:
        asked = f"from {first:g} s on" if end is None else f"between {first:g} and {last:g} s"
        known = "the video's frames" if is_whole else "its frames up to there"
        raise ConfigError(
            f"{path}: no frame {asked}; {known} are from {times[0]:g} to {times[-1]:g} s. Choose start and end within."
        )
    chosen = _thin_out(in_range, every, max_frames)
    _check_enough(path, len(chosen), len(in_range))
    return Clip(path, tuple(chosen), ("",) * len(chosen), tuple(times[index] for index in chosen), lost)


def open_folder(path: Path, every: int, max_frames: int | None) -> Clip:
    """Every n-th image of a folder in natural order, of them `max_frames` spread evenly.

    Raises:
        DatasetError: the folder has no images, or fewer than three are left.
    """
    files = list_images(path)
    chosen = _thin_out(range(len(files)), every, max_frames)
    _check_enough(path, len(chosen), len(files))
    return Clip(path, tuple(chosen), tuple(files[index].name for index in chosen), (None,) * len(chosen))


def _lost_frames(path: Path, num_decoded: int) -> int:
    stated = stated_frame_count(path)
    return stated - num_decoded if stated - num_decoded > LOST_SHARE * stated else 0


def _thin_out(frames: Sequence[int], every: int, max_frames: int | None) -> Sequence[int]:
    frames = frames[::every]
    if max_frames is None or len(frames) <= max_frames:
        return frames
    return [frames[place] for place in np.rint(np.linspace(0, len(frames) - 1, max_frames)).astype(int)]


def _check_enough(path: Path, num_chosen: int, num_available: int) -> None:
    if num_chosen < FEWEST_FRAMES:
        raise DatasetError(
            f"{path}: {num_chosen} of {num_available} frames would be used; expected {FEWEST_FRAMES} at least, and 20 "
            "to 100 are better: use more of the clip."
        )


def _size(image: UInt8[np.ndarray, "h w 3"]) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
