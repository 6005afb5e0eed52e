"""Pictures as an H.264 video that browsers play."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from jaxtyping import UInt8
from torch import Tensor

from osn_gs.errors import OsnGsError

BT709 = 1  # in ITU-T H.273: primaries, transfer function and matrix alike
MAX_RATE_DENOMINATOR = 1001  # of the frame rate as a fraction; television's rates are n * 1000 / 1001
MAX_CRF = 51
PRESET = "veryfast"  # 35 ms of a core for 1280x720 instead of the default's 93 ms, for 0.6 dB; files stay as small

Picture = UInt8[np.ndarray, "h w 3"] | UInt8[Tensor, "h w 3"]


def write_video(path: Path, pictures: Iterable[Picture], fps: float, crf: int = 18) -> None:
    """Write RGB pictures of one size as an .mp4 file, whole or not at all; one of them is in memory at a time.

    H.264 in yuv420p with BT.709 colours, and the index first, so that a page can play it while it loads. Colours have
    half the resolution, which wants even sizes: an odd last row or column is repeated. `crf` is x264's quality, from 0
    (exact but for the conversion of colours) to 51.

    Raises:
        OsnGsError: no picture, pictures that differ in size, a frame rate or quality out of range.
    """
    path = Path(path)
    if not 1 / MAX_RATE_DENOMINATOR <= fps <= 1000:
        raise OsnGsError(f"{path}: a video needs between 0.001 and 1000 pictures a second, got {fps}.")
    if not 0 <= crf <= MAX_CRF:
        raise OsnGsError(f"{path}: crf is x264's quality from 0 (best) to {MAX_CRF}, got {crf}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    # FFmpeg opens the file a second time to move the index, so it wants a name of its own beside the target.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        unfinished = Path(folder) / path.name
        _encode(unfinished, _of_one_size(path, pictures), fps, crf)
        os.replace(unfinished, path)


def _of_one_size(path: Path, pictures: Iterable[Picture]) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    first = None
    for index, picture in enumerate(pictures):
        pixels = picture.cpu().numpy() if isinstance(picture, Tensor) else picture
        assert pixels.dtype == np.uint8, f"picture {index} is {pixels.dtype}"
        assert pixels.ndim == 3, f"picture {index} has shape {pixels.shape}"
        assert pixels.shape[2] == 3, f"picture {index} has shape {pixels.shape}"
        first = pixels.shape if first is None else first
        if pixels.shape != first:
            raise OsnGsError(
                f"{path}: picture {index} is {pixels.shape[1]}x{pixels.shape[0]} but the first is "
                f"{first[1]}x{first[0]}; the pictures of a video have one size."
            )
        yield pixels
    if first is None:
        raise OsnGsError(f"{path}: there is no picture to make a video of.")


def _encode(path: Path, pictures: Iterator[UInt8[np.ndarray, "h w 3"]], fps: float, crf: int) -> None:
    first = next(pictures)
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        rate = Fraction(fps).limit_denominator(MAX_RATE_DENOMINATOR)
        stream = container.add_stream("libx264", rate=rate, options={"crf": str(crf), "preset": PRESET})
        stream.height, stream.width = (size + size % 2 for size in first.shape[:2])
        stream.pix_fmt = "yuv420p"
        tags = stream.codec_context
        tags.color_primaries = tags.color_trc = tags.colorspace = BT709
        tags.color_range = ColorRange.MPEG
        for picture in chain([first], pictures):
            container.mux(stream.encode(_yuv_frame(picture)))
        container.mux(stream.encode())


def _yuv_frame(picture: UInt8[np.ndarray, "h w 3"]) -> av.VideoFrame:
    height, width = picture.shape[:2]
    even = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    frame = av.VideoFrame.from_ndarray(even, format="rgb24")
    return frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
