"""The canonical Gaussians of one object and how they start from points."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from osn_gs.gaussians.neighbours import mean_square_neighbour_distance
from osn_gs.gaussians.spherical_harmonics import num_sh_bases, rgb_to_sh_band_0

INITIAL_OPACITY = 0.5  # Differs from 3DGS (0.1): objects are fitted inside their masks, where they are solid


class ObjectGaussians(nn.Module):
    """Parameters of n Gaussians in one object's canonical frame and units.

    `params` holds them under the names gsplat's strategies use, before activation:
    means [n, 3], quats [n, 4] wxyz of any length, scales [n, 3] log, opacities [n] logit,
    sh0 [n, 1, 3] and shN [n, (degree + 1)^2 - 1, 3] in the INRIA / gsplat basis.
    """

    NAMES = ("means", "quats", "scales", "opacities", "sh0", "shN")

    def __init__(self, params: dict[str, Tensor]) -> None:
        super().__init__()
        assert set(params) == set(self.NAMES), f"expected {self.NAMES}, got {tuple(params)}"
        self.params = nn.ParameterDict({name: nn.Parameter(params[name]) for name in self.NAMES})

    @classmethod
    def from_points(cls, points: Float[Tensor, "n 3"], colors: Float[Tensor, "n 3"], sh_degree: int) -> ObjectGaussians:
        """Isotropic Gaussians on points, as large as the gaps between them (3DGS, Kerbl et al. 2023).

        `colors` are in [0, 1]. Needs at least four points.
        """
        n = len(points)
        spacing = mean_square_neighbour_distance(points).clamp_min(1e-10).sqrt()
        quats = points.new_zeros(n, 4)
        quats[:, 0] = 1
        return cls(
            {
                "means": points.clone(),
                "quats": quats,
                "scales": spacing.log()[:, None].repeat(1, 3),
                "opacities": torch.logit(points.new_full((n,), INITIAL_OPACITY)),
                "sh0": rgb_to_sh_band_0(colors)[:, None, :],
                "shN": points.new_zeros(n, num_sh_bases(sh_degree) - 1, 3),
            }
        )

    def __len__(self) -> int:
        return len(self.params["means"])

    @property
    def means(self) -> Float[Tensor, "n 3"]:
        return self.params["means"]

    @property
    def quats(self) -> Float[Tensor, "n 4"]:
        return self.params["quats"]

    @property
    def scales(self) -> Float[Tensor, "n 3"]:
        """Standard deviations along the Gaussians' axes, in the object's units."""
        return self.params["scales"].exp()

    @property
    def opacities(self) -> Float[Tensor, "n"]:
        """Opacities in (0, 1)."""
        return self.params["opacities"].sigmoid()

    @property
    def sh(self) -> Float[Tensor, "n b 3"]:
        """All spherical-harmonics coefficients, constant first."""
        return torch.cat([self.params["sh0"], self.params["shN"]], dim=1)

    @property
    def sh_degree(self) -> int:
        return round((1 + self.params["shN"].shape[1]) ** 0.5) - 1
