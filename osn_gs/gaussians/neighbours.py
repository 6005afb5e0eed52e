"""Distances between neighbouring points."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from scipy.spatial import cKDTree
from torch import Tensor


def mean_square_neighbour_distance(points: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
    """Mean square distance of every point to its three nearest neighbours (n >= 4).

    The quantity of 3DGS's `distCUDA2`, which is used for CUDA points where that extension is installed (not the
    package of that name on PyPI, which is an unrelated classifier).
    """
    if points.is_cuda and (dist_cuda2 := _dist_cuda2()) is not None:
        return dist_cuda2(points)
    array = points.detach().cpu().numpy()
    distances, _ = cKDTree(array).query(array, k=4)
    return torch.from_numpy((distances[:, 1:] ** 2).mean(1)).to(points)


def _dist_cuda2() -> Callable[[Tensor], Tensor] | None:
    try:
        from simple_knn._C import distCUDA2
    except ImportError:
        return None
    return distCUDA2
