"""Samplers against sets whose volume and marginals are known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from osn_gs.benchmarks.layer_stacks import boxes_in_a_room
from osn_gs.errors import OsnGsError
from osn_gs.object_scales.nested_sets import best_vector, draw_nested_sets, find_valid_start, sample_valid
from osn_gs.object_scales.oracle import ScaleOracle
from osn_gs.object_scales.ranges import fix_scales
from osn_gs.object_scales.sampling import (
    StarvedError,
    farthest_point_subset,
    hit_and_run,
    nearest_valid,
    rejection_sample,
)

NUM_OBJECTS = 9
LOG_EDGE = 1.5
ORDERED_RANGES = torch.tensor(
    [[1.0, 1.0]] + [[math.exp(-LOG_EDGE / 2), math.exp(LOG_EDGE / 2)]] * (NUM_OBJECTS - 1), dtype=torch.float64
)


def order_quality(object_scales: Float[Tensor, "n k"]) -> Float[Tensor, "n"]:
    """Smallest step of log s_1 < log s_2 < ... : positive in one 8!-th of the box, a polytope of volume 1 / 8!.

    Uniform in it, log s_k is the k-th of eight sorted uniform numbers, so its marginal is Beta(k, 9 - k).
    """
    return object_scales[:, 1:].log().diff(dim=1).amin(dim=1)


def is_ordered(object_scales: Float[Tensor, "n k"]) -> Bool[Tensor, "n"]:
    return order_quality(object_scales) > 0


def unit_positions(object_scales: Float[Tensor, "n k"]) -> Float[Tensor, "n m"]:
    """The moving objects' log-scales as shares of their range."""
    return object_scales[:, 1:].log() / LOG_EDGE + 0.5


def assert_order_statistics(positions: Float[Tensor, "n m"]) -> None:
    """Each column follows its Beta marginal (Kolmogorov-Smirnov distance, wide enough for correlated chains)."""
    num_movers = positions.shape[1]
    for k in range(num_movers):
        distance = stats.kstest(positions[:, k].numpy(), stats.beta(k + 1, num_movers - k).cdf).statistic
        assert distance < 0.06, f"object {k + 1}: distance {distance:.3f}"


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_chains_cover_the_polytope_though_all_start_in_one_corner(generator: torch.Generator) -> None:
    corner = torch.linspace(0.01, 0.08, NUM_OBJECTS - 1, dtype=torch.float64)
    start = torch.cat([torch.ones(1, dtype=torch.float64), ((corner - 0.5) * LOG_EDGE).exp()]).repeat(2_000, 1)
    vectors = hit_and_run(is_ordered, ORDERED_RANGES, start, 2_000, generator, burn_in=300)
    assert is_ordered(vectors).all()
    assert (vectors[:, 0] == 1).all()
    assert_order_statistics(unit_positions(vectors))


def test_a_search_from_nothing_finds_starts_all_over_the_polytope(generator: torch.Generator) -> None:
    start = find_valid_start(order_quality, 1e-9, ORDERED_RANGES, 1_000, generator)
    assert len(start) == 1_000
    assert_order_statistics(unit_positions(hit_and_run(is_ordered, ORDERED_RANGES, start, 1_000, generator)))


def test_few_chains_give_many_samples_that_still_cover_the_polytope(generator: torch.Generator) -> None:
    vectors = sample_valid(order_quality, 1e-9, ORDERED_RANGES, 1_000, generator)
    assert len(vectors.unique(dim=0)) == 1_000
    assert_order_statistics(unit_positions(vectors))


def test_nested_sets_know_their_volumes(generator: torch.Generator) -> None:
    nested = draw_nested_sets(order_quality, ORDERED_RANGES, generator, last_level=0.0, num_vectors=4_096)
    assert nested.levels[-1] == 0.0
    assert nested.log_volumes[-1] == pytest.approx(-math.lgamma(NUM_OBJECTS), abs=0.5)


def test_climbing_finds_the_best_vector(generator: torch.Generator) -> None:
    _, best = best_vector(order_quality, ORDERED_RANGES, generator)
    assert best == pytest.approx(LOG_EDGE / (NUM_OBJECTS - 2), rel=0.1)


def test_fixed_scales_stay_and_the_others_fill_what_is_left(generator: torch.Generator) -> None:
    ranges = fix_scales(ORDERED_RANGES, {4: 1.0})
    start = find_valid_start(order_quality, 1e-9, ranges, 1_000, generator)
    vectors = hit_and_run(is_ordered, ranges, start, 1_000, generator)
    assert (vectors[:, 4] == 1.0).all()
    positions = unit_positions(vectors)
    assert_order_statistics(2 * positions[:, :3])
    assert_order_statistics(2 * positions[:, 4:] - 1)


def test_islands_keep_the_share_of_chains_that_started_in_them(generator: torch.Generator) -> None:
    ranges = torch.tensor([[1.0, 1.0], [0.5, 2.0]])

    def in_two_islands(object_scales: Float[Tensor, "n k"]) -> Bool[Tensor, "n"]:
        position = object_scales[:, 1].log() / math.log(2)
        return (position.abs() > 0.4) & (position.abs() < 0.5)

    start = torch.tensor([[1.0, 2**0.45], [1.0, 2**-0.45]], dtype=torch.float64).repeat(500, 1)
    vectors = hit_and_run(in_two_islands, ranges, start, 1_000, generator)
    assert in_two_islands(vectors).all()
    assert (vectors[:, 1] > 1).double().mean().item() == pytest.approx(0.5, abs=0.1)


def test_chains_agree_with_rejection_on_a_set_of_occlusions(generator: torch.Generator) -> None:
    stack = boxes_in_a_room(4, 6, 45, 60, generator, depth_noise=0.003, box_size=1.5)
    oracle = ScaleOracle.from_frames(stack.object_ids, stack.layer_depths, stack.scale_ranges)

    def is_valid(object_scales: Float[Tensor, "n k"]) -> Bool[Tensor, "n"]:
        return oracle.accuracy(object_scales) >= 0.99

    independent, acceptance = rejection_sample(is_valid, oracle.scale_ranges, 2_000, generator)
    start = find_valid_start(oracle.accuracy, 0.99, oracle.scale_ranges, 2_000, generator)
    chained = hit_and_run(is_valid, oracle.scale_ranges, start, 2_000, generator)
    assert 0.001 < acceptance < 0.5
    for k in range(1, 4):
        assert stats.ks_2samp(independent[:, k].numpy(), chained[:, k].numpy()).statistic < 0.06


def test_the_same_generator_state_gives_the_same_samples() -> None:
    def draw() -> Tensor:
        generator = torch.Generator().manual_seed(5)
        start = find_valid_start(order_quality, 1e-9, ORDERED_RANGES, 64, generator)
        return hit_and_run(is_ordered, ORDERED_RANGES, start, 200, generator, burn_in=5, steps_between=2)

    first = draw()
    assert first.shape == (200, NUM_OBJECTS)
    assert torch.equal(first, draw())


def test_rejection_reports_its_acceptance(generator: torch.Generator) -> None:
    ranges = ORDERED_RANGES[:3]
    vectors, acceptance = rejection_sample(is_ordered, ranges, 5_000, generator)
    assert is_ordered(vectors).all()
    assert len(vectors) == 5_000
    assert acceptance == pytest.approx(0.5, abs=0.02)


def test_starved_rejection_names_the_sampler_that_does_not_starve(generator: torch.Generator) -> None:
    with pytest.raises(StarvedError, match="use hit_and_run"):
        rejection_sample(is_ordered, ORDERED_RANGES, 1_000, generator, max_draws=50_000)


def test_chains_refuse_to_start_outside_the_set(generator: torch.Generator) -> None:
    with pytest.raises(OsnGsError, match="find_valid_start"):
        hit_and_run(is_ordered, ORDERED_RANGES, torch.ones(4, NUM_OBJECTS), 4, generator)


def test_a_quality_that_cannot_be_reached_is_said(generator: torch.Generator) -> None:
    with pytest.raises(StarvedError, match="no scale vector of quality >= 2"):
        find_valid_start(order_quality, 2.0, ORDERED_RANGES, 256, generator)


def test_farthest_points_keep_apart(generator: torch.Generator) -> None:
    vectors = torch.rand(500, 3, generator=generator, dtype=torch.float64) + 0.5
    picks = farthest_point_subset(vectors, 10)
    assert len(set(picks.tolist())) == 10

    def closest_pair(indices: Tensor) -> float:
        return float(torch.pdist(vectors[indices].log()).min())

    at_random = [closest_pair(torch.randperm(500, generator=generator)[:10]) for _ in range(50)]
    assert closest_pair(picks) > max(at_random)
    assert len(farthest_point_subset(vectors[:4], 10)) == 4


def test_nearest_valid_is_the_projection_onto_a_half_space(generator: torch.Generator) -> None:
    ranges = ORDERED_RANGES[:3]
    samples, _ = rejection_sample(is_ordered, ranges, 4_000, generator)
    outside = torch.tensor([1.0, math.exp(0.3), math.exp(-0.1)], dtype=torch.float64)
    nearest = nearest_valid(outside, is_ordered, ranges, samples)
    torch.testing.assert_close(nearest[1:].log(), torch.full((2,), 0.1, dtype=torch.float64), atol=0.02, rtol=0)
    assert is_ordered(nearest[None])
    assert torch.equal(nearest_valid(samples[0], is_ordered, ranges, samples), samples[0])
