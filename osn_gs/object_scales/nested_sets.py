"""Nested sets of rising quality, from the whole box of scale ranges down to a small valid set.

One mechanism (multilevel splitting, Au and Beck 2001) answers four questions: where valid vectors are, which vector
is best, how small the valid set is, and where training vectors teach. Each level holds vectors that are uniform,
in log-scale, over {quality >= level}; the next level is the quality that a fixed share of them exceeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from osn_gs.object_scales.ranges import uniform_scales
from osn_gs.object_scales.sampling import StarvedError, advance_chains, hit_and_run

Quality = Callable[[Float[Tensor, "n k"]], Float[Tensor, "n"]]

SURVIVING_SHARE = 0.25
MOVES_PER_LEVEL = 10
LEAST_VECTORS = 256  # fewer lose the way to a set of several pieces
SMALLEST_LOG_VOLUME = -60.0  # below e^-60 of the box float64 log-scales no longer resolve the set


@dataclass(frozen=True)
class ValidSet:
    """The vectors {quality >= `least_quality`}."""

    quality: Quality
    least_quality: float

    def is_valid(self, object_scales: Float[Tensor, "n k"]) -> Bool[Tensor, "n"]:
        """Membership: the test the samplers take."""
        return self.quality(object_scales) >= self.least_quality


@dataclass(frozen=True)
class NestedSets:
    """Levels from -inf (the box) upward; level l's `log_volumes` is the log share of the box with quality >= it.

    `object_scales[l]` are vectors uniform over level l and `qualities[l]` their qualities.
    """

    levels: tuple[float, ...]
    log_volumes: tuple[float, ...]
    object_scales: tuple[Float[Tensor, "n k"], ...]
    qualities: tuple[Float[Tensor, "n"], ...]

    def log_density(self, qualities: Float[Tensor, "m"]) -> Float[Tensor, "m"]:
        """Log density, relative to uniform, of a draw from an evenly chosen level, at vectors of these qualities."""
        densities = torch.zeros_like(qualities)
        for level, log_volume in zip(self.levels, self.log_volumes, strict=True):
            densities += (qualities >= level) * torch.exp(torch.as_tensor(-log_volume))
        return (densities / len(self.levels)).log()


def draw_nested_sets(
    quality: Quality,
    scale_ranges: Float[Tensor, "k 2"],
    generator: torch.Generator,
    last_level: float = float("inf"),
    num_vectors: int = 2_048,
    least_gain: float = 0.0,
) -> NestedSets:
    """Draw levels until `last_level` is one of them, or until quality cannot rise (by more than `least_gain`)."""
    vectors = uniform_scales(scale_ranges, num_vectors, generator)
    qualities = quality(vectors).to(torch.float64)
    levels, log_volumes, all_vectors, all_qualities = [-float("inf")], [0.0], [vectors], [qualities]
    while levels[-1] < last_level and log_volumes[-1] > SMALLEST_LOG_VOLUME:
        level = _next_level(qualities, levels[-1], last_level, least_gain)
        if level is None:
            break
        survives = qualities >= level
        log_volumes.append(log_volumes[-1] + float(survives.double().mean().log()))
        survivors = vectors[survives]
        parents = torch.randint(len(survivors), (num_vectors,), generator=generator, device=vectors.device)
        vectors = advance_chains(
            lambda scales, level=level: quality(scales).to(torch.float64) >= level,
            scale_ranges,
            survivors[parents],
            MOVES_PER_LEVEL,
            generator,
        )
        qualities = quality(vectors).to(torch.float64)
        levels.append(level)
        all_vectors.append(vectors)
        all_qualities.append(qualities)
    return NestedSets(tuple(levels), tuple(log_volumes), tuple(all_vectors), tuple(all_qualities))


def _next_level(qualities: Float[Tensor, "n"], level: float, last_level: float, least_gain: float) -> float | None:
    """The quality that a fixed share exceeds, or the next higher one where many tie; None where none is higher."""
    level_by_share = float(torch.quantile(qualities, 1 - SURVIVING_SHARE))
    if level_by_share >= last_level:
        return last_level
    higher = qualities[qualities > level + least_gain]
    if len(higher) == 0:
        return last_level if level < last_level <= float(qualities.max()) else None
    return min(last_level, max(level_by_share, float(higher.min())))


def nested_sets_up_to(
    quality: Quality,
    least_quality: float,
    scale_ranges: Float[Tensor, "k 2"],
    generator: torch.Generator,
    num_vectors: int = 2_048,
) -> NestedSets:
    """Nested sets whose last level is `least_quality`; raises `StarvedError` if the search cannot reach it."""
    nested = draw_nested_sets(quality, scale_ranges, generator, least_quality, num_vectors)
    if nested.levels[-1] < least_quality:
        raise StarvedError(
            f"no scale vector of quality >= {least_quality:.5g} was found, the best has "
            f"{float(nested.qualities[-1].max()):.5g}; lower the threshold, or free fixed scales."
        )
    return nested


def find_valid_start(
    quality: Quality,
    least_quality: float,
    scale_ranges: Float[Tensor, "k 2"],
    num_vectors: int,
    generator: torch.Generator,
) -> Float[Tensor, "n k"]:
    """Vectors with quality >= `least_quality`, spread over that set; the start for `hit_and_run`.

    Works for the oracle's accuracy, a network's logit, and under fixed scales (`ranges.fix_scales`). Raises
    `StarvedError` if the search cannot reach `least_quality`.
    """
    nested = nested_sets_up_to(quality, least_quality, scale_ranges, generator, max(num_vectors, LEAST_VECTORS))
    return nested.object_scales[-1][:num_vectors]


def sample_valid(
    quality: Quality,
    least_quality: float,
    scale_ranges: Float[Tensor, "k 2"],
    num_samples: int,
    generator: torch.Generator,
    num_chains: int = 256,
) -> Float[Tensor, "n k"]:
    """Vectors uniform over {quality >= `least_quality`}: `find_valid_start`, then `hit_and_run` from there.

    The chains start spread over the set and need a short burn-in only. Raises `StarvedError` as the search does.
    """
    num_chains = min(num_chains, num_samples)
    start = find_valid_start(quality, least_quality, scale_ranges, num_chains, generator)
    return hit_and_run(
        lambda scales: quality(scales) >= least_quality, scale_ranges, start, num_samples, generator, burn_in=20
    )


def sample_first_found(
    sets: Sequence[ValidSet], scale_ranges: Float[Tensor, "k 2"], num_samples: int, generator: torch.Generator
) -> tuple[ValidSet, Float[Tensor, "n k"]]:
    """The first of the sets in which a vector was found, and samples of it as `sample_valid` draws them.

    A network that has not yet found the valid set may call nothing valid; the oracle's own set stands in then. Raises
    the last set's `StarvedError` if all are empty.
    """
    *preferred, last = sets
    for valid_set in preferred:
        try:
            return valid_set, sample_valid(
                valid_set.quality, valid_set.least_quality, scale_ranges, num_samples, generator
            )
        except StarvedError:
            continue
    return last, sample_valid(last.quality, last.least_quality, scale_ranges, num_samples, generator)


def best_vector(
    quality: Quality,
    scale_ranges: Float[Tensor, "k 2"],
    generator: torch.Generator,
    num_vectors: int = 512,
    least_gain: float = 1e-5,
) -> tuple[Float[Tensor, "k"], float]:
    """The vector of highest quality found by climbing the nested sets, and its quality."""
    nested = draw_nested_sets(quality, scale_ranges, generator, num_vectors=num_vectors, least_gain=least_gain)
    vectors, qualities = torch.cat(nested.object_scales), torch.cat(nested.qualities)
    best = qualities.argmax()
    return vectors[best], float(qualities[best])
