"""The learned set of object scales against a synthetic scene's truth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from osn_gs.data.scene_data import SceneData
from osn_gs.data.true_layers import true_layer_depths
from osn_gs.object_scales.labels import LabelRule
from osn_gs.object_scales.learning import SetReport, report_set
from osn_gs.object_scales.network import ObjectScaleNetwork
from osn_gs.object_scales.oracle import ScaleOracle


@dataclass(frozen=True)
class TruthReport:
    """A synthetic scene's true object scales against what was learned.

    `true_score` is the network's score of the true scales, `true_oracle_accuracy` their pixel accuracy on the
    reconstructed layers (None where they lie outside the initial ranges) and `accuracy_threshold` the one from which
    on a vector counts as valid there.
    `contact_error` is |contact scale / true scale - 1| per object, `nearest_sample_error` the same of the sampled
    configuration nearest to the truth (in log-scale): how closely the samples cover it. `true_depth_set` compares the
    learned set with the oracle on true depth, where the scene has it.
    """

    object_scales: tuple[float, ...]
    true_score: float
    true_in_learned_set: bool
    true_oracle_accuracy: float | None
    accuracy_threshold: float
    contact_error: tuple[float, ...]
    nearest_sample_error: tuple[float, ...]
    true_depth_set: SetReport | None


@torch.no_grad()
def truth_report(
    data: SceneData,
    network: ObjectScaleNetwork,
    oracle: ScaleOracle,
    rule: LabelRule,
    accuracy_threshold: float,
    contact: Float[Tensor, "k"],
    samples: Float[Tensor, "m k"],
    generator: torch.Generator,
) -> TruthReport | None:
    """Compare with the truth; None for a scene without.

    `oracle` is the one on the reconstructed layers; `rule` says what the one on true depth calls valid.
    """
    if data.truth is None:
        return None
    true_scales = data.truth.object_scales.double()
    lo, hi = data.scale_ranges.double().unbind(-1)
    in_ranges = bool(((true_scales >= lo) & (true_scales <= hi)).all())
    true_depth_set = None
    layer_depths = true_layer_depths(data)
    if layer_depths is not None:
        true_oracle = ScaleOracle.from_frames(data.object_ids, layer_depths, data.scale_ranges)
        true_depth_set = report_set(network, true_oracle, rule.accuracy_threshold(true_oracle, generator), generator)
    log_distances = (samples.double().log() - true_scales.log()).norm(dim=1)
    nearest = samples[log_distances.argmin()]
    return TruthReport(
        object_scales=tuple(true_scales.tolist()),
        true_score=float(network(true_scales[None])),
        true_in_learned_set=in_ranges and bool(network.is_valid(true_scales[None])),
        true_oracle_accuracy=float(oracle.accuracy(true_scales[None])) if in_ranges else None,
        accuracy_threshold=accuracy_threshold,
        contact_error=tuple((contact / true_scales - 1).abs().tolist()),
        nearest_sample_error=tuple((nearest / true_scales - 1).abs().tolist()),
        true_depth_set=true_depth_set,
    )
