"""The range in which each object's scale is sought, from its structure-from-motion depths.

A `scale_ranges` tensor [K, 2] holds (lo, hi) for each object; row 0, the background, is (1, 1). A row with
lo == hi holds that object's scale fixed: this is how conditional sampling is expressed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from osn_gs.errors import DatasetError, OsnGsError

CLOSE_PERCENTILE = 0.05  # released code: the range rests on the 5th and 95th percentile depths
FAR_PERCENTILE = 0.95
NEAR_MARGIN = 1.05  # released code: lo = 1.05 near / close
FAR_MARGIN = 0.95  # released code: hi = 0.95 far / inf; also the background's factor


@dataclass(frozen=True)
class InitialRange:
    """One object's range after its units are multiplied by `unit_factor`; the range's middle is then 1."""

    lo: float
    hi: float
    unit_factor: float


def depth_extent(depths_by_frame: Sequence[Float[Tensor, "_"]]) -> tuple[float, float]:
    """(close, inf): the smallest 5th and largest 95th percentile of an object's depths over its frames."""
    seen = [depths.double() for depths in depths_by_frame if len(depths) > 0]
    if not seen:
        raise DatasetError("no structure-from-motion depths: the object has no points in any frame.")
    close = min(float(torch.quantile(depths, CLOSE_PERCENTILE)) for depths in seen)
    inf = max(float(torch.quantile(depths, FAR_PERCENTILE)) for depths in seen)
    if not 0 < close <= inf:
        raise DatasetError(f"structure-from-motion depths run from {close:.4g} to {inf:.4g}; they must be positive.")
    return close, inf


def initial_scale_range(
    depths_by_frame: Sequence[Float[Tensor, "_"]], near: float, far: float, name: str = "object"
) -> InitialRange:
    """Range [1.05 near / close, 0.95 far / inf] of one object, rescaled so that its middle is 1 (METHOD 3).

    `near` and `far` bound the scene in the background's units. Raises `DatasetError` if the range is empty: the
    object's depths then span more than near to far allows.
    """
    close, inf = depth_extent(depths_by_frame)
    lo, hi = NEAR_MARGIN * near / close, FAR_MARGIN * far / inf
    if not lo < hi:
        raise DatasetError(
            f"{name}: its scale range is empty, {lo:.4g} to {hi:.4g}: its depths span a factor {inf / close:.3g} but "
            f"near {near:.4g} to far {far:.4g} leaves {far / near * FAR_MARGIN / NEAR_MARGIN:.3g}; "
            "lower --near, raise --far, or remove its outlying points."
        )
    middle = (lo + hi) / 2
    return InitialRange(lo / middle, hi / middle, unit_factor=middle)


def background_unit_factor(depths_by_frame: Sequence[Float[Tensor, "_"]], far: float) -> float:
    """Factor 0.95 far / inf on the background's units, after which its scale is 1 and `far` is just behind it."""
    _, inf = depth_extent(depths_by_frame)
    return FAR_MARGIN * far / inf


def check_scale_ranges(scale_ranges: Float[Tensor, "k 2"]) -> Float[Tensor, "k 2"]:
    """The ranges as float64 on the CPU; raises `OsnGsError` if they cannot be a scene's."""
    ranges = torch.as_tensor(scale_ranges).detach().to("cpu", torch.float64)
    if ranges.ndim != 2 or ranges.shape[1] != 2:
        raise OsnGsError(f"scale ranges are {tuple(ranges.shape)}, expected [K, 2]: (lo, hi) for each object.")
    if len(ranges) < 2:
        raise OsnGsError("a scene needs the background and at least one moving object, got one object only.")
    if not torch.equal(ranges[0], torch.ones_like(ranges[0])):
        raise OsnGsError(f"the background's scale range must be (1, 1), got {tuple(ranges[0].tolist())}.")
    for k, (lo, hi) in enumerate(ranges.tolist()):
        if not 0 < lo <= hi < float("inf"):
            raise OsnGsError(f"object {k}: scale range ({lo:.4g}, {hi:.4g}) is empty or not positive and finite.")
    return ranges


def fix_scales(scale_ranges: Float[Tensor, "k 2"], fixed: dict[int, float]) -> Float[Tensor, "k 2"]:
    """The ranges with some objects' scales held at a value inside them; `fixed` maps object to scale."""
    ranges = check_scale_ranges(scale_ranges).clone()
    for k, scale in fixed.items():
        if not 0 < k < len(ranges):
            raise OsnGsError(f"cannot fix object {k}: the moving objects are 1 to {len(ranges) - 1}.")
        lo, hi = ranges[k].tolist()
        if not lo <= scale <= hi:
            raise OsnGsError(f"cannot fix object {k} at scale {scale:.4g}: its range is {lo:.4g} to {hi:.4g}.")
        ranges[k] = scale
    return ranges


def uniform_scales(
    scale_ranges: Float[Tensor, "k 2"], num_vectors: int, generator: torch.Generator
) -> Float[Tensor, "n k"]:
    """Vectors drawn uniformly in log-scale from the box of the ranges; float64 on the generator's device.

    Differs from OSN: the paper draws uniformly in scale. Depth order depends on ratios of scales, so volumes,
    draws and chains here all use the log-scale measure.
    """
    ranges = check_scale_ranges(scale_ranges).to(generator.device)
    log_lo, log_hi = ranges.log().unbind(-1)
    steps = torch.rand(num_vectors, len(ranges), generator=generator, dtype=torch.float64, device=generator.device)
    return scales_from_log(log_lo + steps * (log_hi - log_lo), ranges)


def scales_from_log(log_scales: Float[Tensor, "n k"], scale_ranges: Float[Tensor, "k 2"]) -> Float[Tensor, "n k"]:
    """exp, kept inside the ranges to the last bit (so that fixed scales come out as given)."""
    return log_scales.exp().clamp(scale_ranges[:, 0], scale_ranges[:, 1])
