"""What the images alone say against a clip: frames blurred beyond their neighbours, frames shown twice."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

NEIGHBOURS = 5  # frames before and after that a frame's sharpness is compared with
# A frame this much less sharp than the median of its neighbours is blurred. Measured on three real clips and two
# rendered ones: unblurred frames 0.86 and up, a blur of 5 pixels along one axis 0.51 to 0.70, of 9 pixels 0.34 to 0.56.
BLURRED = 0.65
NOISE_SIGMA = 1.0  # pixels; noise and compression would count as sharpness
CELL = 8  # pixels a side
# Grey levels by which the mean of some cell differs at least between two frames of anything that moves. The same
# clips: 81 and up; a frame compressed twice stays below 1.
SAME = 2.0


def sharpness_of(image: UInt8[np.ndarray, "h w 3"]) -> float:
    """Variance of the Laplacian of the smoothed grey image (Pech-Pacheco et al. 2000): for frames of one clip."""
    smooth = cv2.GaussianBlur(_grey(image).astype(np.float32), (0, 0), NOISE_SIGMA)
    return float(cv2.Laplacian(smooth, cv2.CV_32F).var(dtype=np.float64))


def find_blurred(sharpness: Sequence[float]) -> Bool[np.ndarray, "t"]:
    """Frames much less sharp than the frames around them. A clip blurred throughout has none."""
    values = np.asarray(sharpness, dtype=np.float64)
    blurred = np.zeros(len(values), dtype=bool)
    for number, value in enumerate(values):
        around = np.delete(values[max(0, number - NEIGHBOURS) : number + NEIGHBOURS + 1], min(number, NEIGHBOURS))
        blurred[number] = len(around) > 0 and value < BLURRED * np.median(around)
    return blurred


def cell_means(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "rows columns"]:
    """Mean grey values of whole 8x8 cells: what two frames are compared by."""
    grey = _grey(image)
    rows, columns = grey.shape[0] // CELL, grey.shape[1] // CELL
    cells = grey[: rows * CELL, : columns * CELL].reshape(rows, CELL, columns, CELL)
    return cells.mean(axis=(1, 3), dtype=np.float32)


def same_picture(first: Float[np.ndarray, "rows columns"], second: Float[np.ndarray, "rows columns"]) -> bool:
    """Whether two frames (their `cell_means`) show the same picture: nowhere has anything moved."""
    return bool(np.abs(first - second).max() < SAME)


def _grey(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
