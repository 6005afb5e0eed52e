"""From pixel accuracy to valid or not: the paper's label rule and ours."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from osn_gs.object_scales.nested_sets import best_vector
from osn_gs.object_scales.oracle import ScaleOracle
from osn_gs.object_scales.ranges import uniform_scales


@dataclass(frozen=True)
class RelativeLabels:
    """Valid where accuracy >= best reachable accuracy - `tolerance`.

    Differs from OSN: a fixed threshold is touchy near the best reachable accuracy, which is below 1 even with true
    depth (0.995, METHOD 2.3b) and moves as the reconstruction improves.
    """

    tolerance: float = 0.005

    def accuracy_threshold(self, oracle: ScaleOracle, generator: torch.Generator) -> float:
        """The accuracy from which on a vector is labelled valid."""
        _, best = best_vector(oracle.accuracy, oracle.scale_ranges, generator)
        return best - self.tolerance


@dataclass(frozen=True)
class FixedLabels:
    """The paper's rule: valid where accuracy > `threshold`; where too few of the draws are, the best share of them.

    Released code: `threshold` 0.95 to 0.995 and `least_share` 0.005 to 0.05 by scene and round, over 4,096 draws.
    """

    threshold: float = 0.99
    least_share: float = 0.01
    num_draws: int = 4_096

    def accuracy_threshold(self, oracle: ScaleOracle, generator: torch.Generator) -> float:
        """The accuracy from which on a vector is labelled valid."""
        accuracies = oracle.accuracy(uniform_scales(oracle.scale_ranges, self.num_draws, generator))
        share_accuracy = float(torch.quantile(accuracies, 1 - self.least_share))
        return min(self.threshold, share_accuracy)


LabelRule = RelativeLabels | FixedLabels
