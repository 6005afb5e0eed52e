"""The contact configuration finds where boxes stand, and bounds say what the video can and cannot tell."""

from __future__ import annotations

import pytest
import torch

from osn_gs.benchmarks.layer_stacks import LayerStack, boxes_in_a_room
from osn_gs.object_scales.contact import contact_configuration, largest_without_sinking, rise_onset
from osn_gs.object_scales.labels import RelativeLabels
from osn_gs.object_scales.oracle import ScaleOracle
from osn_gs.object_scales.valid_bounds import valid_bounds


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def oracle_of(stack: LayerStack) -> ScaleOracle:
    return ScaleOracle.from_frames(stack.object_ids, stack.layer_depths, stack.scale_ranges)


@pytest.mark.parametrize(("depth_noise", "largest_error"), [(0.0, 0.005), (0.003, 0.01), (0.01, 0.04)])
@pytest.mark.parametrize("seed", range(3))
def test_boxes_on_the_floor_are_found_at_their_true_scale(depth_noise: float, largest_error: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    stack = boxes_in_a_room(4, 8, 90, 120, generator, depth_noise=depth_noise, box_size=1.5)
    oracle = oracle_of(stack)
    threshold = RelativeLabels().accuracy_threshold(oracle, generator)
    contact = contact_configuration(oracle, threshold, generator)
    assert (contact / stack.true_scales - 1).abs().max() < largest_error
    assert oracle.accuracy(contact[None]).item() >= threshold


def test_contact_is_nearer_the_truth_than_the_edge_of_the_labelled_set(generator: torch.Generator) -> None:
    stack = boxes_in_a_room(4, 8, 60, 80, generator, depth_noise=0.003, box_size=1.5)
    oracle = oracle_of(stack)
    threshold = RelativeLabels().accuracy_threshold(oracle, generator)
    contact = contact_configuration(oracle, threshold, generator)
    for bounds in valid_bounds(oracle, threshold, generator):
        true_scale = stack.true_scales[bounds.object].item()
        assert abs(contact[bounds.object].item() - true_scale) < abs(bounds.hi - true_scale)


def test_a_few_wrong_pixels_do_not_move_the_onset(generator: torch.Generator) -> None:
    rise = 0.2 + torch.rand(5_000, generator=generator, dtype=torch.float64)
    stray = -torch.rand(50, generator=generator, dtype=torch.float64)
    assert rise_onset(rise.sort().values, 75, 300) == pytest.approx(0.2, abs=0.01)
    assert rise_onset(torch.cat([rise, stray]).sort().values, 75, 300) == pytest.approx(0.2, abs=0.02)


def test_crisp_constraints_have_one_largest_vector(generator: torch.Generator) -> None:
    ranges = torch.tensor([[1.0, 1.0]] + [[0.05, 20.0]] * 4, dtype=torch.float64)
    onsets = torch.rand(5, 5, generator=generator, dtype=torch.float64)
    onsets[2, 0] = onsets[3, 0] = torch.inf  # these two stand on other objects only
    largest = largest_without_sinking(onsets, ranges).log()
    slack = onsets + largest[None, :] - largest[:, None]
    assert (slack[1:] > -1e-12).all()
    assert (slack[1:].amin(dim=1).abs() < 1e-12).all()  # nobody can grow: each is held by someone


def test_objects_that_each_want_to_be_in_front_are_held_by_the_background_alone() -> None:
    ranges = torch.tensor([[1.0, 1.0], [0.1, 2.0], [0.1, 2.0]], dtype=torch.float64)
    onsets = torch.tensor([[0.0, 9, 9], [0.1, 0, -0.2], [0.3, -0.1, 0]], dtype=torch.float64)
    torch.testing.assert_close(largest_without_sinking(onsets, ranges), torch.tensor([0, 0.1, 0.3]).double().exp())


def test_a_free_object_takes_the_end_of_its_range() -> None:
    ranges = torch.tensor([[1.0, 1.0], [0.5, 1.5]], dtype=torch.float64)
    nothing_shown = torch.full((2, 2), torch.inf, dtype=torch.float64)
    torch.testing.assert_close(largest_without_sinking(nothing_shown, ranges), ranges[:, 1])


def test_an_unoccluded_object_is_bounded_by_near_and_far_alone(generator: torch.Generator) -> None:
    stack = boxes_in_a_room(3, 4, 60, 80, generator, box_size=1.5)
    stack.layer_depths[:, 0][stack.object_ids == 2] = torch.inf  # nothing was ever seen behind box 2
    stack.layer_depths[:, 1][stack.object_ids == 2] = torch.inf
    stack.layer_depths[:, 2][stack.object_ids != 2] = torch.inf
    standing, floating = valid_bounds(oracle_of(stack), 0.999, generator)
    assert standing.hi_bounded_by == "occlusion"
    assert standing.hi == pytest.approx(stack.true_scales[1].item(), rel=0.1)
    assert (floating.lo_bounded_by, floating.hi_bounded_by) == ("near/far", "near/far")
    assert (floating.lo, floating.hi) == pytest.approx(tuple(stack.scale_ranges[2].tolist()))
