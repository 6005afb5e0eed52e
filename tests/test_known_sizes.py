"""Sizes in metres fix scales, ratios of scales, or only the unit of length."""

from __future__ import annotations

import pytest
import torch

from osn_gs.errors import OsnGsError
from osn_gs.object_scales.constraints import FREE, Held, Tied, sample_constrained
from osn_gs.object_scales.known_sizes import KnownSize, metres_per_unit, scale_constraints_from_sizes

NAMES = ("background", "car", "jug", "bust")
RANGES = torch.tensor([[1.0, 1.0]] + [[0.3, 1.7]] * 3, dtype=torch.float64)
HEIGHT = KnownSize(0, units=2.0, metres=1.0, label="camera height")
CAR = KnownSize(1, units=0.8, metres=0.36, label="length of car")
JUG = KnownSize(2, units=0.5, metres=0.30, label="length of jug")


def vectors_under(known: list[KnownSize]) -> torch.Tensor:
    constraints = scale_constraints_from_sizes(known, NAMES).constraints
    generator = torch.Generator().manual_seed(0)
    return sample_constrained(lambda s: s[:, 1].log() - s[:, 3].log(), 0.0, RANGES, constraints, 64, generator)


def test_a_background_length_and_an_objects_hold_its_scale() -> None:
    metric = scale_constraints_from_sizes([CAR, HEIGHT], NAMES)
    assert metric.metres_per_unit == pytest.approx(0.5)
    assert metric.constraints.held == (Held(1, pytest.approx(0.9)),)  # 0.8 units * 0.9 * 0.5 m = 0.36 m
    assert not metric.constraints.tied
    assert (vectors_under([CAR, HEIGHT])[:, 1] == metric.constraints.held[0].scale).all()


def test_two_objects_sizes_collapse_the_set_to_their_ratio() -> None:
    metric = scale_constraints_from_sizes([CAR, JUG], NAMES)
    assert metric.metres_per_unit is None
    assert metric.constraints.tied == (Tied(2, 1, pytest.approx(4 / 3)),)
    vectors = vectors_under([CAR, JUG])
    torch.testing.assert_close(vectors[:, 2] / vectors[:, 1], torch.full((64,), 4 / 3, dtype=torch.float64))
    assert vectors[:, 1].std() > 0.05, "the unit stays open"
    for vector in vectors:  # and under each of them both lengths come out right in metres
        metres = metres_per_unit([CAR, JUG], vector)
        assert metres * float(vector[1]) * CAR.units == pytest.approx(CAR.metres)
        assert metres * float(vector[2]) * JUG.units == pytest.approx(JUG.metres)


def test_one_objects_size_fixes_the_unit_and_not_the_set() -> None:
    metric = scale_constraints_from_sizes([CAR], NAMES)
    assert metric.constraints == FREE
    assert metric.metres_per_unit is None
    vector = torch.tensor([1.0, 0.9, 1.0, 1.0])
    assert metres_per_unit([CAR], vector) == pytest.approx(0.5)
    assert metres_per_unit([CAR], 2 * vector) == pytest.approx(0.25)


def test_no_size_says_nothing() -> None:
    assert scale_constraints_from_sizes([], NAMES).constraints == FREE
    assert metres_per_unit([], torch.ones(4)) is None


def test_a_background_length_gives_the_unit_whatever_the_scales() -> None:
    assert metres_per_unit([CAR, HEIGHT], torch.tensor([1.0, 1.7, 1.0, 1.0])) == pytest.approx(0.5)


def test_sizes_of_one_object_are_averaged() -> None:
    higher = KnownSize(0, units=2.0, metres=1.04, label="travel")
    assert scale_constraints_from_sizes([HEIGHT, higher], NAMES).metres_per_unit == pytest.approx(0.5 * 1.04**0.5)


def test_sizes_that_disagree_are_named() -> None:
    travel = KnownSize(0, units=1.0, metres=0.6, label="camera travel")
    with pytest.raises(OsnGsError, match=r"camera travel \(0.6 m\) and camera height \(1 m\) do not agree.* 20 %"):
        scale_constraints_from_sizes([HEIGHT, travel], NAMES)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (KnownSize(4, 1.0, 1.0, "length"), "no object 4, the last is 3"),
        (KnownSize(1, 1.0, 0.0, "length"), "length of car: a size must be positive, got 0 m"),
        (KnownSize(1, 0.0, 1.0, "length"), "a size must be positive"),
        (KnownSize(1, 1.0, float("nan"), "length"), "a size must be positive"),
    ],
)
def test_sizes_that_cannot_be_are_refused(size: KnownSize, message: str) -> None:
    with pytest.raises(OsnGsError, match=message):
        scale_constraints_from_sizes([size], NAMES)
