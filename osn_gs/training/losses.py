"""What a step of the joint optimizer minimizes (METHOD 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from osn_gs.data.scene_data import SparsePoints
from osn_gs.image_similarity import ssim_map

EPS = 1e-6
EDGE_SHARPNESS = 20.0  # a colour step of 0.05 leaves about a third of the pull towards a plane


def color_loss(
    rendered: Float[Tensor, "m h w 3"], image: Float[Tensor, "h w 3"], ssim_weight: float
) -> Float[Tensor, ""]:
    """(1 - w) L1 + w D-SSIM (3DGS equation 7), mean over m pictures of the same image."""
    target = image.expand_as(rendered)
    l1 = (rendered - target).abs().mean()
    if ssim_weight == 0:
        return l1
    return (1 - ssim_weight) * l1 + ssim_weight * (1 - ssim_map(rendered, target).mean())


def labelled_composite(rgb: Float[Tensor, "k h w 3"], object_ids: Int[Tensor, "h w"]) -> Float[Tensor, "h w 3"]:
    """Each pixel from the layer of the object it shows: the training view without any object scale."""
    index = object_ids.long()[None, ..., None].expand(1, *rgb.shape[1:])
    return rgb.gather(0, index)[0]


def layer_mask_loss(alphas: Float[Tensor, "k h w"], object_ids: Int[Tensor, "h w"]) -> Float[Tensor, ""]:
    """Binary cross entropy of the layers' opacities, as far as a mask decides them.

    An object is opaque where the mask shows it, and a mover is transparent where the mask shows the background.
    Where another mover is shown it may be hidden, so nothing is asked there. Parts of a mover that only ever pass
    behind static things in front are asked away with the rest. Mean over pixels, summed over objects.
    """
    alphas = alphas.clamp(EPS, 1 - EPS)
    shown = torch.nn.functional.one_hot(object_ids.long(), len(alphas)).movedim(-1, 0).to(alphas)
    opaque = -(shown * alphas.log())
    empty = -(shown[:1] * (1 - alphas[1:]).log())
    return opaque.sum(0).mean() + empty.sum(0).mean()


def composite_id_loss(object_weights: Float[Tensor, "m h w k"], object_ids: Int[Tensor, "h w"]) -> Float[Tensor, ""]:
    """Cross entropy of the composited object weights against the mask, mean over pixels and configurations."""
    index = object_ids.long()[None, ..., None].expand(*object_weights.shape[:-1], 1)
    return -object_weights.gather(-1, index).clamp_min(EPS).log().mean()


def sparse_depth_loss(
    depths: Float[Tensor, "k h w"],
    alphas: Float[Tensor, "k h w"],
    points: list[SparsePoints],
    object_weights: Sequence[float] | None = None,
) -> Float[Tensor, ""]:
    """Relative depth error of the layers at their objects' sparse points, weighted by the points' quality.

    Differs from OSN: taken on each object's own layer, before its scale. The composited depth against the
    target times s_k is the same error wherever the object is in front, and this way hidden points count too.
    `points[k]` are those seen in this frame. Summed over objects, each weighted by its share of points, and by
    `object_weights` where these are given.
    """
    total = depths.new_zeros(())
    count = sum(len(seen.depths) for seen in points)
    for k, seen in enumerate(points):
        if len(seen.depths) == 0:
            continue
        columns, rows = seen.pixels.floor().long().unbind(-1)
        rows, columns = rows.clamp(0, depths.shape[1] - 1), columns.clamp(0, depths.shape[2] - 1)
        covered = alphas[k, rows, columns].detach()
        error = (depths[k, rows, columns] / seen.depths - 1).abs()
        weight = 1.0 if object_weights is None else object_weights[k]
        total = total + weight * (seen.weights * covered * error).sum() / count
    return total


def planarity_loss(
    depths: Float[Tensor, "k h w"],
    alphas: Float[Tensor, "k h w"],
    image: Float[Tensor, "h w 3"],
    extents: Float[Tensor, "k"],
) -> Float[Tensor, ""]:
    """Bending of the layers' surfaces where the image is smooth: second differences of inverse depth.

    A plane has an inverse depth linear in the pixel coordinates, so it costs nothing at any slant, and surfaces
    without texture, which the colour loss leaves open, are drawn to planes. Weighted by exp(-EDGE_SHARPNESS * colour
    gradient) and by how far three pixels in a row are covered; in units of the objects' `extents` (a typical depth).
    Beyond the paper, whose radiance fields are smooth by construction. Mean over pixels, summed over objects.
    """
    covered = (alphas > 0.5).to(depths)
    disparity = extents[:, None, None] / depths.clamp_min(EPS) * covered
    total = depths.new_zeros(())
    for dim in (1, 2):
        gradient = image.diff(dim=dim - 1).abs().mean(-1)
        length = image.shape[dim - 1] - 2
        smooth = torch.exp(
            -EDGE_SHARPNESS * torch.maximum(gradient.narrow(dim - 1, 0, length), gradient.narrow(dim - 1, 1, length))
        )
        left, middle, right = (covered.narrow(dim, start, length) for start in range(3))
        bend = disparity.diff(dim=dim).diff(dim=dim).abs()
        total = total + (left * middle * right * smooth * bend).sum() / image[..., 0].numel()
    return total
