"""The contact configuration: each object as large as it can be while it touches what it stands on (METHOD 2.3a).

An object that stands on something shows, along its foot, pixels right in front of its support: their bounds on
log s_object - log s_support begin exactly where it touches. Any larger and it sinks in, pixel after pixel. The
label tolerance would let it sink 5-20 % deep, so contact is read from where the violations *begin to rise*, not from
the edge of the labelled set.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from osn_gs.object_scales.nested_sets import find_valid_start
from osn_gs.object_scales.oracle import ScaleOracle
from osn_gs.object_scales.sampling import nearest_valid

# The rise is fitted between these shares of the pixels that show the object. Stray pixels of a blurred outline, up to
# 1 % of them on reconstructed layers, lie below; above, the object no longer stands in front of its support.
RISE_SHARES = (0.015, 0.06)
ROUNDING = 1e-9  # of log-scales that were added up
LEAST_PIXELS = 10  # to fit a line to
NUM_VALID_SAMPLES = 256


def contact_configuration(
    oracle: ScaleOracle, accuracy_threshold: float, generator: torch.Generator
) -> Float[Tensor, "k"]:
    """The element-wise largest scales at which no object has begun to sink into another one.

    Each ordered pair gives one crisp bound x_i - x_j <= onset_ij in log-scale. Vectors that satisfy such difference
    constraints are closed under element-wise maximum, so there is one largest, the shortest path from the background
    (Bellman-Ford). An object that nothing bounds takes the upper end of its range. Should the result fall outside
    the valid set, the nearest valid vector is returned.
    """
    contact = largest_without_sinking(pair_onsets(oracle), oracle.scale_ranges)
    if float(oracle.accuracy(contact[None])) >= accuracy_threshold:
        return contact
    samples = find_valid_start(oracle.accuracy, accuracy_threshold, oracle.scale_ranges, NUM_VALID_SAMPLES, generator)
    return nearest_valid(
        contact, lambda scales: oracle.accuracy(scales) >= accuracy_threshold, oracle.scale_ranges, samples
    )


def pair_onsets(oracle: ScaleOracle) -> Float[Tensor, "k k"]:
    """Entry [i, j]: log s_i - log s_j from which on object i sinks into object j; inf where nothing shows it."""
    onsets = torch.full((oracle.num_objects, oracle.num_objects), torch.inf, dtype=torch.float64)
    for i in range(1, oracle.num_objects):
        first, last = (math.ceil(share * oracle.shown_pixels[i]) for share in RISE_SHARES)
        for j in range(oracle.num_objects):
            thresholds = oracle.pair_thresholds(i, j)
            if len(thresholds) >= last and last - first >= LEAST_PIXELS:
                onsets[i, j] = rise_onset(thresholds, first, last)
    return onsets


def rise_onset(thresholds: Float[Tensor, "n"], first: int, last: int) -> float:
    """Where the number of violated pixels begins to rise: the straight part of the rise, followed down to zero.

    `thresholds` are sorted; the line is fitted to those ranked `first` to `last`. Depth noise blurs the foot of the
    rise and a few wrong pixels lie far below it, but neither moves the straight part.
    """
    ranks = torch.arange(1, len(thresholds) + 1, dtype=thresholds.dtype)
    values, counts = thresholds[first:last], ranks[first:last]
    spread = values - values.mean()
    slope_inverse = (spread * (counts - counts.mean())).sum() / (counts - counts.mean()).square().sum()
    return float(values.mean() - slope_inverse * counts.mean())


def largest_without_sinking(onsets: Float[Tensor, "k k"], scale_ranges: Float[Tensor, "k 2"]) -> Float[Tensor, "k"]:
    """The element-wise largest scales with log s_i - log s_j <= onsets[i, j] and inside the ranges.

    Bounds between moving objects that contradict each other, each asking to be in front of the other, are noise on
    the reconstruction: the bounds of the background alone hold then.
    """
    log_lo, log_hi = scale_ranges.log().unbind(-1)
    log_scales = log_hi.clone()
    for _ in range(len(log_scales)):
        log_scales = torch.minimum(log_scales, (log_scales[None, :] + onsets).amin(dim=1))
    contradictory = bool((log_scales > (log_scales[None, :] + onsets).amin(dim=1) + ROUNDING).any())
    if contradictory:
        log_scales = torch.minimum(log_hi, log_hi[0] + onsets[:, 0])
    return torch.maximum(log_scales, log_lo).exp().clamp(scale_ranges[:, 0], scale_ranges[:, 1])
