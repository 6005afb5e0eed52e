"""Judging, searching and drawing worlds, against an occlusion whose valid scales are known in closed form.

A far wall (object 0) and two cards: the mask shows card 1 in front of the wall, and in front of card 2 where they
overlap. So each card must stay before the wall, and log s_1 - log s_2 at most log(d_2 / d_1).
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from osn_gs.errors import OsnGsError
from osn_gs.object_scales.constraints import FREE, Held, ScaleConstraints, Tied
from osn_gs.object_scales.learning import fit_to_oracle
from osn_gs.object_scales.network import ObjectScaleNetwork
from osn_gs.object_scales.oracle import ScaleOracle
from osn_gs.object_scales.sampling import StarvedError
from osn_gs.viewer.worlds import Worlds

NAMES = ("wall", "car", "jug")
RANGES = torch.tensor([[1.0, 1.0], [0.4, 1.6], [0.4, 1.6]], dtype=torch.float64)
WALL, CAR, JUG = 6.0, 3.0, 3.6  # depths in own units
THRESHOLD = 0.995
BREAKING_FRAME = 2


def card_oracle() -> ScaleOracle:
    """Four frames of 20x20; the cards overlap in the last two, most in frame 2."""
    ids = torch.zeros(4, 20, 20, dtype=torch.uint8)
    depths = torch.full((4, 3, 20, 20), torch.inf, dtype=torch.float64)
    depths[:, 0] = WALL
    depths[:, 1, 5:15, 2:10] = CAR
    depths[:2, 2, 5:15, 12:18] = JUG
    depths[2, 2, 5:15, 7:15] = JUG
    depths[3, 2, 5:15, 9:15] = JUG
    ids[depths[:, 2].isfinite()] = 2
    ids[depths[:, 1].isfinite()] = 1
    return ScaleOracle.from_frames(ids, depths, RANGES)


def trained_network(oracle: ScaleOracle) -> ObjectScaleNetwork:
    generator = torch.Generator().manual_seed(0)
    network = ObjectScaleNetwork(RANGES, generator)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    fit_to_oracle(network, optimizer, oracle, THRESHOLD, 120, generator)
    return network


@pytest.fixture(scope="module")
def worlds() -> Worlds:
    oracle = card_oracle()
    return Worlds(NAMES, RANGES, trained_network(oracle), oracle, THRESHOLD, ())


def scales(*moving: float) -> torch.Tensor:
    return torch.tensor([1.0, *moving], dtype=torch.float64)


def test_a_valid_world_is_valid_and_needs_no_explanation(worlds: Worlds) -> None:
    verdict = worlds.judge(scales(0.8, 1.2))
    assert verdict.valid
    assert verdict.score > 0.9
    assert verdict.allowed
    assert verdict.accuracy == 1.0
    assert verdict.broken is None
    assert worlds.explain(verdict) is None


def test_a_wrong_pair_is_named_with_the_frame_where_it_shows_most(worlds: Worlds) -> None:
    verdict = worlds.judge(scales(1.4, 0.8))  # the car at 4.2, behind the jug at 2.9
    assert not verdict.valid
    assert verdict.allowed is False
    assert verdict.accuracy == pytest.approx(1 - (30 + 10) / 1600)
    assert worlds.explain(verdict) == (
        "jug stands in front of car where the video shows car: worst in frame 2 (30 pixels)"
    )


def test_a_scale_outside_the_ranges_is_judged_and_not_refused(worlds: Worlds) -> None:
    verdict = worlds.judge(scales(0.8, 1.7))
    assert not verdict.valid
    assert verdict.accuracy is None
    assert verdict.allowed is False
    assert worlds.explain(verdict) == "jug is outside the range in which its scale was sought, 0.4 to 1.6"
    assert worlds.strip(scales(0.8, 1.7), 1).allowed == ()
    assert worlds.strip(scales(0.8, 1.7), 2).allowed is not None
    assert worlds.judge(worlds.nearest(scales(0.8, 1.7))).valid
    assert worlds.judge(torch.tensor([1.0, 0.8, 1.6], dtype=torch.float32)).accuracy == 1.0, "rounding is not outside"


def test_vectors_that_are_none_are_refused(worlds: Worlds) -> None:
    for vector in (torch.ones(4), torch.tensor([1.0, -1.0, 1.0]), torch.tensor([1.0, math.nan, 1.0])):
        with pytest.raises(OsnGsError, match="a positive number for each of wall, car, jug"):
            worlds.judge(vector)


def test_a_strips_allowed_interval_ends_where_the_oracle_flips(worlds: Worlds) -> None:
    strip = worlds.strip(scales(0.8, 1.0), 1)
    assert (strip.lo, strip.hi) == (0.4, 1.6)
    ((lo, hi),) = strip.allowed
    assert lo == pytest.approx(0.4)
    assert hi == pytest.approx(JUG / CAR, rel=1e-5)
    assert worlds.judge(scales(hi, 1.0)).allowed
    assert not worlds.judge(scales(hi * 1.0001, 1.0)).allowed
    ((lo, hi),) = worlds.strip(scales(0.8, 1.0), 2).allowed
    assert lo == pytest.approx(0.8 * CAR / JUG, rel=1e-5)
    assert hi == pytest.approx(1.6), "the wall at 6 / 3.6 is behind all of the range"


def test_a_strips_scores_are_the_networks_at_log_spaced_scales(worlds: Worlds) -> None:
    strip = worlds.strip(scales(0.8, 1.0), 1, resolution=5)
    for step, score in enumerate(strip.scores.tolist()):
        verdict = worlds.judge(scales(0.4 * 4 ** (step / 4), 1.0))
        assert score == pytest.approx(verdict.score, abs=1e-5)


def test_a_strip_never_misses_the_interval_it_stands_in() -> None:
    """A card with a wall closely behind and another one closely before: narrower than the strip's steps."""
    ids = torch.tensor([[[1, 2]]], dtype=torch.uint8)
    depths = torch.tensor([[[[3.06, 3.0]], [[3.0, 3.0]], [[3.0, 2.98]]]], dtype=torch.float64)
    oracle = ScaleOracle.from_frames(ids, depths, RANGES)
    tight = Worlds(NAMES, RANGES, ObjectScaleNetwork(RANGES), oracle, 1.0, ())
    vector = scales(1.003, 1.005)
    assert tight.judge(vector).allowed
    ((lo, hi),) = tight.strip(vector, 2, resolution=10).allowed
    assert lo == pytest.approx(1.003, rel=1e-3)
    assert hi == pytest.approx(3.0 / 2.98, rel=1e-3)


def test_a_strip_without_an_oracle_has_scores_alone(worlds: Worlds) -> None:
    alone = Worlds(NAMES, RANGES, worlds._network, None, None, ())
    strip = alone.strip(scales(0.8, 1.0), 1)
    assert strip.allowed is None
    assert torch.equal(strip.scores, worlds.strip(scales(0.8, 1.0), 1).scores)
    verdict = alone.judge(scales(1.4, 0.8))
    assert (verdict.accuracy, verdict.allowed, verdict.broken) == (None, None, None)
    assert alone.explain(verdict).startswith("the network does not call it valid (score 0.0")


@pytest.mark.parametrize(
    "constraints", [FREE, ScaleConstraints(held=(Held(1, 0.9),)), ScaleConstraints(tied=(Tied(2, 1, 0.9),))]
)
def test_samples_and_nearest_ones_are_valid_and_meet_the_constraints(
    worlds: Worlds, constraints: ScaleConstraints
) -> None:
    vectors = [worlds.sample(seed, constraints) for seed in range(8)]
    assert len({tuple(vector.tolist()) for vector in vectors}) == 8, "each seed has its own world"
    vectors.append(worlds.nearest(scales(1.5, 0.5), constraints))
    for vector in vectors:
        assert worlds.judge(vector).valid
        assert all(vector[k] == scale for k, scale in constraints.held)
        assert all(vector[k] == ratio * vector[leader] for k, leader, ratio in constraints.tied)


def test_a_seed_names_a_world(worlds: Worlds) -> None:
    again = Worlds(NAMES, RANGES, worlds._network, worlds.oracle, THRESHOLD, ())
    again.nearest(scales(1.5, 0.5), ScaleConstraints(held=(Held(2, 0.9),)))  # whatever was asked before
    assert torch.equal(again.sample(7), worlds.sample(7))


def test_draws_cover_the_learned_set(worlds: Worlds) -> None:
    drawn = torch.stack([worlds.sample(seed) for seed in range(40)])
    grid = torch.cartesian_prod(torch.ones(1), *[torch.linspace(0.4, 1.6, 60).log().exp()] * 2).double()
    valid = grid[worlds._network.is_valid(grid)]
    for k in (1, 2):
        lo, hi = valid[:, k].log().quantile(torch.tensor([0.05, 0.95], dtype=torch.float64))
        assert drawn[:, k].log().min() < lo + 0.1
        assert drawn[:, k].log().max() > hi - 0.1


def test_the_nearest_world_is_the_projection_onto_the_edge(worlds: Worlds) -> None:
    outside = scales(1.2, 0.8)
    gap = math.log(1.2 / 0.8) - math.log(JUG / CAR)
    expected = scales(1.2 * math.exp(-gap / 2), 0.8 * math.exp(gap / 2))  # both give way alike
    torch.testing.assert_close(worlds.nearest(outside).log(), expected.log(), atol=0.05, rtol=0)
    torch.testing.assert_close(worlds.nearest(scales(0.8, 1.2)), scales(0.8, 1.2))


def test_while_the_network_calls_nothing_valid_worlds_come_from_the_oracle() -> None:
    network = ObjectScaleNetwork(RANGES)
    with torch.no_grad():
        network.layers[-1].bias.fill_(-5.0)
    untaught = Worlds(NAMES, RANGES, network, card_oracle(), THRESHOLD, ())
    assert untaught.judge(untaught.sample(0)).allowed
    assert untaught.judge(untaught.nearest(scales(1.4, 0.8))).allowed
    assert untaught.explain(untaught.judge(untaught.sample(0))) == (
        "the network does not call it valid (score 0.02), though the occlusions allow it"
    )
    with pytest.raises(StarvedError, match="train on"):
        Worlds(NAMES, RANGES, network, None, None, ()).sample(0)


def test_constraints_that_leave_nothing_are_told_by_the_objects_names(worlds: Worlds) -> None:
    behind = ScaleConstraints(held=(Held(1, 1.5), Held(2, 0.5)))
    with pytest.raises(StarvedError, match=r"has car held at 1.5, jug held at 0.5; free one of them"):
        worlds.sample(0, behind)
    with pytest.raises(OsnGsError, match=r"cannot fix jug at scale 9: its range is 0.4 to 1.6"):
        worlds.nearest(scales(1.0, 1.0), ScaleConstraints(held=(Held(2, 9.0),)))


def test_training_on_does_not_change_worlds_that_are_shown() -> None:
    network = ObjectScaleNetwork(RANGES)
    shown = Worlds(NAMES, RANGES, network, None, None, ())
    before = shown.judge(scales(1.0, 1.0)).score
    with torch.no_grad():
        network.layers[-1].bias.fill_(-5.0)
    assert shown.judge(scales(1.0, 1.0)).score == before


def test_many_threads_get_what_one_gets(worlds: Worlds) -> None:
    def ask(seed: int) -> torch.Tensor:
        constraints = ScaleConstraints(held=(Held(1, 0.6 + 0.1 * (seed % 3)),))
        vector = fresh.sample(seed, constraints)
        fresh.strip(vector, 1)
        return fresh.nearest(2 * vector / 2, constraints)

    fresh = Worlds(NAMES, RANGES, worlds._network, worlds.oracle, THRESHOLD, ())
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(ask, range(12)))
    for one, other in zip(together, map(ask, range(12)), strict=True):
        assert torch.equal(one, other)
