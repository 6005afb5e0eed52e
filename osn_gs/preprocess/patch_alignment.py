"""Finding small patches of one image again in another, to a fraction of a pixel: Lucas-Kanade with an affine warp."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from osn_gs.preprocess.flow import sample_bilinear

ITERATIONS = 5
STEP_DAMPING = 0.02  # of the mean curvature, on the warp's linear part: patches hardly tell how they are sheared
LARGEST_STEP = 2.0  # pixels an iteration
LARGEST_STRETCH = 0.2  # an iteration
MOST_STRETCHED = 2.0  # larger or smaller than where it was taken, a patch is not the same any more
LEAST_SHOWN = 0.3  # of a patch's weight must be in sight for it to be found
FLAT = 1e-3  # grey levels; a smaller spread is none


@dataclass(frozen=True)
class Patches:
    """Square patches as they looked where they were taken, ready to be aligned.

    `values` [n, c, m] has c channels at the m `offsets` in pixels from the patch's centre, `weights` [n, m] is 0 where
    a pixel belongs to another object; `solver` maps residuals to steps of the warp.
    """

    offsets: Float[np.ndarray, "m 2"]
    values: Float[np.ndarray, "n c m"]
    weights: Float[np.ndarray, "n m"]
    solver: Float[np.ndarray, "n 6 c*m"]

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
    """Weighted correlation of the patch with what was found, over all channels, in [-1, 1]; 0 where it is hidden."""


def cut_patches(
    image: Float[np.ndarray, "c h w"],
    object_mask: Bool[np.ndarray, "h w"],
    pixels: Float[np.ndarray, "n 2"],
    radius: int,
) -> Patches:
    """Patches of 2 radius + 1 pixels a side around `pixels` (centres at +0.5), of the masked object alone."""
    line = np.arange(-radius, radius + 1, dtype=np.float32)
    offsets = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    places = (pixels[:, None] + offsets).astype(np.float32)
    down, right = np.gradient(image, axis=(1, 2))
    values, right, down = (_sample_channels(channels, places) for channels in (image, right, down))
    weights = np.exp(-(offsets**2).sum(-1) / (2 * (0.6 * radius) ** 2)) * _covered(object_mask, places)
    weights = (weights / np.maximum(weights.sum(1, keepdims=True), 1e-6)).astype(np.float32)
    return Patches(offsets, values, weights, _solver(offsets, values, right, down, weights))


def _solver(
    offsets: Float[np.ndarray, "m 2"],
    values: Float[np.ndarray, "n c m"],
    right: Float[np.ndarray, "n c m"],
    down: Float[np.ndarray, "n c m"],
    weights: Float[np.ndarray, "n m"],
) -> Float[np.ndarray, "n 6 c*m"]:
    """From residuals to least-squares steps of the warp: its linear part row by row, then the shift.

    Inverse compositional (Baker and Matthews 2004): the patch's own gradient serves at every iteration. What a gain or
    an offset of a channel explains is taken out of the gradient first.
    """
    columns, rows = offsets.T
    jacobian = np.stack([right * columns, right * rows, down * columns, down * rows, right, down], 1)  # n 6 c m
    weight = weights[:, None]
    centred, spread = _centre(weight, values)
    unit = centred / spread
    jacobian, _ = _centre(weight[:, None], jacobian)
    jacobian = jacobian - (weight[:, None] * jacobian * unit[:, None]).sum(-1, keepdims=True) * unit[:, None]
    flat = (len(values), 6, values.shape[1] * values.shape[2])
    weighted = (jacobian * weight[:, None]).reshape(flat)
    curvature = (weighted @ jacobian.reshape(flat).swapaxes(1, 2)).astype(np.float64)
    diagonal = np.einsum("nii->ni", curvature)
    diagonal[:, :4] += STEP_DAMPING * diagonal[:, :4].mean(1, keepdims=True)
    diagonal += 1e-6 * diagonal.mean(1, keepdims=True) + 1e-9
    return (np.linalg.inv(curvature).astype(np.float32)) @ weighted


def align_patches(
    patches: Patches,
    image: Float[np.ndarray, "c h w"],
    object_mask: Bool[np.ndarray, "h w"],
    pixels: Float[np.ndarray, "n 2"],
    warps: Float[np.ndarray, "n 2 2"],
    iterations: int = ITERATIONS,
) -> Alignment:
    """Find patches in `image`, starting from centres and linear warps; every channel may change by gain and offset.

    Pixels that fall outside the image or off the masked object where the search begins do not count. (Their residuals
    are set to 0, which slows the steps of the unchanged `solver` but leaves their aim.)
    """
    pixels, warps = pixels.astype(np.float64), warps.astype(np.float64)
    weights = patches.weights * _covered(object_mask, _places(patches, pixels, warps))
    shown = weights.sum(1)
    weights = (weights / np.maximum(shown, 1e-6)[:, None])[:, None]
    counts = weights > 0
    flat = (len(pixels), patches.solver.shape[2], 1)
    centred, spread = _centre(weights, patches.values)
    for _ in range(iterations):
        seen, seen_spread = _centre(weights, _sample_channels(image, _places(patches, pixels, warps)))
        residual = (seen * (spread / seen_spread) - centred) * counts
        step = (patches.solver @ residual.reshape(flat))[..., 0].astype(np.float64)
        linear = np.eye(2) + np.clip(step[:, :4], -LARGEST_STRETCH, LARGEST_STRETCH).reshape(-1, 2, 2)
        warps = warps @ np.linalg.inv(linear)
        pixels = pixels - (warps @ np.clip(step[:, 4:, None], -LARGEST_STEP, LARGEST_STEP))[..., 0]
    seen, seen_spread = _centre(weights, _sample_channels(image, _places(patches, pixels, warps)))
    together = (weights * centred * seen).sum((1, 2))
    similarity = together / np.sqrt((spread**2).sum((1, 2)) * (seen_spread**2).sum((1, 2)))
    return Alignment(pixels, warps, np.where(shown > LEAST_SHOWN, similarity, 0))


def plausible_warps(warps: Float[np.ndarray, "n 2 2"]) -> Bool[np.ndarray, "n"]:
    """Whether patches were stretched by no more than `MOST_STRETCHED` in any direction, and not turned over."""
    stretch = np.linalg.svd(warps, compute_uv=False)
    return (stretch[:, 0] < MOST_STRETCHED) & (stretch[:, 1] > 1 / MOST_STRETCHED) & (np.linalg.det(warps) > 0)


def _places(patches: Patches, pixels: np.ndarray, warps: np.ndarray) -> Float[np.ndarray, "n m 2"]:
    """Where a warp puts a patch's pixels."""
    columns, rows = patches.offsets.T
    places = np.empty((*patches.weights.shape, 2), np.float32)
    for axis in range(2):
        along_columns, along_rows = warps[:, axis].T.astype(np.float32)[..., None]
        places[..., axis] = pixels[:, axis, None].astype(np.float32) + along_columns * columns + along_rows * rows
    return places


def _covered(mask: Bool[np.ndarray, "h w"], places: Float[np.ndarray, "n m 2"]) -> Bool[np.ndarray, "n m"]:
    """Whether positions lie in the image, and all pixels around them in the mask."""
    in_image = ((places >= 0.5) & (places <= np.array(mask.shape[::-1], np.float32) - np.float32(0.5))).all(-1)
    return in_image & (sample_bilinear(mask.astype(np.float32), places) > 0.99)


def _sample_channels(
    channels: Float[np.ndarray, "c h w"], places: Float[np.ndarray, "n m 2"]
) -> Float[np.ndarray, "n c m"]:
    values = np.empty((len(places), len(channels), places.shape[1]), np.float32)
    for index, channel in enumerate(channels):
        values[:, index] = sample_bilinear(channel, places)
    return values


def _centre(weights: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values less their weighted mean over the last axis, and their weighted standard deviation [..., 1]."""
    centred = values - (weights * values).sum(-1, keepdims=True)
    return centred, np.sqrt((weights * centred**2).sum(-1, keepdims=True)) + np.float32(FLAT)
