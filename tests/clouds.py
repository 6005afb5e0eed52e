"""Gaussians for the export tests."""

import torch

from osn_gs.export.ply import GaussianCloud


def random_cloud(num_gaussians: int = 200, degree: int = 3, seed: int = 0) -> GaussianCloud:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(num_gaussians, *shape, generator=generator)

    return GaussianCloud(
        means=normal(3),
        quats=normal(4),
        log_scales=0.5 * normal(3) - 4,
        opacity_logits=normal(),
        sh_coeffs=0.3 * normal((degree + 1) ** 2, 3),
    )
