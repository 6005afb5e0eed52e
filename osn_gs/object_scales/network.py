"""The object scale network: a small MLP that says how valid a scale vector is (METHOD 3)."""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn

from osn_gs.object_scales.ranges import check_scale_ranges

HIDDEN_LAYERS = 4  # released code: 4 hidden layers of 64, ReLU
HIDDEN_UNITS = 64
ALPHA = 1.0  # released code: sigmoid(alpha x + shift)
SHIFT = 1.0  # released code: sigmoid(1) = 0.73, so an untrained network calls everything valid
VALID_SCORE = 0.5


class ObjectScaleNetwork(nn.Module):
    """Validity score in (0, 1) of scale vectors [N, K]; column 0, the background's 1, is not an input."""

    lo: Tensor
    hi: Tensor

    def __init__(self, scale_ranges: Float[Tensor, "k 2"], generator: torch.Generator | None = None) -> None:
        """`generator` draws the initial weights; without it they come from torch's global one."""
        super().__init__()
        ranges = check_scale_ranges(scale_ranges)[1:].to(torch.get_default_dtype())
        self.register_buffer("lo", ranges[:, 0].clone())
        self.register_buffer("hi", ranges[:, 1].clone())
        widths = [len(ranges)] + [HIDDEN_UNITS] * HIDDEN_LAYERS
        hidden: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(widths):
            layer = nn.Linear(width_in, width_out)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)
            hidden += [layer, nn.ReLU()]
        last = nn.Linear(HIDDEN_UNITS, 1)
        nn.init.zeros_(last.weight)  # every score starts at sigmoid(SHIFT), whatever the hidden layers give
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*hidden, last)

    def logit(self, object_scales: Float[Tensor, "n k"]) -> Float[Tensor, "n"]:
        """alpha x + shift; positive where the vector is called valid. Does not saturate far from the set."""
        variables = (object_scales[:, 1:].to(self.lo) - self.lo) / (self.hi - self.lo).clamp(min=1e-12)
        return ALPHA * self.layers(2 * variables - 1).squeeze(-1) + SHIFT

    def forward(self, object_scales: Float[Tensor, "n k"]) -> Float[Tensor, "n"]:
        """Validity score; above 0.5 means valid."""
        return torch.sigmoid(self.logit(object_scales))

    @torch.no_grad()
    def is_valid(self, object_scales: Float[Tensor, "n k"]) -> Tensor:
        """Membership of the learned set, on the vectors' device: the test the samplers take."""
        return (self(object_scales) > VALID_SCORE).to(object_scales.device)
