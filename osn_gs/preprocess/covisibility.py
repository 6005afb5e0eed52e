"""Where a held-out image shows what the training frames show too, and so can be judged (METHOD 4)."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from osn_gs.files import write_bytes_atomic
from osn_gs.preprocess.flow import dis_flow, one_opencv_thread, sample_bilinear

FEWEST_FRAMES, LEAST_SHARE = 2, 0.1  # of the training frames must show a pixel (METHOD 4)
WORKING_SIDE = 240  # pixels of the longer side at which flow is computed; 480 agrees no better with true geometry
RELATIVE_ERROR, ABSOLUTE_ERROR = 0.01, 0.5  # squared pixels: UnFlow (Meister et al. 2018), eq. 1


def covisible_pixels(
    image: UInt8[np.ndarray, "h w 3"],
    training_images: UInt8[np.ndarray, "t h2 w2 3"],
    training_from_image: Float[np.ndarray, "t 3 3"],
) -> Bool[np.ndarray, "h w"]:
    """Pixels that consistent optical flow finds in at least max(2, 10 %) of the training images.

    `training_from_image` are homographies between continuous pixel positions that bring the image roughly upon each
    training image: flow finds what is left, which it could not between cameras that stand far apart.
    """
    small, scale = _small_grey(image)
    counts = np.zeros(small.shape, int)
    with one_opencv_thread():
        for training_image, homography in zip(training_images, training_from_image, strict=True):
            small_training, training_scale = _small_grey(training_image)
            small_homography = np.diag([*training_scale, 1]) @ homography @ np.linalg.inv(np.diag([*scale, 1]))
            counts += found_again(small, small_training, small_homography)
    enough = counts >= max(FEWEST_FRAMES, math.ceil(LEAST_SHARE * len(training_images)))
    return cv2.resize(enough.astype(np.uint8), image.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT) > 0


def write_covisible(path: Path, mask: Bool[np.ndarray, "h w"]) -> None:
    """Write a mask as the layout has it: a grey PNG, white where a pixel counts."""
    _, encoded = cv2.imencode(".png", 255 * mask.astype(np.uint8))
    write_bytes_atomic(path, encoded.tobytes())


def found_again(
    first: UInt8[np.ndarray, "h w"], second: UInt8[np.ndarray, "h2 w2"], second_from_first: Float[np.ndarray, "3 3"]
) -> Bool[np.ndarray, "h w"]:
    """Pixels of `first` that homography and flow take into `second` and the flow back returns to where they were."""
    height, width = first.shape
    warped = _warp(second, second_from_first, (width, height))
    forward, backward = dis_flow(first, warped), dis_flow(warped, first)
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    target = np.stack([columns, rows], axis=-1) + forward
    returned = sample_bilinear(backward, target)
    allowed = RELATIVE_ERROR * (_squared(forward) + _squared(returned)) + ABSOLUTE_ERROR
    consistent = _squared(forward + returned) < allowed
    return consistent & _inside(target, first.shape) & _inside(_apply(second_from_first, target), second.shape)


def _warp(
    second: UInt8[np.ndarray, "h2 w2"], second_from_first: Float[np.ndarray, "3 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "h w"]:
    """`second` as it looks from `first`; OpenCV counts pixels from their centres."""
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    between_centres = np.linalg.inv(half) @ second_from_first @ half
    return cv2.warpPerspective(second, between_centres, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def _apply(homography: Float[np.ndarray, "3 3"], pixels: Float[np.ndarray, "h w 2"]) -> Float[np.ndarray, "h w 2"]:
    """Where a homography takes pixels; NaN for what it puts behind the camera."""
    moved = pixels @ homography[:, :2].T + homography[:, 2]
    return moved[..., :2] / np.where(moved[..., 2:] > 0, moved[..., 2:], np.nan)


def _inside(pixels: Float[np.ndarray, "h w 2"], shape: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    return ((pixels > 0) & (pixels < shape[::-1])).all(-1)


def _squared(flow: Float[np.ndarray, "h w 2"]) -> Float[np.ndarray, "h w"]:
    return np.square(flow).sum(-1)


def _small_grey(image: UInt8[np.ndarray, "h w 3"]) -> tuple[UInt8[np.ndarray, "h2 w2"], Float[np.ndarray, "2"]]:
    """The image in grey, at most `WORKING_SIDE` large, and its scales (x, y)."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    size = np.array(grey.shape[::-1])
    small = np.maximum(np.round(size * min(1.0, WORKING_SIDE / size.max())), 1).astype(int)
    return cv2.resize(grey, tuple(small.tolist()), interpolation=cv2.INTER_AREA), small / size
