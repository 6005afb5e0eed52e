"""Drawing scale vectors from a valid set that is known only by a membership test.

Vectors are [N, K] with column 0 (the background) 1. "Uniform" means uniform in log-scale inside the box of the
scale ranges (see `ranges.uniform_scales`). Everything is float64 on the generator's device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from osn_gs.errors import OsnGsError
from osn_gs.object_scales.ranges import check_scale_ranges, scales_from_log, uniform_scales

Membership = Callable[[Float[Tensor, "n k"]], Bool[Tensor, "n"]]

REJECTION_BATCH = 16_384
MAX_SHRINKS = 20  # a chain that has missed so often stays where it is for this step, which keeps the draws uniform
AXIS_SHARE = 0.5  # share of moves along one object's axis; the others go along differences between chains


class StarvedError(OsnGsError):
    """A sampler that gave up because it met too few valid vectors."""


def rejection_sample(
    is_valid: Membership,
    scale_ranges: Float[Tensor, "k 2"],
    num_samples: int,
    generator: torch.Generator,
    max_draws: int = 1_000_000,
) -> tuple[Float[Tensor, "n k"], float]:
    """Independent uniform vectors of the set, and the share of draws that were valid.

    Raises `StarvedError` when `max_draws` draws do not give `num_samples` vectors.
    """
    accepted: list[Tensor] = []
    num_accepted = num_draws = 0
    while num_accepted < num_samples:
        if num_draws >= max_draws:
            raise StarvedError(
                f"rejection sampling found {num_accepted} of {num_samples} valid vectors in {num_draws} draws; "
                "the set is too small for it, use hit_and_run."
            )
        draws = uniform_scales(scale_ranges, REJECTION_BATCH, generator)
        valid = draws[is_valid(draws)]
        accepted.append(valid)
        num_accepted += len(valid)
        num_draws += len(draws)
    return torch.cat(accepted)[:num_samples], num_accepted / num_draws


def hit_and_run(
    is_valid: Membership,
    scale_ranges: Float[Tensor, "k 2"],
    start: Float[Tensor, "c k"],
    num_samples: int,
    generator: torch.Generator,
    burn_in: int = 100,
    steps_between: int = 20,
) -> Float[Tensor, "n k"]:
    """Vectors spread uniformly over the set by C Markov chains that run together from the valid vectors `start`.

    After `burn_in` steps every chain gives a vector, then again after each `steps_between` steps, until there are
    `num_samples`. Start many chains (as many as samples, if possible): islands of the set keep the share of chains
    that started in them. Objects whose range is a point (`ranges.fix_scales`) keep their scale.
    """
    chains = start.to(generator.device, torch.float64)
    if len(chains) == 0 or not bool(is_valid(chains).all()):
        raise OsnGsError("hit_and_run must start from one or more valid scale vectors; get them by find_valid_start.")
    chains = advance_chains(is_valid, scale_ranges, chains, burn_in, generator)
    collected = [chains]
    while len(collected) * len(chains) < num_samples:
        chains = advance_chains(is_valid, scale_ranges, chains, steps_between, generator)
        collected.append(chains)
    return torch.cat(collected)[:num_samples]


def advance_chains(
    is_valid: Membership,
    scale_ranges: Float[Tensor, "k 2"],
    chains: Float[Tensor, "c k"],
    num_steps: int,
    generator: torch.Generator,
) -> Float[Tensor, "c k"]:
    """Hit-and-run in log-scale: each step draws a direction and then a valid point on the chord through the box.

    The point is found by slice shrinkage (Neal 2003, figure 5): a miss becomes the chord's new end, so a step never
    stalls and the uniform distribution on the set stays as it is, also for sets that are not convex.
    """
    ranges = check_scale_ranges(scale_ranges).to(chains.device)
    if bool((ranges[:, 0] == ranges[:, 1]).all()):
        return chains
    log_chains = chains.log()
    for _ in range(num_steps):
        directions = _draw_directions(log_chains, ranges, generator)
        log_chains = _step_on_chords(is_valid, ranges, log_chains, directions, generator)
    return scales_from_log(log_chains, ranges)


def _draw_directions(
    log_chains: Float[Tensor, "c k"], scale_ranges: Float[Tensor, "k 2"], generator: torch.Generator
) -> Float[Tensor, "c k"]:
    """A direction for each chain, zero for fixed objects: an object's axis, or the difference of two other chains.

    Differences follow the set's own shape, which may be a thousand times longer than wide. Chains of one half take
    them from the other half only, so that a direction never depends on the chain that it moves (Goodman and Weare
    2010); before a set's chains differ, random directions stand in.
    """
    num_chains, num_objects = log_chains.shape
    factory = {"dtype": log_chains.dtype, "device": log_chains.device}
    free = scale_ranges[:, 0] < scale_ranges[:, 1]
    axes = torch.multinomial(free.to(log_chains), num_chains, replacement=True, generator=generator)
    along_axis = torch.nn.functional.one_hot(axes, num_objects).to(log_chains)

    half = num_chains // 2
    differences = torch.zeros_like(log_chains)
    for chains, others in ((slice(0, half), slice(half, num_chains)), (slice(half, num_chains), slice(0, half))):
        pool = log_chains[others]
        if len(pool) >= 2:
            count = log_chains[chains].shape[0]
            pairs = torch.randint(len(pool), (2, count), generator=generator, device=log_chains.device)
            differences[chains] = pool[pairs[0]] - pool[pairs[1]]
    anywhere = torch.randn(num_chains, num_objects, generator=generator, **factory)
    apart = differences.abs().amax(dim=1, keepdim=True) > 0
    oblique = torch.where(apart, differences, anywhere) * free
    take_axis = torch.rand(num_chains, 1, generator=generator, **factory) < AXIS_SHARE
    directions = torch.where(take_axis, along_axis, oblique)
    return directions / directions.norm(dim=1, keepdim=True)


def _step_on_chords(
    is_valid: Membership,
    scale_ranges: Float[Tensor, "k 2"],
    log_chains: Float[Tensor, "c k"],
    directions: Float[Tensor, "c k"],
    generator: torch.Generator,
) -> Float[Tensor, "c k"]:
    """Move every chain to a valid point of its chord; see `advance_chains`."""
    back, forth = _chord_ends(scale_ranges.log(), log_chains, directions)
    moved = log_chains.clone()
    searching = torch.arange(len(log_chains), device=log_chains.device)
    for _ in range(MAX_SHRINKS):
        draw = torch.rand(len(searching), generator=generator, dtype=back.dtype, device=back.device)
        offsets = back[searching] + draw * (forth - back)[searching]
        proposals = log_chains[searching] + offsets[:, None] * directions[searching]
        valid = is_valid(scales_from_log(proposals, scale_ranges))
        moved[searching[valid]] = proposals[valid]
        missed, searching = offsets[~valid], searching[~valid]
        if len(searching) == 0:
            break
        back[searching] = torch.where(missed < 0, missed, back[searching])
        forth[searching] = torch.where(missed < 0, forth[searching], missed)
    return moved


def _chord_ends(
    log_ranges: Float[Tensor, "k 2"], log_chains: Float[Tensor, "c k"], directions: Float[Tensor, "c k"]
) -> tuple[Float[Tensor, "c"], Float[Tensor, "c"]]:
    """How far each chain can go back (<= 0) and forth (>= 0) along its direction before it leaves the box."""
    to_lo = (log_ranges[:, 0] - log_chains) / directions
    to_hi = (log_ranges[:, 1] - log_chains) / directions
    still = directions == 0
    back = torch.minimum(to_lo, to_hi).masked_fill(still, -torch.inf).amax(dim=1).clamp(max=0)
    forth = torch.maximum(to_lo, to_hi).masked_fill(still, torch.inf).amin(dim=1).clamp(min=0)
    return back, forth


def farthest_point_subset(object_scales: Float[Tensor, "n k"], num_picks: int) -> Int[Tensor, "m"]:
    """Indices of vectors that lie far from each other in log-scale; the first is the nearest to the mean.

    Each pick is the vector farthest from all picks before it (Gonzalez 1985); `num_picks` is cut to N.
    """
    log_scales = object_scales.log()
    picks = [int((log_scales - log_scales.mean(0)).norm(dim=1).argmin())]
    distances = torch.full_like(log_scales[:, 0], torch.inf)
    for _ in range(min(num_picks, len(object_scales)) - 1):
        distances = torch.minimum(distances, (log_scales - log_scales[picks[-1]]).norm(dim=1))
        picks.append(int(distances.argmax()))
    return torch.tensor(picks, device=object_scales.device)


def nearest_valid(
    object_scales: Float[Tensor, "k"],
    is_valid: Membership,
    scale_ranges: Float[Tensor, "k 2"],
    valid_samples: Float[Tensor, "n k"],
    num_bisections: int = 30,
) -> Float[Tensor, "k"]:
    """The vector itself if it is valid, else the nearest valid one found (in log-scale) on its way to `valid_samples`.

    From each sample the straight way toward the vector is followed to the set's edge by bisection; the nearest edge
    wins. Exact as the samples grow dense, for any set.
    """
    ranges = check_scale_ranges(scale_ranges).to(valid_samples.device)
    target = scales_from_log(object_scales.to(valid_samples).log()[None], ranges)
    if bool(is_valid(target)[0]):
        return target[0]
    inside = torch.zeros_like(valid_samples[:, :1])
    outside = torch.ones_like(inside)
    log_samples, log_target = valid_samples.log(), target.log()
    for _ in range(num_bisections):
        middle = (inside + outside) / 2
        valid = is_valid(scales_from_log(log_samples + middle * (log_target - log_samples), ranges))[:, None]
        inside, outside = torch.where(valid, middle, inside), torch.where(valid, outside, middle)
    edges = log_samples + inside * (log_target - log_samples)
    return scales_from_log(edges, ranges)[(edges - log_target).norm(dim=1).argmin()]
