"""The optimizers of one object's Gaussians."""

from __future__ import annotations

import torch

from osn_gs.gaussians.object_gaussians import ObjectGaussians
from osn_gs.training.config import GaussiansConfig


def gaussian_optimizers(
    gaussians: ObjectGaussians, config: GaussiansConfig, extent: float
) -> dict[str, torch.optim.Optimizer]:
    """One Adam per parameter, as gsplat's strategies ask for; epsilon as in 3DGS."""
    rates = {
        "means": config.means_lr * extent,
        "scales": config.scales_lr,
        "quats": config.quats_lr,
        "opacities": config.opacities_lr,
        "sh0": config.sh0_lr,
        "shN": config.shN_lr,
    }
    return {
        name: torch.optim.Adam([parameter], lr=rates[name], eps=1e-15, fused=True)
        for name, parameter in gaussians.params.items()
    }
