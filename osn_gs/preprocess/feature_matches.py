"""SIFT features of one object recognized in other frames, over gaps that flow does not bridge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from osn_gs.preprocess.patch_alignment import align_patches, cut_patches, plausible_warps
from osn_gs.preprocess.rigid_motion import on_epipolar_lines
from osn_gs.preprocess.tracks import Tracks

FEATURES = 2000  # an image
CONTRAST = 0.02  # of a feature; OpenCV takes 0.04, which leaves small images almost none
FRAME_GAPS = (1, 2, 4, 8, 16)
RATIO = 0.8  # of the best descriptor distance to the second best (Lowe 2004)
EPIPOLAR_ERROR = 2.0  # pixels; an object is taken for rigid between two frames
FEWEST_MATCHES = 10  # between two frames, for them to agree on a motion
LARGEST_CORRECTION = 2.0  # pixels between a feature and its patch found again
LEAST_SIMILARITY = 0.9


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


def detect_features(grey: UInt8[np.ndarray, "h w"]) -> Features:
    """RootSIFT features (Lowe 2004; Arandjelovic and Zisserman 2012) of an image."""
    keypoints, descriptors = cv2.SIFT_create(FEATURES, contrastThreshold=CONTRAST).detectAndCompute(grey, None)
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


def track_features(
    features: Sequence[Features],
    images: Sequence[Float[np.ndarray, "c h w"]],
    masks: Sequence[Bool[np.ndarray, "h w"]],
    object_id: int,
    radius: int,
) -> Tracks:
    """Tracks of one object's features, each placed where its patch of `radius` pixels is found again.

    `features` are the object's own in every frame. Matches that disagree with the rigid motion between their frames,
    and features that would be in one frame twice, are dropped.
    """
    first_of_frame = np.cumsum([0, *(len(found.pixels) for found in features)])
    links = [np.zeros((0, 2), int)]
    for gap in FRAME_GAPS:
        for first in range(len(features) - gap):
            a, b = features[first], features[first + gap]
            matches = match_descriptors(a.descriptors, b.descriptors)
            agreeing = on_epipolar_lines(a.pixels[matches[:, 0]], b.pixels[matches[:, 1]], EPIPOLAR_ERROR)
            if agreeing.sum() >= FEWEST_MATCHES:
                links.append(matches[agreeing] + first_of_frame[[first, first + gap]])
    frames = np.repeat(np.arange(len(features)), np.diff(first_of_frame))
    members = _join(np.concatenate(links), frames)  # number of a feature, or -1, [n, t]
    return _place_exactly(members, features, first_of_frame, images, masks, object_id, radius)


def _join(links: Int[np.ndarray, "k 2"], frames: Int[np.ndarray, "n"]) -> Int[np.ndarray, "m t"]:
    """Features connected by links, one row a track: the feature's number in every frame, -1 where there is none."""
    num_frames = int(frames[-1]) + 1 if len(frames) else 0
    graph = coo_matrix((np.ones(len(links)), (links[:, 0], links[:, 1])), shape=(len(frames), len(frames)))
    count, track = connected_components(graph, directed=False) if len(frames) else (0, np.zeros(0, int))
    times = np.zeros((count, num_frames), int)
    np.add.at(times, (track, frames), 1)
    members = np.full((count, num_frames), -1)
    members[track, frames] = np.arange(len(frames))
    return members[(times.max(1, initial=0) == 1) & (times.sum(1) > 1)]


def _place_exactly(
    members: Int[np.ndarray, "m t"],
    features: Sequence[Features],
    first_of_frame: Int[np.ndarray, "t+1"],
    images: Sequence[Float[np.ndarray, "c h w"]],
    masks: Sequence[Bool[np.ndarray, "h w"]],
    object_id: int,
    radius: int,
) -> Tracks:
    """Take every track's patch in the middle of its frames and find it in the others, beginning at the features."""
    num_frames = len(features)
    pixels = np.zeros((len(members), num_frames, 2))
    visible = np.zeros((len(members), num_frames), bool)
    seen = np.full((len(members), num_frames), -1)
    seen[:, : members.shape[1]] = members
    anchors = np.array([np.flatnonzero(row >= 0)[(row >= 0).sum() // 2] for row in seen], int)
    for anchor in np.unique(anchors):
        rows = np.flatnonzero(anchors == anchor)
        own = seen[rows, anchor] - first_of_frame[anchor]
        start = features[anchor]
        patches = cut_patches(images[anchor], masks[anchor], start.pixels[own], radius)
        pixels[rows, anchor], visible[rows, anchor] = start.pixels[own], True
        for t in np.flatnonzero((seen[rows] >= 0).any(0)):
            if t == anchor:
                continue
            here = np.flatnonzero(seen[rows, t] >= 0)
            other = seen[rows[here], t] - first_of_frame[t]
            expected = features[t].pixels[other]
            warps = features[t].frames[other] @ np.linalg.inv(start.frames[own[here]])
            found = align_patches(patches.select(here), images[t], masks[t], expected, warps)
            trusted = (
                (np.linalg.norm(found.pixels - expected, axis=1) < LARGEST_CORRECTION)
                & (found.similarity > LEAST_SIMILARITY)
                & plausible_warps(found.warps)
            )
            pixels[rows[here], t], visible[rows[here], t] = found.pixels, trusted
    return Tracks(pixels, visible, np.full(len(members), object_id))
