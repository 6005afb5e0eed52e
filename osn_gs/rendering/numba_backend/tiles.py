"""Which Gaussians touch which image tile, near to far."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

HALF_PIXEL = np.float32(0.5)  # pixel centres lie at +0.5


class TileLists(NamedTuple):
    """The (Gaussian, tile) pairs of one view.

    `gaussians[offsets[t]:offsets[t + 1]]` are the Gaussians of tile t, near to far, ties by index.
    `slots` gives each of these pairs its own place, so that the places of Gaussian i are
    `slot_offsets[i]:slot_offsets[i + 1]`: gradients are collected there without atomics. `count` is that of tiles.
    """

    offsets: np.ndarray
    gaussians: np.ndarray
    slots: np.ndarray
    slot_offsets: np.ndarray
    count: int


def make_tile_lists(means2d, depths, radii, width: int, height: int, tile_width: int, tile_height: int) -> TileLists:
    """Tile lists of one camera's visible Gaussians; the first three arguments are NumPy arrays of that camera."""
    tiles_x, tiles_y = -(-width // tile_width), -(-height // tile_height)
    boxes, counts = _tile_boxes(means2d, radii, width, height, tile_width, tile_height)
    near_to_far = _order_by_depth(depths, np.flatnonzero(counts))
    offsets, gaussians, slots, slot_offsets = _fill_tiles(near_to_far, boxes, counts, tiles_x, tiles_y)
    return TileLists(offsets, gaussians, slots, slot_offsets, tiles_x * tiles_y)


def _order_by_depth(depths: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """`indices` (ascending) sorted by depth, ties by index. The bits of positive floats sort as integers."""
    keys = (depths[indices].view(np.uint32).astype(np.uint64) << np.uint64(32)) | indices.astype(np.uint64)
    keys.sort()
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)


@njit(cache=True, nogil=True, error_model="numpy")
def _tile_boxes(means2d, radii, width, height, tile_width, tile_height):
    """First and last tile (inclusive) in x and y that each Gaussian's box touches, and how many tiles."""
    count = means2d.shape[0]
    boxes = np.zeros((count, 4), np.int32)
    counts = np.zeros(count, np.int32)
    for i in range(count):
        if radii[i, 0] == 0:
            continue
        left = max(math.ceil(means2d[i, 0] - radii[i, 0] - HALF_PIXEL), 0)
        right = min(math.floor(means2d[i, 0] + radii[i, 0] - HALF_PIXEL), width - 1)
        top = max(math.ceil(means2d[i, 1] - radii[i, 1] - HALF_PIXEL), 0)
        bottom = min(math.floor(means2d[i, 1] + radii[i, 1] - HALF_PIXEL), height - 1)
        if right < left or bottom < top:
            continue
        boxes[i, 0] = left // tile_width
        boxes[i, 1] = right // tile_width
        boxes[i, 2] = top // tile_height
        boxes[i, 3] = bottom // tile_height
        counts[i] = (boxes[i, 1] - boxes[i, 0] + 1) * (boxes[i, 3] - boxes[i, 2] + 1)
    return boxes, counts


@njit(cache=True, nogil=True)
def _fill_tiles(near_to_far, boxes, counts, tiles_x, tiles_y):
    """Counting sort by tile of Gaussians that are already in depth order."""
    slot_offsets = np.zeros(counts.shape[0] + 1, np.int64)
    for i in range(counts.shape[0]):
        slot_offsets[i + 1] = slot_offsets[i] + counts[i]
    offsets = np.zeros(tiles_x * tiles_y + 1, np.int64)
    for i in near_to_far:
        for tile_y in range(boxes[i, 2], boxes[i, 3] + 1):
            for tile_x in range(boxes[i, 0], boxes[i, 1] + 1):
                offsets[tile_y * tiles_x + tile_x + 1] += 1
    for tile in range(tiles_x * tiles_y):
        offsets[tile + 1] += offsets[tile]
    next_place = offsets[:-1].copy()
    gaussians = np.empty(slot_offsets[-1], np.int32)
    slots = np.empty(slot_offsets[-1], np.int32)
    for i in near_to_far:
        slot = slot_offsets[i]
        for tile_y in range(boxes[i, 2], boxes[i, 3] + 1):
            for tile_x in range(boxes[i, 0], boxes[i, 1] + 1):
                tile = tile_y * tiles_x + tile_x
                gaussians[next_place[tile]] = i
                slots[next_place[tile]] = slot
                next_place[tile] += 1
                slot += 1
    return offsets, gaussians, slots, slot_offsets
