"""The initial range of each object's scale (METHOD 3)."""

from __future__ import annotations

import pytest
import torch

from osn_gs.errors import DatasetError, OsnGsError
from osn_gs.object_scales.ranges import (
    background_unit_factor,
    check_scale_ranges,
    fix_scales,
    initial_scale_range,
    uniform_scales,
)

RANGES = torch.tensor([[1.0, 1.0], [0.5, 1.5], [0.2, 1.8]], dtype=torch.float64)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_at_the_ends_of_its_range_an_object_just_fits_between_near_and_far() -> None:
    depths = [torch.linspace(2.0, 3.0, 101), torch.linspace(4.0, 5.0, 101)]
    initial = initial_scale_range(depths, near=1.0, far=8.0)
    close, inf = 2.05 * initial.unit_factor, 4.95 * initial.unit_factor  # 5th and 95th percentile, in the new units
    assert initial.lo * close == pytest.approx(1.05 * 1.0)
    assert initial.hi * inf == pytest.approx(0.95 * 8.0)


def test_the_middle_of_a_range_is_one() -> None:
    initial = initial_scale_range([torch.tensor([2.0, 2.5])], near=1.0, far=8.0)
    assert (initial.lo + initial.hi) / 2 == pytest.approx(1.0)


def test_the_range_does_not_depend_on_the_objects_unit() -> None:
    depths = torch.linspace(2.0, 3.0, 50)
    metres, feet = (initial_scale_range([depths * unit], 1.0, 8.0) for unit in (1.0, 3.2808))
    assert (metres.lo, metres.hi) == pytest.approx((feet.lo, feet.hi))


def test_the_background_ends_just_before_far() -> None:
    factor = background_unit_factor([torch.full((10,), 4.0)], far=8.0)
    assert factor * 4.0 == pytest.approx(0.95 * 8.0)


def test_an_empty_range_names_the_object_and_what_to_try() -> None:
    with pytest.raises(DatasetError, match=r"jug: its scale range is empty.*lower --near, raise --far"):
        initial_scale_range([torch.tensor([1.0, 1.0, 20.0, 20.0])], near=1.0, far=8.0, name="jug")


@pytest.mark.parametrize("depths", [[], [torch.zeros(0)], [torch.tensor([-1.0, 2.0])]])
def test_depths_that_say_nothing_are_refused(depths: list[torch.Tensor]) -> None:
    with pytest.raises(DatasetError, match="structure-from-motion depths"):
        initial_scale_range(depths, near=1.0, far=8.0)


def test_one_object_only_is_refused() -> None:
    with pytest.raises(OsnGsError, match="one object only"):
        check_scale_ranges(torch.ones(1, 2))


def test_draws_fill_the_ranges_evenly_in_log_scale(generator: torch.Generator) -> None:
    logs = uniform_scales(RANGES, 20_000, generator).log()
    assert (logs[:, 0] == 0).all()
    log_lo, log_hi = RANGES[1:].log().unbind(-1)
    torch.testing.assert_close(logs[:, 1:].mean(0), (log_lo + log_hi) / 2, atol=0.02, rtol=0)
    torch.testing.assert_close(logs[:, 1:].std(0), (log_hi - log_lo) / 12**0.5, atol=0.02, rtol=0)


def test_a_fixed_scale_comes_out_as_given(generator: torch.Generator) -> None:
    draws = uniform_scales(fix_scales(RANGES, {2: 0.7}), 100, generator)
    assert (draws[:, 2] == 0.7).all()
    assert draws[:, 1].std() > 0


@pytest.mark.parametrize(("fixed", "message"), [({0: 1.0}, "moving objects"), ({1: 3.0}, "its range is 0.5 to 1.5")])
def test_scales_that_cannot_be_fixed_are_refused(fixed: dict[int, float], message: str) -> None:
    with pytest.raises(OsnGsError, match=message):
        fix_scales(RANGES, fixed)
