"""Density control of one object's Gaussians through gsplat's strategies, on CUDA and on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from gsplat.cuda._torch_impl import _quat_scale_to_covar_preci
from gsplat.strategy import DefaultStrategy, MCMCStrategy
from gsplat.strategy import ops as strategy_ops
from jaxtyping import Float, Int
from torch import Tensor

from osn_gs.errors import ConfigError
from osn_gs.gaussians.object_gaussians import ObjectGaussians


@dataclass(frozen=True)
class DensityConfig:
    """When and how Gaussians are added and removed. Steps count from the start of training."""

    strategy: Literal["default", "mcmc"] = "default"
    """gsplat's DefaultStrategy (3DGS: split and clone by gradient) or MCMCStrategy (relocate the transparent)."""
    start_step: int = 300
    """No refinement before this step."""
    stop_fraction: float = 0.6
    """No refinement after this share of all Gaussian steps."""
    every: int = 100
    """Steps between refinements."""
    reset_every: int = 0
    """DefaultStrategy: steps between opacity resets (3DGS: 3000); 0 for never. Masks already keep the air empty, and
    layers that have just been reset say nothing of depth order."""
    grow_grad2d: float = 0.0004
    """DefaultStrategy: image-plane gradient above which a Gaussian is cloned or split; gsplat: 0.0002."""
    prune_opacity: float = 0.02
    """Opacity below which a Gaussian is removed or relocated; gsplat: 0.005."""
    max_gaussians: int = 40_000
    """Over all objects; an object's share follows its share of mask pixels. DefaultStrategy stops growing an object
    once it has its share, which its last refinement may overshoot."""
    noise_lr: float = 5e5
    """MCMCStrategy: noise on the means, in units of their learning rate."""
    opacity_weight: float = 0.01
    """MCMCStrategy: weight of the mean opacity in the loss."""
    scale_weight: float = 0.01
    """MCMCStrategy: weight of the mean Gaussian size, in units of the object's extent, in the loss."""

    def __post_init__(self) -> None:
        if self.every < 1 or self.max_gaussians < 1:
            raise ConfigError(
                f"density: expected every and max_gaussians of at least 1, got {self.every} and {self.max_gaussians}."
            )


class DensityControl:
    """Grows and prunes one object's Gaussians; its optimizers' states follow.

    Call `before_backward` and `after_backward` around every `loss.backward()` the object takes part in.
    `extent` is the length, in object units, that 3DGS calls the scene's scale.
    """

    def __init__(
        self,
        gaussians: ObjectGaussians,
        optimizers: dict[str, torch.optim.Optimizer],
        config: DensityConfig,
        extent: float,
        stop_step: int,
        max_gaussians: int,
    ) -> None:
        self.gaussians = gaussians
        self.optimizers = optimizers
        self.config = config
        self.extent = extent
        self.max_gaussians = max_gaussians
        if config.strategy == "default":
            self.strategy = DefaultStrategy(
                prune_opa=config.prune_opacity,
                grow_grad2d=config.grow_grad2d,
                refine_start_iter=config.start_step,
                refine_stop_iter=stop_step,
                refine_every=config.every,
                # gsplat 1.5.3 never resets, `after_backward` does; past this step it also prunes what is too large
                reset_every=config.reset_every or stop_step,
            )
            self.state: dict[str, Any] = self.strategy.initialize_state(scene_scale=extent)
        else:
            self.strategy = MCMCStrategy(
                cap_max=max_gaussians,
                noise_lr=config.noise_lr,
                refine_start_iter=config.start_step,
                refine_stop_iter=stop_step,
                refine_every=config.every,
                min_opacity=config.prune_opacity,
            )
            self.state = self.strategy.initialize_state()
        self.strategy.check_sanity(gaussians.params, optimizers)

    def before_backward(self, step: int, info: dict[str, Any]) -> None:
        """Keep the gradient of the projected means that `info` of the rasterizer carries."""
        if isinstance(self.strategy, DefaultStrategy):
            params = self.gaussians.params
            self.strategy.step_pre_backward(params, self.optimizers, self.state, step, info)

    def after_backward(self, step: int, info: dict[str, Any]) -> None:
        """Refine where `step` asks for it, after the optimizers have stepped."""
        params = self.gaussians.params
        if isinstance(self.strategy, MCMCStrategy):
            means_lr = self.optimizers["means"].param_groups[0]["lr"]
            with _cpu_leaves(params["means"].device):
                self.strategy.step_post_backward(params, self.optimizers, self.state, step, info, lr=means_lr)
            return
        full = len(self.gaussians) >= self.max_gaussians
        # a full object still prunes: an unreachable gradient threshold stops the growth alone
        self.strategy.grow_grad2d = float("inf") if full else self.config.grow_grad2d
        self.strategy.step_post_backward(params, self.optimizers, self.state, step, info)
        reset_every = self.config.reset_every
        if reset_every and 0 < step < self.strategy.refine_stop_iter and step % reset_every == 0:
            strategy_ops.reset_opa(params, self.optimizers, self.state, value=2 * self.config.prune_opacity)

    def regularization(self) -> Float[Tensor, ""]:
        """MCMC's pull towards few, small Gaussians (Kheradmand et al. 2024, equation 13); 0 for DefaultStrategy."""
        if isinstance(self.strategy, DefaultStrategy):
            return self.gaussians.means.new_zeros(())
        opacity = self.config.opacity_weight * self.gaussians.opacities.mean()
        return opacity + self.config.scale_weight * self.gaussians.scales.mean() / self.extent

    def state_tensors(self) -> dict[str, Tensor]:
        """The running state that a resumed run needs."""
        return {name: value for name, value in self.state.items() if isinstance(value, Tensor) and name != "binoms"}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `state_tensors` gave."""
        self.state.update(tensors)


def _relocation_torch(
    opacities: Float[Tensor, "n"], scales: Float[Tensor, "n 3"], ratios: Int[Tensor, "n"], binoms: Float[Tensor, "m m"]
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n 3"]]:
    """Opacity and size of each of `ratios` Gaussians that together replace one.

    Kheradmand et al. 2024 (3DGS as Markov chain Monte Carlo), equation 9. Stands in for gsplat's CUDA helper.
    """
    copies = ratios.clamp(1, len(binoms)).long()
    new_opacities = 1 - (1 - opacities) ** (1 / copies)
    most = int(copies.max())
    powers = torch.arange(most, device=opacities.device)
    signs = (-1.0) ** powers / (powers + 1).sqrt()
    # rows i - 1 and columns k of  binom(i - 1, k) (-1)^k / sqrt(k + 1) o'^(k + 1), summed over i <= copies
    terms = (binoms[:most, :most] * signs) @ (new_opacities[None, :] ** (powers[:, None] + 1))
    counted = powers[:, None] < copies[None, :]
    denominator = (terms * counted).sum(0)
    return new_opacities, scales * (opacities / denominator)[:, None]


def _covariance_torch(
    quats: Float[Tensor, "n 4"],
    scales: Float[Tensor, "n 3"],
    compute_covar: bool = True,
    compute_preci: bool = True,
    triu: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    return _quat_scale_to_covar_preci(quats, scales, compute_covar, compute_preci, triu)


@contextlib.contextmanager
def _cpu_leaves(device: torch.device) -> Iterator[None]:
    """Give gsplat's MCMC operations, which call two CUDA helpers, torch ones while they run on the CPU."""
    if device.type == "cuda":
        yield
        return
    saved = strategy_ops.compute_relocation, strategy_ops.quat_scale_to_covar_preci
    strategy_ops.compute_relocation, strategy_ops.quat_scale_to_covar_preci = _relocation_torch, _covariance_torch
    try:
        yield
    finally:
        strategy_ops.compute_relocation, strategy_ops.quat_scale_to_covar_preci = saved
