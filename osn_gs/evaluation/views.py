"""Views under many configurations against the truth: pictures, depths and object maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from osn_gs.data.scene_data import HeldOutView, SceneData
from osn_gs.evaluation import metrics
from osn_gs.evaluation.scores import object_score
from osn_gs.scene.render import RenderedView, render_view
from osn_gs.scene.scene import Scene

TRAIN_SPLIT = "train"
COVERED = 0.5  # opacity from which on a pixel shows the scene; what shows nothing counts as background at depth 0
Pixels = Literal["all", "co_visible"]


class PerceptualMetric(Protocol):
    """A learned distance of two images [h, w, 3] in [0, 1], over the pixels where a mask is True; `lpips.py`."""

    name: str

    def __call__(
        self, image: Float[Tensor, "h w 3"], truth: Float[Tensor, "h w 3"], mask: Bool[Tensor, "h w"] | None = None
    ) -> Float[Tensor, ""]: ...


@dataclass(frozen=True)
class ViewScores:
    """m configurations on v views, by configuration and view; NaN where a view lacks the truth or no pixel counts.

    `pictures` holds the scores that are a number for a view, by name, each [m, v]. `overlaps` counts pixels by true id
    (rows) and rendered id. `object_squared_errors` sums the squared colour error (mean of the channels) over the pixels
    that truly show an object, `object_pixels` counts these.
    """

    pictures: dict[str, Float[Tensor, "m v"]]
    overlaps: Int[Tensor, "m v k k"]
    object_squared_errors: Float[Tensor, "m v k"]
    object_pixels: Int[Tensor, "m v k"]

    def by_configuration(self, object_names: Sequence[str]) -> dict[str, Float[Tensor, "m"]]:
        """One number a configuration for every score that has its truth.

        Means over the views, but for the panoptic quality, which is one figure of all views together, and the PSNR of
        an object, from the mean squared error over its pixels in all views.
        """
        scores = {name: values.nanmean(dim=1) for name, values in self.pictures.items()}
        if self.overlaps.any():
            scores["panoptic_quality"] = metrics.panoptic_quality_of_overlaps(self.overlaps)
            scores["miou"] = metrics.miou_of_overlaps(self.overlaps).nanmean(dim=1)
        squared_errors = self.object_squared_errors.sum(1) / self.object_pixels.sum(1)
        for k, object_name in enumerate(object_names):
            scores[object_score("psnr", object_name)] = -10 * squared_errors[:, k].log10()
        return {name: values for name, values in scores.items() if not values.isnan().all()}


@dataclass(frozen=True)
class _PictureScores:
    """One view under one configuration, as in `ViewScores`."""

    pictures: dict[str, Float[Tensor, ""]]
    overlaps: Int[Tensor, "k k"]
    object_squared_errors: Float[Tensor, "k"]
    object_pixels: Int[Tensor, "k"]


@torch.no_grad()
def score_views(
    scene: Scene,
    views: Sequence[HeldOutView],
    configurations: Float[Tensor, "m k"],
    perceptual: Sequence[PerceptualMetric] = (),
    on_view: Callable[[], None] = lambda: None,
) -> dict[Pixels, ViewScores]:
    """Render every view under every configuration and compare with the truth; `on_view` is called after each view.

    Over all pixels, and where views know their co-visible pixels over these, of these views. A view is rendered by its
    own camera at its image's size. One picture is held at a time.
    """
    num_ids = max(scene.num_objects, *(1 + int(v.object_ids.max()) for v in views if v.object_ids is not None), 0)
    scored: dict[Pixels, list[list[_PictureScores]]] = {"all": [], "co_visible": []}
    for view in views:
        by_pixels = [_score(scene, view, object_scales, perceptual, num_ids) for object_scales in configurations]
        for pixels, column in scored.items():
            if pixels in by_pixels[0]:
                column.append([found[pixels] for found in by_pixels])
        on_view()
    return {pixels: _gather(columns) for pixels, columns in scored.items() if columns}


def _score(
    scene: Scene,
    view: HeldOutView,
    object_scales: Float[Tensor, "k"],
    perceptual: Sequence[PerceptualMetric],
    num_ids: int,
) -> dict[Pixels, _PictureScores]:
    picture = render_held_out(scene, view, object_scales)
    scores: dict[Pixels, _PictureScores] = {"all": _compare(picture, view, None, perceptual, num_ids)}
    if view.co_visible is not None:
        mask = view.co_visible.to(picture.rgb.device)
        scores["co_visible"] = _compare(picture, view, mask, perceptual, num_ids)
    return scores


def _compare(
    picture: RenderedView,
    view: HeldOutView,
    mask: Bool[Tensor, "h w"] | None,
    perceptual: Sequence[PerceptualMetric],
    num_ids: int,
) -> _PictureScores:
    rgb, truth = picture.rgb.clamp(0, 1), view.image.to(picture.rgb) / 255
    scores = {"psnr": metrics.psnr(rgb, truth, mask), "ssim": metrics.ssim(rgb, truth, mask)}
    for metric in perceptual:
        scores[metric.name.lower().replace("-", "_")] = metric(rgb, truth, mask)
    scores["uncovered"] = metrics.masked_mean((picture.alpha < COVERED).to(rgb), mask)
    unknown = picture.depth.new_tensor(torch.nan)
    scores |= {"depth_ssi_mae": unknown, "depth_ssi_mse": unknown}
    if view.depth is not None:
        true_depth = view.depth.to(picture.depth)
        known = torch.isfinite(true_depth) & (true_depth > 0)
        known = known if mask is None else known & mask
        scores["depth_ssi_mae"] = metrics.depth_ssi_mae(picture.depth, true_depth, known)
        scores["depth_ssi_mse"] = metrics.depth_ssi_mse(picture.depth, true_depth, known)
    overlaps = torch.zeros(num_ids, num_ids, dtype=torch.long, device=rgb.device)
    squared_errors, pixels = rgb.new_zeros(num_ids), overlaps.new_zeros(num_ids)
    if view.object_ids is not None:
        true_ids = view.object_ids.to(rgb.device).long()
        overlaps = metrics.count_overlaps(picture.object_ids, true_ids, mask, num_ids)
        pixels = overlaps.sum(1)
        weights = (rgb - truth).square().mean(-1)
        counted = true_ids if mask is None else true_ids[mask]
        squared_errors.index_add_(0, counted.flatten(), (weights if mask is None else weights[mask]).flatten())
    return _PictureScores(scores, overlaps, squared_errors, pixels)


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


def train_views(scene: Scene, data: SceneData) -> tuple[HeldOutView, ...]:
    """The training frames as views to be scored, against the masks that training went by."""
    return tuple(
        HeldOutView(
            name=f"{TRAIN_SPLIT}/{t:04d}",
            time_step=t,
            cam_from_background=scene.cam_from_world(t),
            intrinsics=data.intrinsics,
            image=data.images[t],
            object_ids=data.object_ids[t],
        )
        for t in range(data.num_frames)
    )


def _gather(columns: list[list[_PictureScores]]) -> ViewScores:
    """Scores by view, then configuration, as arrays by configuration, then view."""

    def stack(read: Callable[[_PictureScores], Tensor]) -> Tensor:
        return torch.stack([torch.stack([read(scores) for scores in column]) for column in columns], dim=1).cpu()

    return ViewScores(
        pictures={name: stack(lambda s, name=name: s.pictures[name]) for name in columns[0][0].pictures},
        overlaps=stack(lambda s: s.overlaps),
        object_squared_errors=stack(lambda s: s.object_squared_errors),
        object_pixels=stack(lambda s: s.object_pixels),
    )
