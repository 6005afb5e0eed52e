"""Counts of violated pixels for millions of vectors: how the pixels are laid out for the kernels in `_rank_kernels`.

Pixels with one constraint are counted by a sorted table for each ordered pair, pixels with several by bit sets.
"""

from __future__ import annotations

import numpy as np

from osn_gs.object_scales._plain_counting import PixelGroup
from osn_gs.object_scales._rank_kernels import (
    PixelBlocks,
    RankTables,
    add_joint_violations,
    add_single_violations,
    bit_rows_of,
    fill_buckets,
)

BLOCK_PIXELS = 8_192  # measured: fewer blocks mean fewer searches; the tables of larger ones no longer fit the cache


class RankTableCounter:
    """Counts as `PlainCounter` does."""

    def __init__(self, groups: list[PixelGroup]) -> None:
        """`groups` without the hopeless ones, which need no counting."""
        self.single_tables = _single_tables(groups)
        self.joint_tables, self.joint_blocks = _joint_tables(groups)

    def add_violations(self, log_scales: np.ndarray, first: int, last: int, violated: np.ndarray) -> None:
        """Add the violated pixels of the vectors first..last-1; `log_scales` [K, N], `violated` [N] int64."""
        add_single_violations(log_scales, first, last, self.single_tables, violated)
        add_joint_violations(log_scales, first, last, self.joint_tables, self.joint_blocks, violated)


def _single_tables(groups: list[PixelGroup]) -> RankTables:
    """One table for each ordered pair, of the pixels that only this pair decides."""
    return _rank_tables(
        [(group.labelled, group.intruders[0], group.thresholds[:, 0]) for group in groups if len(group.intruders) == 1]
    )


def _joint_tables(groups: list[PixelGroup]) -> tuple[RankTables, PixelBlocks]:
    """Tables and bit rows of the pixels that several pairs decide together."""
    lists: list[tuple[int, int, np.ndarray]] = []
    table_begin, num_pixels, row_begin = [0], [], [0]
    orders, bit_rows = [np.zeros(0, dtype=np.int32)], [np.zeros(0, dtype=np.uint64)]
    for labelled, intruders, pixel_thresholds in _merge_small_groups(groups):
        for thresholds in _compact_blocks(pixel_thresholds):
            for column, intruder in enumerate(intruders):
                order = np.argsort(thresholds[:, column])
                order = order[: np.isfinite(thresholds[:, column]).sum()].astype(np.int32)
                lists.append((labelled, intruder, thresholds[order, column]))
                orders.append(order)
                bit_rows.append(bit_rows_of(order, len(thresholds)).reshape(-1))
                row_begin.append(row_begin[-1] + len(bit_rows[-1]))
            table_begin.append(len(lists))
            num_pixels.append(len(thresholds))
    blocks = PixelBlocks(
        table_begin=np.array(table_begin, dtype=np.int64),
        num_pixels=np.array(num_pixels, dtype=np.int64),
        pixels_by_threshold=np.concatenate(orders),
        row_begin=np.array(row_begin, dtype=np.int64),
        bit_rows=np.concatenate(bit_rows),
    )
    return _rank_tables(lists), blocks


def _merge_small_groups(groups: list[PixelGroup]) -> list[tuple[int, tuple[int, ...], np.ndarray]]:
    """(labelled, intruders, thresholds [n, d]) of the joint pixels, small groups of one object put together.

    Every group costs a search for each of its intruders, so a few groups under more intruders are cheaper than many
    small ones. A pixel's threshold is inf for an intruder that was not in its own group.
    """
    merged = []
    for labelled in sorted({group.labelled for group in groups}):
        joint = [group for group in groups if group.labelled == labelled and len(group.intruders) > 1]
        joint.sort(key=lambda group: len(group.frames))
        while joint:
            together = [joint.pop(0)]
            while joint and sum(len(group.frames) for group in [*together, joint[0]]) <= BLOCK_PIXELS:
                together.append(joint.pop(0))
            intruders = tuple(sorted({intruder for group in together for intruder in group.intruders}))
            merged.append((labelled, intruders, np.concatenate([_widen(group, intruders) for group in together])))
    return merged


def _widen(group: PixelGroup, intruders: tuple[int, ...]) -> np.ndarray:
    """A group's thresholds with a column for each of `intruders`, inf for those that it does not have."""
    thresholds = np.full((len(group.frames), len(intruders)), np.inf)
    thresholds[:, [intruders.index(intruder) for intruder in group.intruders]] = group.thresholds
    return thresholds


def _compact_blocks(thresholds: np.ndarray) -> list[np.ndarray]:
    """Split pixels [n, d] into blocks of near thresholds, halving the widest constraint as a k-d tree does.

    A block whose thresholds are all above or all below a vector's values is counted without looking at its bits.
    """
    if len(thresholds) <= BLOCK_PIXELS:
        return [thresholds]
    widest = np.ptp(thresholds, axis=0).argmax()
    order = np.argpartition(thresholds[:, widest], len(thresholds) // 2)
    halves = np.array_split(order, 2)
    return [block for half in halves for block in _compact_blocks(thresholds[half])]


def _rank_tables(lists: list[tuple[int, int, np.ndarray]]) -> RankTables:
    """Sort each (labelled, intruder, thresholds) list and lay a bucket grid over it, a bucket for each threshold."""
    sorted_lists = [np.sort(thresholds) for _, _, thresholds in lists]
    lengths = [len(thresholds) for thresholds in sorted_lists]
    begin = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    bucket_begin = begin + np.arange(len(begin))
    buckets_per_unit = np.zeros(len(lists))
    bucket_starts = np.zeros(bucket_begin[-1], dtype=np.int32)
    for table, thresholds in enumerate(sorted_lists):
        extent = thresholds[-1] - thresholds[0]
        buckets_per_unit[table] = len(thresholds) / extent if extent > 0 else 0.0
        starts = bucket_starts[bucket_begin[table] : bucket_begin[table + 1]]
        fill_buckets(thresholds, buckets_per_unit[table], len(thresholds), starts)
    return RankTables(
        labelled=np.array([labelled for labelled, _, _ in lists], dtype=np.int64),
        intruder=np.array([intruder for _, intruder, _ in lists], dtype=np.int64),
        thresholds=np.concatenate([np.zeros(0), *sorted_lists]),
        begin=begin,
        bucket_starts=bucket_starts,
        bucket_begin=bucket_begin,
        buckets_per_unit=buckets_per_unit,
    )
