"""Whether points of one object move together as a rigid thing would, judged between two frames by epipolar geometry."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, Float

from osn_gs.preprocess.tracks import Tracks

FRAME_GAPS = (4, 8, 12)
EPIPOLAR_ERROR = 1.0  # pixels
FEWEST_POINTS = 30  # that two frames must share to judge a motion
LEAST_AGREEMENT = 0.5  # of the points; where fewer agree the object is not rigid, and nothing is said
LEAST_SHARE = 0.75  # of the pairs of frames in which a track must agree
CONFIDENCE, ROUNDS = 0.999, 2000  # of RANSAC


def on_epipolar_lines(
    first: Float[np.ndarray, "n 2"], second: Float[np.ndarray, "n 2"], error: float
) -> Bool[np.ndarray, "n"]:
    """Which points follow the rigid motion that most of them agree on, within `error` pixels; none if there is none.

    MAGSAC++ (Barath et al. 2020), on one OpenCV thread and from a fixed seed.
    """
    none = np.zeros(len(first), bool)
    if len(first) < 8:
        return none
    try:
        fundamental, agreeing = cv2.findFundamentalMat(first, second, cv2.USAC_MAGSAC, error, CONFIDENCE, ROUNDS)
    except cv2.error:  # an internal check of OpenCV 5 fails where no model fits at all
        return none
    return none if fundamental is None or agreeing is None else agreeing.ravel().astype(bool)


def agrees_with_rigid_motion(tracks: Tracks) -> Bool[np.ndarray, "n"]:
    """Which of one object's tracks agree with its rigid motion in most pairs of frames some way apart.

    Finds what keeps its look but is no point of the surface: outlines of round parts, an edge crossing another,
    highlights. A track that no pair can judge is believed.
    """
    agreed, judged = np.zeros(len(tracks)), np.zeros(len(tracks))
    for gap in FRAME_GAPS:
        for t in range(tracks.num_frames - gap):
            shared = np.flatnonzero(tracks.visible[:, t] & tracks.visible[:, t + gap])
            if len(shared) < FEWEST_POINTS:
                continue
            agreeing = on_epipolar_lines(tracks.pixels[shared, t], tracks.pixels[shared, t + gap], EPIPOLAR_ERROR)
            if agreeing.mean() < LEAST_AGREEMENT:
                continue
            agreed[shared] += agreeing
            judged[shared] += 1
    return agreed >= LEAST_SHARE * judged
