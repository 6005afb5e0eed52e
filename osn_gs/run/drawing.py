"""Drawing configurations from the learned set, free or with some scales known."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from osn_gs.export.configurations import Configuration, ConfigurationSet, Draw, ObjectInterval
from osn_gs.object_scales.constraints import FREE, ScaleConstraints, reduce_scales, sample_constrained
from osn_gs.object_scales.contact import contact_configuration
from osn_gs.object_scales.nested_sets import ValidSet, nested_sets_up_to, sample_first_found
from osn_gs.object_scales.network import ObjectScaleNetwork
from osn_gs.object_scales.oracle import ScaleOracle
from osn_gs.object_scales.ranges import uniform_scales
from osn_gs.object_scales.sampling import StarvedError, farthest_point_subset
from osn_gs.object_scales.valid_bounds import valid_bounds

CONTACT_NAME = "contact"
DRAWS_PER_PICK = 20  # of which a diverse draw picks one
UNIFORM_DRAWS, ENOUGH_HITS = 200_000, 100


@dataclass(frozen=True)
class LearnedScales:
    """What a run knows about its object scales; `oracle` and `accuracy_threshold` are None where the video is gone."""

    object_names: tuple[str, ...]
    scale_ranges: Float[Tensor, "k 2"]
    network: ObjectScaleNetwork
    oracle: ScaleOracle | None
    accuracy_threshold: float | None

    @property
    def valid_sets(self) -> tuple[ValidSet, ...]:
        """The network's set, and the oracle's to stand in while the network calls nothing valid."""
        learned = ValidSet(self.network.logit, 0.0)
        if self.oracle is None or self.accuracy_threshold is None:
            return (learned,)
        return learned, ValidSet(self.oracle.accuracy, self.accuracy_threshold)


@torch.no_grad()
def draw_configurations(
    learned: LearnedScales,
    count: int,
    generator: torch.Generator,
    constraints: ScaleConstraints = FREE,
    diverse: bool = False,
) -> ConfigurationSet:
    """The contact configuration (where nothing is held and there is an oracle), then `count` draws of the set.

    Draws are uniform in log-scale over the vectors that meet the constraints, or with `diverse` far from each other.
    Raises `OsnGsError` for constraints that nothing valid meets.
    """
    draws = count * DRAWS_PER_PICK if diverse else count
    learned_set, *_ = valid_sets = learned.valid_sets
    valid_set, samples = sample_first_found(valid_sets, learned.scale_ranges, draws, generator)
    if constraints != FREE:
        samples = sample_constrained(
            valid_set.quality, valid_set.least_quality, learned.scale_ranges, constraints, draws, generator
        )
    if diverse:
        samples = samples[farthest_point_subset(samples, count)]
    names = [f"configuration_{index:03d}" for index in range(len(samples))]
    oracle, threshold, bounds = learned.oracle, learned.accuracy_threshold, ()
    if oracle is not None and threshold is not None:
        with suppress(StarvedError):  # scales that only the network calls valid: the oracle has no interval for them
            bounds = valid_bounds(oracle, threshold, generator, constraints)
        if constraints == FREE:
            samples = torch.cat([contact_configuration(oracle, threshold, generator)[None].to(samples), samples])
            names = [CONTACT_NAME, *names]
    scores = learned.network(samples).tolist()
    accuracies = [None] * len(samples) if oracle is None else oracle.accuracy(samples).tolist()
    return ConfigurationSet(
        object_names=learned.object_names,
        intervals=tuple(ObjectInterval.from_bounds(bound, learned.object_names) for bound in bounds),
        configurations=tuple(
            Configuration(name, tuple(vector), score, accuracy)
            for name, vector, score, accuracy in zip(names, samples.tolist(), scores, accuracies, strict=True)
        ),
        drawn=Draw("learned" if valid_set is learned_set else "oracle", diverse),
    )


@torch.no_grad()
def set_volume(learned: LearnedScales, constraints: ScaleConstraints, generator: torch.Generator) -> float:
    """The learned set's share of the initial box, of the part of it that meets the constraints; log-scale measure.

    The share of uniform draws that are valid, to some 10 % of it; of a set too small for that an estimate by nested
    sets, to some 30 %.
    """
    reduced = reduce_scales(learned.scale_ranges, constraints)

    def logit(scales: Float[Tensor, "n k"]) -> Float[Tensor, "n"]:
        return learned.network.logit(reduced.expand(scales))

    hits = int((logit(uniform_scales(reduced.ranges, UNIFORM_DRAWS, generator)) >= 0).sum())
    if hits >= ENOUGH_HITS:
        return hits / UNIFORM_DRAWS
    nested = nested_sets_up_to(logit, 0.0, reduced.ranges, generator)
    return math.exp(nested.log_volumes[-1])
