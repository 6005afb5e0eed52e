"""What projection hands to blending, in every back end."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

# Constants of gsplat's rasterizer (and of INRIA's 3DGS); the back ends must agree on them.
ALPHA_MIN = 1.0 / 255.0  # a Gaussian fainter than this at a pixel is skipped there
ALPHA_MAX = 0.999  # no Gaussian is fully opaque: transmittance never becomes 0
TRANSMITTANCE_MIN = 1e-4  # blending stops before the Gaussian that would bring the pixel down to this
RADIUS_SIGMAS = 3.33  # exp(-3.33^2 / 2) = 1/255: beyond this even an opaque Gaussian is fainter than ALPHA_MIN
FRUSTUM_MARGIN = 0.3  # the slope of the perspective Jacobian is held inside the image plus this part of half its size


class ProjectedGaussians(NamedTuple):
    """N Gaussians as C pinhole cameras see them (EWA splatting).

    `means2d` in pixels (pixel centres at +0.5), `conics` the inverse image covariances (xx, xy, yy),
    `depths` along the camera axis, `radii` in pixels, 0 where the camera cannot see the Gaussian,
    `opacities` after the antialiasing compensation.
    """

    means2d: Float[Tensor, "c n 2"]
    conics: Float[Tensor, "c n 3"]
    depths: Float[Tensor, "c n"]
    radii: Int[Tensor, "c n 2"]
    opacities: Float[Tensor, "c n"]
