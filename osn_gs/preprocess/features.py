"""Points of an image that are recognized in others by their looks: SIFT features, matched and joined over frames."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

CONTRAST = 0.02  # of a feature; OpenCV takes 0.04, which leaves small images almost none
FRAME_GAPS = (1, 2, 4, 8, 16)  # over which features of a clip are matched
RATIO = 0.8  # of the best descriptor distance to the second best (Lowe 2004)


@dataclass(frozen=True)
class Features:
    """Features of one image: continuous positions (pixel centres at +0.5), frames and unit descriptors (RootSIFT)."""

    pixels: Float[np.ndarray, "n 2"]
    frames: Float[np.ndarray, "n 2 2"]
    """Rotation times size: maps a feature's own coordinates to pixels."""
    descriptors: Float[np.ndarray, "n 128"]

    def inside(self, mask: Bool[np.ndarray, "h w"]) -> Features:
        """Those whose position lies in a mask."""
        columns, rows = np.clip(self.pixels.astype(int), 0, np.array(mask.shape[::-1]) - 1).T
        chosen = mask[rows, columns]
        return Features(self.pixels[chosen], self.frames[chosen], self.descriptors[chosen])


def detect_features(
    grey: UInt8[np.ndarray, "h w"], most: int, usable: Bool[np.ndarray, "h w"] | None = None
) -> Features:
    """At `most` so many RootSIFT features (Lowe 2004; Arandjelovic and Zisserman 2012), where the image is `usable`."""
    mask = None if usable is None else usable.astype(np.uint8)
    keypoints, descriptors = cv2.SIFT_create(most, contrastThreshold=CONTRAST).detectAndCompute(grey, mask)
    if not keypoints:
        return Features(np.zeros((0, 2)), np.zeros((0, 2, 2)), np.zeros((0, 128), np.float32))
    pixels = np.array([keypoint.pt for keypoint in keypoints]) + 0.5
    angles = np.deg2rad([keypoint.angle for keypoint in keypoints])
    sizes = np.array([keypoint.size for keypoint in keypoints])
    turns = np.stack([np.cos(angles), -np.sin(angles), np.sin(angles), np.cos(angles)], -1).reshape(-1, 2, 2)
    root = np.sqrt(descriptors / np.maximum(descriptors.sum(1, keepdims=True), 1e-9))
    return Features(pixels, turns * sizes[:, None, None], root.astype(np.float32))


def match_descriptors(first: Float[np.ndarray, "n 128"], second: Float[np.ndarray, "m 128"]) -> Int[np.ndarray, "k 2"]:
    """Index pairs of unit descriptors that choose each other and no other (mutual nearest, ratio test)."""
    if len(first) < 2 or len(second) < 2:
        return np.zeros((0, 2), int)
    likeness = first @ second.T
    rows = np.arange(len(first))
    best = likeness.argmax(1)
    mutual = likeness.argmax(0)[best] == rows
    best_likeness = likeness[rows, best]
    likeness[rows, best] = -1
    # Unit vectors: a squared distance is 2 - 2 cos.
    chosen = mutual & (1 - best_likeness < RATIO**2 * (1 - likeness.max(1)))
    return np.stack([np.flatnonzero(chosen), best[chosen]], axis=1)


def join_matches(
    links: Int[np.ndarray, "k 2"], frames: Int[np.ndarray, "n"], num_frames: int
) -> Int[np.ndarray, "m t"]:
    """Features connected by links, one row a track: the feature's number in every frame, -1 where there is none.

    `links` are pairs of numbers over all frames, `frames` says in which frame each number is. Features without a link
    and tracks that would be in one frame twice are dropped.
    """
    graph = coo_matrix((np.ones(len(links)), (links[:, 0], links[:, 1])), shape=(len(frames), len(frames)))
    count, track = connected_components(graph, directed=False) if len(frames) else (0, np.zeros(0, int))
    times = np.zeros((count, num_frames), int)
    np.add.at(times, (track, frames), 1)
    members = np.full((count, num_frames), -1)
    members[track, frames] = np.arange(len(frames))
    return members[(times.max(1, initial=0) == 1) & (times.sum(1) > 1)]
