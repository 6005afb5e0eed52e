"""Colours turn with the object: rotated harmonics seen along R d are the original ones seen along d."""

import pytest
import torch
from gsplat.cuda._torch_impl import _spherical_harmonics as gsplat_harmonics

from osn_gs.gaussians.sh_rotation import rotate_sh, sh_rotation_matrix
from osn_gs.geometry.se3 import quat_to_rotmat


def random_rotation(seed: int) -> torch.Tensor:
    return quat_to_rotmat(torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def random_normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_turned_colour_is_seen_along_the_turned_direction(degree, seed):
    rotation, directions = random_rotation(seed), random_normal(50, 3)
    coefficients = random_normal(50, (degree + 1) ** 2, 3, seed=seed)
    turned = rotate_sh(coefficients, rotation)
    # the evaluation is gsplat's, so a basis of our own with other signs would not pass
    seen = gsplat_harmonics(degree, directions @ rotation.T, turned)
    torch.testing.assert_close(seen, gsplat_harmonics(degree, directions, coefficients), atol=1e-12, rtol=1e-12)
    if degree:
        unturned = gsplat_harmonics(degree, directions @ rotation.T, coefficients)
        assert not torch.allclose(unturned, seen, atol=1e-2)


def test_a_quarter_turn_about_z_takes_the_x_lobe_to_the_y_lobe():
    quarter = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    along_x = torch.zeros(1, 4, 3)
    along_x[:, 3] = -1  # the basis function is -c x
    along_y = torch.zeros(1, 4, 3)
    along_y[:, 1] = -1  # and -c y
    torch.testing.assert_close(rotate_sh(along_x, quarter), along_y)


def test_rotations_compose_and_preserve_the_energy_of_each_band():
    first, second = random_rotation(3), random_rotation(4)
    composed = sh_rotation_matrix(3, second) @ sh_rotation_matrix(3, first)
    torch.testing.assert_close(sh_rotation_matrix(3, second @ first), composed, atol=1e-13, rtol=0)
    torch.testing.assert_close(composed @ composed.T, torch.eye(16, dtype=torch.float64), atol=1e-13, rtol=0)


def test_the_identity_changes_nothing_to_the_bit_that_float32_has():
    coefficients = random_normal(100, 16, 3).float()
    turned = rotate_sh(coefficients, torch.eye(3))
    assert turned.dtype == torch.float32
    torch.testing.assert_close(turned, coefficients, atol=1e-6, rtol=0)
