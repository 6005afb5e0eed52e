"""What the oracle counts, and the plain way to count it: with NumPy alone, for where Numba has no wheel.

It is also what the tests hold the Numba kernels (`_rank_tables`) against: the same counts, three (K = 4) to ten (K = 9)
times slower.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

BLOCK_COMPARISONS = 1 << 20  # truth values held at a time


@dataclass(frozen=True)
class PixelGroup:
    """Pixels that show object `labelled` and are held by the same set of other layers.

    `thresholds[p, d]` bounds x_labelled - x_intruders[d]. A hopeless pixel has a constraint that every vector
    of the ranges breaks.
    """

    labelled: int
    intruders: tuple[int, ...]
    hopeless: bool
    thresholds: np.ndarray  # [n, d] float64
    frames: np.ndarray  # [n] int32


class PlainCounter:
    """Counts violated pixels: one-constraint ones by a search in a sorted list, the others by comparing each."""

    def __init__(self, groups: list[PixelGroup]) -> None:
        """`groups` without the hopeless ones, which need no counting."""
        thresholds_of_pair: dict[tuple[int, int], list[np.ndarray]] = defaultdict(list)
        for group in groups:
            if len(group.intruders) == 1:
                thresholds_of_pair[group.labelled, group.intruders[0]].append(group.thresholds[:, 0])
        self._sorted = {pair: np.sort(np.concatenate(parts)) for pair, parts in thresholds_of_pair.items()}
        self._joint = [group for group in groups if len(group.intruders) > 1]

    def add_violations(self, log_scales: np.ndarray, first: int, last: int, violated: np.ndarray) -> None:
        """Add the violated pixels of the vectors first..last-1; `log_scales` [K, N], `violated` [N] int64."""
        log_scales, violated = log_scales[:, first:last], violated[first:last]
        for (labelled, intruder), thresholds in self._sorted.items():
            violated += np.searchsorted(thresholds, log_scales[labelled] - log_scales[intruder], side="left")
        pixels_per_block = max(1, BLOCK_COMPARISONS // max(1, last - first))
        for group in self._joint:
            values = log_scales[group.labelled] - log_scales[list(group.intruders)]
            for begin in range(0, len(group.thresholds), pixels_per_block):
                violated += _broken_pixels(group.thresholds[begin : begin + pixels_per_block], values)


def _broken_pixels(thresholds: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Number of pixels [n, d] that break any of their d constraints, for each of the values [d, v]."""
    broken = np.zeros((len(thresholds), values.shape[1]), dtype=bool)
    for column, own_values in enumerate(values):
        broken |= thresholds[:, column, None] < own_values
    return np.count_nonzero(broken, axis=0)
