"""Random Gaussians and cameras for the rasterizer's tests."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from osn_gs.geometry.se3 import quat_to_rotmat, rigid_matrix

PARAMETERS = ("means", "quats", "scales", "opacities", "colors")


@dataclass(frozen=True)
class Cloud:
    """Arguments of `rasterize`; `colors` are SH coefficients of degree 3 where `sh_degree` says so."""

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor
    viewmats: Tensor
    Ks: Tensor
    width: int
    height: int
    sh_degree: int | None = None

    def arguments(self) -> dict:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def cast(self, dtype: torch.dtype) -> Cloud:
        tensors = {name: value.to(dtype) for name, value in self.arguments().items() if isinstance(value, Tensor)}
        return replace(self, **tensors)

    def with_leaves(self) -> Cloud:
        """A copy whose Gaussians collect gradients."""
        return replace(self, **{name: getattr(self, name).clone().requires_grad_() for name in PARAMETERS})

    def gradients(self) -> dict[str, Tensor]:
        return {name: getattr(self, name).grad for name in PARAMETERS}


def cloud_with_cameras(
    count: int = 300,
    width: int = 70,
    height: int = 45,
    num_cameras: int = 1,
    sh: bool = False,
    size: float = 0.06,
    seed: int = 0,
) -> Cloud:
    """Gaussians of mixed sizes before the first camera, some outside its image, some behind it; size not of tiles."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    focal = 0.9 * width
    depths = 1.5 + 4 * torch.rand(count, generator=generator)
    depths[: count // 20] *= -1
    slopes = (torch.rand(count, 2, generator=generator) - 0.5) * torch.tensor([width, height]) / focal * 1.4
    in_camera = torch.cat([slopes * depths[:, None], depths[:, None]], dim=-1)
    rotations = quat_to_rotmat(torch.tensor([1.0, 0, 0, 0]) + 0.1 * normal(num_cameras, 4))
    viewmats = rigid_matrix(rotations, 0.2 * normal(num_cameras, 3))
    means = (in_camera - viewmats[0, :3, 3]) @ viewmats[0, :3, :3]
    K = torch.tensor([[focal, 0, 0.48 * width], [0, 1.05 * focal, 0.53 * height], [0, 0, 1]])
    return Cloud(
        means=means,
        quats=normal(count, 4),
        scales=size * torch.exp(0.5 * normal(count, 3)),
        opacities=torch.sigmoid(1.5 * normal(count)),
        colors=0.3 * normal(count, 16, 3) if sh else torch.rand(count, 3, generator=generator),
        viewmats=viewmats,
        Ks=K.expand(num_cameras, 3, 3).contiguous(),
        width=width,
        height=height,
        sh_degree=3 if sh else None,
    )


def cloud_before_camera(means: list, scales: list, opacities: list, colors: list, size: int = 40) -> Cloud:
    """Chosen axis-aligned Gaussians in the frame of a camera that looks along z, focal length = image size."""
    count = len(means)
    return Cloud(
        means=torch.tensor(means),
        quats=torch.tensor([1.0, 0, 0, 0]).expand(count, 4).contiguous(),
        scales=torch.tensor(scales),
        opacities=torch.tensor(opacities),
        colors=torch.tensor(colors),
        viewmats=torch.eye(4)[None],
        Ks=torch.tensor([[[size, 0, size / 2], [0, size, size / 2], [0, 0, 1.0]]]),
        width=size,
        height=size,
    )


def random_loss(image: Tensor, alphas: Tensor, seed: int = 5) -> Tensor:
    """A fixed random linear function of a rendering: its gradient meets every output."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(image.shape, generator=generator).to(image), torch.randn(alphas.shape, generator=generator)
    return (image * weights[0]).sum() + (alphas * weights[1].to(alphas)).sum()


def relative_error(value: Tensor, reference: Tensor) -> float:
    reference = reference.detach().double()
    return float((value.detach().double() - reference).norm() / reference.norm())
