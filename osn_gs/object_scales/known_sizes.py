"""Sizes in metres that a user knows, as constraints on the object scales.

Something of object k that measures `units` in the object's own units measures m * s_k * units metres, where m is the
length of one scene unit in metres and s_k the object scale:

    log m + log s_k = log(metres / units).

The background's scale is 1, so one of its lengths gives m, and one length of any other object then its scale. Without
one, m stays unknown but is the same for all objects: two objects' lengths fix the ratio of their scales. A single
length of a single object fixes m for every scale vector, and rules out none of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from osn_gs.errors import OsnGsError
from osn_gs.object_scales.constraints import Held, ScaleConstraints, Tied

LARGEST_DISAGREEMENT = 1.05  # ratio of the largest to the smallest of several sizes that should say the same


@dataclass(frozen=True)
class KnownSize:
    """A length of `object` (0 = background) that is `units` in the object's own units and `metres` in the world."""

    object: int
    units: float
    metres: float
    label: str

    @property
    def metres_per_own_unit(self) -> float:
        return self.metres / self.units


@dataclass(frozen=True)
class MetricConstraints:
    """What known sizes say: constraints on the scales, and the metres of a scene unit where they alone fix it."""

    constraints: ScaleConstraints
    metres_per_unit: float | None


def scale_constraints_from_sizes(known: Sequence[KnownSize], object_names: Sequence[str]) -> MetricConstraints:
    """Held scales where a background length is known, else the sized objects tied by the ratios of their sizes.

    One sized object alone gives no constraint: its length in metres fixes the unit (`metres_per_unit`), not the set.
    Several sizes of one object are averaged. Raises `OsnGsError` where they disagree by more than 5 %, and for sizes
    that are not positive or belong to no object.
    """
    _check(known, object_names)
    per_object = {k: _agreed([size for size in known if size.object == k]) for k in sorted({s.object for s in known})}
    scene_unit = per_object.pop(0, None)
    if scene_unit is not None:
        held = tuple(Held(k, own_unit / scene_unit) for k, own_unit in per_object.items())
        return MetricConstraints(ScaleConstraints(held=held), scene_unit)
    first, *others = per_object or [None]
    tied = tuple(Tied(k, first, per_object[k] / per_object[first]) for k in others)
    return MetricConstraints(ScaleConstraints(tied=tied), None)


def metres_per_unit(known: Sequence[KnownSize], object_scales: Float[Tensor, "k"]) -> float | None:
    """Metres of one scene unit under one scale vector; None where no size is known.

    Background sizes decide where there are any. The others agree on every vector that meets the constraints of
    `scale_constraints_from_sizes`; on any other vector this is their geometric mean.
    """
    deciding = [size for size in known if size.object == 0] or known
    if not deciding:
        return None
    return _geometric_mean([size.metres_per_own_unit / float(object_scales[size.object]) for size in deciding])


def _check(known: Sequence[KnownSize], object_names: Sequence[str]) -> None:
    for size in known:
        if not 0 <= size.object < len(object_names):
            raise OsnGsError(f"{size.label}: there is no object {size.object}, the last is {len(object_names) - 1}.")
        if not (0 < size.metres < math.inf and 0 < size.units < math.inf):
            raise OsnGsError(
                f"{size.label} of {object_names[size.object]}: a size must be positive, got {size.metres:.4g} m for "
                f"{size.units:.4g} units."
            )


def _agreed(sizes: Sequence[KnownSize]) -> float:
    """Metres of one of the object's own units, by all its sizes together."""
    least, most = (pick(sizes, key=lambda size: size.metres_per_own_unit) for pick in (min, max))
    disagreement = most.metres_per_own_unit / least.metres_per_own_unit
    if disagreement > LARGEST_DISAGREEMENT:
        raise OsnGsError(
            f"{most.label} ({most.metres:.4g} m) and {least.label} ({least.metres:.4g} m) do not agree: by the first, "
            f"all lengths of this object are {100 * (disagreement - 1):.0f} % larger than by the second; "
            "correct or remove one of them."
        )
    return _geometric_mean([size.metres_per_own_unit for size in sizes])


def _geometric_mean(values: Sequence[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).log().mean().exp())
