"""The exact oracle: pixel accuracy of any object scales, from tabulated depth-order constraints.

A pixel that shows object i, and that object j's own layer also covers, is right only if s_i d_i <= s_j d_j,
that is log s_i - log s_j <= log(d_j / d_i) (METHOD 2.2, our derivation). Pixels with one such constraint
are counted by a sorted table for each ordered pair; pixels with several by bit sets (`_rank_kernels`).
No approximation is made: the count equals that of compositing every frame again.
"""

from __future__ import annotations

import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from osn_gs.errors import DatasetError, OsnGsError
from osn_gs.object_scales._rank_kernels import (
    PixelBlocks,
    RankTables,
    add_joint_violations,
    add_single_violations,
    bit_rows_of,
    fill_buckets,
)
from osn_gs.object_scales.ranges import check_scale_ranges

BLOCK_PIXELS = 8_192  # measured: fewer blocks mean fewer searches; the tables of larger ones no longer fit the cache
VECTORS_PER_TASK = 16_384  # a task's tables are read once for this many vectors
RANGE_MARGIN = 1e-5  # in log-scale: float32 scales at the very end of a range still count as inside


@dataclass(frozen=True)
class PairViolation:
    """How often object `intruder` stands in front of object `labelled` where the mask shows `labelled`.

    A pixel counts for every intruder that is in front of it, so pairs may share pixels.
    """

    labelled: int
    intruder: int
    pixels: int
    worst_frame: int
    worst_frame_pixels: int


@dataclass(frozen=True)
class _PixelGroup:
    """Pixels that show object `labelled` and are held by the same set of other layers.

    `thresholds[p, d]` bounds x_labelled - x_intruders[d]. A hopeless pixel has a constraint that every vector
    of the ranges breaks.
    """

    labelled: int
    intruders: tuple[int, ...]
    hopeless: bool
    thresholds: np.ndarray  # [n, d] float64
    frames: np.ndarray  # [n] int32


class ScaleOracleBuilder:
    """Collects the depth-order constraints of one frame after the other, so that only one frame's layers are held."""

    def __init__(self, scale_ranges: Float[Tensor, "k 2"]) -> None:
        """`scale_ranges` as in `SceneData`: row k is (lo, hi), row 0 is (1, 1)."""
        self.scale_ranges = check_scale_ranges(scale_ranges)
        log_lo, log_hi = np.log(self.scale_ranges.numpy()).T
        self._largest = log_hi[:, None] - log_lo[None, :] + RANGE_MARGIN
        self._smallest = log_lo[:, None] - log_hi[None, :] - RANGE_MARGIN
        self._parts: dict[tuple[int, int, bool], list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
        self._num_frames = 0
        self._shown = np.zeros(len(self.scale_ranges), dtype=np.int64)
        self._uncovered = np.zeros(len(self.scale_ranges), dtype=np.int64)

    def add_frame(self, object_ids: UInt8[Tensor, "h w"], layer_depths: Float[Tensor, "k h w"]) -> None:
        """Add one frame: what the mask shows, and every object's own z-depth, inf where it does not cover.

        Raises `DatasetError` for shapes or ids that do not fit and for depths that are NaN or not positive.
        """
        num_objects = len(self.scale_ranges)
        frame = self._num_frames
        if layer_depths.shape != (num_objects, *object_ids.shape):
            raise DatasetError(
                f"frame {frame}: layer depths are {tuple(layer_depths.shape)}, expected "
                f"{(num_objects, *object_ids.shape)}: one layer for each object, in the mask's size."
            )
        labels = object_ids.reshape(-1).cpu().numpy().astype(np.int64)
        depths = layer_depths.reshape(num_objects, -1).detach().cpu().numpy().astype(np.float64)
        if labels.size and labels.max() >= num_objects:
            raise DatasetError(f"frame {frame}: the mask holds id {labels.max()}, expected ids below {num_objects}.")
        if not (depths > 0).all():
            raise DatasetError(f"frame {frame}: layer depths must be positive, or inf where the object is not.")
        for label in range(num_objects):
            shown = np.flatnonzero(labels == label)
            self._shown[label] += len(shown)
            self._add_pixels(label, np.log(depths[:, shown]), frame)
        self._num_frames += 1

    def _add_pixels(self, label: int, log_depths: np.ndarray, frame: int) -> None:
        """Sort one frame's pixels of one object, [K, n], by the layers that hold them."""
        covered = np.isfinite(log_depths[label])
        self._uncovered[label] += np.count_nonzero(~covered)
        log_depths = log_depths[:, covered]
        thresholds = log_depths - log_depths[label]
        thresholds[label] = np.inf
        binding = thresholds < self._largest[label][:, None]
        hopeless = (thresholds < self._smallest[label][:, None]).any(axis=0)
        codes = (binding << np.arange(len(binding))[:, None]).sum(axis=0)
        keys = 2 * codes + hopeless
        for key in np.unique(keys[codes > 0]):
            chosen = keys == key
            intruders = _objects_of_code(key // 2)
            part = thresholds[np.ix_(intruders, chosen)].T
            frames = np.full(len(part), frame, dtype=np.int32)
            self._parts[label, int(key // 2), bool(key % 2)].append((part, frames))

    def build(self) -> ScaleOracle:
        """The oracle over all frames added so far."""
        if self._shown.sum() == 0:
            raise DatasetError("the scale oracle has no pixels: add at least one frame.")
        groups = [
            _PixelGroup(
                labelled=label,
                intruders=_objects_of_code(code),
                hopeless=hopeless,
                thresholds=np.concatenate([thresholds for thresholds, _ in parts]),
                frames=np.concatenate([frames for _, frames in parts]),
            )
            for (label, code, hopeless), parts in sorted(self._parts.items())
        ]
        return ScaleOracle(self.scale_ranges, groups, self._num_frames, self._shown, self._uncovered)


class ScaleOracle:
    """Answers which share of all mask pixels a scale vector explains. Built by `ScaleOracleBuilder` or `from_frames`.

    Vectors are [N, K] with column 0 (the background) 1; they are read up to a common factor, which changes no
    picture, and must lie in `scale_ranges`. `shown_pixels[k]` counts the pixels whose mask shows object k, and
    `uncovered_pixels[k]` those of them that object k's own layer does not cover, which no vector explains.
    """

    def __init__(
        self,
        scale_ranges: Float[Tensor, "k 2"],
        groups: list[_PixelGroup],
        num_frames: int,
        shown_pixels: np.ndarray,
        uncovered_pixels: np.ndarray,
    ) -> None:
        self.scale_ranges = scale_ranges
        self.num_frames = num_frames
        self.shown_pixels = tuple(int(count) for count in shown_pixels)
        self.num_pixels = sum(self.shown_pixels)
        self.uncovered_pixels = tuple(int(count) for count in uncovered_pixels)
        self._log_lo = np.log(scale_ranges.numpy()[:, :1]) - RANGE_MARGIN
        self._log_hi = np.log(scale_ranges.numpy()[:, 1:]) + RANGE_MARGIN
        self._groups = groups
        self._always_violated = sum(self.uncovered_pixels) + sum(len(g.frames) for g in groups if g.hopeless)
        self._single_tables = _single_tables(groups)
        self._joint_tables, self._joint_blocks = _joint_tables([g for g in groups if not g.hopeless])

    @classmethod
    def from_frames(
        cls,
        object_ids: UInt8[Tensor, "t h w"],
        layer_depths: Float[Tensor, "t k h w"],
        scale_ranges: Float[Tensor, "k 2"],
    ) -> ScaleOracle:
        """The oracle of T frames whose layers are all at hand; see `ScaleOracleBuilder.add_frame`."""
        builder = ScaleOracleBuilder(scale_ranges)
        for ids, depths in zip(object_ids, layer_depths, strict=True):
            builder.add_frame(ids, depths)
        return builder.build()

    @property
    def num_objects(self) -> int:
        return len(self.scale_ranges)

    @property
    def num_joint_pixels(self) -> int:
        """Pixels with two or more constraints that the ranges leave open (three or more candidates)."""
        return int(self._joint_blocks.num_pixels.sum())

    def accuracy(self, object_scales: Float[Tensor, "n k"]) -> Float[Tensor, "n"]:
        """Share of the pixels whose nearest covering layer is the labelled object; float64 on the input's device."""
        return 1 - self.violated_pixels(object_scales).to(torch.float64) / self.num_pixels

    def violated_pixels(self, object_scales: Float[Tensor, "n k"]) -> Int[Tensor, "n"]:
        """Number of pixels where another layer is in front of the labelled object, or that object is not there."""
        log_scales = self._log_scales(object_scales)
        num_vectors = log_scales.shape[1]
        violated = np.full(num_vectors, self._always_violated, dtype=np.int64)

        def count(first: int) -> None:
            last = min(first + VECTORS_PER_TASK, num_vectors)
            add_single_violations(log_scales, first, last, self._single_tables, violated)
            add_joint_violations(log_scales, first, last, self._joint_tables, self._joint_blocks, violated)

        tasks = range(0, num_vectors, VECTORS_PER_TASK)
        if len(tasks) <= 1:
            for first in tasks:
                count(first)
        else:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(count, tasks))
        return torch.from_numpy(violated).to(object_scales.device)

    def pair_violations(self, object_scales: Float[Tensor, "k"]) -> tuple[PairViolation, ...]:
        """Who stands wrongly in front of whom under one scale vector, and in which frame most; the worst pair first."""
        log_scales = self._log_scales(object_scales[None])[:, 0]
        per_frame: dict[tuple[int, int], np.ndarray] = defaultdict(lambda: np.zeros(self.num_frames, dtype=np.int64))
        for group in self._groups:
            for column, intruder in enumerate(group.intruders):
                broken = group.thresholds[:, column] < log_scales[group.labelled] - log_scales[intruder]
                frames = group.frames[broken]
                per_frame[group.labelled, intruder] += np.bincount(frames, minlength=self.num_frames)
        violations = [
            PairViolation(labelled, intruder, int(counts.sum()), int(counts.argmax()), int(counts.max()))
            for (labelled, intruder), counts in per_frame.items()
            if counts.any()
        ]
        return tuple(sorted(violations, key=lambda violation: -violation.pixels))

    def pair_thresholds(self, labelled: int, intruder: int) -> Float[Tensor, "n"]:
        """Sorted bounds on log s_labelled - log s_intruder, one for each pixel that shows `labelled`.

        Only bounds that some vector of the ranges breaks are kept.
        """
        columns = [
            group.thresholds[:, group.intruders.index(intruder)]
            for group in self._groups
            if group.labelled == labelled and intruder in group.intruders
        ]
        return torch.from_numpy(np.sort(np.concatenate(columns))) if columns else torch.zeros(0, dtype=torch.float64)

    def _log_scales(self, object_scales: Float[Tensor, "n k"]) -> np.ndarray:
        """Log-scales relative to the background, [K, N] float64, checked against the ranges."""
        if object_scales.ndim != 2 or object_scales.shape[1] != self.num_objects:
            raise OsnGsError(
                f"object scales are {tuple(object_scales.shape)}, expected [N, {self.num_objects}]: "
                "a column for each object, column 0 the background's 1."
            )
        log_scales = np.ascontiguousarray(np.log(object_scales.detach().cpu().numpy().astype(np.float64)).T)
        log_scales -= log_scales[0].copy()
        inside = (log_scales >= self._log_lo) & (log_scales <= self._log_hi)
        if not inside.all():
            k, vector = np.argwhere(~inside)[0]
            lo, hi = self.scale_ranges[k].tolist()
            raise OsnGsError(
                f"object {k} has scale {np.exp(log_scales[k, vector]):.6g} in vector {vector}, but the oracle "
                f"was built for {lo:.6g} to {hi:.6g}; build it with wider ranges."
            )
        return log_scales


def _objects_of_code(code: int) -> tuple[int, ...]:
    """The objects whose bits are set in `code`."""
    return tuple(k for k in range(int(code).bit_length()) if code >> k & 1)


def _single_tables(groups: list[_PixelGroup]) -> RankTables:
    """One table for each ordered pair, of the pixels that only this pair decides."""
    return _rank_tables(
        [
            (group.labelled, group.intruders[0], group.thresholds[:, 0])
            for group in groups
            if len(group.intruders) == 1 and not group.hopeless
        ]
    )


def _joint_tables(groups: list[_PixelGroup]) -> tuple[RankTables, PixelBlocks]:
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


def _merge_small_groups(groups: list[_PixelGroup]) -> list[tuple[int, tuple[int, ...], np.ndarray]]:
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


def _widen(group: _PixelGroup, intruders: tuple[int, ...]) -> np.ndarray:
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
