"""Held and tied object scales against sets whose constrained parts are known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from osn_gs.errors import OsnGsError
from osn_gs.object_scales.constraints import (
    FREE,
    Held,
    ScaleConstraints,
    Tied,
    nearest_constrained,
    reduce_scales,
    sample_constrained,
)
from osn_gs.object_scales.sampling import StarvedError, rejection_sample

RANGES = torch.tensor([[1.0, 1.0], [0.5, 1.5], [0.4, 1.6], [0.3, 1.7]], dtype=torch.float64)
WIDE = torch.tensor([[1.0, 1.0]] + [[0.1, 10.0]] * 3, dtype=torch.float64)


def below_product(object_scales: Float[Tensor, "n k"]) -> Float[Tensor, "n"]:
    """Positive where s_1 s_2 s_3 < 1: a half-space in log-scale."""
    return -object_scales[:, 1:].log().sum(dim=1)


def ordered(object_scales: Float[Tensor, "n k"]) -> Float[Tensor, "n"]:
    """Positive where s_1 < s_2 < s_3."""
    return object_scales[:, 1:].log().diff(dim=1).amin(dim=1)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_samples_meet_the_constraints_to_the_last_bit_and_are_valid(generator: torch.Generator) -> None:
    constraints = ScaleConstraints(held=(Held(1, 0.7),), tied=(Tied(3, 2, 1.3),))
    samples = sample_constrained(ordered, 0.0, RANGES, constraints, 300, generator)
    assert (samples[:, 0] == 1).all()
    assert (samples[:, 1] == 0.7).all()
    assert torch.equal(samples[:, 3], 1.3 * samples[:, 2])
    assert (ordered(samples) >= 0).all()
    assert (samples >= RANGES[:, 0]).all()
    assert (samples <= RANGES[:, 1]).all()
    assert samples[:, 2].min() < 0.75, "the free scale reaches down to the held one,"
    assert samples[:, 2].max() > 1.25, "and up to where its follower's range ends, 1.7 / 1.3"


def test_the_constrained_draw_is_the_free_draw_filtered(generator: torch.Generator) -> None:
    constraints = ScaleConstraints(tied=(Tied(2, 1, 1.2),))
    constrained = sample_constrained(below_product, 0.0, RANGES, constraints, 1_000, generator)
    free, _ = rejection_sample(lambda scales: below_product(scales) >= 0, RANGES, 200_000, generator)
    nearly_tied = free[(free[:, 2] / free[:, 1] / 1.2).log().abs() < 0.01]
    assert len(nearly_tied) > 1_000
    for k in (1, 3):
        assert stats.ks_2samp(constrained[:, k].numpy(), nearly_tied[:, k].numpy()).statistic < 0.07


def test_without_constraints_the_whole_set_is_drawn(generator: torch.Generator) -> None:
    constrained = sample_constrained(ordered, 0.0, RANGES, FREE, 1_000, generator)
    free, _ = rejection_sample(lambda scales: ordered(scales) >= 0, RANGES, 2_000, generator)
    for k in (1, 2, 3):
        assert stats.ks_2samp(constrained[:, k].numpy(), free[:, k].numpy()).statistic < 0.07


def test_a_leaders_range_is_cut_to_what_its_followers_allow() -> None:
    reduced = reduce_scales(RANGES, ScaleConstraints(tied=(Tied(2, 1, 2.0), Tied(3, 2, 0.5))))
    torch.testing.assert_close(reduced.ranges[1], torch.tensor([0.5, 0.8], dtype=torch.float64))
    assert (reduced.ranges[2:, 0] == reduced.ranges[2:, 1]).all()
    full = reduced.expand(torch.tensor([[1.0, 0.6, 7.0, 7.0]], dtype=torch.float64))
    torch.testing.assert_close(full, torch.tensor([[1.0, 0.6, 1.2, 0.6]], dtype=torch.float64))


@pytest.mark.parametrize("constraints", [ScaleConstraints((Held(1, 0.6),), (Tied(1, 2, 0.5),)),
                                         ScaleConstraints((Held(1, 0.6),), (Tied(2, 1, 2.0),)),
                                         ScaleConstraints((), (Tied(1, 0, 0.6), Tied(2, 1, 2.0)))])  # fmt: skip
def test_a_held_scale_fixes_all_that_are_tied_to_it(constraints: ScaleConstraints) -> None:
    reduced = reduce_scales(RANGES, constraints)
    full = reduced.expand(reduced.ranges[:, 0][None])[0]
    assert full[1] == 0.6
    assert full[2] == pytest.approx(1.2)
    assert (reduced.ranges[:3, 0] == reduced.ranges[:3, 1]).all()


def test_where_everything_is_held_there_is_one_vector_or_none(generator: torch.Generator) -> None:
    held = ScaleConstraints(held=(Held(1, 0.7), Held(2, 0.8), Held(3, 0.9)))
    samples = sample_constrained(ordered, 0.0, RANGES, held, 3, generator)
    assert torch.equal(samples, torch.tensor([1.0, 0.7, 0.8, 0.9], dtype=torch.float64).expand(3, -1))
    wrong = ScaleConstraints(held=(Held(1, 0.9), Held(2, 0.8), Held(3, 0.7)))
    with pytest.raises(StarvedError, match=r"explains the video has object 1 held at 0.9, object 2 .* free one of"):
        sample_constrained(ordered, 0.0, RANGES, wrong, 3, generator)


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        (ScaleConstraints(held=(Held(1, 3.0),)), "its range is 0.5 to 1.5"),
        (ScaleConstraints(held=(Held(1, 0.6), Held(1, 0.7))), "held at both 0.6 and 0.7"),
        (ScaleConstraints(tied=(Tied(2, 1, 9.0),)), r"object 1 \(range 0.5 to 1.5\) and object 2 .* as 1 : 9"),
        (ScaleConstraints(tied=(Tied(2, 1, 2.0), Tied(1, 2, 2.0))), "other ties make it 0.5 times"),
        (ScaleConstraints((Held(1, 0.6), Held(2, 0.6)), (Tied(2, 1, 2.0),)), r"object 1 \(held at 0.6\)"),
        (ScaleConstraints(tied=(Tied(4, 1, 2.0),)), "the objects are 0 to 3"),
        (ScaleConstraints(tied=(Tied(2, 1, -1.0),)), "must be positive"),
    ],
)
def test_constraints_that_cannot_be_met_say_why(constraints: ScaleConstraints, message: str) -> None:
    with pytest.raises(OsnGsError, match=message):
        reduce_scales(RANGES, constraints)


def nearest(target: list[float], constraints: ScaleConstraints, generator: torch.Generator) -> Float[Tensor, "k"]:
    samples = sample_constrained(below_product, 0.0, WIDE, constraints, 512, generator)
    log_target = torch.tensor([0.0, *target], dtype=torch.float64)
    found = nearest_constrained(log_target.exp(), below_product, 0.0, WIDE, constraints, samples)
    assert below_product(found[None]) >= 0
    return found


def test_the_nearest_vector_is_the_projection_onto_a_half_space(generator: torch.Generator) -> None:
    found = nearest([0.5, 0.2, 0.2], FREE, generator)
    expected = torch.tensor([0.0, 0.2, -0.1, -0.1], dtype=torch.float64)  # all three give way alike
    torch.testing.assert_close(found.log(), expected, atol=0.02, rtol=0)


def test_under_a_held_scale_only_the_others_give_way(generator: torch.Generator) -> None:
    found = nearest([0.5, 0.2, 0.2], ScaleConstraints(held=(Held(1, math.exp(0.5)),)), generator)
    assert found[1] == math.exp(0.5)
    expected = torch.tensor([0.0, 0.5, -0.25, -0.25], dtype=torch.float64)
    torch.testing.assert_close(found.log(), expected, atol=0.02, rtol=0)


def test_under_a_tie_the_distance_counts_followers_too(generator: torch.Generator) -> None:
    """x_2 = x_1: of x_1 = x_2 = a, x_3 = b with 2 a + b <= 0, the nearest to (0.6, 0.2, 0.2) is (0.067, 0.067, -0.133).

    A distance in leaders alone would have given way as 2 : 1, not as 1 : 1.
    """
    found = nearest([0.6, 0.2, 0.2], ScaleConstraints(tied=(Tied(2, 1, 1.0),)), generator)
    assert found[1] == found[2]
    expected = torch.tensor([0.0, 1 / 15, 1 / 15, -2 / 15], dtype=torch.float64)
    torch.testing.assert_close(found.log(), expected, atol=0.02, rtol=0)


def test_a_valid_vector_that_meets_the_constraints_is_its_own_nearest(generator: torch.Generator) -> None:
    constraints = ScaleConstraints(tied=(Tied(2, 1, 1.1),))
    samples = sample_constrained(below_product, 0.0, WIDE, constraints, 8, generator)
    again = nearest_constrained(samples[3], below_product, 0.0, WIDE, constraints, samples)
    torch.testing.assert_close(again, samples[3], rtol=1e-12, atol=0)


def test_equal_constraints_can_share_a_cache() -> None:
    one = ScaleConstraints(held=(Held(1, 0.7),)) & ScaleConstraints(tied=(Tied(2, 3, 2.0),))
    assert {one: 1}[ScaleConstraints((Held(1, 0.7),), (Tied(2, 3, 2.0),))] == 1
