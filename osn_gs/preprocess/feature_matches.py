"""SIFT features of one object recognized in other frames, over gaps that flow does not bridge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from osn_gs.preprocess.features import FRAME_GAPS, Features, join_matches, match_descriptors
from osn_gs.preprocess.patch_alignment import align_patches, cut_patches, plausible_warps
from osn_gs.preprocess.rigid_motion import on_epipolar_lines
from osn_gs.preprocess.tracks import Tracks

EPIPOLAR_ERROR = 2.0  # pixels; an object is taken for rigid between two frames
FEWEST_MATCHES = 10  # between two frames, for them to agree on a motion
LARGEST_CORRECTION = 2.0  # pixels between a feature and its patch found again
LEAST_SIMILARITY = 0.9


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
    members = join_matches(np.concatenate(links), frames, len(features))  # number of a feature, or -1, [n, t]
    return _place_exactly(members, features, first_of_frame, images, masks, object_id, radius)


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
    anchors = np.array([np.flatnonzero(row >= 0)[(row >= 0).sum() // 2] for row in members], int)
    for anchor in np.unique(anchors):
        rows = np.flatnonzero(anchors == anchor)
        own = members[rows, anchor] - first_of_frame[anchor]
        start = features[anchor]
        patches = cut_patches(images[anchor], masks[anchor], start.pixels[own], radius)
        pixels[rows, anchor], visible[rows, anchor] = start.pixels[own], True
        for t in np.flatnonzero((members[rows] >= 0).any(0)):
            if t == anchor:
                continue
            here = np.flatnonzero(members[rows, t] >= 0)
            other = members[rows[here], t] - first_of_frame[t]
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
