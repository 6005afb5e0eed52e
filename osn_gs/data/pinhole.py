"""The pinhole camera of a scene folder, in the package's pixel coordinates (pixel centres at +0.5)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from osn_gs.data.osn_files import Transforms


def intrinsics_of(transforms: Transforms, pixel_center: float, downscale: int) -> Float[Tensor, "3 3"]:
    """Intrinsics of a transforms file for images `downscale` times smaller; float64.

    In a file's own pixel coordinates the principal point is (W/2, H/2) and the first pixel's centre is at
    `pixel_center`: 0 in the released code, which uses integer pixel numbers as they stand, 0.5 in images of real
    and Blender cameras taken at their word.
    """
    shift = 0.5 - pixel_center
    focal, cx, cy = transforms.focal, 0.5 * transforms.width + shift, 0.5 * transforms.height + shift
    matrix = torch.tensor([[focal, 0, cx], [0, focal, cy], [0, 0, 1]], dtype=torch.float64)
    matrix[:2] /= downscale
    return matrix


def project(points_cam: Float[Tensor, "*batch 3"], intrinsics: Float[Tensor, "3 3"]) -> Float[Tensor, "*batch 2"]:
    """Continuous pixel positions of points in OpenCV camera coordinates."""
    homogeneous = points_cam @ intrinsics.T
    return homogeneous[..., :2] / homogeneous[..., 2:]


def unproject(
    pixels: Float[Tensor, "*batch 2"], depths: Float[Tensor, "*batch"], intrinsics: Float[Tensor, "3 3"]
) -> Float[Tensor, "*batch 3"]:
    """Points in OpenCV camera coordinates at z-depth `depths` behind continuous pixel positions."""
    homogeneous = torch.cat([pixels, torch.ones_like(pixels[..., :1])], dim=-1)
    return depths[..., None] * (homogeneous @ torch.linalg.inv(intrinsics).T)
