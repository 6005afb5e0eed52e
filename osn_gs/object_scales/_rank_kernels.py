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
    """B blocks of at most a few thousand pixels that show one object, most of them under several constraints.

    Block b owns the rank tables `table_begin[b]:table_begin[b + 1]`, one for each intruder, with the thresholds of
    those of its pixels that the intruder can break. A value of rank r in table m violates the r pixels that come first
    in `pixels_by_threshold[tables.begin[m]:]`. So that they need not be walked through, bit row i of the table marks
    the first `RANKS_PER_ROW * i` of them.
    """

    table_begin: np.ndarray  # [B + 1] int64
    num_pixels: np.ndarray  # [B] int64
    pixels_by_threshold: np.ndarray  # [sum n_m] int32, places in the block, in the order of tables.thresholds
    row_begin: np.ndarray  # [M] int64, where a table's rows begin in bit_rows
    bit_rows: np.ndarray  # uint64, rows of ceil(n / 64) words


RANKS_PER_ROW = 8


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
def _mark(bits, pixel):
    bits[pixel >> 6] |= np.uint64(1) << np.uint64(pixel & 63)


@njit(nogil=True, cache=True)
def bit_rows_of(pixels_by_threshold, num_pixels):
    """One table's bit rows [rows, words]: row i marks the first `RANKS_PER_ROW * i` of the block's pixels."""
    num_rows = pixels_by_threshold.shape[0] // RANKS_PER_ROW + 1
    rows = np.zeros((num_rows, (num_pixels + 63) // 64), dtype=np.uint64)
    for row in range(1, rows.shape[0]):
        rows[row] = rows[row - 1]
        for rank in range(RANKS_PER_ROW * (row - 1), RANKS_PER_ROW * row):
            _mark(rows[row], pixels_by_threshold[rank])
    return rows


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
    ranks = np.empty(log_scales.shape[0], dtype=np.int64)
    broken_tables = np.empty(log_scales.shape[0], dtype=np.int64)
    for block in range(blocks.num_pixels.shape[0]):
        num_pixels = blocks.num_pixels[block]
        union = np.empty((num_pixels + 63) >> 6, dtype=np.uint64)
        for vector in range(first, last):
            num_broken = 0
            largest_rank = 0
            for table in range(blocks.table_begin[block], blocks.table_begin[block + 1]):
                value = log_scales[tables.labelled[table], vector] - log_scales[tables.intruder[table], vector]
                rank = _rank(value, table, tables)
                if rank > 0:
                    ranks[num_broken], broken_tables[num_broken] = rank, table
                    num_broken += 1
                    largest_rank = max(largest_rank, rank)
                    if rank == num_pixels:
                        break
            if num_broken <= 1 or largest_rank == num_pixels:
                violated[vector] += largest_rank
            else:
                violated[vector] += _count_union(num_broken, broken_tables, ranks, tables, blocks, union)


@njit(nogil=True, cache=True)
def _count_union(num_broken, broken_tables, ranks, tables, blocks, union):
    """Number of a block's pixels that violate any of the broken tables; `union` is scratch."""
    union[:] = 0
    for broken in range(num_broken):
        table, rank = broken_tables[broken], ranks[broken]
        row = rank // RANKS_PER_ROW
        row_begin = blocks.row_begin[table] + row * union.shape[0]
        for word in range(union.shape[0]):
            union[word] |= blocks.bit_rows[row_begin + word]
        for place in range(tables.begin[table] + row * RANKS_PER_ROW, tables.begin[table] + rank):
            _mark(union, blocks.pixels_by_threshold[place])
    count = np.int64(0)
    for word in union:
        count += np.int64(_popcount(word))
    return count
