"""Numba kernels behind the oracle: how many sorted thresholds a value exceeds, for millions of values.

All arithmetic is float64 without fast-math, so that a comparison here is the comparison a direct
evaluation of the pixels would make. The kernels release the GIL and own no state.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit, types
from numba.extending import intrinsic


class RankTables(NamedTuple):
    """M sorted lists of thresholds on x_labelled - x_intruder, laid end to end, each with a bucket grid.

    Bucket b of table m starts at threshold `bucket_starts[bucket_begin[m] + b]`. A value and a threshold
    are put into buckets by the same monotone formula, so only thresholds of the value's own bucket need
    a comparison.
    """

    labelled: np.ndarray  # [M] int64, the object the mask shows
    intruder: np.ndarray  # [M] int64, the object that must stay behind it
    thresholds: np.ndarray  # [sum n_m] float64
    begin: np.ndarray  # [M + 1] int64
    bucket_starts: np.ndarray  # [sum (buckets_m + 1)] int32
    bucket_begin: np.ndarray  # [M + 1] int64
    buckets_per_unit: np.ndarray  # [M] float64


class PixelBlocks(NamedTuple):
    """B blocks of at most a few hundred pixels, each pixel under the same two or more constraints.

    Block b owns the rank tables `table_begin[b]:table_begin[b + 1]`, one for each constraint. For table m,
    row r of its bit rows marks the pixels whose threshold is among the r smallest, that is the pixels
    violated by a value of rank r.
    """

    table_begin: np.ndarray  # [B + 1] int64
    num_pixels: np.ndarray  # [B] int64
    row_begin: np.ndarray  # [M] int64, where a table's rows begin in bit_rows
    bit_rows: np.ndarray  # uint64


@intrinsic
def _popcount(typingctx, word):
    """Number of bits set in a uint64."""

    def codegen(context, builder, signature, args):
        return builder.ctpop(args[0])

    return types.uint64(types.uint64), codegen


@njit(nogil=True, cache=True)
def _bucket(value, origin, buckets_per_unit, num_buckets):
    return min(np.int64((value - origin) * buckets_per_unit), num_buckets - 1)


@njit(nogil=True, cache=True)
def fill_buckets(thresholds, buckets_per_unit, num_buckets, bucket_starts):
    """Write where each bucket starts in the sorted `thresholds`; the last entry is their number."""
    bucket_starts[:] = 0
    for threshold in thresholds:
        bucket_starts[_bucket(threshold, thresholds[0], buckets_per_unit, num_buckets) + 1] += 1
    for bucket in range(num_buckets):
        bucket_starts[bucket + 1] += bucket_starts[bucket]


@njit(nogil=True, cache=True)
def fill_bit_rows(pixels_by_threshold, num_words, bit_rows):
    """Write one block's rows for one constraint: row r holds the first r pixels of `pixels_by_threshold`."""
    num_pixels = pixels_by_threshold.shape[0]
    bit_rows[:num_words] = 0
    for rank in range(num_pixels):
        row = bit_rows[(rank + 1) * num_words : (rank + 2) * num_words]
        row[:] = bit_rows[rank * num_words : (rank + 1) * num_words]
        pixel = pixels_by_threshold[rank]
        row[pixel >> 6] |= np.uint64(1) << np.uint64(pixel & 63)


@njit(nogil=True, cache=True)
def _rank(value, table, tables):
    """Number of thresholds of a table that are strictly below `value`."""
    begin, end = tables.begin[table], tables.begin[table + 1]
    origin = tables.thresholds[begin]
    if value <= origin:
        return 0
    if value > tables.thresholds[end - 1]:
        return end - begin
    first_bucket = tables.bucket_begin[table]
    num_buckets = tables.bucket_begin[table + 1] - first_bucket - 1
    bucket = first_bucket + _bucket(value, origin, tables.buckets_per_unit[table], num_buckets)
    low = np.int64(tables.bucket_starts[bucket])
    high = np.int64(tables.bucket_starts[bucket + 1])
    while low < high:
        middle = (low + high) >> 1
        if tables.thresholds[begin + middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


@njit(nogil=True, cache=True)
def add_single_violations(log_scales, first, last, tables, violated):
    """Add the violated pixels of all one-constraint tables for the vectors first..last-1.

    `log_scales` is [K, N] so that one object's scales are contiguous; `violated` [N] int64 is added to.
    """
    for table in range(tables.labelled.shape[0]):
        labelled, intruder = tables.labelled[table], tables.intruder[table]
        for vector in range(first, last):
            value = log_scales[labelled, vector] - log_scales[intruder, vector]
            violated[vector] += _rank(value, table, tables)


@njit(nogil=True, cache=True)
def add_joint_violations(log_scales, first, last, tables, blocks, violated):
    """Add the violated pixels of the many-constraint blocks: each pixel once, however many constraints it breaks."""
    active_rows = np.empty(log_scales.shape[0], dtype=np.int64)
    for block in range(blocks.num_pixels.shape[0]):
        first_table, last_table = blocks.table_begin[block], blocks.table_begin[block + 1]
        num_pixels = blocks.num_pixels[block]
        num_words = (num_pixels + 63) >> 6
        for vector in range(first, last):
            num_active = 0
            largest_rank = 0
            for table in range(first_table, last_table):
                value = log_scales[tables.labelled[table], vector] - log_scales[tables.intruder[table], vector]
                if value <= tables.thresholds[tables.begin[table]]:
                    continue
                rank = _rank(value, table, tables)
                largest_rank = max(largest_rank, rank)
                if rank == num_pixels:
                    break
                active_rows[num_active] = blocks.row_begin[table] + rank * num_words
                num_active += 1
            if largest_rank == num_pixels or num_active <= 1:
                violated[vector] += largest_rank
                continue
            for word in range(num_words):
                union = blocks.bit_rows[active_rows[0] + word]
                for active in range(1, num_active):
                    union |= blocks.bit_rows[active_rows[active] + word]
                violated[vector] += np.int64(_popcount(union))
