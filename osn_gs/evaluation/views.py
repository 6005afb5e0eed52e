"""Held-out views under many sampled configurations: how good the best is, and how good they are as a rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from osn_gs.data.scene_data import HeldOutView
from osn_gs.evaluation import metrics
from osn_gs.scene.render import render_view
from osn_gs.scene.scene import Scene


@dataclass(frozen=True)
class ViewScores:
    """Scores of m configurations on v views, [m, v]; depth and object ids are None where a set has no truth."""

    psnr: Float[Tensor, "m v"]
    ssim: Float[Tensor, "m v"]
    depth_ssi_mae: Float[Tensor, "m v"] | None
    miou: Float[Tensor, "m v"] | None

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


@torch.no_grad()
def score_views(
    scene: Scene,
    views: tuple[HeldOutView, ...],
    configurations: Float[Tensor, "m k"],
    on_view: Callable[[], None] = lambda: None,
) -> ViewScores:
    """Render every view under every configuration and compare with the truth; `on_view` is called after each view."""
    psnr, ssim, depth, miou = [], [], [], []
    for view in views:
        truth = view.image.to(scene.intrinsics.device).float() / 255
        pictures = [
            render_view(scene, object_scales, view.time_step, view.cam_from_background.to(truth))
            for object_scales in configurations.to(truth)
        ]
        rgb = torch.stack([picture.rgb for picture in pictures]).clamp(0, 1)
        psnr.append(metrics.psnr(rgb, truth.expand_as(rgb)))
        ssim.append(metrics.ssim(rgb, truth.expand_as(rgb)))
        if view.depth is not None:
            rendered = torch.stack([picture.depth for picture in pictures])
            depth.append(metrics.depth_ssi_mae(rendered, view.depth.to(rendered).expand_as(rendered)))
        if view.object_ids is not None:
            ids = torch.stack([picture.object_ids for picture in pictures])
            miou.append(metrics.miou(ids, view.object_ids.to(ids).expand_as(ids)))
        on_view()
    return ViewScores(
        psnr=torch.stack(psnr, dim=1),
        ssim=torch.stack(ssim, dim=1),
        depth_ssi_mae=torch.stack(depth, dim=1) if len(depth) == len(views) else None,
        miou=torch.stack(miou, dim=1) if len(miou) == len(views) else None,
    )


def spread(scores: Float[Tensor, "m v"], higher_is_better: bool) -> Spread:
    """Best, mean, median and worst over configurations of their mean over views."""
    means = scores.mean(dim=1)
    highest, lowest = float(means.max()), float(means.min())
    best, worst = (highest, lowest) if higher_is_better else (lowest, highest)
    return Spread(best=best, mean=float(means.mean()), median=float(means.median()), worst=worst)


def summarize(scores: ViewScores) -> dict[str, Spread]:
    """The spread of every score there is, by name."""
    summary = {"psnr": spread(scores.psnr, True), "ssim": spread(scores.ssim, True)}
    if scores.depth_ssi_mae is not None:
        summary["depth_ssi_mae"] = spread(scores.depth_ssi_mae, False)
    if scores.miou is not None:
        summary["miou"] = spread(scores.miou, True)
    return summary
