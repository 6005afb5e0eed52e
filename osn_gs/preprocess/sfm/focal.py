"""The focal length from the background's tracks, where nobody knows it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from osn_gs.preprocess.sfm.balanced import balanced_subset
from osn_gs.preprocess.sfm.bundle_adjustment import Adjustment, AdjustmentOptions, adjust, focal_deviation
from osn_gs.preprocess.sfm.mapping import MatchDatabase
from osn_gs.preprocess.sfm.triangulation import observations_of, triangulated
from osn_gs.preprocess.tracks import Tracks

STARTS = (1.2, 0.8, 2.0)  # of the longer side: 45, 64 and 28 degrees
AGREEING = 0.02  # relative; two starts that come so close are believed
MAPPED_TRACKS = 500  # for the mapper, whose poses are only a start; the adjustment takes more
ADJUSTED_TRACKS = 1500
DEFAULT = 1.2  # COLMAP's guess as well
LIMITS = (0.4, 3.0)  # of the width; results outside are no camera's
LARGEST_DEVIATION = 0.1  # relative; a background that says less than this says nothing
CORRELATED = 4.0  # errors along a track go together: so many observations count as one
PRIOR_TRUST = 0.3  # relative; EXIF is seldom wronger, an estimate that disagrees more is

FocalSource = Literal["estimated", "EXIF", "default"]


@dataclass(frozen=True)
class FocalEstimate:
    """A focal length in pixels, its relative standard deviation (None: unknown), and where it comes from."""

    focal: float
    uncertainty: float | None
    how: FocalSource


def estimate_focal(
    tracks: Tracks, size: tuple[int, int], seed: int, prior: float | None = None
) -> tuple[FocalEstimate, tuple[str, ...]]:
    """The focal length under which the background's model fits best, and advice.

    `tracks` are the background's, `prior` a focal length to start from (EXIF). Several starts are mapped, then
    adjusted with the focal length free, until two agree; the best is taken. With too little parallax to tell, the
    prior or a default stays.
    """
    tracks = tracks.select(tracks.visible.sum(1) >= 3)
    tracks = tracks.select(balanced_subset(tracks.pixels, tracks.visible, ADJUSTED_TRACKS))
    some = tracks.select(balanced_subset(tracks.pixels, tracks.visible, MAPPED_TRACKS))
    starts = [prior] if prior is not None else [share * max(size) for share in STARTS]
    center = np.array(size) / 2
    found: list[tuple[Adjustment, float]] = []
    for start in starts:
        with tempfile.TemporaryDirectory(prefix="osn_gs_focal_") as folder:
            database = MatchDatabase(Path(folder), some.pixels, some.visible, size, start, seed)
            poses = database.global_mapping(seed) if database.pairs else None
        if poses is None or poses.registered.mean() < 0.5:
            continue
        used = tracks.visible & poses.registered
        used &= (used.sum(1) >= 2)[:, None]
        geometry = triangulated(tracks.pixels, used, poses.cam_from_obj, start, center)
        observations = observations_of(tracks.pixels, used)
        adjusted = adjust(geometry, observations, AdjustmentOptions(adjust_focal=True, max_steps=100))
        if LIMITS[0] * size[0] <= adjusted.geometry.focal <= LIMITS[1] * size[0]:
            deviation = focal_deviation(adjusted.geometry, observations) * CORRELATED**0.5
            found.append((adjusted, deviation))
        if any(_agree(found[-1][0], other) for other, _ in found[:-1]):
            break
    best = min(found, key=lambda pair: pair[0].cost / pair[0].num_observations, default=None)
    if best is not None and best[1] <= LARGEST_DEVIATION:
        focal = best[0].geometry.focal
        if prior is None or abs(np.log(focal / prior)) <= np.log1p(PRIOR_TRUST):
            return FocalEstimate(float(focal), best[1], "estimated"), ()
    if prior is not None:
        return FocalEstimate(prior, None, "EXIF"), (
            f"The focal length stays at EXIF's {prior:.0f} pixels: the background's motion does not tell it better.",
        )
    focal = DEFAULT * max(size)
    return FocalEstimate(focal, None, "default"), (
        f"The focal length is a guess ({focal:.0f} pixels): the camera moves too little past the background to tell "
        "it. Give it with --focal if you know it; depth depends on it.",
    )


def _agree(one: Adjustment, other: Adjustment) -> bool:
    return abs(np.log(one.geometry.focal / other.geometry.focal)) < AGREEING
