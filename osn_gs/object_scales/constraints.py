"""Scale vectors that agree with what is already known: scales held at a value, and scales tied by a ratio.

The vectors that meet such constraints are again a box in log-scale, of fewer dimensions: one for each group of tied
objects. Samplers work in that box, on *reduced* vectors, and `ReducedScales.expand` makes full ones of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from osn_gs.errors import OsnGsError
from osn_gs.object_scales.nested_sets import Quality, sample_valid
from osn_gs.object_scales.ranges import fix_scales
from osn_gs.object_scales.sampling import StarvedError, advance_chains, nearest_valid

SAME_VALUE = 1e-6  # relative: two ways to the same scale that differ by less are rounding


class Held(NamedTuple):
    """The scale of `object` is `scale`."""

    object: int
    scale: float


class Tied(NamedTuple):
    """The scale of `object` is `ratio` times that of `leader`."""

    object: int
    leader: int
    ratio: float


@dataclass(frozen=True)
class ScaleConstraints:
    """What is known about the object scales; nothing by default. Equal constraints hash alike.

    An object may be held and tied, and tied to one that is tied itself, as long as nothing contradicts.
    """

    held: tuple[Held, ...] = ()
    tied: tuple[Tied, ...] = ()

    def __and__(self, other: ScaleConstraints) -> ScaleConstraints:
        """Both must be met."""
        return ScaleConstraints(self.held + other.held, self.tied + other.tied)

    def __str__(self) -> str:
        return ", ".join(
            [f"object {k} held at {scale:.4g}" for k, scale in self.held]
            + [f"object {k} tied to {ratio:.4g} times object {leader}" for k, leader, ratio in self.tied]
        )


FREE = ScaleConstraints()


@contextmanager
def naming_objects(object_names: Sequence[str]) -> Iterator[None]:
    """Errors that leave the block call objects by name: in here they have numbers only."""
    try:
        yield
    except OsnGsError as error:
        named = re.sub(r"object (\d+)", lambda match: object_names[int(match[1])], str(error))
        raise type(error)(named) from error


@dataclass(frozen=True)
class ReducedScales:
    """The vectors with s_k = ratios[k] * s_leaders[k]; an object that no tie binds leads itself, with ratio 1.

    `ranges` [K, 2] is the box of reduced vectors: lo == hi for objects that are held or follow another one, and every
    leader's range is cut to what its followers' ranges allow. Followers' entries of a reduced vector mean nothing.
    """

    ranges: Float[Tensor, "k 2"]
    leaders: Int[Tensor, "k"]
    ratios: Float[Tensor, "k"]

    def expand(self, vectors: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Full vectors: every follower at its ratio to its leader. Full vectors of the set stay as they are."""
        return self.ratios.to(vectors) * vectors[:, self.leaders.to(vectors.device)]

    def project(self, object_scales: Float[Tensor, "k"]) -> Float[Tensor, "k"]:
        """The full vector nearest in log-scale that meets the constraints and the ranges, valid or not."""
        wishes = object_scales.to(self.ranges).log() - self.ratios.log()  # what each object would have its leader be
        sums = torch.zeros_like(wishes).index_add(0, self.leaders, wishes)
        counts = torch.zeros_like(wishes).index_add(0, self.leaders, torch.ones_like(wishes))
        means = (sums / counts.clamp(min=1)).exp()
        return self.expand(means.clamp(self.ranges[:, 0], self.ranges[:, 1])[None])[0]


def reduce_scales(scale_ranges: Float[Tensor, "k 2"], constraints: ScaleConstraints) -> ReducedScales:
    """The box of vectors that meet the constraints; raises `OsnGsError` where they contradict each other or a range."""
    ranges = fix_scales(scale_ranges, _held_scales(constraints))
    is_fixed = ranges[:, 0] == ranges[:, 1]
    leaders, ratios = _leaders(is_fixed, constraints.tied)
    reduced = ranges.clone()
    for leader in leaders.unique():
        members = torch.nonzero(leaders == leader).flatten()
        allowed = ranges[members] / ratios[members, None]
        lo, hi = float(allowed[:, 0].max()), float(allowed[:, 1].min())
        if lo > hi * (1 + SAME_VALUE):
            raise OsnGsError(_contradiction(ranges, members, ratios))
        if not is_fixed[leader]:  # rounding must not touch a scale that is held
            reduced[leader] = torch.tensor([min(lo, hi), hi])
    followers = leaders != torch.arange(len(ranges))
    reduced[followers] = (ratios * reduced[leaders].log().mean(dim=1).exp())[followers, None].expand(-1, 2)
    return ReducedScales(reduced, leaders, ratios)


def _held_scales(constraints: ScaleConstraints) -> dict[int, float]:
    scales: dict[int, float] = {}
    for k, scale in constraints.held:
        if not math.isclose(scales.setdefault(k, scale), scale, rel_tol=SAME_VALUE):
            raise OsnGsError(f"object {k} cannot be held at both {scales[k]:.4g} and {scale:.4g}; free one of them.")
    return scales


def _leaders(is_fixed: Bool[Tensor, "k"], tied: tuple[Tied, ...]) -> tuple[Int[Tensor, "k"], Float[Tensor, "k"]]:
    """Each object's last leader, over any number of ties, and its ratio to it; fixed objects follow nobody."""
    num_objects = len(is_fixed)
    leaders = torch.arange(num_objects)
    ratios = torch.ones(num_objects, dtype=torch.float64)
    for tie in tied:
        for k in (tie.object, tie.leader):
            if not 0 <= k < num_objects:
                raise OsnGsError(f"cannot tie object {k}: the objects are 0 to {num_objects - 1}.")
        if not 0 < tie.ratio < math.inf:
            raise OsnGsError(f"cannot tie object {tie.object} by the ratio {tie.ratio:.4g}: it must be positive.")
        one, other = int(leaders[tie.object]), int(leaders[tie.leader])
        one_to_other = float(tie.ratio * ratios[tie.leader] / ratios[tie.object])
        if one == other:
            if not math.isclose(one_to_other, 1.0, rel_tol=SAME_VALUE):
                known = float(ratios[tie.object] / ratios[tie.leader])
                raise OsnGsError(
                    f"object {tie.object} cannot be {tie.ratio:.4g} times object {tie.leader}: "
                    f"other ties make it {known:.4g} times; free one of them."
                )
            continue
        if is_fixed[one]:
            one, other, one_to_other = other, one, 1 / one_to_other
        ratios[leaders == one] *= one_to_other
        leaders[leaders == one] = other
    return leaders, ratios


def _contradiction(ranges: Float[Tensor, "k 2"], members: Int[Tensor, "m"], ratios: Float[Tensor, "k"]) -> str:
    parts = [
        f"object {k} ({'held at ' + format(lo, '.4g') if lo == hi else f'range {lo:.4g} to {hi:.4g}'})"
        for k, (lo, hi) in zip(members.tolist(), ranges[members].tolist(), strict=True)
    ]
    relation = " : ".join(f"{ratio:.4g}" for ratio in ratios[members].tolist())
    return (
        f"{' and '.join(parts)} cannot be tied as {relation}: no scales do that; change the ratio or free one of them."
    )


def sample_constrained(
    quality: Quality,
    least_quality: float,
    scale_ranges: Float[Tensor, "k 2"],
    constraints: ScaleConstraints,
    num_samples: int,
    generator: torch.Generator,
) -> Float[Tensor, "n k"]:
    """Vectors uniform (in log-scale) over those of {quality >= `least_quality`} that meet the constraints, exactly.

    Where nothing is left free all of them are that one vector. Raises `OsnGsError` for constraints that contradict
    each other or the ranges, `StarvedError` where no valid vector meets them.
    """
    reduced = reduce_scales(scale_ranges, constraints)
    try:
        vectors = sample_valid(
            lambda scales: quality(reduced.expand(scales)), least_quality, reduced.ranges, num_samples, generator
        )
    except StarvedError as error:
        if constraints == FREE:
            raise
        raise StarvedError(
            f"no configuration that explains the video has {constraints}; free one of them or change its value."
        ) from error
    return reduced.expand(vectors)


def walk_constrained(
    samples: Float[Tensor, "n k"],
    quality: Quality,
    least_quality: float,
    scale_ranges: Float[Tensor, "k 2"],
    constraints: ScaleConstraints,
    num_steps: int,
    generator: torch.Generator,
) -> Float[Tensor, "n k"]:
    """New samples from those of `sample_constrained`, without its search: each goes on by `num_steps` steps."""
    reduced = reduce_scales(scale_ranges, constraints)
    return reduced.expand(
        advance_chains(
            lambda scales: quality(reduced.expand(scales)) >= least_quality,
            reduced.ranges,
            samples,
            num_steps,
            generator,
        )
    )


def nearest_constrained(
    object_scales: Float[Tensor, "k"],
    quality: Quality,
    least_quality: float,
    scale_ranges: Float[Tensor, "k 2"],
    constraints: ScaleConstraints,
    samples: Float[Tensor, "n k"],
) -> Float[Tensor, "k"]:
    """The vector of {quality >= `least_quality`} nearest in log-scale among those that meet the constraints.

    `samples` are some of `sample_constrained`: see `nearest_valid`, which this does inside the constraints.
    """
    reduced = reduce_scales(scale_ranges, constraints)
    nearest = nearest_valid(
        reduced.project(object_scales),
        lambda scales: quality(reduced.expand(scales)) >= least_quality,
        scale_ranges,
        samples,
    )
    return reduced.expand(nearest[None])[0]
