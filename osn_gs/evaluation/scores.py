"""What is scored, how it is written, and how one score is spread over configurations (METHOD 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class ScoreKind(NamedTuple):
    """How a score is read: its title, the form of its values, and which end is good."""

    title: str
    form: str
    higher_is_better: bool

    def write(self, value: float | None) -> str:
        """A value in its form, a dash where there is none."""
        return "-" if value is None else self.form.format(value)


SCORE_KINDS = {
    "psnr": ScoreKind("PSNR (dB)", "{:.2f}", True),
    "ssim": ScoreKind("SSIM", "{:.3f}", True),
    "lpips": ScoreKind("LPIPS", "{:.3f}", False),
    "st_lpips": ScoreKind("ST-LPIPS", "{:.3f}", False),
    "depth_ssi_mae": ScoreKind("SSI-MAE", "{:.4f}", False),
    "depth_ssi_mse": ScoreKind("SSI-MSE", "{:.4f}", False),
    "uncovered": ScoreKind("uncovered", "{:.3f}", False),
    "panoptic_quality": ScoreKind("PQ", "{:.3f}", True),
    "miou": ScoreKind("mIoU", "{:.3f}", True),
    "scale_mse": ScoreKind("scale MSE", "{:.4f}", False),
}

# The released code scores the nearest to the truth, and as many drawn from the next ones.
RELEASED_NEAREST, RELEASED_DRAWN, RELEASED_NEXT = 5, 5, 10

OF_OBJECT = " of "


def object_score(name: str, object_name: str) -> str:
    """The name of a score that is taken on one object's pixels."""
    return f"{name}{OF_OBJECT}{object_name}"


def object_of_score(name: str) -> str | None:
    """The object on whose pixels a score is taken; None for one of whole pictures."""
    return name.partition(OF_OBJECT)[2] or None


def score_kind(name: str) -> ScoreKind:
    """The kind of a score, also of one on an object's pixels, under its title."""
    kind, _, object_name = name.partition(OF_OBJECT)
    found = SCORE_KINDS[kind]
    return found._replace(title=f"{found.title}{OF_OBJECT}{object_name}") if object_name else found


@dataclass(frozen=True)
class Spread:
    """One score over configurations, each averaged over the views first."""

    best: float
    mean: float
    median: float
    worst: float


def spread(scores: Float[Tensor, "m"], higher_is_better: bool) -> Spread:
    """Best, mean, median and worst of m configurations."""
    highest, lowest = float(scores.max()), float(scores.min())
    best, worst = (highest, lowest) if higher_is_better else (lowest, highest)
    return Spread(best=best, mean=float(scores.mean()), median=float(scores.quantile(0.5)), worst=worst)


def released_selection(
    samples: Float[Tensor, "m k"], true_scales: Float[Tensor, "k"], generator: torch.Generator
) -> Int[Tensor, "10"] | None:
    """Rows of the samples that the released code scores: the 5 nearest to the true scales and 5 of the next 10.

    Nearest by the Euclidean distance of scale vectors. It reports the best of them, which leans on the truth. None
    where there are fewer than 15 samples.
    """
    if len(samples) < RELEASED_NEAREST + RELEASED_NEXT:
        return None
    nearest_first = (samples - true_scales.to(samples)).norm(dim=1).argsort()
    drawn = torch.randperm(RELEASED_NEXT, generator=generator)[:RELEASED_DRAWN] + RELEASED_NEAREST
    return nearest_first[torch.cat([torch.arange(RELEASED_NEAREST), drawn])]


def scale_mse(object_scales: Float[Tensor, "m k"], true_scales: Float[Tensor, "k"]) -> Float[Tensor, "m"]:
    """Mean squared error of every vector's moving objects, in units in which the middle of an initial range is 1.

    The paper's measure of scale estimation (its table 4). The background's scale is 1 by convention and not counted.
    """
    return (object_scales[:, 1:] - true_scales[1:].to(object_scales)).square().mean(1)
