"""Many configurations of one training view from one rendering of each object.

An object scale moves an object along the rays of the training camera: its own image stays, its depth is
multiplied. So every object is rendered once, alone, and for each vector of object scales the K layers of a
pixel are put in depth order and composited. This is exact where the objects' depths do not interleave at a
pixel; where they do (objects that interpenetrate), only `rasterize` of the placed cloud is.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from osn_gs.rendering.projected_gaussians import ALPHA_MIN
from osn_gs.threads import numba_is_installed

EMPTY_ALPHA = 1e-10  # as gsplat's expected depth: where nothing is, depth is 0
DEPTH_INTERVAL_STDS = 2.0  # a layer is taken to lie within this many standard deviations of its depth


class CompositedLayers(NamedTuple):
    """M configurations of one view.

    `features` are premultiplied (over black), `depth` is the expected z-depth in scene units (0 where nothing
    is), `object_weights` the part of each pixel's light that comes from each object: they sum to `alphas`.
    `interleaved` marks the pixels where layering is not exact; None when no `depth_stds` were given.
    """

    features: Float[Tensor, "m h w c"]
    depth: Float[Tensor, "m h w"]
    alphas: Float[Tensor, "m h w"]
    object_weights: Float[Tensor, "m h w k"]
    interleaved: Bool[Tensor, "m h w"] | None = None


def composite_layers(
    features: Float[Tensor, "k h w c"],
    alphas: Float[Tensor, "k h w"],
    depths: Float[Tensor, "k h w"],
    object_scales: Float[Tensor, "m k"],
    depth_stds: Float[Tensor, "k h w"] | None = None,
    backend: Literal["auto", "numba", "torch"] = "auto",
) -> CompositedLayers:
    """Composite K object layers in depth order for each of M vectors of object scales.

    Args:
        features: what `rasterize` shows of each object alone (premultiplied by alpha, over black).
        alphas, depths: their alphas and expected z-depths at object scale 1.
        object_scales: positive factors of the depths.
        depth_stds: standard deviations of the depths at object scale 1 (`layer_depth_stds`). With them,
            pixels are marked as `interleaved` where the intervals depth +- 2 std of two layers overlap that
            both weigh more than 1/255.
        backend: "auto" is Numba for float32 on the CPU where it is installed, else torch.

    Differentiable in features, alphas and depths; the order of the layers is taken as constant. A layer that does
    not cover a pixel (alpha 0) may get no gradient there: none of its Gaussians touches that pixel.
    """
    shapes = {"alphas": (alphas, features.shape[:3]), "depths": (depths, features.shape[:3])}
    shapes["object_scales"] = (object_scales, (object_scales.shape[0], features.shape[0]))
    for name, (tensor, shape) in shapes.items():
        assert tensor.shape == shape, f"{name} must be {list(shape)}, got {list(tensor.shape)}"
    assert depth_stds is None or depth_stds.shape == depths.shape
    if backend == "auto":
        fits = features.dtype == torch.float32 and not features.is_cuda and numba_is_installed()
        backend = "numba" if fits else "torch"
    if backend == "numba":
        from osn_gs.rendering.numba_backend.layers import composite_layers_on_cpu

        return CompositedLayers(*composite_layers_on_cpu(features, alphas, depths, object_scales, depth_stds))
    return _composite_layers_in_torch(features, alphas, depths, object_scales, depth_stds)


def layer_depth_stds(depths: Float[Tensor, "k h w"], squared_depths: Float[Tensor, "k h w"]) -> Float[Tensor, "k h w"]:
    """Spread of the depths that a layer blends at each pixel, from expected depth and expected squared depth."""
    return (squared_depths - depths.square()).clamp_min(0).sqrt()


def _composite_layers_in_torch(features, alphas, depths, object_scales, depth_stds) -> CompositedLayers:
    scales = object_scales[:, :, None, None]
    placed_depths = scales * depths  # [M, K, H, W]
    order = placed_depths.detach().argsort(dim=1, stable=True)
    sorted_alphas = alphas.expand_as(placed_depths).gather(1, order)
    transmittance = torch.cumprod(1 - sorted_alphas, dim=1)
    sorted_visibility = torch.cat([torch.ones_like(transmittance[:, :1]), transmittance[:, :-1]], dim=1)
    visibility = torch.zeros_like(placed_depths).scatter(1, order, sorted_visibility)
    weights = visibility * alphas
    total = weights.sum(1)
    interleaved = None
    if depth_stds is not None:
        interleaved = _interleaved(placed_depths, DEPTH_INTERVAL_STDS * scales * depth_stds, weights, order)
    return CompositedLayers(
        features=torch.einsum("mkhw,khwc->mhwc", visibility, features),
        depth=(weights * placed_depths).sum(1) / total.clamp_min(EMPTY_ALPHA),
        alphas=total,
        object_weights=weights.movedim(1, -1),
        interleaved=interleaved,
    )


@torch.no_grad()
def _interleaved(depths, reach, weights, order) -> Bool[Tensor, "m h w"]:
    """Whether, going away from the camera, a layer begins before one that came earlier has ended."""
    matters = weights > ALPHA_MIN
    begins = torch.where(matters, depths - reach, torch.inf).gather(1, order)
    ends = torch.where(matters, depths + reach, -torch.inf).gather(1, order)
    return (begins[:, 1:] < ends.cummax(dim=1).values[:, :-1]).any(dim=1)
