"""Held-out views under many sampled configurations: how good the best is, and how good they are as a rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from osn_gs.data.scene_data import HeldOutView
from osn_gs.evaluation import metrics
from osn_gs.scene.render import RenderedView, render_view
from osn_gs.scene.scene import Scene


@dataclass(frozen=True)
class ViewScores:
    """Scores of m configurations on v views, [m, v].

    Depth and object ids are scored on the d and i views that have their truth; None where no view has.
    """

    psnr: Float[Tensor, "m v"]
    ssim: Float[Tensor, "m v"]
    depth_ssi_mae: Float[Tensor, "m d"] | None
    miou: Float[Tensor, "m i"] | None

    def of_configurations(self, chosen: slice) -> ViewScores:
        """The scores of some of the configurations."""
        rows = {name: None if scores is None else scores[chosen] for name, scores in vars(self).items()}
        return ViewScores(**rows)


@dataclass(frozen=True)
class Spread:
    """One score over configurations, each averaged over the views first."""

    best: float
    mean: float
    median: float
    worst: float


class _PictureScores(NamedTuple):
    """Scores of one view under one configuration; None where the view has no truth to compare with."""

    psnr: Float[Tensor, ""]
    ssim: Float[Tensor, ""]
    depth_ssi_mae: Float[Tensor, ""] | None
    miou: Float[Tensor, ""] | None


@torch.no_grad()
def score_views(
    scene: Scene,
    views: tuple[HeldOutView, ...],
    configurations: Float[Tensor, "m k"],
    on_view: Callable[[], None] = lambda: None,
) -> ViewScores:
    """Render every view under every configuration and compare with the truth; `on_view` is called after each view.

    A view is rendered by its own camera at its image's size. One picture is held at a time.
    """
    views_scores = []
    for view in views:
        views_scores.append([_score(scene, view, object_scales) for object_scales in configurations])
        on_view()
    return ViewScores(**{name: _gather(views_scores, name) for name in _PictureScores._fields})


def _score(scene: Scene, view: HeldOutView, object_scales: Float[Tensor, "k"]) -> _PictureScores:
    picture = render_held_out(scene, view, object_scales)
    rgb, truth = picture.rgb.clamp(0, 1), view.image.to(picture.rgb) / 255
    depth_ssi_mae = miou = None
    if view.depth is not None:
        true_depth = view.depth.to(picture.depth)
        known = torch.isfinite(true_depth) & (true_depth > 0)
        if known.any():
            depth_ssi_mae = metrics.depth_ssi_mae(picture.depth, true_depth, known)
    if view.object_ids is not None:
        miou = metrics.miou(picture.object_ids, view.object_ids.to(picture.object_ids))
    return _PictureScores(metrics.psnr(rgb, truth), metrics.ssim(rgb, truth), depth_ssi_mae, miou)


def render_held_out(scene: Scene, view: HeldOutView, object_scales: Float[Tensor, "k"]) -> RenderedView:
    """What a held-out view's camera would see of one configuration, at the size of its image."""
    height, width, _ = view.image.shape
    like = scene.intrinsics
    return render_view(
        scene,
        object_scales.to(like),
        view.time_step,
        view.cam_from_background.to(like),
        view.intrinsics.to(like),
        (width, height),
    )


def _gather(views_scores: list[list[_PictureScores]], name: str) -> Float[Tensor, "m v"] | None:
    """One score of all pictures, over the views that have it."""
    columns = [[getattr(picture, name) for picture in pictures] for pictures in views_scores]
    known = [torch.stack(column) for column in columns if column[0] is not None]
    return torch.stack(known, dim=1) if known else None


def spread(scores: Float[Tensor, "m v"], higher_is_better: bool) -> Spread:
    """Best, mean, median and worst over configurations of their mean over views."""
    means = scores.mean(dim=1)
    highest, lowest = float(means.max()), float(means.min())
    best, worst = (highest, lowest) if higher_is_better else (lowest, highest)
    return Spread(best=best, mean=float(means.mean()), median=float(means.quantile(0.5)), worst=worst)


def summarize(scores: ViewScores) -> dict[str, Spread]:
    """The spread of every score there is, by name."""
    summary = {"psnr": spread(scores.psnr, True), "ssim": spread(scores.ssim, True)}
    if scores.depth_ssi_mae is not None:
        summary["depth_ssi_mae"] = spread(scores.depth_ssi_mae, False)
    if scores.miou is not None:
        summary["miou"] = spread(scores.miou, True)
    return summary
