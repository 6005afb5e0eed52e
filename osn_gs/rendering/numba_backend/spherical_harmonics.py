"""Colours from spherical harmonics on the CPU, with their gradient.

The basis is that of `osn_gs.gaussians.spherical_harmonics`; torch's many small operations take four times as long.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from numba import njit
from torch import Tensor

from osn_gs.gaussians.spherical_harmonics import MAX_SH_DEGREE, num_sh_bases
from osn_gs.threads import run_over_range

float32 = np.float32
ZERO, ONE, HALF = float32(0), float32(1), float32(0.5)
C0 = float32(0.28209479177387814)
C1 = float32(0.48860251190292)
C2, C2_Z, C2_Z0, C2_XY = (
    float32(c) for c in (1.092548430592079, 0.9461746957575601, 0.3153915652525201, 0.5462742152960395)
)
C3_3, C3_2, C3_XYZ = float32(0.5900435899266435), float32(1.445305721320277), float32(2.890611442640554)
C3_1, C3_10, C3_Z, C3_Z0 = (
    float32(c) for c in (2.285228997322329, 0.4570457994644658, 1.865881662950577, 1.119528997770346)
)
SMALLEST_CHUNK = 2048


def sh_colors(
    means: Float[Tensor, "n 3"],
    coefficients: Float[Tensor, "n bases 3"],
    viewmats: Float[Tensor, "c 4 4"],
    degree: int,
) -> Float[Tensor, "c n 3"]:
    """As `torch_reference.sh_colors`, in float32; no gradient for the cameras."""
    assert 0 <= degree <= MAX_SH_DEGREE, f"SH degree must be 0..{MAX_SH_DEGREE}, got {degree}"
    used = num_sh_bases(degree)
    assert coefficients.shape[1] >= used, f"degree {degree} needs {used} bases, got {coefficients.shape[1]}"
    centres = -(viewmats[:, :3, :3].transpose(-1, -2) @ viewmats[:, :3, 3:]).squeeze(-1)
    return torch.stack([_ShColors.apply(means, coefficients, centre.numpy(), degree) for centre in centres])


class _ShColors(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means, coefficients, camera_centre, degree):
        arrays = (
            means.detach().contiguous().numpy(),
            coefficients.detach().contiguous().numpy(),
            camera_centre,
            degree,
        )
        colors = np.empty((len(means), 3), np.float32)
        run_over_range(_colors_forward, len(means), *arrays, colors, smallest_chunk=SMALLEST_CHUNK)
        ctx.save_for_backward(means, coefficients)
        ctx.camera = (camera_centre, degree)
        ctx.colors = colors
        return torch.from_numpy(colors)

    @staticmethod
    def backward(ctx, grad_colors):
        arrays = [tensor.detach().contiguous().numpy() for tensor in ctx.saved_tensors]
        grad_means, grad_coefficients = (np.zeros_like(array) for array in arrays)
        inputs = (*arrays, *ctx.camera, ctx.colors, grad_colors.contiguous().numpy())
        outputs = (grad_means, grad_coefficients)
        run_over_range(_colors_backward, len(grad_means), *inputs, *outputs, smallest_chunk=SMALLEST_CHUNK)
        return torch.from_numpy(grad_means), torch.from_numpy(grad_coefficients), None, None


@njit(cache=True, nogil=True, error_model="numpy")
def _direction(mean, camera_centre):
    """Unit vector from the camera to the Gaussian, and one over their distance."""
    x, y, z = mean[0] - camera_centre[0], mean[1] - camera_centre[1], mean[2] - camera_centre[2]
    inverse = ONE / math.sqrt(x * x + y * y + z * z)
    return x * inverse, y * inverse, z * inverse, inverse


@njit(cache=True, nogil=True, error_model="numpy")
def _fill_bases(degree, x, y, z, bases):
    """Writes the values of the basis functions, bases [(degree + 1)^2]."""
    bases[0] = C0
    if degree >= 1:
        bases[1] = -C1 * y
        bases[2] = C1 * z
        bases[3] = -C1 * x
    if degree >= 2:
        bases[4] = C2 * x * y
        bases[5] = -C2 * y * z
        bases[6] = C2_Z * z * z - C2_Z0
        bases[7] = -C2 * x * z
        bases[8] = C2_XY * (x * x - y * y)
    if degree >= 3:
        side = C3_10 - C3_1 * z * z
        bases[9] = -C3_3 * y * (3 * x * x - y * y)
        bases[10] = C3_XYZ * x * y * z
        bases[11] = y * side
        bases[12] = z * (C3_Z * z * z - C3_Z0)
        bases[13] = x * side
        bases[14] = C3_2 * z * (x * x - y * y)
        bases[15] = -C3_3 * x * (x * x - 3 * y * y)


@njit(cache=True, nogil=True, error_model="numpy")
def _grad_direction(degree, x, y, z, g):
    """d loss / d (x, y, z) from g, that by the basis functions, as if x, y and z were independent."""
    grad_x, grad_y, grad_z = ZERO, ZERO, ZERO
    if degree >= 1:
        grad_x -= C1 * g[3]
        grad_y -= C1 * g[1]
        grad_z += C1 * g[2]
    if degree >= 2:
        grad_x += C2 * (y * g[4] - z * g[7]) + 2 * C2_XY * x * g[8]
        grad_y += C2 * (x * g[4] - z * g[5]) - 2 * C2_XY * y * g[8]
        grad_z += 2 * C2_Z * z * g[6] - C2 * (y * g[5] + x * g[7])
    if degree >= 3:
        side, grad_side = C3_10 - C3_1 * z * z, y * g[11] + x * g[13]
        grad_x += -6 * C3_3 * x * y * g[9] + C3_XYZ * y * z * g[10] + side * g[13]
        grad_x += 2 * C3_2 * x * z * g[14] - 3 * C3_3 * (x * x - y * y) * g[15]
        grad_y += -3 * C3_3 * (x * x - y * y) * g[9] + C3_XYZ * x * z * g[10] + side * g[11]
        grad_y += -2 * C3_2 * y * z * g[14] + 6 * C3_3 * x * y * g[15]
        grad_z += C3_XYZ * x * y * g[10] - 2 * C3_1 * z * grad_side
        grad_z += (3 * C3_Z * z * z - C3_Z0) * g[12] + C3_2 * (x * x - y * y) * g[14]
    return grad_x, grad_y, grad_z


@njit(cache=True, nogil=True, error_model="numpy")
def _colors_forward(first, last, means, coefficients, camera_centre, degree, colors):
    used = (degree + 1) ** 2
    bases = np.empty(used, np.float32)
    for i in range(first, last):
        x, y, z, _ = _direction(means[i], camera_centre)
        _fill_bases(degree, x, y, z, bases)
        red, green, blue = HALF, HALF, HALF
        for b in range(used):
            red += bases[b] * coefficients[i, b, 0]
            green += bases[b] * coefficients[i, b, 1]
            blue += bases[b] * coefficients[i, b, 2]
        colors[i, 0] = ZERO if red < ZERO else red
        colors[i, 1] = ZERO if green < ZERO else green
        colors[i, 2] = ZERO if blue < ZERO else blue


@njit(cache=True, nogil=True, error_model="numpy")
def _colors_backward(
    first, last, means, coefficients, camera_centre, degree, colors, grad_colors, grad_means, grad_coefficients
):
    """Gradients of means and of the used coefficients; a colour held at 0 passes none."""
    used = (degree + 1) ** 2
    bases = np.empty(used, np.float32)
    grad_bases = np.empty(used, np.float32)
    for i in range(first, last):
        x, y, z, inverse_distance = _direction(means[i], camera_centre)
        _fill_bases(degree, x, y, z, bases)
        red = ZERO if colors[i, 0] == ZERO else grad_colors[i, 0]
        green = ZERO if colors[i, 1] == ZERO else grad_colors[i, 1]
        blue = ZERO if colors[i, 2] == ZERO else grad_colors[i, 2]
        for b in range(used):
            grad_coefficients[i, b, 0] = bases[b] * red
            grad_coefficients[i, b, 1] = bases[b] * green
            grad_coefficients[i, b, 2] = bases[b] * blue
            grad_bases[b] = coefficients[i, b, 0] * red + coefficients[i, b, 1] * green + coefficients[i, b, 2] * blue
        grad_x, grad_y, grad_z = _grad_direction(degree, x, y, z, grad_bases)
        along = grad_x * x + grad_y * y + grad_z * z  # distance changes no direction
        grad_means[i, 0] = (grad_x - along * x) * inverse_distance
        grad_means[i, 1] = (grad_y - along * y) * inverse_distance
        grad_means[i, 2] = (grad_z - along * z) * inverse_distance
