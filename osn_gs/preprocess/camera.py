"""The lens of a clip: intrinsics people have already, and the view without distortion that is made of its images.

The layout of scene folders knows one focal length and a principal point in the middle of the image. `FrameWarp` makes
such images: lens distortion removed, cropped about the principal point, made smaller. Its whole-pixel crop may leave
the principal point a quarter of a source pixel from the middle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import pycolmap
from jaxtyping import Float, UInt8

from osn_gs.errors import ConfigError

LARGEST_PLAIN_ERROR = 0.25  # source pixels at the border: below, a lens counts as free of distortion
WIDEST_HALF_ANGLE = 60.0  # degrees from the optical axis: what a flat image still shows without much stretching
SMALLEST_SIDE = 16  # pixels: less cannot be tracked


@dataclass(frozen=True)
class SourceCamera:
    """A lens in one of COLMAP's camera models: its name there, `params` in its order, for images of `size` (w, h).

    Pixels have their centres at +0.5.
    """

    model: str
    size: tuple[int, int]
    params: tuple[float, ...]

    def colmap(self) -> pycolmap.Camera:
        """The camera as pycolmap has it."""
        width, height = self.size
        return pycolmap.Camera(model=self.model, width=width, height=height, params=list(self.params))

    @property
    def focal(self) -> float:
        """Focal length in pixels, the mean of both axes'."""
        return float(self.colmap().mean_focal_length())

    @property
    def principal_point(self) -> tuple[float, float]:
        camera = self.colmap()
        return float(camera.principal_point_x), float(camera.principal_point_y)

    def rescaled(self, size: tuple[int, int]) -> SourceCamera:
        """The same lens for images enlarged or reduced to `size`."""
        camera = self.colmap()
        camera.rescale(*size)
        return SourceCamera(self.model, size, tuple(float(value) for value in camera.params))

    def is_plain(self) -> bool:
        """Whether a crop is enough: a pinhole with one focal length, to `LARGEST_PLAIN_ERROR` at the corners."""
        width, height = self.size
        focal, (cx, cy) = self.focal, self.principal_point
        corners = np.array([(x, y) for x in (0.0, width) for y in (0.0, height)])
        rays = np.column_stack([(corners - (cx, cy)) / focal, np.ones(4)])
        return bool(np.abs(self.colmap().img_from_cam(rays) - corners).max() <= LARGEST_PLAIN_ERROR)


@dataclass(frozen=True)
class FrameWarp:
    """How source images become the clip's frames.

    Without `camera`, `crop` (x, y, w, h, whole pixels) of the source image is taken. A lens with distortion is replaced
    by a pinhole of its mean focal length first, in an image as large as `crop` (x = y = 0) whose middle is the
    principal point. Either is then made `size` (w, h) large.
    """

    source_size: tuple[int, int]
    crop: tuple[int, int, int, int]
    size: tuple[int, int]
    camera: SourceCamera | None = None

    @property
    def scale(self) -> float:
        """Frame pixels per source pixel; the other axis may differ by half a frame pixel over the whole image."""
        return max(self.size) / max(self.crop[2:])

    def image(self, image: UInt8[np.ndarray, "hs ws 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """A source image as a frame: bilinear where distortion is removed, pixels averaged by area where reduced."""
        assert image.shape[1::-1] == self.source_size, f"expected an image of {self.source_size}, got {image.shape}"
        if self.camera is not None:
            image = cv2.remap(image, *self._undistortion, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return self._cropped_and_resized(image, cv2.INTER_AREA)

    def ids(self, ids: UInt8[np.ndarray, "hs ws"]) -> UInt8[np.ndarray, "h w"]:
        """Source-size ids (or any map whose values must not be mixed) as a frame has them: the nearest pixel's."""
        assert ids.shape[::-1] == self.source_size, f"expected ids of {self.source_size}, got {ids.shape}"
        if self.camera is not None:
            ids = cv2.remap(ids, *self._undistortion, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
        # INTER_NEAREST takes the pixel at a cell's corner, half a cell off; the exact one takes the one in its middle.
        return self._cropped_and_resized(ids, cv2.INTER_NEAREST_EXACT)

    def _cropped_and_resized(self, image: UInt8[np.ndarray, "..."], interpolation: int) -> UInt8[np.ndarray, "..."]:
        x, y, width, height = self.crop
        image = image[y : y + height, x : x + width]
        if (width, height) != self.size:
            image = cv2.resize(image, self.size, interpolation=interpolation)
        return np.ascontiguousarray(image)

    @cached_property
    def _undistortion(self) -> tuple[Float[np.ndarray, "hs ws"], Float[np.ndarray, "hs ws"]]:
        """Where each pixel of the image without distortion is found in the source, in OpenCV's integer centres."""
        width, height = self.crop[2:]
        columns, rows = np.meshgrid(np.arange(width) + 0.5 - width / 2, np.arange(height) + 0.5 - height / 2)
        rays = np.stack([columns, rows, np.full_like(rows, self.camera.focal)], axis=-1)
        found = self.camera.colmap().img_from_cam(rays.reshape(-1, 3)) - 0.5
        found = np.nan_to_num(found, nan=-1.0).reshape(height, width, 2).astype(np.float32)
        return np.ascontiguousarray(found[..., 0]), np.ascontiguousarray(found[..., 1])


def fit_warp(source_size: tuple[int, int], camera: SourceCamera | None, longest_side: int | None) -> FrameWarp:
    """The largest frames of `camera` with the principal point in the middle and no empty pixels.

    Args:
        source_size: width and height of the source images.
        camera: their lens, for that size; None for a pinhole with the principal point in the middle.
        longest_side: frames are made smaller, never larger, to have this many pixels on their longer side.

    Raises:
        ConfigError: hardly anything is left: the principal point lies at the border or `longest_side` is tiny.
    """
    width, height = source_size
    if camera is None:
        crop, lens = (0, 0, width, height), None
    elif camera.is_plain():
        (x, crop_width), (y, crop_height) = (
            _centred_span(centre, length) for centre, length in zip(camera.principal_point, source_size, strict=True)
        )
        crop, lens = (x, y, crop_width, crop_height), None
    else:
        half_width, half_height = _visible_half_size(camera)
        crop, lens = (0, 0, math.floor(2 * half_width), math.floor(2 * half_height)), camera
    longest = max(crop[2:])
    scale = 1.0 if longest_side is None else min(1.0, longest_side / longest)
    size = (round(crop[2] * scale), round(crop[3] * scale))
    if min(size) < SMALLEST_SIDE:
        point = "the middle" if camera is None else "({:.1f}, {:.1f})".format(*camera.principal_point)
        raise ConfigError(
            f"frames would be {size[0]}x{size[1]} pixels: source images are {width}x{height}, their principal point "
            f"is {point}; expected at least {SMALLEST_SIDE} a side. Check the camera file and the longest side."
        )
    return FrameWarp(source_size, crop, size, lens)


def _centred_span(centre: float, length: int) -> tuple[int, int]:
    """Start and length of the longest run of whole pixels in [0, length] whose middle is nearest to `centre`."""
    middle = round(2 * centre)  # twice the position of the run's middle, to half a pixel
    span = max(min(middle, 2 * length - middle), 0)
    return (middle - span) // 2, span


def _visible_half_size(camera: SourceCamera) -> tuple[float, float]:
    """Half width and half height (pixels about the axis) of what the lens shows everywhere when made straight."""
    width, height = camera.size
    columns, rows = np.linspace(0.5, width - 0.5, 65), np.linspace(0.5, height - 0.5, 65)
    # The border's pixels as seen in the straight image. A lens may see past 90 degrees, where that means nothing.
    left, right, top, bottom = (
        np.nan_to_num(camera.colmap().cam_from_img(np.column_stack(np.broadcast_arrays(x, y))), nan=np.inf)
        for x, y in ((0.5, rows), (width - 0.5, rows), (columns, 0.5), (columns, height - 0.5))
    )
    widest = math.tan(math.radians(WIDEST_HALF_ANGLE))
    half_width = min(np.abs(left[:, 0]).min(), np.abs(right[:, 0]).min(), widest)
    half_height = min(np.abs(top[:, 1]).min(), np.abs(bottom[:, 1]).min(), widest)
    return camera.focal * half_width, camera.focal * half_height
