"""Finding small patches of one image again in another, to a fraction of a pixel: Lucas-Kanade with an affine warp."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from osn_gs.preprocess.flow import sample_bilinear

ITERATIONS = 8
STEP_DAMPING = 0.02  # of the mean curvature, on the warp's linear part: patches hardly tell how they are sheared


@dataclass(frozen=True)
class Patches:
    """Square patches as they looked where they were taken, ready to be aligned.

    `values` [n, m] and `weights` [n, m] at `offsets` [m, 2] in pixels from the patch's centre (a weight is 0 where a
    pixel belongs to another object); `solver` maps residuals to steps of the warp.
    """

    offsets: Float[np.ndarray, "m 2"]
    values: Float[np.ndarray, "n m"]
    weights: Float[np.ndarray, "n m"]
    solver: Float[np.ndarray, "n 6 m"]

    def select(self, chosen: np.ndarray) -> Patches:
        """The patches a mask or an index array names."""
        return Patches(self.offsets, self.values[chosen], self.weights[chosen], self.solver[chosen])

    def replace(self, chosen: Bool[np.ndarray, "n"], others: Patches) -> Patches:
        """The same patches with the chosen ones replaced by `others`, as many as are chosen."""
        arrays = []
        for name in ("values", "weights", "solver"):
            array = getattr(self, name).copy()
            array[chosen] = getattr(others, name)
            arrays.append(array)
        return Patches(self.offsets, *arrays)

    def append(self, others: Patches) -> Patches:
        """These patches, then `others`."""
        return Patches(
            self.offsets,
            np.concatenate([self.values, others.values]),
            np.concatenate([self.weights, others.weights]),
            np.concatenate([self.solver, others.solver]),
        )


@dataclass(frozen=True)
class Alignment:
    """Where patches were found: centres, the linear part of the warp from offsets, and the correlation there."""

    pixels: Float[np.ndarray, "n 2"]
    warps: Float[np.ndarray, "n 2 2"]
    similarity: Float[np.ndarray, "n"]
    """Weighted correlation of the patch with what was found, in [-1, 1]."""


def cut_patches(
    image: Float[np.ndarray, "h w"],
    object_mask: Bool[np.ndarray, "h w"],
    pixels: Float[np.ndarray, "n 2"],
    radius: int,
) -> Patches:
    """Patches of 2 radius + 1 pixels a side around `pixels` (centres at +0.5), of the masked object alone."""
    line = np.arange(-radius, radius + 1, dtype=np.float32)
    offsets = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    places = (pixels[:, None] + offsets).astype(np.float32)
    rows_gradient, columns_gradient = np.gradient(image)
    stacked = np.stack([image, columns_gradient, rows_gradient, object_mask.astype(np.float32)], -1)
    sampled = sample_bilinear(stacked, places)
    values, gradient, inside = sampled[..., 0], sampled[..., 1:3], sampled[..., 3]
    weights = np.exp(-(offsets**2).sum(-1) / (2 * (0.6 * radius) ** 2)) * (inside > 0.99)
    weights = (weights / np.maximum(weights.sum(1, keepdims=True), 1e-6)).astype(np.float32)
    return Patches(offsets, values, weights, _solver(offsets, values, gradient, weights))


def _solver(
    offsets: Float[np.ndarray, "m 2"],
    values: Float[np.ndarray, "n m"],
    gradient: Float[np.ndarray, "n m 2"],
    weights: Float[np.ndarray, "n m"],
) -> Float[np.ndarray, "n 6 m"]:
    """From residuals to least-squares steps of the warp, brightness's gain and offset solved along and dropped.

    Inverse compositional (Baker and Matthews 2004): the patch's own gradient serves at every iteration. Steps are the
    linear part (row by row), then the shift.
    """
    jacobian = np.concatenate(
        [
            gradient[..., :1] * offsets,
            gradient[..., 1:] * offsets,
            gradient,
            values[..., None],
            np.ones_like(values)[..., None],
        ],
        -1,
    )
    weighted = np.swapaxes(jacobian * weights[..., None], 1, 2)
    curvature = (weighted @ jacobian).astype(np.float64)
    diagonal = np.einsum("nii->ni", curvature)
    diagonal[:, :4] += STEP_DAMPING * diagonal[:, :4].mean(1, keepdims=True)
    diagonal += 1e-6 * diagonal.mean(1, keepdims=True) + 1e-9
    return np.linalg.solve(curvature, weighted.astype(np.float64))[:, :6].astype(np.float32)


def align_patches(
    patches: Patches,
    image: Float[np.ndarray, "h w"],
    pixels: Float[np.ndarray, "n 2"],
    warps: Float[np.ndarray, "n 2 2"],
    iterations: int = ITERATIONS,
) -> Alignment:
    """Find patches in `image`, starting from centres and linear warps; brightness may change by gain and offset."""
    pixels, warps = pixels.astype(np.float64), warps.astype(np.float64)
    for _ in range(iterations):
        residual = _like_patch(patches, _look(patches, image, pixels, warps)) - patches.values
        step = np.einsum("nkm,nm->nk", patches.solver, residual).astype(np.float64)
        linear = np.clip(step[:, :4], -0.2, 0.2).reshape(-1, 2, 2) + np.eye(2)
        warps = warps @ np.linalg.inv(linear)
        pixels = pixels - np.einsum("nij,nj->ni", warps, np.clip(step[:, 4:], -2, 2))
    return Alignment(pixels, warps, _correlation(patches, _look(patches, image, pixels, warps)))


def _look(patches: Patches, image: np.ndarray, pixels: np.ndarray, warps: np.ndarray) -> Float[np.ndarray, "n m"]:
    """What the image shows where a warp puts a patch's pixels."""
    return sample_bilinear(image, pixels[:, None] + np.einsum("nij,mj->nmi", warps, patches.offsets))


def _like_patch(patches: Patches, seen: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "n m"]:
    """`seen` with the weighted mean and spread of the patch."""
    mean, spread = _moments(patches.weights, patches.values)
    seen_mean, seen_spread = _moments(patches.weights, seen)
    return (seen - seen_mean) * (spread / np.maximum(seen_spread, 1e-3)) + mean


def _correlation(patches: Patches, seen: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "n"]:
    mean, spread = _moments(patches.weights, patches.values)
    seen_mean, seen_spread = _moments(patches.weights, seen)
    product = (patches.weights * (patches.values - mean) * (seen - seen_mean)).sum(1)
    return product / np.maximum(spread * seen_spread, 1e-3)[:, 0]


def _moments(weights: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and standard deviation [n, 1] of every row."""
    mean = (weights * values).sum(1, keepdims=True)
    return mean, np.sqrt((weights * (values - mean) ** 2).sum(1, keepdims=True))
