"""Dense optical flow between frames, of the whole image or of one object's close-up, with OpenCV's DIS."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

SMALL_SIDE = 200  # an object narrower than this many pixels is looked at enlarged
CLOSE_UP_MARGIN = 0.35  # of the object's longer side, on each side, so that DIS's pyramid has something to work with
SMALLEST_FLOW_SIDE = 48  # DIS needs some pixels for its coarsest level


@contextmanager
def one_opencv_thread() -> Iterator[None]:
    """OpenCV on one thread: DIS cuts the image into one stripe a thread, so its result would depend on the machine."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


@dataclass(frozen=True)
class FlowField:
    """Where the points of a rectangle of one frame went in another.

    The rectangle begins at pixel corner `origin` (x, y) and holds `scale` flow samples a pixel; `displacement` is in
    pixels of the image, in half precision because a clip's fields are kept together.
    """

    origin: tuple[int, int]
    scale: float
    displacement: Float[np.ndarray, "h w 2"]

    def at(self, pixels: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """Displacement at continuous positions (pixel centres at +0.5), bilinear; the rim's outside the rectangle."""
        return sample_bilinear(self.displacement, (pixels - np.array(self.origin)) * self.scale)


def sample_bilinear(image: np.ndarray, pixels: Float[np.ndarray, "*shape 2"]) -> np.ndarray:
    """Values of an image [h, w] or [h, w, c] at continuous positions (pixel centres at +0.5), clamped at the rim."""
    flat = np.asarray(pixels, np.float32).reshape(-1, 2) - np.float32(0.5)
    channels = image.shape[2:]
    if len(flat) == 0:
        return np.zeros((*np.shape(pixels)[:-1], *channels), np.float32)
    # cv2.remap takes maps of fewer than 2^15 rows and columns: wrap the list of points into rows.
    width = 1 << 14
    rows = -(-len(flat) // width)
    padded = np.zeros((rows * width if rows > 1 else len(flat), 2), np.float32)
    padded[: len(flat)] = flat
    grid = padded.reshape(rows, -1, 2)
    values = cv2.remap(
        image.astype(np.float32, copy=False), grid, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return values.reshape(-1, *channels)[: len(flat)].reshape(*np.shape(pixels)[:-1], *channels)


def dis_flow(first: UInt8[np.ndarray, "h w"], second: UInt8[np.ndarray, "h w"]) -> Float[np.ndarray, "h w 2"]:
    """Displacement in pixels of every pixel of `first` (Kroeger et al. 2016), at the images' own resolution."""
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    dis.setFinestScale(0)  # the preset stops at half resolution
    return dis.calc(first, second, None)


def image_flow(first: UInt8[np.ndarray, "h w"], second: UInt8[np.ndarray, "h w"]) -> FlowField:
    """Flow of the whole image."""
    return FlowField((0, 0), 1.0, dis_flow(first, second).astype(np.float16))


def object_flow(
    first: UInt8[np.ndarray, "h w"],
    second: UInt8[np.ndarray, "h w"],
    first_mask: Bool[np.ndarray, "h w"],
    second_mask: Bool[np.ndarray, "h w"],
) -> FlowField:
    """Flow of one object between two frames in which it is seen, from close-ups.

    Both close-ups have the same size and are centred on the object's box, so that its large motion is gone before
    flow begins; a small object is enlarged twice.
    """
    (first_centre, first_size), (second_centre, second_size) = _box(first_mask), _box(second_mask)
    size = np.maximum(first_size, second_size)
    scale = 2.0 if size.max() < SMALL_SIDE else 1.0
    size = np.maximum(size + 2 * CLOSE_UP_MARGIN * size.max(), SMALLEST_FLOW_SIDE)
    first_origin, second_origin = (np.round(centre - size / 2).astype(int) for centre in (first_centre, second_centre))
    size = np.ceil(size).astype(int)
    displacement = dis_flow(_close_up(first, first_origin, size, scale), _close_up(second, second_origin, size, scale))
    shift = (second_origin - first_origin).astype(np.float32)
    displacement = displacement / np.float32(scale) + shift
    return FlowField(tuple(int(c) for c in first_origin), scale, displacement.astype(np.float16))


def _box(mask: Bool[np.ndarray, "h w"]) -> tuple[np.ndarray, np.ndarray]:
    """Centre and size (x, y) of a mask's bounding box, in continuous pixel coordinates."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    low, high = np.array([columns[0], rows[0]]), np.array([columns[-1] + 1, rows[-1] + 1])
    return (low + high) / 2, high - low


def _close_up(
    image: UInt8[np.ndarray, "h w"], origin: np.ndarray, size: np.ndarray, scale: float
) -> UInt8[np.ndarray, "h2 w2"]:
    """A rectangle of an image, enlarged; what lies outside the image repeats its rim."""
    height, width = image.shape
    rows = np.clip(np.arange(origin[1], origin[1] + size[1]), 0, height - 1)
    columns = np.clip(np.arange(origin[0], origin[0] + size[0]), 0, width - 1)
    cut = image[np.ix_(rows, columns)]
    if scale == 1.0:
        return np.ascontiguousarray(cut)
    return cv2.resize(cut, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
