"""Gaussian clouds as .ply files in the layout of the 3DGS release (INRIA), which viewers and editors read."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from plyfile import PlyData, PlyElement, PlyParseError
from torch import Tensor

from osn_gs.errors import OsnGsError
from osn_gs.files import write_bytes_atomic
from osn_gs.gaussians.sh_rotation import rotate_sh
from osn_gs.geometry.alignment import Similarity
from osn_gs.geometry.se3 import quat_multiply, rotmat_to_quat

NORMALS = ("nx", "ny", "nz")


class GaussianCloud(NamedTuple):
    """Gaussians before activation, as a .ply file holds them.

    `quats` are wxyz of any non-zero length, `log_scales` natural logarithms of the standard deviations,
    `sh_coeffs` the bases of one degree (1, 4, 9 or 16 of them), constant first, in the INRIA / gsplat basis.
    """

    means: Float[Tensor, "n 3"]
    quats: Float[Tensor, "n 4"]
    log_scales: Float[Tensor, "n 3"]
    opacity_logits: Float[Tensor, "n"]
    sh_coeffs: Float[Tensor, "n bases 3"]

    @property
    def num_gaussians(self) -> int:
        return len(self.means)


def transform_gaussians(cloud: GaussianCloud, similarity: Similarity) -> GaussianCloud:
    """The cloud under x -> scale * rotation @ x + translation; opacities stay the same.

    Colours turn with the Gaussians. The quaternions keep their lengths.
    """
    scale, rotation, translation = similarity
    assert scale > 0, f"a similarity needs a positive scale, got {scale}"
    turn = rotmat_to_quat(rotation).expand_as(cloud.quats)
    return GaussianCloud(
        means=scale * cloud.means @ rotation.T + translation,
        quats=quat_multiply(turn, cloud.quats),
        log_scales=cloud.log_scales + math.log(scale),
        opacity_logits=cloud.opacity_logits,
        sh_coeffs=rotate_sh(cloud.sh_coeffs, rotation),
    )


def write_gaussian_ply(path: Path, cloud: GaussianCloud) -> None:
    """Write a cloud as binary little-endian float32, whole or not at all.

    Raises OsnGsError if a value is NaN or infinite: dropping the Gaussian would change the picture silently.
    """
    _refuse_non_finite(path, cloud)
    columns = [
        cloud.means,
        torch.zeros_like(cloud.means),  # normals: part of the layout, unused
        cloud.sh_coeffs[:, 0],
        cloud.sh_coeffs[:, 1:].transpose(1, 2).flatten(1),  # all of red, then green, then blue
        cloud.opacity_logits[:, None],
        cloud.log_scales,
        cloud.quats,
    ]
    table = torch.cat([column.detach().to("cpu", torch.float32) for column in columns], dim=1).numpy()
    names = _property_names(num_bases=cloud.sh_coeffs.shape[1])
    vertices = table.astype("<f4", copy=False).view([(name, "<f4") for name in names])[:, 0]
    buffer = io.BytesIO()
    PlyData([PlyElement.describe(vertices, "vertex")], byte_order="<").write(buffer)
    write_bytes_atomic(path, buffer.getvalue())


def read_gaussian_ply(path: Path) -> GaussianCloud:
    """Read a .ply file in the INRIA layout as float32 tensors on the CPU.

    Normals may be missing; properties that are not of the layout are left out.
    Raises OsnGsError if the file is missing, broken off or not a Gaussian cloud.
    """
    properties = _read_vertex_properties(path)
    num_bases = 1 + sum(name.startswith("f_rest_") for name in properties) // 3
    names = _property_names(num_bases)
    missing = [name for name in names if name not in properties and name not in NORMALS]
    if missing:
        raise OsnGsError(f"{path}: not a Gaussian cloud in the INRIA layout, it lacks {', '.join(missing)}.")
    if math.isqrt(num_bases) ** 2 != num_bases:
        raise OsnGsError(f"{path}: {3 * (num_bases - 1)} f_rest properties fit no SH degree; expected 0, 9, 24 or 45.")

    def stack(prefix: str, suffixes: Iterable[object]) -> Tensor:
        return torch.stack([properties[f"{prefix}{suffix}"] for suffix in suffixes], dim=-1)

    sh_coeffs = stack("f_dc_", range(3))[:, None, :]
    if num_bases > 1:
        channel_major = stack("f_rest_", range(3 * (num_bases - 1)))
        sh_coeffs = torch.cat([sh_coeffs, channel_major.unflatten(1, (3, num_bases - 1)).transpose(1, 2)], dim=1)
    return GaussianCloud(
        means=stack("", "xyz"),
        quats=stack("rot_", range(4)),
        log_scales=stack("scale_", range(3)),
        opacity_logits=properties["opacity"],
        sh_coeffs=sh_coeffs,
    )


def _property_names(num_bases: int) -> list[str]:
    return [
        *("x", "y", "z"),
        *NORMALS,
        *(f"f_dc_{channel}" for channel in range(3)),
        *(f"f_rest_{index}" for index in range(3 * (num_bases - 1))),
        "opacity",
        *(f"scale_{axis}" for axis in range(3)),
        *(f"rot_{component}" for component in range(4)),
    ]


def _read_vertex_properties(path: Path) -> dict[str, Float[Tensor, "n"]]:
    try:
        vertices = PlyData.read(str(path))["vertex"].data
        return {name: torch.from_numpy(vertices[name].astype(np.float32)) for name in vertices.dtype.names}
    except FileNotFoundError:
        raise OsnGsError(f"{path}: no such file.") from None
    except (PlyParseError, KeyError, ValueError) as error:
        raise OsnGsError(f"{path}: not a whole .ply file with vertices ({error}).") from None


def _refuse_non_finite(path: Path, cloud: GaussianCloud) -> None:
    counts = {name: int((~torch.isfinite(values)).sum()) for name, values in cloud._asdict().items()}
    bad = [f"{count} of {name}" for name, count in counts.items() if count]
    if bad:
        raise OsnGsError(
            f"{path}: not written, these values are NaN or infinite: {', '.join(bad)} "
            f"({cloud.num_gaussians} Gaussians); the training that made them has diverged."
        )
