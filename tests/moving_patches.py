"""A clip with known masks: two textured patches that move over a textured wall, which moves as well."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8

HEIGHT, WIDTH = 120, 160


@dataclass(frozen=True)
class PatchClip:
    """Frames and true ids: 1 a disc, 2 a square in front of it."""

    images: UInt8[np.ndarray, "t h w 3"]
    object_ids: UInt8[np.ndarray, "t h w"]


def moving_patches(disc_path: list[tuple[int, int]], square_path: list[tuple[int, int]], seed: int = 0) -> PatchClip:
    """One frame for each position (x, y) of the patches' middles; a patch far outside is not seen."""
    generator = np.random.default_rng(seed)
    wall = _texture(generator, (HEIGHT + 80, WIDTH + 80), (90, 90, 200))
    disc = _texture(generator, (41, 41), (200, 90, 60))
    square = _texture(generator, (30, 30), (70, 200, 80))
    rows, columns = np.ogrid[-20:21, -20:21]
    shapes = ((disc, rows**2 + columns**2 <= 400), (square, np.ones((30, 30), dtype=bool)))
    images, object_ids = [], []
    for number, places in enumerate(zip(disc_path, square_path, strict=True)):
        left = 2 * number
        canvas, ids = wall[:, left:].copy(), np.zeros((HEIGHT + 80, WIDTH + 80 - left), np.uint8)
        for object_id, ((patch, shape), (x, y)) in enumerate(zip(shapes, places, strict=True), 1):
            top, first = y + 40 - patch.shape[0] // 2, x + 40 - patch.shape[1] // 2
            if not (0 <= top <= HEIGHT + 80 - patch.shape[0] and 0 <= first <= canvas.shape[1] - patch.shape[1]):
                continue
            window = np.s_[top : top + patch.shape[0], first : first + patch.shape[1]]
            canvas[window][shape], ids[window][shape] = patch[shape], object_id
        images.append(canvas[40 : 40 + HEIGHT, 40 : 40 + WIDTH])
        object_ids.append(ids[40 : 40 + HEIGHT, 40 : 40 + WIDTH])
    return PatchClip(np.ascontiguousarray(images), np.ascontiguousarray(object_ids))


def iou(found: np.ndarray, true: np.ndarray) -> float:
    """Intersection over union; 1 where both are empty."""
    union = np.count_nonzero(found | true)
    return np.count_nonzero(found & true) / union if union else 1.0


def _texture(generator: np.random.Generator, size: tuple[int, int], colour: tuple[int, int, int]) -> np.ndarray:
    """Blotches of a few pixels about a colour."""
    blotches = cv2.GaussianBlur(generator.normal(0, 1, (*size, 3)), (0, 0), 1.5)
    return np.clip(np.array(colour) + 45 * blotches / blotches.std(), 0, 255).astype(np.uint8)
