"""The exact oracle: pixel accuracy of any object scales, from tabulated depth-order constraints.

A pixel that shows object i, and that object j's own layer also covers, is right only if s_i d_i <= s_j d_j,
that is log s_i - log s_j <= log(d_j / d_i) (METHOD 2.2, our derivation). `_rank_tables` counts the violated pixels
with Numba, `_plain_counting` with NumPy alone. No approximation is made: the count equals that of compositing every
frame again.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from osn_gs.errors import DatasetError, OsnGsError
from osn_gs.object_scales._plain_counting import PixelGroup, PlainCounter
from osn_gs.object_scales.ranges import check_scale_ranges
from osn_gs.threads import numba_is_installed, run_over_range

if TYPE_CHECKING:
    from osn_gs.object_scales._rank_tables import RankTableCounter

VECTORS_PER_TASK = 16_384  # a task's tables are read once for this many vectors
MAX_OBJECTS = 62  # the layers that hold a pixel are the bits of an int64
RANGE_MARGIN = 1e-5  # in log-scale: float32 scales at the very end of a range still count as inside

Backend = Literal["auto", "numba", "numpy"]


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


class ScaleOracleBuilder:
    """Collects the depth-order constraints of one frame after the other, so that only one frame's layers are held."""

    def __init__(self, scale_ranges: Float[Tensor, "k 2"]) -> None:
        """`scale_ranges` as in `SceneData`: row k is (lo, hi), row 0 is (1, 1). Raises `OsnGsError` for too many."""
        self.scale_ranges = check_scale_ranges(scale_ranges)
        if len(self.scale_ranges) > MAX_OBJECTS:
            raise OsnGsError(f"the scale oracle holds {MAX_OBJECTS} objects at most, got {len(self.scale_ranges)}.")
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

    def build(self, backend: Backend = "auto") -> ScaleOracle:
        """The oracle over all frames added so far; `backend` "auto" is Numba where it is installed, else NumPy."""
        if self._shown.sum() == 0:
            raise DatasetError("the scale oracle has no pixels: add at least one frame.")
        groups = [
            PixelGroup(
                labelled=label,
                intruders=_objects_of_code(code),
                hopeless=hopeless,
                thresholds=np.concatenate([thresholds for thresholds, _ in parts]),
                frames=np.concatenate([frames for _, frames in parts]),
            )
            for (label, code, hopeless), parts in sorted(self._parts.items())
        ]
        return ScaleOracle(self.scale_ranges, groups, self._num_frames, self._shown, self._uncovered, backend)


class ScaleOracle:
    """Answers which share of all mask pixels a scale vector explains. Built by `ScaleOracleBuilder` or `from_frames`.

    Vectors are [N, K] with column 0 (the background) 1; they are read up to a common factor, which changes no
    picture, and must lie in `scale_ranges`. `shown_pixels[k]` counts the pixels whose mask shows object k, and
    `uncovered_pixels[k]` those of them that object k's own layer does not cover, which no vector explains.
    """

    def __init__(
        self,
        scale_ranges: Float[Tensor, "k 2"],
        groups: list[PixelGroup],
        num_frames: int,
        shown_pixels: np.ndarray,
        uncovered_pixels: np.ndarray,
        backend: Backend,
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
        self._counter = _make_counter([g for g in groups if not g.hopeless], backend)

    @classmethod
    def from_frames(
        cls,
        object_ids: UInt8[Tensor, "t h w"],
        layer_depths: Float[Tensor, "t k h w"],
        scale_ranges: Float[Tensor, "k 2"],
        backend: Backend = "auto",
    ) -> ScaleOracle:
        """The oracle of T frames whose layers are all at hand; see `ScaleOracleBuilder.add_frame`."""
        builder = ScaleOracleBuilder(scale_ranges)
        for ids, depths in zip(object_ids, layer_depths, strict=True):
            builder.add_frame(ids, depths)
        return builder.build(backend)

    @property
    def num_objects(self) -> int:
        return len(self.scale_ranges)

    @property
    def num_joint_pixels(self) -> int:
        """Pixels with two or more constraints that the ranges leave open (three or more candidates)."""
        return sum(len(g.frames) for g in self._groups if not g.hopeless and len(g.intruders) > 1)

    def accuracy(self, object_scales: Float[Tensor, "n k"]) -> Float[Tensor, "n"]:
        """Share of the pixels whose nearest covering layer is the labelled object; float64 on the input's device."""
        return 1 - self.violated_pixels(object_scales).to(torch.float64) / self.num_pixels

    def violated_pixels(self, object_scales: Float[Tensor, "n k"]) -> Int[Tensor, "n"]:
        """Number of pixels where another layer is in front of the labelled object, or that object is not there."""
        log_scales = self._log_scales(object_scales)
        num_vectors = log_scales.shape[1]
        violated = np.full(num_vectors, self._always_violated, dtype=np.int64)

        def count(first_task: int, last_task: int) -> None:
            for first in range(first_task * VECTORS_PER_TASK, last_task * VECTORS_PER_TASK, VECTORS_PER_TASK):
                last = min(first + VECTORS_PER_TASK, num_vectors)
                self._counter.add_violations(log_scales, first, last, violated)

        run_over_range(count, -(-num_vectors // VECTORS_PER_TASK))
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


def _make_counter(groups: list[PixelGroup], backend: Backend) -> PlainCounter | RankTableCounter:
    if backend == "numpy" or (backend == "auto" and not numba_is_installed()):
        return PlainCounter(groups)
    from osn_gs.object_scales._rank_tables import RankTableCounter

    return RankTableCounter(groups)
