"""Least-squares rotation and similarity, of points and of camera poses."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Similarity(NamedTuple):
    """x -> scale * rotation @ x + translation."""

    scale: float
    rotation: Float[Tensor, "3 3"]
    translation: Float[Tensor, "3"]

    def apply(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        return self.scale * points @ self.rotation.T + self.translation


def closest_rotation(matrix: Float[Tensor, "3 3"]) -> Float[Tensor, "3 3"]:
    """The rotation R with the largest sum(R * matrix), never a reflection (Kabsch 1976).

    Of a sum of products b a^T it is the rotation that takes the vectors (or frames) a closest to b.
    """
    left, _, right = torch.linalg.svd(matrix)
    signs = torch.ones(3, dtype=matrix.dtype, device=matrix.device)
    signs[2] = torch.sign(torch.linalg.det(left @ right))
    return left @ torch.diag(signs) @ right


def align_points(source: Float[Tensor, "n 3"], target: Float[Tensor, "n 3"]) -> Similarity:
    """The similarity that takes `source` closest to `target` in least squares (Umeyama 1991).

    Needs three points that are not on one line.
    """
    source_mean, target_mean = source.mean(0), target.mean(0)
    source_centred, target_centred = source - source_mean, target - target_mean
    covariance = target_centred.T @ source_centred
    rotation = closest_rotation(covariance)
    scale = float((rotation * covariance).sum() / source_centred.square().sum())
    return Similarity(scale, rotation, target_mean - scale * rotation @ source_mean)


def align_poses(
    source_from_cam: Float[Tensor, "t 4 4"], target_from_cam: Float[Tensor, "t 4 4"], scale: float | None = None
) -> Similarity:
    """The similarity from the source frame to the target frame that takes each camera closest to its counterpart.

    Orientations fix the rotation (so a straight path, or one that stands still, is enough), centres the translation
    and, in least squares, the scale where `scale` is not given: for that the centres must not all coincide.
    """
    rotation = closest_rotation((target_from_cam[:, :3, :3] @ source_from_cam[:, :3, :3].mT).sum(0))
    source_centres, target_centres = source_from_cam[:, :3, 3] @ rotation.T, target_from_cam[:, :3, 3]
    source_mean, target_mean = source_centres.mean(0), target_centres.mean(0)
    if scale is None:
        source_path = source_centres - source_mean
        scale = float((source_path * (target_centres - target_mean)).sum() / source_path.square().sum())
    return Similarity(scale, rotation, target_mean - scale * source_mean)
