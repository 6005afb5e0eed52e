"""Turning view-dependent colours with the object they belong to."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from osn_gs.gaussians.spherical_harmonics import num_sh_bases, sh_bases

NUM_DIRECTIONS = 64  # at least the 7 functions of band 3; many spread directions keep the solve well conditioned


def rotate_sh(coefficients: Float[Tensor, "n bases 3"], rotation: Float[Tensor, "3 3"]) -> Float[Tensor, "n bases 3"]:
    """Coefficients of the same colours turned by `rotation`: the result along R d equals the original along d.

    Exact: a rotation maps each band of spherical harmonics (degree at most 3) to itself by one constant matrix. Basis
    and signs are those of 3DGS and gsplat. The matrices are found in float64; `rotation` gets no gradient.
    """
    degree = math.isqrt(coefficients.shape[1]) - 1
    assert coefficients.shape[1] == num_sh_bases(degree), f"no SH degree has {coefficients.shape[1]} bases"
    matrix = sh_rotation_matrix(degree, rotation).to(coefficients)
    return torch.einsum("ij,njc->nic", matrix, coefficients)


def sh_rotation_matrix(degree: int, rotation: Float[Tensor, "3 3"]) -> Float[Tensor, "bases bases"]:
    """The matrix, in float64 on the CPU and block-diagonal by band, that `rotate_sh` applies to coefficients.

    Row by row it solves  sum_i Y_i(e) c'_i = sum_j Y_j(R^T e) c_j  for many directions e.
    """
    rotation = rotation.detach().to("cpu", torch.float64)
    directions = _spread_directions()
    turned_back = directions @ rotation  # rows are R^T e
    matrix = torch.zeros(num_sh_bases(degree), num_sh_bases(degree), dtype=torch.float64)
    for band in range(degree + 1):
        rows = slice(num_sh_bases(band - 1), num_sh_bases(band))
        here = sh_bases(degree, directions)[:, rows]
        there = sh_bases(degree, turned_back)[:, rows]
        matrix[rows, rows] = torch.linalg.lstsq(here, there).solution
    return matrix


def _spread_directions() -> Float[Tensor, "directions 3"]:
    """Unit vectors spread evenly over the sphere: a Fibonacci spiral."""
    index = torch.arange(NUM_DIRECTIONS, dtype=torch.float64)
    golden_angle = math.pi * (3 - math.sqrt(5))
    z = 1 - (2 * index + 1) / NUM_DIRECTIONS
    radius = (1 - z.square()).sqrt()
    return torch.stack([radius * torch.cos(golden_angle * index), radius * torch.sin(golden_angle * index), z], dim=-1)
