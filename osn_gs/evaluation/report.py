"""One split's scores over the configurations of a run: what `tools/evaluate.py` writes and training ends with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from osn_gs.data.scene_data import HeldOutView, SceneData
from osn_gs.evaluation.scores import released_selection, scale_mse, score_kind, spread
from osn_gs.evaluation.views import PerceptualMetric, Pixels, score_views
from osn_gs.object_scales.ranges import uniform_scales
from osn_gs.scene.scene import Scene

CONTACT, TRUE_SCALES, MIDDLE = "contact", "true_scales", "middle"
RELEASED, RANDOM = "released", "random"

# The value of a score by statistic: best, mean, ..., contact, ...; None where it is no finite number, such as the PSNR
# of pixels that are all exactly right.
ScoreStatistics = dict[str, float | None]


@dataclass(frozen=True)
class Candidates:
    """The configurations that a run is judged by.

    `samples` are drawn from the learned set. `named` are single ones: contact, the true scales where they are known,
    and as a baseline the middle of the initial ranges, which is what a method with a single answer has to guess.
    `random` are drawn from the whole initial box, as if nothing had been learned of the scales. `released` are the rows
    of `samples` that the released code picks by the truth.
    """

    samples: Float[Tensor, "m k"]
    named: dict[str, Float[Tensor, "k"]] = field(default_factory=dict)
    random: Float[Tensor, "n k"] | None = None
    released: Int[Tensor, "r"] | None = None

    @property
    def all(self) -> Float[Tensor, "c k"]:
        """Every one of them: samples, named, random."""
        named = [scales[None] for scales in self.named.values()]
        random = [] if self.random is None else [self.random]
        return torch.cat([part.double() for part in (self.samples, *named, *random)])


def candidates_of(
    data: SceneData,
    contact: Float[Tensor, "k"],
    samples: Float[Tensor, "m k"],
    baselines: bool,
    generator: torch.Generator,
) -> Candidates:
    """Samples and the contact configuration, with the true scales where they are known and baselines on demand."""
    named, released, random = {CONTACT: contact}, None, None
    if data.truth is not None:
        named[TRUE_SCALES] = data.truth.object_scales
        released = released_selection(samples, data.truth.object_scales, generator)
    if baselines:
        named[MIDDLE] = torch.ones(data.num_objects)  # the units of every object make the middle of its range 1
        random = uniform_scales(data.scale_ranges, len(samples), generator)
    return Candidates(samples, named, random, released)


def report_scales(data: SceneData, candidates: Candidates) -> dict[str, ScoreStatistics]:
    """Scores of the scale vectors themselves, by name; empty where the truth is not known."""
    if data.truth is None:
        return {}
    errors = scale_mse(candidates.all, data.truth.object_scales)
    return {"scale_mse": _statistics("scale_mse", errors, candidates)}


def report_views(
    scene: Scene,
    views: Sequence[HeldOutView],
    candidates: Candidates,
    perceptual: Sequence[PerceptualMetric] = (),
    on_view: Callable[[], None] = lambda: None,
) -> dict[Pixels, dict[str, ScoreStatistics]]:
    """Every score of the views, by pixels that count and by name, as statistics over the candidates.

    Statistics: `best`, `mean`, `median`, `worst` of the samples; `released`, the best of those that the released code
    picks; each named candidate; `random_best` to `random_worst`.
    """
    scored = score_views(scene, views, candidates.all, perceptual, on_view)
    return {
        pixels: {
            name: _statistics(name, values, candidates)
            for name, values in scores.by_configuration(scene.object_names).items()
        }
        for pixels, scores in scored.items()
    }


def _statistics(name: str, values: Float[Tensor, "c"], candidates: Candidates) -> ScoreStatistics:
    higher_is_better = score_kind(name).higher_is_better
    num_samples, num_named = len(candidates.samples), len(candidates.named)
    samples, rest = values[:num_samples], values[num_samples:]
    statistics = asdict(spread(samples, higher_is_better))
    if candidates.released is not None:
        statistics[RELEASED] = spread(samples[candidates.released], higher_is_better).best
    statistics |= dict(zip(candidates.named, rest[:num_named].tolist(), strict=True))
    if candidates.random is not None:
        of_random = asdict(spread(rest[num_named:], higher_is_better))
        statistics |= {f"{RANDOM}_{statistic}": value for statistic, value in of_random.items()}
    return {statistic: value if math.isfinite(value) else None for statistic, value in statistics.items()}
