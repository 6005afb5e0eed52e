"""Judging and choosing worlds: what a page needs to know about the object scales of one run.

Nothing here draws or talks to a browser. All object scales are float64 CPU tensors [K] with the background's 1 first.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from osn_gs.errors import OsnGsError
from osn_gs.export.configurations import Configuration
from osn_gs.object_scales.constraints import (
    FREE,
    ScaleConstraints,
    naming_objects,
    nearest_constrained,
    sample_constrained,
    walk_constrained,
)
from osn_gs.object_scales.nested_sets import ValidSet, sample_first_found
from osn_gs.object_scales.network import VALID_SCORE, ObjectScaleNetwork
from osn_gs.object_scales.oracle import RANGE_MARGIN, PairViolation, ScaleOracle
from osn_gs.object_scales.ranges import check_scale_ranges, scales_from_log
from osn_gs.object_scales.sampling import StarvedError

# A hair inside the set, score 0.5002: a vector on its edge must still be valid when it is judged alone, and float32
# products come out a few 1e-7 apart in another batch.
LEAST_LOGIT = 1e-3
NUM_SAMPLES = 256  # kept for each constraints; `nearest` comes within a few percent of distance with so many
SEARCH_SEED = 0
WALK_STEPS = 30  # from kept samples, which are spread over the set already, to new ones
WALKERS = 32  # walk together, so that they can follow the set's shape (see `advance_chains`)
KEPT_CONSTRAINTS = 16
POINTS_PER_REFINEMENT = 16
NUM_REFINEMENTS = 3  # 1 / 96 of a range, 16 times finer each time: the ends of an interval are 1e-5 of scale off


@dataclass(frozen=True)
class Verdict:
    """What network and oracle say of one scale vector.

    `valid`: the network's `score` is above 0.5. `allowed`: its `accuracy`, the oracle's, reaches the threshold; None
    where there is no oracle or threshold. A vector with a scale outside the initial ranges, of object `outside`, is
    neither, and has no accuracy. `broken` is the worst wrong pair of a vector that is not allowed.
    """

    score: float
    valid: bool
    accuracy: float | None
    allowed: bool | None
    broken: PairViolation | None
    outside: int | None


@dataclass(frozen=True)
class ScaleStrip:
    """One object's initial range, `lo` to `hi`, while all other scales stay.

    `scores` [r] are the network's at log-spaced scales, both ends included; `allowed` the intervals (lo, hi) that the
    oracle allows, None without one. Intervals narrower than a step of `scores` may be missing, except around the
    object's present scale.
    """

    lo: float
    hi: float
    scores: Float[Tensor, "r"]
    allowed: tuple[tuple[float, float], ...] | None


class Worlds:
    """The scale vectors of one run: judged, searched and drawn. Every method may be called from any thread.

    The network is copied: make a new object when training has changed it. What is drawn follows from seeds in the
    arguments alone.
    """

    def __init__(
        self,
        object_names: Sequence[str],
        scale_ranges: Float[Tensor, "k 2"],
        network: ObjectScaleNetwork,
        oracle: ScaleOracle | None,
        accuracy_threshold: float | None,
        configurations: tuple[Configuration, ...],
    ) -> None:
        """`configurations` are the run's own, for a page to leaf through; none while it still trains."""
        self.object_names = tuple(object_names)
        self.scale_ranges = check_scale_ranges(scale_ranges)
        self.oracle = oracle
        self.accuracy_threshold = accuracy_threshold
        self.configurations = configurations
        self._network = copy.deepcopy(network).to("cpu").requires_grad_(False)
        self._kept: OrderedDict[ScaleConstraints, Float[Tensor, "n k"]] = OrderedDict()
        self._set: ValidSet | None = None
        self._searching = threading.Lock()

    def judge(self, object_scales: Float[Tensor, "k"]) -> Verdict:
        """Score, accuracy and, if it is not allowed, what it breaks; vectors outside the ranges are judged too."""
        vectors = self._vectors(object_scales)
        score = float(self._network(vectors)[0])
        outside = self._outside(vectors[0])
        if outside is not None:
            return Verdict(score, False, None, None if self._oracle_set is None else False, None, outside)
        accuracy = None if self.oracle is None else float(self.oracle.accuracy(vectors)[0])
        allowed = None if self._oracle_set is None else bool(self._oracle_set.is_valid(vectors)[0])
        violations = self.oracle.pair_violations(vectors[0]) if allowed is False else ()
        return Verdict(score, score > VALID_SCORE, accuracy, allowed, next(iter(violations), None), None)

    def explain(self, verdict: Verdict) -> str | None:
        """One sentence on why a vector is not valid; None for a valid one."""
        if verdict.valid:
            return None
        if verdict.outside is not None:
            lo, hi = self.scale_ranges[verdict.outside].tolist()
            name = self.object_names[verdict.outside]
            return f"{name} is outside the range in which its scale was sought, {lo:.3g} to {hi:.3g}"
        if verdict.broken is not None:
            intruder, labelled = (self.object_names[k] for k in (verdict.broken.intruder, verdict.broken.labelled))
            return (
                f"{intruder} stands in front of {labelled} where the video shows {labelled}: worst in frame "
                f"{verdict.broken.worst_frame} ({verdict.broken.worst_frame_pixels} pixels)"
            )
        if verdict.allowed:
            return f"the network does not call it valid (score {verdict.score:.2f}), though the occlusions allow it"
        return f"the network does not call it valid (score {verdict.score:.2f})"

    def strip(self, object_scales: Float[Tensor, "k"], object_index: int, resolution: int = 96) -> ScaleStrip:
        """Which scales of a moving object are valid while the others stay as they are."""
        if not 0 < object_index < len(self.object_names):
            raise OsnGsError(
                f"object {object_index} has no strip: moving objects are 1 to {len(self.object_names) - 1}."
            )
        vectors = self._vectors(object_scales).repeat(resolution, 1)
        lo, hi = self.scale_ranges[object_index].tolist()
        present = float(vectors[0, object_index])
        log_steps = torch.linspace(*self.scale_ranges[object_index].log().tolist(), resolution, dtype=torch.float64)
        vectors[:, object_index] = log_steps.exp().clamp(lo, hi)
        scores = self._network(vectors)
        if self._oracle_set is None:
            return ScaleStrip(lo, hi, scores, None)
        if self._outside(vectors[0]) is not None:
            return ScaleStrip(lo, hi, scores, ())
        steps = torch.cat([vectors[:, object_index], torch.tensor([present]).to(vectors).clamp(lo, hi)]).sort().values
        return ScaleStrip(lo, hi, scores, self._allowed_intervals(vectors[0], object_index, steps))

    def sample(self, seed: int, constraints: ScaleConstraints = FREE) -> Float[Tensor, "k"]:
        """A draw from the learned set under constraints: the same seed gives the same vector.

        While the network calls nothing valid, from the oracle's set. Raises `OsnGsError` for constraints that
        contradict each other or the ranges, `StarvedError` where nothing valid meets them.
        """
        with naming_objects(self.object_names):
            valid_set, samples = self._samples(constraints)
        generator = torch.Generator().manual_seed(seed)
        walkers = samples[torch.randperm(len(samples), generator=generator)[:WALKERS]]
        return walk_constrained(
            walkers,
            valid_set.quality,
            valid_set.least_quality,
            self.scale_ranges,
            constraints,
            WALK_STEPS,
            generator,
        )[0]

    def interval(self, object_index: int, constraints: ScaleConstraints = FREE) -> tuple[float, float]:
        """About the least and the greatest scale of an object over the set: of samples; raises as `sample` does."""
        with naming_objects(self.object_names):
            scales = self._samples(constraints)[1][:, object_index]
        return float(scales.min()), float(scales.max())

    def nearest(self, object_scales: Float[Tensor, "k"], constraints: ScaleConstraints = FREE) -> Float[Tensor, "k"]:
        """The nearest valid vector (in log-scale) that meets the constraints; raises as `sample` does."""
        with naming_objects(self.object_names):
            valid_set, samples = self._samples(constraints)
            return nearest_constrained(
                self._vectors(object_scales)[0],
                valid_set.quality,
                valid_set.least_quality,
                self.scale_ranges,
                constraints,
                samples,
            )

    @property
    def _oracle_set(self) -> ValidSet | None:
        if self.oracle is None or self.accuracy_threshold is None:
            return None
        return ValidSet(self.oracle.accuracy, self.accuracy_threshold)

    def _samples(self, constraints: ScaleConstraints) -> tuple[ValidSet, Float[Tensor, "n k"]]:
        """The set that is drawn from, and samples of it under constraints, kept from the last time if there was one."""
        with self._searching:
            if self._set is None:
                self._set, self._kept[FREE] = self._find_set()
            if constraints not in self._kept:
                self._kept[constraints] = sample_constrained(
                    self._set.quality,
                    self._set.least_quality,
                    self.scale_ranges,
                    constraints,
                    NUM_SAMPLES,
                    torch.Generator().manual_seed(SEARCH_SEED),
                )
                if len(self._kept) > KEPT_CONSTRAINTS:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(constraints)
            return self._set, self._kept[constraints]

    def _find_set(self) -> tuple[ValidSet, Float[Tensor, "n k"]]:
        """The learned set, or the oracle's while that is empty, and samples of it."""
        learned = ValidSet(self._network.logit, LEAST_LOGIT)
        sets = [learned] if self._oracle_set is None else [learned, self._oracle_set]
        try:
            return sample_first_found(sets, self.scale_ranges, NUM_SAMPLES, torch.Generator().manual_seed(SEARCH_SEED))
        except StarvedError as error:
            raise StarvedError(
                "no valid configuration is known yet: the network calls none valid; train on."
            ) from error

    def _allowed_intervals(
        self, vector: Float[Tensor, "k"], object_index: int, steps: Float[Tensor, "n"]
    ) -> tuple[tuple[float, float], ...]:
        """The parts of one object's range that the oracle allows; `steps`, sorted, are where it is asked first."""
        is_allowed = self._allowed_at(vector, object_index, steps)
        flips = torch.nonzero(is_allowed[1:] != is_allowed[:-1]).flatten()
        before, after = steps[flips], steps[flips + 1]
        rises = is_allowed[flips + 1]
        for _ in range(NUM_REFINEMENTS):
            shares = torch.linspace(0, 1, POINTS_PER_REFINEMENT + 1, dtype=torch.float64)
            finer = before[:, None] * (after / before)[:, None] ** shares
            changed = self._allowed_at(vector, object_index, finer.flatten()).view_as(finer) == rises[:, None]
            changed[:, 0], changed[:, -1] = False, True  # known, whatever rounding says
            first = changed.int().argmax(dim=1, keepdim=True)
            before, after = finer.gather(1, first - 1).squeeze(1), finer.gather(1, first).squeeze(1)
        ends = torch.where(rises, after, before).tolist()  # the last scale inside
        if is_allowed[0]:
            ends.insert(0, float(steps[0]))
        if is_allowed[-1]:
            ends.append(float(steps[-1]))
        return tuple(zip(ends[::2], ends[1::2], strict=True))

    def _allowed_at(
        self, vector: Float[Tensor, "k"], object_index: int, scales: Float[Tensor, "n"]
    ) -> Bool[Tensor, "n"]:
        vectors = vector.repeat(len(scales), 1)
        vectors[:, object_index] = scales
        return self._oracle_set.is_valid(vectors)

    def _vectors(self, object_scales: Float[Tensor, "k"]) -> Float[Tensor, "1 k"]:
        """One vector as the network and the oracle take it."""
        vector = torch.as_tensor(object_scales).detach().to("cpu", torch.float64)
        if vector.shape != (len(self.object_names),) or not bool(((vector > 0) & vector.isfinite()).all()):
            raise OsnGsError(
                f"object scales are {vector.tolist()}, expected a positive number for each of "
                f"{', '.join(self.object_names)}."
            )
        return vector[None]

    def _outside(self, vector: Float[Tensor, "k"]) -> int | None:
        """The first object whose scale lies outside its initial range."""
        off = (vector.log() - scales_from_log(vector.log(), self.scale_ranges).log()).abs() > RANGE_MARGIN
        return int(off.int().argmax()) if bool(off.any()) else None
