"""The final numbers of a run: pictures against the truth, the learned scale set against the oracles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from osn_gs.data.scene_data import HeldOutView, SceneData
from osn_gs.evaluation.views import score_views, summarize
from osn_gs.object_scales.labels import LabelRule
from osn_gs.object_scales.learning import SetReport, report_set
from osn_gs.object_scales.network import ObjectScaleNetwork
from osn_gs.object_scales.oracle import ScaleOracle
from osn_gs.scene.scene import Scene

TRAIN_SPLIT = "train"
NUM_TRAIN_SAMPLES = 2


@dataclass(frozen=True)
class TruthReport:
    """A synthetic scene's true object scales against what was learned.

    `true_score` is the network's score of the true scales, `true_oracle_accuracy` their pixel accuracy on the
    reconstructed layers (None where they lie outside the initial ranges) and `accuracy_threshold` the one from which
    on a vector counts as valid there.
    `contact_error` is |contact scale / true scale - 1| per object. `true_depth_set` compares the learned set with
    the oracle on true depth, where the scene has it.
    """

    object_scales: tuple[float, ...]
    true_score: float
    true_in_learned_set: bool
    true_oracle_accuracy: float | None
    accuracy_threshold: float
    contact_error: tuple[float, ...]
    true_depth_set: SetReport | None


@torch.no_grad()
def truth_report(
    data: SceneData,
    network: ObjectScaleNetwork,
    oracle: ScaleOracle,
    rule: LabelRule,
    accuracy_threshold: float,
    contact: Float[Tensor, "k"],
    generator: torch.Generator,
) -> TruthReport | None:
    """Compare with the truth; None for a scene without."""
    if data.truth is None:
        return None
    true_scales = data.truth.object_scales.double()
    lo, hi = data.scale_ranges.double().unbind(-1)
    in_ranges = bool(((true_scales >= lo) & (true_scales <= hi)).all())
    true_depth_set = None
    if data.truth.layer_depths is not None:
        true_oracle = ScaleOracle.from_frames(data.object_ids, data.truth.layer_depths, data.scale_ranges)
        true_depth_set = report_set(network, true_oracle, rule.accuracy_threshold(true_oracle, generator), generator)
    return TruthReport(
        object_scales=tuple(true_scales.tolist()),
        true_score=float(network(true_scales[None])),
        true_in_learned_set=in_ranges and bool(network.is_valid(true_scales[None])),
        true_oracle_accuracy=float(oracle.accuracy(true_scales[None])) if in_ranges else None,
        accuracy_threshold=accuracy_threshold,
        contact_error=tuple((contact / true_scales - 1).abs().tolist()),
        true_depth_set=true_depth_set,
    )


def picture_statistics(
    scene: Scene,
    data: SceneData,
    contact: Float[Tensor, "k"],
    samples: Float[Tensor, "m k"],
    on_view: Callable[[], None],
) -> dict[str, Any]:
    """Scores of the training views and every held-out split, as plain values by split and score.

    Each score has best, mean, median and worst over the sampled configurations, and the contact configuration's own.
    Training views look the same under all valid configurations, so a few samples do there.
    """
    views = {TRAIN_SPLIT: train_views(scene, data), **data.held_out}
    statistics = {}
    for split, views_of_split in views.items():
        shown = samples[:NUM_TRAIN_SAMPLES] if split == TRAIN_SPLIT else samples
        scores = score_views(scene, views_of_split, torch.cat([contact[None], shown]), on_view)
        of_contact = summarize(scores.of_configurations(slice(0, 1)))
        of_samples = summarize(scores.of_configurations(slice(1, None)))
        statistics[split] = {
            name: {**asdict(spread), "contact": of_contact[name].mean} for name, spread in of_samples.items()
        }
    return statistics


def train_views(scene: Scene, data: SceneData) -> tuple[HeldOutView, ...]:
    """The training frames as views to be scored."""
    return tuple(
        HeldOutView(
            name=f"train {t}",
            time_step=t,
            cam_from_background=scene.cam_from_world(t),
            intrinsics=data.intrinsics,
            image=data.images[t],
            object_ids=data.object_ids[t],
        )
        for t in range(data.num_frames)
    )
