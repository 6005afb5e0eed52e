"""Least-squares similarity between two point sets."""

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


def align_points(source: Float[Tensor, "n 3"], target: Float[Tensor, "n 3"]) -> Similarity:
    """The similarity that takes `source` closest to `target` in least squares (Umeyama 1991).

    Needs three points that are not on one line.
    """
    source_mean, target_mean = source.mean(0), target.mean(0)
    source_centred, target_centred = source - source_mean, target - target_mean
    u, singular, vt = torch.linalg.svd(target_centred.T @ source_centred)
    signs = torch.ones(3, dtype=source.dtype, device=source.device)
    signs[2] = torch.sign(torch.linalg.det(u) * torch.linalg.det(vt))
    rotation = u @ torch.diag(signs) @ vt
    scale = float((singular * signs).sum() / source_centred.square().sum())
    return Similarity(scale, rotation, target_mean - scale * rotation @ source_mean)
