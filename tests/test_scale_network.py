"""The scale network learns the oracle's set, and the report on it is honest."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from osn_gs.benchmarks.layer_stacks import LayerStack, boxes_in_a_room
from osn_gs.object_scales import learning
from osn_gs.object_scales.labels import FixedLabels, RelativeLabels
from osn_gs.object_scales.learning import calibration_error, fit_to_oracle, report_set
from osn_gs.object_scales.network import ObjectScaleNetwork
from osn_gs.object_scales.oracle import ScaleOracle
from osn_gs.object_scales.ranges import uniform_scales


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def stack() -> LayerStack:
    return boxes_in_a_room(4, 8, 60, 80, torch.Generator().manual_seed(0), depth_noise=0.003, box_size=1.5)


@pytest.fixture(scope="module")
def oracle(stack: LayerStack) -> ScaleOracle:
    return ScaleOracle.from_frames(stack.object_ids, stack.layer_depths, stack.scale_ranges)


def adam(network: ObjectScaleNetwork) -> torch.optim.Optimizer:
    return torch.optim.Adam(network.parameters(), lr=1e-3)


def half_space_oracle() -> ScaleOracle:
    """Object 1 is seen in front of object 2, both at depth 1 in their own units: valid iff s_1 <= s_2."""
    depths = torch.tensor([torch.inf, 1.0, 1.0])[None, :, None, None].expand(1, 3, 4, 4)
    ranges = torch.tensor([[1.0, 1.0], [0.5, 1.5], [0.5, 1.5]])
    return ScaleOracle.from_frames(torch.ones(1, 4, 4, dtype=torch.uint8), depths, ranges)


def test_an_untrained_network_calls_everything_valid(generator: torch.Generator, oracle: ScaleOracle) -> None:
    network = ObjectScaleNetwork(oracle.scale_ranges, generator)
    scores = network(uniform_scales(oracle.scale_ranges, 100, generator))
    torch.testing.assert_close(scores, torch.full((100,), 0.7310586))
    assert network.is_valid(uniform_scales(oracle.scale_ranges, 100, generator)).all()


def test_the_network_learns_a_half_space(generator: torch.Generator) -> None:
    oracle = half_space_oracle()
    network = ObjectScaleNetwork(oracle.scale_ranges, generator)
    fit_to_oracle(network, adam(network), oracle, 0.5, 150, generator)
    vectors = uniform_scales(oracle.scale_ranges, 10_000, generator)
    agrees = network.is_valid(vectors) == (vectors[:, 1] <= vectors[:, 2])
    assert agrees.double().mean() > 0.98


def test_the_learning_rate_falls_to_nothing_in_a_round_and_is_the_callers_again_after_it(
    generator: torch.Generator, oracle: ScaleOracle
) -> None:
    network = ObjectScaleNetwork(oracle.scale_ranges, generator)
    optimizer = adam(network)
    rates: list[float] = []
    optimizer.register_step_post_hook(lambda stepped, *_: rates.append(stepped.param_groups[0]["lr"]))
    fit_to_oracle(network, optimizer, oracle, 0.98, 20, generator)
    assert rates[:11] == [1e-3] * 11
    assert rates[11:] == pytest.approx([1e-3 * left / 10 for left in range(9, 0, -1)])
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_the_pools_of_a_round_go_on_from_each_other(
    generator: torch.Generator, oracle: ScaleOracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chains that began where an earlier pool began would show the network almost the same vectors again."""
    starts: list[Tensor] = []
    advance_chains = learning.advance_chains

    def noting_where_chains_start(is_valid, scale_ranges, chains, num_steps, generator):
        starts.append(chains)
        return advance_chains(is_valid, scale_ranges, chains, num_steps, generator)

    monkeypatch.setattr(learning, "advance_chains", noting_where_chains_start)
    monkeypatch.setattr(learning, "STEPS_PER_POOL", 1)
    monkeypatch.setattr(learning, "TRAINING_POOL", 10_000)
    network = ObjectScaleNetwork(oracle.scale_ranges, generator)
    fit_to_oracle(network, adam(network), oracle, 0.98, 3, generator)
    first_chains = torch.stack([chains[0] for chains in starts])
    assert len(first_chains) > 10
    assert len(first_chains.unique(dim=0)) == len(first_chains)


def test_the_true_scales_are_in_the_learned_set_which_is_like_the_oracles(
    generator: torch.Generator, stack: LayerStack, oracle: ScaleOracle
) -> None:
    threshold = RelativeLabels().accuracy_threshold(oracle, generator)
    network = ObjectScaleNetwork(oracle.scale_ranges, generator)
    fit = fit_to_oracle(network, adam(network), oracle, threshold, 300, generator)
    assert fit.losses[-1] < fit.losses[0] / 3
    report = report_set(network, oracle, threshold, generator, num_draws=40_000)
    assert report.iou > 0.8
    assert report.calibration_error < 0.05
    assert network.is_valid(stack.true_scales[None]).all()


@pytest.mark.slow
def test_two_rounds_learn_a_set_of_half_a_percent_of_the_box_to_iou_095() -> None:
    generator = torch.Generator().manual_seed(0)
    stack = boxes_in_a_room(4, 16, 90, 120, generator, depth_noise=0.003, box_size=2.0)
    oracle = ScaleOracle.from_frames(stack.object_ids, stack.layer_depths, stack.scale_ranges)
    threshold = RelativeLabels(tolerance=0.001).accuracy_threshold(oracle, generator)
    network = ObjectScaleNetwork(oracle.scale_ranges, generator)
    optimizer = adam(network)
    for _ in range(2):
        fit_to_oracle(network, optimizer, oracle, threshold, 1_000, generator)
    report = report_set(network, oracle, threshold, generator)
    assert 0.002 < report.oracle_volume < 0.01
    assert report.iou > 0.95


def test_the_report_agrees_with_counting_uniform_draws(generator: torch.Generator, oracle: ScaleOracle) -> None:
    network = ObjectScaleNetwork(oracle.scale_ranges, generator)
    fit_to_oracle(network, adam(network), oracle, 0.98, 60, generator)
    report = report_set(network, oracle, 0.98, generator)
    vectors = uniform_scales(oracle.scale_ranges, 300_000, generator)
    valid, called_valid = oracle.accuracy(vectors) >= 0.98, network.is_valid(vectors)
    both, either = (valid & called_valid).sum(), (valid | called_valid).sum()
    assert report.iou == pytest.approx(float(both / either), abs=0.03)
    assert report.precision == pytest.approx(float(both / called_valid.sum()), abs=0.03)
    assert report.recall == pytest.approx(float(both / valid.sum()), abs=0.03)
    assert report.learned_volume == pytest.approx(float(called_valid.double().mean()), rel=0.1)


def test_a_network_that_calls_nothing_valid_is_reported_in_plain_zeros(
    generator: torch.Generator, oracle: ScaleOracle
) -> None:
    network = ObjectScaleNetwork(oracle.scale_ranges, generator)
    torch.nn.init.constant_(network.layers[-1].bias, -5.0)
    report = report_set(network, oracle, 0.99, generator, num_draws=10_000)
    assert (report.iou, report.precision, report.recall, report.learned_volume) == (0, 0, 0, 0)


def test_a_resumed_round_takes_the_same_steps(oracle: ScaleOracle) -> None:
    def train(resume_between: bool) -> list[Tensor]:
        generator = torch.Generator().manual_seed(3)
        network = ObjectScaleNetwork(oracle.scale_ranges, generator)
        optimizer = adam(network)
        fit_to_oracle(network, optimizer, oracle, 0.98, 20, generator)
        if resume_between:
            saved = copy.deepcopy((network.state_dict(), optimizer.state_dict(), generator.get_state()))
            network = ObjectScaleNetwork(oracle.scale_ranges)
            optimizer = adam(network)
            generator = torch.Generator()
            network.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
            generator.set_state(saved[2])
        fit_to_oracle(network, optimizer, oracle, 0.98, 20, generator)
        return list(network.parameters())

    for straight, resumed in zip(train(False), train(True), strict=True):
        assert torch.equal(straight, resumed)


def test_calibration_error_is_the_gap_between_score_and_share() -> None:
    scores = torch.tensor([0.85, 0.85, 0.85, 0.85, 0.05, 0.05], dtype=torch.float64)
    valid = torch.tensor([True, True, True, False, False, False])
    assert calibration_error(scores, valid) == pytest.approx((4 * (0.85 - 0.75) + 2 * 0.05) / 6)


def test_relative_labels_count_down_from_the_best_reachable_accuracy(generator: torch.Generator) -> None:
    stack = boxes_in_a_room(4, 4, 45, 60, generator)
    stack.layer_depths[:, 2] = torch.inf  # box 2 was never reconstructed: its pixels are out of reach
    oracle = ScaleOracle.from_frames(stack.object_ids, stack.layer_depths, stack.scale_ranges)
    best = 1 - oracle.uncovered_pixels[2] / oracle.num_pixels
    assert best < 0.999
    threshold = RelativeLabels(tolerance=0.004).accuracy_threshold(oracle, generator)
    assert threshold == pytest.approx(best - 0.004, abs=3e-4)


def test_fixed_labels_fall_back_on_the_best_share_of_draws(generator: torch.Generator, oracle: ScaleOracle) -> None:
    rule = FixedLabels(threshold=0.9999999, least_share=0.03)
    accuracies = oracle.accuracy(uniform_scales(oracle.scale_ranges, 50_000, generator))
    share = (accuracies >= rule.accuracy_threshold(oracle, generator)).double().mean().item()
    assert share == pytest.approx(0.03, abs=0.01)
    assert FixedLabels(threshold=0.5).accuracy_threshold(oracle, generator) == 0.5
