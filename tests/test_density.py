"""Density control on the CPU: gsplat's strategies grow, prune, reset and relocate, and the optimizers follow."""

from __future__ import annotations

import math

import pytest
import torch
from gsplat.strategy import ops
from torch.testing import assert_close

from osn_gs.gaussians import density
from osn_gs.gaussians.density import DensityConfig, DensityControl
from osn_gs.gaussians.neighbours import mean_square_neighbour_distance
from osn_gs.gaussians.object_gaussians import ObjectGaussians
from osn_gs.rendering.rasterize import rasterize

SIZE = 32


def make_object(count: int = 60) -> tuple[ObjectGaussians, dict[str, torch.optim.Optimizer]]:
    generator = torch.Generator().manual_seed(1)
    points = 0.3 * torch.randn(count, 3, generator=generator) + torch.tensor([0.0, 0.0, 2.0])
    gaussians = ObjectGaussians.from_points(points, torch.rand(count, 3, generator=generator), sh_degree=1)
    rates = {"means": 1e-3, "scales": 1e-2, "quats": 1e-3, "opacities": 1e-2, "sh0": 1e-2, "shN": 1e-3}
    optimizers = {name: torch.optim.Adam([p], lr=rates[name], fused=True) for name, p in gaussians.params.items()}
    return gaussians, optimizers


def take_steps(control: DensityControl, first: int, last: int) -> None:
    """Fit a white square, so that gradients are large."""
    gaussians = control.gaussians
    intrinsics = torch.tensor([[[30.0, 0, SIZE / 2], [0, 30.0, SIZE / 2], [0, 0, 1]]])
    for step in range(first, last + 1):
        colors, _, info = rasterize(
            gaussians.means,
            gaussians.quats,
            gaussians.scales,
            gaussians.opacities,
            gaussians.sh,
            torch.eye(4)[None],
            intrinsics,
            SIZE,
            SIZE,
            sh_degree=1,
        )
        control.before_backward(step, info)
        ((colors - 1).abs().mean() + control.regularization()).backward()
        for optimizer in control.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        control.after_backward(step, info)


def control_for(config: DensityConfig, max_gaussians: int = 1000) -> DensityControl:
    torch.manual_seed(0)
    return DensityControl(*make_object(), config, extent=2.0, stop_step=1000, max_gaussians=max_gaussians)


@pytest.mark.parametrize("strategy", ["default", "mcmc"])
def test_gaussians_grow_and_optimizer_state_grows_with_them(strategy: str):
    control = control_for(DensityConfig(strategy=strategy, start_step=5, every=10, grow_grad2d=1e-5))
    before = len(control.gaussians)
    take_steps(control, 1, 30)
    after = len(control.gaussians)
    assert after > before
    for name, parameter in control.gaussians.params.items():
        assert control.optimizers[name].param_groups[0]["params"][0] is parameter
        moments = control.optimizers[name].state[parameter]
        assert moments["exp_avg"].shape == parameter.shape
    assert all(torch.isfinite(p).all() for p in control.gaussians.params.values())


def test_an_object_at_its_limit_stops_growing():
    control = control_for(DensityConfig(start_step=5, every=10, grow_grad2d=1e-9), max_gaussians=60)
    take_steps(control, 1, 30)
    assert len(control.gaussians) <= 60


def test_transparent_gaussians_are_pruned():
    control = control_for(DensityConfig(start_step=5, every=10, grow_grad2d=1e9))
    with torch.no_grad():
        control.gaussians.params["opacities"][:20] = -8.0
    take_steps(control, 1, 10)
    assert len(control.gaussians) == 40


def test_opacities_are_reset_which_gsplat_1_5_3_never_does():
    config = DensityConfig(start_step=100, reset_every=10, prune_opacity=0.02)
    control = control_for(config)
    take_steps(control, 1, 9)
    assert control.gaussians.opacities.max() > 0.4
    take_steps(control, 10, 10)
    assert control.gaussians.opacities.max() <= 2 * config.prune_opacity + 1e-6


def test_mcmc_relocates_the_transparent():
    control = control_for(DensityConfig(strategy="mcmc", start_step=5, every=10, noise_lr=0), max_gaussians=60)
    with torch.no_grad():
        control.gaussians.params["opacities"][:20] = -8.0
        control.gaussians.params["means"][:20] += torch.tensor([50.0, 0.0, 0.0])
    take_steps(control, 1, 10)
    assert len(control.gaussians) == 60
    assert control.gaussians.means[:, 0].max() < 10, "relocated Gaussians stand on living ones"
    assert (control.gaussians.opacities > 0.02).all()


def test_relocation_keeps_the_opacity_of_a_pile():
    """n Gaussians of opacity o' in one place let through what one of opacity o does: (1 - o')^n = 1 - o."""
    opacities, scales = torch.tensor([0.5, 0.8, 0.9]), torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    binoms = torch.tensor([[float(math.comb(n, k)) for k in range(51)] for n in range(51)])
    ratios = torch.tensor([1, 2, 5])
    new_opacities, new_scales = density._relocation_torch(opacities, scales, ratios, binoms)
    assert_close((1 - new_opacities) ** ratios, 1 - opacities)
    assert_close(new_opacities[0], opacities[0])
    assert_close(new_scales[0], scales[0])
    assert (new_scales[1:] < scales[1:]).all()


def test_gsplats_functions_are_put_back_after_mcmc_on_the_cpu():
    before = ops.compute_relocation, ops.quat_scale_to_covar_preci
    control = control_for(DensityConfig(strategy="mcmc", start_step=1, every=2))
    take_steps(control, 1, 4)
    assert (ops.compute_relocation, ops.quat_scale_to_covar_preci) == before


def test_neighbour_distance_is_the_mean_square_to_three():
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3], [100, 0, 0]])
    assert_close(mean_square_neighbour_distance(points)[0], torch.tensor((1 + 4 + 9) / 3))
