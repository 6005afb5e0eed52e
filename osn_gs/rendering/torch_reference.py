"""Rasterization in plain torch: any float type, any device, gradients by autograd.

Written to be read. It is what the tests hold the fast back ends against, and the fallback where Numba has
no wheel. `blend` visits only the Gaussians near each tile; `blend_dense` all of them at every pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from osn_gs.gaussians.spherical_harmonics import evaluate_sh
from osn_gs.geometry.se3 import quat_to_rotmat
from osn_gs.rendering.projected_gaussians import (
    ALPHA_MAX,
    ALPHA_MIN,
    FRUSTUM_MARGIN,
    RADIUS_SIGMAS,
    TRANSMITTANCE_MIN,
    ProjectedGaussians,
)

TILE_SIZE = 16


def project(
    means: Float[Tensor, "n 3"],
    quats: Float[Tensor, "n 4"],
    scales: Float[Tensor, "n 3"],
    opacities: Float[Tensor, "n"],
    viewmats: Float[Tensor, "c 4 4"],
    Ks: Float[Tensor, "c 3 3"],
    width: int,
    height: int,
    near_plane: float,
    far_plane: float,
    eps2d: float,
    antialiased: bool,
) -> ProjectedGaussians:
    """EWA projection with gsplat's conventions: what `fully_fused_projection` of gsplat 1.5.3 computes."""
    rotations = viewmats[:, :3, :3]
    camera_means = torch.einsum("cij,nj->cni", rotations, means) + viewmats[:, None, :3, 3]
    depths = camera_means[..., 2]
    in_depth_range = (depths >= near_plane) & (depths <= far_plane)
    # Values behind the camera are never used, but a division by zero there would poison the gradients.
    camera_means = torch.where(in_depth_range[..., None], camera_means, torch.ones_like(camera_means))
    slopes = camera_means[..., :2] / camera_means[..., 2:]
    focals = torch.stack([Ks[:, 0, 0], Ks[:, 1, 1]], dim=-1)[:, None]
    centres = torch.stack([Ks[:, 0, 2], Ks[:, 1, 2]], dim=-1)[:, None]
    means2d = focals * slopes + centres

    jacobian_rows = _jacobian_rows(slopes, camera_means[..., 2:], focals, centres, width, height)
    camera_axes = rotations[:, None] @ (quat_to_rotmat(quats) * scales[:, None, :])
    spread = jacobian_rows @ camera_axes  # [C, N, 2, 3]: image covariance = spread spread^T
    xx, xy, yy = (
        (spread[..., 0, :] ** 2).sum(-1),
        (spread[..., 0, :] * spread[..., 1, :]).sum(-1),
        (spread[..., 1, :] ** 2).sum(-1),
    )
    sharp_determinant = xx * yy - xy * xy
    xx, yy = xx + eps2d, yy + eps2d
    determinant = (xx * yy - xy * xy).clamp_min(1e-10)
    conics = torch.stack([yy, -xy, xx], dim=-1) / determinant[..., None]

    opacities = opacities.expand_as(depths)
    if antialiased:  # Mip-Splatting: the blur must not add light
        opacities = opacities * (sharp_determinant / determinant).clamp_min(1e-12).sqrt()
    radii = _radii(means2d, xx, yy, opacities, in_depth_range, width, height)
    return ProjectedGaussians(means2d, conics, depths, radii, opacities)


def _jacobian_rows(
    slopes: Float[Tensor, "c n 2"],
    depths: Float[Tensor, "c n 1"],
    focals: Float[Tensor, "c 1 2"],
    centres: Float[Tensor, "c 1 2"],
    width: int,
    height: int,
) -> Float[Tensor, "c n 2 3"]:
    """Derivative of the pixel position by the camera-frame position, its slope held near the frustum.

    Far outside the image the first-order projection of a Gaussian explodes; gsplat clamps x/z and y/z there.
    """
    size = torch.tensor([width, height], dtype=slopes.dtype, device=slopes.device)
    margin = FRUSTUM_MARGIN * 0.5 * size / focals
    slopes = torch.minimum(torch.maximum(slopes, -centres / focals - margin), (size - centres) / focals + margin)
    focals_over_depth = focals / depths
    fx, fy = focals_over_depth.unbind(-1)
    gx, gy = (-focals_over_depth * slopes).unbind(-1)
    zero = torch.zeros_like(fx)
    return torch.stack([torch.stack([fx, zero, gx], -1), torch.stack([zero, fy, gy], -1)], dim=-2)


@torch.no_grad()
def _radii(means2d, xx, yy, opacities, in_depth_range, width, height) -> Int[Tensor, "c n 2"]:
    """Half sizes in pixels of the box in which alpha can reach 1/255; 0 for Gaussians that no pixel sees.

    The bound is that of Radl et al. 2024 (arXiv 2402.00525), as in gsplat's CUDA projection.
    """
    bright = opacities >= ALPHA_MIN
    extent = (2 * (opacities.clamp_min(ALPHA_MIN) / ALPHA_MIN).log()).sqrt().clamp_max(RADIUS_SIGMAS)
    radii = torch.stack([(extent * xx.sqrt()).ceil(), (extent * yy.sqrt()).ceil()], dim=-1)
    size = torch.tensor([width, height], dtype=means2d.dtype, device=means2d.device)
    in_image = ((means2d + radii > 0) & (means2d - radii < size)).all(-1)
    visible = in_depth_range & bright & in_image & (radii > 0).all(-1)
    return torch.where(visible[..., None], radii, torch.zeros_like(radii)).int()


def sh_colors(
    means: Float[Tensor, "n 3"],
    coefficients: Float[Tensor, "n bases 3"],
    viewmats: Float[Tensor, "c 4 4"],
    degree: int,
) -> Float[Tensor, "c n 3"]:
    """Colours max(SH + 0.5, 0) of the Gaussians as each camera sees them; `viewmats` rigid."""
    camera_centres = -(viewmats[:, :3, :3].transpose(-1, -2) @ viewmats[:, :3, 3:]).squeeze(-1)
    directions = means - camera_centres[:, None]
    return (evaluate_sh(degree, directions, coefficients.expand(len(viewmats), -1, -1, -1)) + 0.5).clamp_min(0)


def blend(
    projected: ProjectedGaussians, features: Float[Tensor, "c n d"], width: int, height: int, absgrad: bool = False
) -> tuple[Float[Tensor, "c h w d"], Float[Tensor, "c h w 1"]]:
    """Front-to-back alpha blending over black, tile by tile: premultiplied features and alphas.

    With `absgrad`, backward leaves the sum over pixels of |d loss / d mean| in `projected.means2d.absgrad`.
    """
    return _blend_cameras(_blend_tiles, projected, features, width, height, absgrad)


def blend_dense(
    projected: ProjectedGaussians, features: Float[Tensor, "c n d"], width: int, height: int, absgrad: bool = False
) -> tuple[Float[Tensor, "c h w d"], Float[Tensor, "c h w 1"]]:
    """As `blend`, from every visible Gaussian at every pixel: no tiles that could be wrong, much memory."""
    return _blend_cameras(_blend_whole_image, projected, features, width, height, absgrad)


class _CameraGaussians(NamedTuple):
    """G Gaussians near to far as one camera sees them; `ids` are their indices in the cloud."""

    ids: Int[Tensor, "g"]
    means2d: Float[Tensor, "g 2"]
    conics: Float[Tensor, "g 3"]
    opacities: Float[Tensor, "g"]
    features: Float[Tensor, "g d"]
    absgrad: Float[Tensor, "n 2"] | None

    def repeat(self, rows: Int[Tensor, "p"]) -> _CameraGaussians:
        return _CameraGaussians(*(values[rows] for values in self[:-1]), self.absgrad)

    def split(self, counts: list[int]) -> Iterator[_CameraGaussians]:
        groups = zip(*(values.split(counts) for values in self[:-1]), strict=True)
        return (_CameraGaussians(*group, self.absgrad) for group in groups)


def _blend_cameras(blend_camera, projected, features, width, height, absgrad):
    if absgrad:
        projected.means2d.absgrad = torch.zeros_like(projected.means2d)
    pixels = _pixel_centres(width, height, features)
    blended = []
    for camera in range(features.shape[0]):
        near_to_far = _visible_near_to_far(projected, camera)
        gaussians = _CameraGaussians(
            near_to_far,
            projected.means2d[camera, near_to_far],
            projected.conics[camera, near_to_far],
            projected.opacities[camera, near_to_far],
            features[camera, near_to_far],
            projected.means2d.absgrad[camera] if absgrad else None,
        )
        blended.append(blend_camera(pixels, gaussians, projected.radii[camera, near_to_far]))
    return torch.stack([image for image, _ in blended]), torch.stack([alpha for _, alpha in blended])


def _pixel_centres(width: int, height: int, like: Tensor) -> Float[Tensor, "h w 2"]:
    y = torch.arange(height, dtype=like.dtype, device=like.device) + 0.5
    x = torch.arange(width, dtype=like.dtype, device=like.device) + 0.5
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def _visible_near_to_far(projected: ProjectedGaussians, camera: int) -> Int[Tensor, "visible"]:
    """Indices of the Gaussians that the camera sees, ties in depth by index."""
    visible = (projected.radii[camera] > 0).all(-1).nonzero()[:, 0]
    return visible[projected.depths[camera, visible].detach().argsort(stable=True)]


def _blend_whole_image(
    pixels: Float[Tensor, "h w 2"], gaussians: _CameraGaussians, radii: Int[Tensor, "g 2"]
) -> tuple[Float[Tensor, "h w d"], Float[Tensor, "h w 1"]]:
    return _blend_pixels(pixels, gaussians)


def _blend_tiles(
    pixels: Float[Tensor, "h w 2"], gaussians: _CameraGaussians, radii: Int[Tensor, "g 2"]
) -> tuple[Float[Tensor, "h w d"], Float[Tensor, "h w 1"]]:
    """Blend every tile from the Gaussians whose boxes touch it."""
    height, width, _ = pixels.shape
    pixel_ids = torch.arange(height * width, device=pixels.device).view(height, width)
    tiles_x = -(-width // TILE_SIZE)
    rows, tiles, counts = _gaussians_of_tiles(gaussians.means2d.detach(), radii, width, height)
    tile_ids, tile_images, tile_alphas = [], [], []
    # Gathered once and split: autograd would write a gradient for all Gaussians for every tile.
    for tile, members in zip(tiles, gaussians.repeat(rows).split(counts), strict=True):
        top, left = (TILE_SIZE * place for place in divmod(tile, tiles_x))
        window = (slice(top, top + TILE_SIZE), slice(left, left + TILE_SIZE))
        image, alpha = _blend_pixels(pixels[window], members)
        tile_ids.append(pixel_ids[window].flatten())
        tile_images.append(image.flatten(0, 1))
        tile_alphas.append(alpha.flatten(0, 1))
    # Written once, for the same reason.
    order = torch.cat(tile_ids)
    image = pixels.new_zeros(height * width, gaussians.features.shape[-1]).index_copy(0, order, torch.cat(tile_images))
    alpha = pixels.new_zeros(height * width, 1).index_copy(0, order, torch.cat(tile_alphas))
    return image.view(height, width, -1), alpha.view(height, width, 1)


def _gaussians_of_tiles(
    means2d: Float[Tensor, "g 2"], radii: Int[Tensor, "g 2"], width: int, height: int
) -> tuple[Int[Tensor, "pairs"], list[int], list[int]]:
    """The Gaussians of each tile, one tile after the other, each near to far; those tiles; how many each has.

    Names the first tile even when no Gaussian touches any, so that an empty picture has a graph too.
    """
    last_tile = torch.tensor([(width - 1) // TILE_SIZE, (height - 1) // TILE_SIZE], device=means2d.device)
    low = torch.minimum(((means2d - radii) / TILE_SIZE).floor().long().clamp_min(0), last_tile)
    high = torch.minimum(((means2d + radii) / TILE_SIZE).floor().long().clamp_min(0), last_tile)
    spans = high - low + 1
    counts = spans.prod(-1)
    owner = torch.arange(len(means2d), device=means2d.device).repeat_interleave(counts)
    within = torch.arange(len(owner), device=means2d.device) - (counts.cumsum(0) - counts)[owner]
    tile_x = low[owner, 0] + within % spans[owner, 0]
    tile_y = low[owner, 1] + within // spans[owner, 0]
    sorted_tiles, order = torch.sort(tile_y * (last_tile[0] + 1) + tile_x, stable=True)  # stable: still near to far
    tiles, tile_counts = torch.unique_consecutive(sorted_tiles, return_counts=True)
    return owner[order], tiles.tolist() or [0], tile_counts.tolist() or [0]


def _blend_pixels(
    pixels: Float[Tensor, "h w 2"], gaussians: _CameraGaussians
) -> tuple[Float[Tensor, "h w d"], Float[Tensor, "h w 1"]]:
    """Blend the Gaussians at every pixel."""
    offsets = gaussians.means2d - pixels[..., None, :]  # [h, w, g, 2]
    if gaussians.absgrad is not None and offsets.requires_grad:

        def add_to_absgrad(gradient: Tensor) -> None:
            gaussians.absgrad.index_add_(0, gaussians.ids, gradient.abs().sum((0, 1)))

        offsets.register_hook(add_to_absgrad)
    dx, dy = offsets.unbind(-1)
    xx, xy, yy = gaussians.conics.unbind(-1)
    sigma = 0.5 * (xx * dx * dx + yy * dy * dy) + xy * dx * dy
    alpha = (gaussians.opacities * torch.exp(-sigma)).clamp_max(ALPHA_MAX)
    alpha = torch.where((sigma >= 0) & (alpha >= ALPHA_MIN), alpha, torch.zeros_like(alpha))
    transmittance = torch.cumprod(1 - alpha, dim=-1)
    alpha = torch.where(transmittance > TRANSMITTANCE_MIN, alpha, torch.zeros_like(alpha))
    before = torch.cat([torch.ones_like(transmittance[..., :1]), transmittance[..., :-1]], dim=-1)
    weights = alpha * before
    return weights @ gaussians.features, weights.sum(-1, keepdim=True)
