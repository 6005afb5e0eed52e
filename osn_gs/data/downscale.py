"""Smaller images, ids and depths.

Sizes that `factor` does not divide lose their last rows and columns, so that every small pixel stands for a
whole factor x factor block; continuous positions (pixel centres at +0.5) and intrinsics then divide by `factor`
exactly.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Shaped, UInt8


def downscale_image(image: UInt8[np.ndarray, "h w 3"], factor: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Mean colour of every block, rounded."""
    return np.rint(_blocks(image, factor).astype(np.float32).mean(axis=2)).astype(np.uint8)


def downscale_ids(ids: UInt8[np.ndarray, "h w"], factor: int) -> UInt8[np.ndarray, "h2 w2"]:
    """Most frequent id of every block; on a tie that of its middle pixel if among them, else the smallest id."""
    blocks = _blocks(ids[..., None], factor)[..., 0]
    counts = np.stack([(blocks == value).sum(axis=2) for value in range(int(ids.max()) + 1)], axis=2).astype(np.float32)
    middle = blocks[:, :, _middle_first(factor)[0], None]
    counts += 0.5 * (np.arange(counts.shape[2]) == middle)
    return counts.argmax(axis=2).astype(np.uint8)


def downscale_depth(
    depth: Float[np.ndarray, "h w"], factor: int, ids: UInt8[np.ndarray, "h w"] | None = None
) -> Float[np.ndarray, "h2 w2"]:
    """Depth of the pixel nearest to every block's middle, among those of the block's own id where `ids` is given.

    Depths are never averaged: between two surfaces there is nothing.
    """
    order = _middle_first(factor)
    candidates = _blocks(depth[..., None], factor)[..., 0][:, :, order]
    if ids is None:
        return candidates[:, :, 0]
    same_object = _blocks(ids[..., None], factor)[..., 0][:, :, order] == downscale_ids(ids, factor)[..., None]
    return np.take_along_axis(candidates, same_object.argmax(axis=2)[..., None], axis=2)[..., 0]


def _blocks(array: Shaped[np.ndarray, "h w c"], factor: int) -> Shaped[np.ndarray, "h2 w2 block c"]:
    height, width = array.shape[0] // factor, array.shape[1] // factor
    cropped = array[: height * factor, : width * factor]
    blocks = cropped.reshape(height, factor, width, factor, -1).transpose(0, 2, 1, 3, 4)
    return blocks.reshape(height, width, factor * factor, -1)


def _middle_first(factor: int) -> list[int]:
    """Pixel numbers of a block, from its middle outwards."""
    rows, columns = np.divmod(np.arange(factor * factor), factor)
    distances = (rows - factor // 2) ** 2 + (columns - factor // 2) ** 2
    return np.argsort(distances, kind="stable").tolist()
