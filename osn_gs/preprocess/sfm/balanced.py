"""Which tracks to keep where there are too many: what matters is that every frame is covered all over."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

CELLS = (12, 8)  # across and down the object's box in each frame
NEEDY_SHARE = 0.34  # a track is kept if this share of the cells it visits still wants tracks


def balanced_subset(
    pixels: Float[np.ndarray, "n t 2"], visible: Bool[np.ndarray, "n t"], most: int
) -> Int[np.ndarray, "m"]:
    """About `most` tracks, sorted: the longest first, skipping those that pass only where there are enough.

    A fixed number of tracks per cell of the object's box in each frame is filled. The longest tracks alone would
    leave out whole frames.
    """
    if len(visible) <= most:
        return np.arange(len(visible))
    cells = _cells(pixels, visible)
    visits = [np.flatnonzero(seen) * CELLS[0] * CELLS[1] + row[seen] for seen, row in zip(visible, cells, strict=True)]
    longest_first = np.argsort(-visible.sum(1), kind="stable")
    quota = 1
    kept = longest_first[:0]
    while len(kept) < most:
        larger = _fill(visits, visible.shape[1], longest_first, quota)
        if len(larger) > 1.2 * most and len(kept):
            break
        kept, quota = larger, quota + max(1, quota // 3)
    return np.sort(kept)


def _cells(pixels: Float[np.ndarray, "n t 2"], visible: Bool[np.ndarray, "n t"]) -> Int[np.ndarray, "n t"]:
    """The cell of the object's box that each observation lies in; the box is that of each frame's own tracks."""
    columns, _ = CELLS
    cells = np.zeros(visible.shape, int)
    for frame, seen in enumerate(visible.T):
        if not seen.any():
            continue
        places = pixels[seen, frame]
        low, high = np.percentile(places, [1, 99], axis=0)
        place = np.clip((places - low) / np.maximum(high - low, 1e-6), 0, 1 - 1e-9) * CELLS
        column, row = place.astype(int).T
        cells[seen, frame] = row * columns + column
    return cells


def _fill(
    visits: list[Int[np.ndarray, "_"]], num_frames: int, order: Int[np.ndarray, "n"], quota: int
) -> Int[np.ndarray, "m"]:
    """Tracks in `order`, but for those whose cells mostly hold `quota` already; `visits` number a track's cells."""
    counts = np.zeros(num_frames * CELLS[0] * CELLS[1], int)
    kept = []
    for track in order:
        visited = visits[track]
        if np.count_nonzero(counts[visited] < quota) > NEEDY_SHARE * len(visited):
            kept.append(track)
            counts[visited] += 1
    return np.array(kept, dtype=int)
