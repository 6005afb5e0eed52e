"""How small and how large each object may be, and whether the video or only near/far says so."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from osn_gs.object_scales.constraints import FREE, ReducedScales, ScaleConstraints, reduce_scales
from osn_gs.object_scales.nested_sets import Quality, find_valid_start
from osn_gs.object_scales.oracle import ScaleOracle
from osn_gs.object_scales.sampling import advance_chains

NUM_CLIMBERS = 256
SURVIVING_SHARE = 0.1
MOVES_PER_LEVEL = 4
LEAST_GAIN = 0.005  # in log-scale: an end is followed until a level gains less than 0.5 % of scale
REACHED_SHARE = 0.01  # an end within 1 % (of the range's log length) of the range's own end is not the video's

BoundedBy = Literal["occlusion", "near/far", "held"]


@dataclass(frozen=True)
class ValidBounds:
    """The interval of one object's scale over the valid set, all other objects being as free as constraints leave them.

    An end is bounded by "occlusion" where a larger or smaller object would break too many pixels, by "near/far"
    where it is the end of the initial range and the video says nothing (METHOD 2.4); both are "held" for a scale that
    constraints leave no choice.
    """

    object: int
    lo: float
    hi: float
    lo_bounded_by: BoundedBy
    hi_bounded_by: BoundedBy


def valid_bounds(
    oracle: ScaleOracle, accuracy_threshold: float, generator: torch.Generator, constraints: ScaleConstraints = FREE
) -> tuple[ValidBounds, ...]:
    """Bounds of the moving objects 1..K-1 over {accuracy >= threshold}, followed to within a few percent of scale."""
    reduced = reduce_scales(oracle.scale_ranges, constraints)

    def accuracy(reduced_scales: Float[Tensor, "n k"]) -> Float[Tensor, "n"]:
        return oracle.accuracy(reduced.expand(reduced_scales))

    start = find_valid_start(accuracy, accuracy_threshold, reduced.ranges, NUM_CLIMBERS, generator)
    bounds = []
    for k in range(1, oracle.num_objects):
        lo, lo_bounded_by = _end(accuracy, accuracy_threshold, reduced, generator, start, k, sign=-1)
        hi, hi_bounded_by = _end(accuracy, accuracy_threshold, reduced, generator, start, k, sign=+1)
        bounds.append(ValidBounds(k, lo, hi, lo_bounded_by, hi_bounded_by))
    return tuple(bounds)


def _end(
    accuracy: Quality,
    accuracy_threshold: float,
    reduced: ReducedScales,
    generator: torch.Generator,
    start: Float[Tensor, "n k"],
    k: int,
    sign: int,
) -> tuple[float, BoundedBy]:
    """The largest (`sign` 1) or smallest (-1) scale of object k in the set, by climbing from `start`."""

    def height(reduced_scales: Float[Tensor, "n k"]) -> Float[Tensor, "n"]:
        valid = accuracy(reduced_scales) >= accuracy_threshold
        return torch.where(valid, sign * reduced.expand(reduced_scales)[:, k].log(), -torch.inf)

    lo, hi = reduced.expand(reduced.ranges.T)[:, k].tolist()
    if lo == hi:
        return lo, "held"
    log_lo, log_hi = math.log(lo), math.log(hi)
    top = log_hi if sign > 0 else -log_lo
    reached = top - REACHED_SHARE * (log_hi - log_lo)
    highest = _climb(height, reduced.ranges, start, reached, generator)
    if highest >= reached:
        return (hi if sign > 0 else lo), "near/far"
    return math.exp(sign * highest), "occlusion"


def _climb(
    height: Quality,
    scale_ranges: Float[Tensor, "k 2"],
    climbers: Float[Tensor, "n k"],
    enough: float,
    generator: torch.Generator,
) -> float:
    """The greatest height that climbers reach: the highest of them multiply, move above their level, and again."""
    heights = height(climbers)
    highest, gain = float(heights.max()), float("inf")
    while highest < enough and gain > LEAST_GAIN:
        level = float(torch.quantile(heights, 1 - SURVIVING_SHARE))
        survivors = climbers[heights >= level]
        parents = torch.randint(len(survivors), (len(climbers),), generator=generator, device=climbers.device)
        climbers = advance_chains(
            lambda scales, level=level: height(scales) >= level,
            scale_ranges,
            survivors[parents],
            MOVES_PER_LEVEL,
            generator,
        )
        heights = height(climbers)
        gain = float(heights.max()) - highest
        highest = max(highest, float(heights.max()))
    return highest
