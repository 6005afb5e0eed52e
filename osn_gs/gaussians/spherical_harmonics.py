"""Real spherical harmonics as colours that depend on the viewing direction."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

SH_BAND_0 = 0.28209479177387814  # the constant basis function, sqrt(1 / (4 pi))
MAX_SH_DEGREE = 3


def num_sh_bases(degree: int) -> int:
    """Basis functions of all bands up to `degree`."""
    return (degree + 1) ** 2


def rgb_to_sh_band_0(rgb: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """The band-0 coefficients that show `rgb` from every direction (3DGS: colour = SH + 0.5)."""
    return (rgb - 0.5) / SH_BAND_0


def sh_bases(degree: int, directions: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch bases"]:
    """Values of the real SH basis at unit `directions`, bands 0..degree (at most 3), order and signs of 3DGS.

    The polynomials are those of Sloan, "Efficient Spherical Harmonic Evaluation", JCGT 2013, with the
    Condon-Shortley sign, as gsplat and INRIA's code use them.
    """
    assert 0 <= degree <= MAX_SH_DEGREE, f"SH degree must be 0..{MAX_SH_DEGREE}, got {degree}"
    x, y, z = directions.unbind(-1)
    bases = [torch.full_like(x, SH_BAND_0)]
    if degree >= 1:
        bases += [-0.48860251190292 * y, 0.48860251190292 * z, -0.48860251190292 * x]
    if degree >= 2:
        bases += [
            1.092548430592079 * x * y,
            -1.092548430592079 * y * z,
            0.9461746957575601 * z * z - 0.3153915652525201,
            -1.092548430592079 * x * z,
            0.5462742152960395 * (x * x - y * y),
        ]
    if degree >= 3:
        bases += [
            -0.5900435899266435 * y * (3 * x * x - y * y),
            2.890611442640554 * x * y * z,
            y * (0.4570457994644658 - 2.285228997322329 * z * z),
            z * (1.865881662950577 * z * z - 1.119528997770346),
            x * (0.4570457994644658 - 2.285228997322329 * z * z),
            1.445305721320277 * z * (x * x - y * y),
            -0.5900435899266435 * x * (x * x - 3 * y * y),
        ]
    return torch.stack(bases, dim=-1)


def evaluate_sh(
    degree: int, directions: Float[Tensor, "*batch 3"], coefficients: Float[Tensor, "*batch bases 3"]
) -> Float[Tensor, "*batch 3"]:
    """Sum of basis functions times coefficients; `directions` (camera to Gaussian) of any non-zero length.

    Bands above `degree` are ignored. 3DGS shows max(result + 0.5, 0) as the colour.
    """
    used = num_sh_bases(degree)
    assert coefficients.shape[-2] >= used, f"degree {degree} needs {used} bases, got {coefficients.shape[-2]}"
    bases = sh_bases(degree, torch.nn.functional.normalize(directions, dim=-1))
    return (bases[..., None] * coefficients[..., :used, :]).sum(dim=-2)
