"""EWA projection of Gaussians on the CPU, with its gradient (conventions of gsplat 1.5.3)."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from numba import njit
from torch import Tensor

from osn_gs.rendering.projected_gaussians import ALPHA_MIN, FRUSTUM_MARGIN, RADIUS_SIGMAS, ProjectedGaussians
from osn_gs.threads import run_over_range

float32 = np.float32
ONE, TWO, HALF = float32(1), float32(2), float32(0.5)
SMALLEST_COMPENSATION = float32(1e-6)  # keeps the gradient of its square root finite (as gsplat's CUDA code)
SMALLEST_CHUNK = 2048

# Entries of the camera's parameter vector: intrinsics, bounds of the Jacobian's slope, image, clipping, blur, and the
# constants of `projected_gaussians`: Numba's cache would keep their old values when that file changes.
FX, FY, CX, CY, U_LOW, U_HIGH, V_LOW, V_HIGH, WIDTH, HEIGHT, NEAR, FAR, EPS2D, OPACITY_MIN, SIGMAS = range(15)


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
    """As `torch_reference.project`, in float32; differentiable in the Gaussians, not in the cameras."""
    assert not viewmats.requires_grad, "the Numba back end has no gradient for viewmats; use backend='torch'"
    per_camera = [
        _ProjectToCamera.apply(
            means,
            quats,
            scales,
            opacities.detach(),
            viewmat.numpy(),
            _camera_parameters(K.numpy(), width, height, near_plane, far_plane, eps2d),
            antialiased,
        )
        for viewmat, K in zip(viewmats.contiguous(), Ks, strict=True)
    ]
    means2d, conics, depths, compensations, radii = (torch.stack(values) for values in zip(*per_camera, strict=True))
    opacities = opacities * compensations if antialiased else opacities.expand_as(depths)
    return ProjectedGaussians(means2d, conics, depths, radii, opacities)


def _camera_parameters(K, width, height, near_plane, far_plane, eps2d):
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    margin_u, margin_v = FRUSTUM_MARGIN * 0.5 * width / fx, FRUSTUM_MARGIN * 0.5 * height / fy
    slope_bounds = (
        -cx / fx - margin_u,
        (width - cx) / fx + margin_u,
        -cy / fy - margin_v,
        (height - cy) / fy + margin_v,
    )
    parameters = [fx, fy, cx, cy, *slope_bounds, width, height, near_plane, far_plane, eps2d, ALPHA_MIN, RADIUS_SIGMAS]
    return np.array(parameters, np.float32)


class _ProjectToCamera(torch.autograd.Function):
    """means2d, conics, depths, compensations and radii of one camera."""

    @staticmethod
    def forward(ctx, means, quats, scales, opacities, viewmat, camera, antialiased):
        gaussians = [tensor.detach().contiguous().numpy() for tensor in (means, quats, scales)]
        count = len(means)
        means2d, conics = np.zeros((count, 2), np.float32), np.zeros((count, 3), np.float32)
        depths, compensations = np.zeros(count, np.float32), np.ones(count, np.float32)
        radii = np.zeros((count, 2), np.int32)
        outputs = (means2d, conics, depths, compensations, radii)
        inputs = (*gaussians, opacities.contiguous().numpy(), viewmat, camera, antialiased)
        run_over_range(_project_forward, count, *inputs, *outputs, smallest_chunk=SMALLEST_CHUNK)
        broken = int(np.isnan(conics.sum(-1) + means2d.sum(-1)).sum())
        assert not broken, f"{broken} of {count} Gaussians have no finite image: is a quaternion 0 or a scale huge?"
        ctx.saved = (*gaussians, viewmat, camera, antialiased, conics, compensations, radii)
        outputs = tuple(torch.from_numpy(array) for array in outputs)
        ctx.mark_non_differentiable(outputs[-1])
        return outputs

    @staticmethod
    def backward(ctx, grad_means2d, grad_conics, grad_depths, grad_compensations, _grad_radii):
        count = len(grad_depths)
        grads = [np.zeros((count, size), np.float32) for size in (3, 4, 3)]
        incoming = [grad.contiguous().numpy() for grad in (grad_means2d, grad_conics, grad_depths, grad_compensations)]
        run_over_range(_project_backward, count, *ctx.saved, *incoming, *grads, smallest_chunk=SMALLEST_CHUNK)
        return (*(torch.from_numpy(grad) for grad in grads), None, None, None, None)


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _clamp(value, low, high):
    return min(max(value, low), high)


@njit(cache=True, nogil=True, error_model="numpy")
def _camera_frame(i, means, quats, viewmat, mean, axes):
    """Writes the camera-frame mean [3] and principal axes [3, 3] (columns) of Gaussian i.

    Returns its unit quaternion and the inverse length of the given one.
    """
    w, x, y, z = quats[i, 0], quats[i, 1], quats[i, 2], quats[i, 3]
    inverse_length = ONE / math.sqrt(w * w + x * x + y * y + z * z)
    w, x, y, z = w * inverse_length, x * inverse_length, y * inverse_length, z * inverse_length
    for r in range(3):
        a, b, c = viewmat[r, 0], viewmat[r, 1], viewmat[r, 2]
        mean[r] = a * means[i, 0] + b * means[i, 1] + c * means[i, 2] + viewmat[r, 3]
        axes[r, 0] = a * (ONE - TWO * (y * y + z * z)) + TWO * (b * (x * y + w * z) + c * (x * z - w * y))
        axes[r, 1] = b * (ONE - TWO * (x * x + z * z)) + TWO * (a * (x * y - w * z) + c * (y * z + w * x))
        axes[r, 2] = c * (ONE - TWO * (x * x + y * y)) + TWO * (a * (x * z + w * y) + b * (y * z - w * x))
    return w, x, y, z, inverse_length


@njit(cache=True, nogil=True, error_model="numpy")
def _image_spread(i, scales, camera, mean, axes, spread):
    """Writes the image of the scaled principal axes, spread [2, 3]: the sharp image covariance is spread spread^T."""
    inverse_depth = ONE / mean[2]
    u = _clamp(mean[0] * inverse_depth, camera[U_LOW], camera[U_HIGH])
    v = _clamp(mean[1] * inverse_depth, camera[V_LOW], camera[V_HIGH])
    for j in range(3):
        spread[0, j] = camera[FX] * inverse_depth * (axes[0, j] - u * axes[2, j]) * scales[i, j]
        spread[1, j] = camera[FY] * inverse_depth * (axes[1, j] - v * axes[2, j]) * scales[i, j]
    return u, v


@njit(cache=True, nogil=True, error_model="numpy")
def _sharp_covariance(spread):
    """xx, xy, yy and determinant of spread spread^T; the determinant by Cauchy-Binet, never negative."""
    xx = spread[0, 0] * spread[0, 0] + spread[0, 1] * spread[0, 1] + spread[0, 2] * spread[0, 2]
    xy = spread[0, 0] * spread[1, 0] + spread[0, 1] * spread[1, 1] + spread[0, 2] * spread[1, 2]
    yy = spread[1, 0] * spread[1, 0] + spread[1, 1] * spread[1, 1] + spread[1, 2] * spread[1, 2]
    minor01 = spread[0, 0] * spread[1, 1] - spread[0, 1] * spread[1, 0]
    minor02 = spread[0, 0] * spread[1, 2] - spread[0, 2] * spread[1, 0]
    minor12 = spread[0, 1] * spread[1, 2] - spread[0, 2] * spread[1, 1]
    return xx, xy, yy, minor01 * minor01 + minor02 * minor02 + minor12 * minor12


@njit(cache=True, nogil=True, error_model="numpy")
def _project_forward(
    first, last, means, quats, scales, opacities, viewmat, camera, antialiased,
    means2d, conics, depths, compensations, radii,
):  # fmt: skip
    """Fills the outputs of Gaussians first..last-1; those out of the depth range keep their zeros but for depth."""
    mean = np.empty(3, np.float32)
    axes = np.empty((3, 3), np.float32)
    spread = np.empty((2, 3), np.float32)
    eps2d = camera[EPS2D]
    for i in range(first, last):
        _camera_frame(i, means, quats, viewmat, mean, axes)
        depths[i] = mean[2]
        if mean[2] < camera[NEAR] or mean[2] > camera[FAR]:
            continue
        _image_spread(i, scales, camera, mean, axes, spread)
        xx, xy, yy, sharp_determinant = _sharp_covariance(spread)
        determinant = sharp_determinant + eps2d * (xx + yy) + eps2d * eps2d
        xx += eps2d
        yy += eps2d
        conics[i, 0] = yy / determinant
        conics[i, 1] = -xy / determinant
        conics[i, 2] = xx / determinant
        compensations[i] = math.sqrt(sharp_determinant / determinant)
        x = camera[FX] * mean[0] / mean[2] + camera[CX]
        y = camera[FY] * mean[1] / mean[2] + camera[CY]
        means2d[i, 0] = x
        means2d[i, 1] = y

        opacity = opacities[i] * compensations[i] if antialiased else opacities[i]
        if opacity < camera[OPACITY_MIN]:
            continue
        extent = min(camera[SIGMAS], math.sqrt(TWO * math.log(opacity / camera[OPACITY_MIN])))
        radius_x = math.ceil(extent * math.sqrt(xx))
        radius_y = math.ceil(extent * math.sqrt(yy))
        in_columns = x + radius_x > 0 and x - radius_x < camera[WIDTH]
        in_rows = y + radius_y > 0 and y - radius_y < camera[HEIGHT]
        if in_columns and in_rows and radius_x > 0 and radius_y > 0:
            radii[i, 0] = np.int32(min(radius_x, 1e9))
            radii[i, 1] = np.int32(min(radius_y, 1e9))


@njit(cache=True, nogil=True, error_model="numpy")
def _project_backward(
    first, last, means, quats, scales, viewmat, camera, antialiased, conics, compensations, radii,
    grad_means2d, grad_conics, grad_depths, grad_compensations, grad_means, grad_quats, grad_scales,
):  # fmt: skip
    """Gradients of Gaussians first..last-1; zero for those that no pixel sees."""
    mean = np.empty(3, np.float32)
    axes = np.empty((3, 3), np.float32)
    spread = np.empty((2, 3), np.float32)
    grad_axes = np.empty((3, 3), np.float32)
    grad_mean = np.empty(3, np.float32)
    grad_rotation = np.empty((3, 3), np.float32)
    for i in range(first, last):
        if radii[i, 0] == 0:
            continue
        w, x, y, z, inverse_length = _camera_frame(i, means, quats, viewmat, mean, axes)
        u, v = _image_spread(i, scales, camera, mean, axes, spread)
        grad_xx, grad_xy, grad_yy = _grad_covariance_from_conic(i, conics, grad_conics)
        if antialiased:
            add_xx, add_xy, add_yy = _grad_covariance_from_compensation(
                spread, camera[EPS2D], compensations[i], grad_compensations[i]
            )
            grad_xx += add_xx
            grad_xy += add_xy
            grad_yy += add_yy

        inverse_depth = ONE / mean[2]
        zoom_x = camera[FX] * inverse_depth
        zoom_y = camera[FY] * inverse_depth
        grad_u = float32(0)
        grad_v = float32(0)
        grad_log_zoom = float32(0)  # spread is proportional to 1 / depth
        for j in range(3):
            grad_spread_x = TWO * grad_xx * spread[0, j] + grad_xy * spread[1, j]
            grad_spread_y = TWO * grad_yy * spread[1, j] + grad_xy * spread[0, j]
            unit_x = zoom_x * (axes[0, j] - u * axes[2, j])
            unit_y = zoom_y * (axes[1, j] - v * axes[2, j])
            grad_scales[i, j] = grad_spread_x * unit_x + grad_spread_y * unit_y
            grad_log_zoom += grad_spread_x * spread[0, j] + grad_spread_y * spread[1, j]
            along_x = grad_spread_x * zoom_x * scales[i, j]
            along_y = grad_spread_y * zoom_y * scales[i, j]
            grad_axes[0, j] = along_x
            grad_axes[1, j] = along_y
            grad_axes[2, j] = -(u * along_x + v * along_y)
            grad_u -= along_x * axes[2, j]
            grad_v -= along_y * axes[2, j]

        slope_u = mean[0] * inverse_depth
        slope_v = mean[1] * inverse_depth
        if slope_u != u:  # the Jacobian's slope was clamped
            grad_u = float32(0)
        if slope_v != v:
            grad_v = float32(0)
        grad_u += grad_means2d[i, 0] * camera[FX]
        grad_v += grad_means2d[i, 1] * camera[FY]
        grad_mean[0] = grad_u * inverse_depth
        grad_mean[1] = grad_v * inverse_depth
        grad_mean[2] = grad_depths[i] - (grad_u * slope_u + grad_v * slope_v + grad_log_zoom) * inverse_depth
        for column in range(3):
            a, b, c = viewmat[0, column], viewmat[1, column], viewmat[2, column]
            grad_means[i, column] = a * grad_mean[0] + b * grad_mean[1] + c * grad_mean[2]
            for j in range(3):
                grad_rotation[column, j] = a * grad_axes[0, j] + b * grad_axes[1, j] + c * grad_axes[2, j]
        _write_grad_quat(i, w, x, y, z, inverse_length, grad_rotation, grad_quats)


@njit(cache=True, nogil=True, error_model="numpy")
def _grad_covariance_from_conic(i, conics, grad_conics):
    """d loss / d (xx, xy, yy) of the blurred covariance S, from d S^-1 = -S^-1 dS S^-1."""
    a, b, c = conics[i, 0], conics[i, 1], conics[i, 2]
    grad_a, grad_b, grad_c = grad_conics[i, 0], HALF * grad_conics[i, 1], grad_conics[i, 2]
    p00, p01 = a * grad_a + b * grad_b, a * grad_b + b * grad_c
    p10, p11 = b * grad_a + c * grad_b, b * grad_b + c * grad_c
    return -(p00 * a + p01 * b), -(p00 * b + p01 * c) - (p10 * a + p11 * b), -(p10 * b + p11 * c)


@njit(cache=True, nogil=True, error_model="numpy")
def _grad_covariance_from_compensation(spread, eps2d, compensation, grad_compensation):
    """d loss / d (xx, xy, yy) through compensation = sqrt(det S / det(S + eps2d I))."""
    xx, xy, yy, sharp_determinant = _sharp_covariance(spread)
    determinant = sharp_determinant + eps2d * (xx + yy) + eps2d * eps2d
    ratio = sharp_determinant / determinant
    factor = HALF * grad_compensation / (compensation + SMALLEST_COMPENSATION) / determinant
    grad_xx = factor * (yy - ratio * (yy + eps2d))
    grad_yy = factor * (xx - ratio * (xx + eps2d))
    return grad_xx, -TWO * factor * xy * (ONE - ratio), grad_yy


@njit(cache=True, nogil=True, error_model="numpy")
def _write_grad_quat(i, w, x, y, z, inverse_length, G, grad_quats):
    """Gradient of quaternion i (any length) from that of its rotation matrix G; (w, x, y, z) is its unit one."""
    grad_w = TWO * (x * (G[2, 1] - G[1, 2]) + y * (G[0, 2] - G[2, 0]) + z * (G[1, 0] - G[0, 1]))
    grad_x = TWO * (
        y * (G[1, 0] + G[0, 1]) + z * (G[2, 0] + G[0, 2]) + w * (G[2, 1] - G[1, 2]) - TWO * x * (G[1, 1] + G[2, 2])
    )
    grad_y = TWO * (
        x * (G[1, 0] + G[0, 1]) + z * (G[2, 1] + G[1, 2]) + w * (G[0, 2] - G[2, 0]) - TWO * y * (G[0, 0] + G[2, 2])
    )
    grad_z = TWO * (
        x * (G[2, 0] + G[0, 2]) + y * (G[2, 1] + G[1, 2]) + w * (G[1, 0] - G[0, 1]) - TWO * z * (G[0, 0] + G[1, 1])
    )
    radial = grad_w * w + grad_x * x + grad_y * y + grad_z * z  # the length of a quaternion means nothing
    grad_quats[i, 0] = (grad_w - radial * w) * inverse_length
    grad_quats[i, 1] = (grad_x - radial * x) * inverse_length
    grad_quats[i, 2] = (grad_y - radial * y) * inverse_length
    grad_quats[i, 3] = (grad_z - radial * z) * inverse_length
