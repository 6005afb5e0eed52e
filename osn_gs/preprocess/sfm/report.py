"""What is said of one object's model: figures, how far to trust it, and what to try."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from osn_gs.preprocess.sfm.object_model import ObjectModel

Confidence = Literal["good", "weak", "failed"]

# Share of the observations explained, of the frames registered, and degrees of parallax.
GOOD_EXPLAINED, FAILED_EXPLAINED = 0.8, 0.4
GOOD_REGISTERED = 0.95
GOOD_RANGE = 8.0
LARGEST_JUMP = 25.0  # degrees
SMALL_OBJECT = 60  # pixels across; below, poses come out several degrees off
SAMPLED_POINTS = 400


@dataclass(frozen=True)
class CandidateReport:
    """One hypothesis: where it came from and what speaks for it."""

    name: str
    registered: int
    explained: float
    """Share of all observations within 1.5 px and in front of the camera."""
    score: float
    """What candidates are compared by: observations explained, those that fit closely counting more; 0 to 1."""


@dataclass(frozen=True)
class ModelReport:
    """One object's model in figures; plain values only, as it goes into models.json."""

    object_id: int
    frames: int
    registered: int
    missing_frames: list[int]
    tracks: int
    observations: int
    """Those the model explains."""
    points: int
    mean_error: float
    """Reprojection error of the explained observations, in pixels."""
    median_error: float
    explained: float
    """Share of all observations in registered frames within 1.5 px and in front of the camera."""
    largest_jump: float
    """Largest change of viewpoint in degrees from a registered frame to the next, beyond the changes beside it."""
    viewpoint_range: float
    """Largest angle in degrees between two directions from the object's middle to the camera."""
    parallax: float
    """Median over the points of the largest angle in degrees between the rays that see them."""
    extent: float
    """Median over the frames of the tracks' extent in the image: the longer side of their box, in pixels."""
    chosen: str
    candidates: list[CandidateReport]
    seconds: float
    confidence: Confidence
    advice: list[str]
    """Plain words to go after the object's name."""
    rigid_explained: float | None = None
    """Of an object that bends: what the best rigid model explains of it; None for a rigid object."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ModelReport:
        """Build it again from what `dataclasses.asdict` made of it."""
        return cls(**{**values, "candidates": [CandidateReport(**entry) for entry in values["candidates"]]})


def describe(
    model: ObjectModel,
    object_id: int,
    num_tracks: int,
    explained: float,
    rigid_explained: float | None,
    extent: float,
    chosen: str,
    candidates: list[CandidateReport],
    seconds: float,
) -> ModelReport:
    """The figures of a finished model; `model` has at least three registered frames."""
    errors = model.reprojection_errors()
    viewpoint_range, parallax, jump = viewpoint_range_of(model), parallax_of(model), largest_jump_of(model)
    registered = int(model.registered.sum())
    confidence, advice = _judge(
        object_id,
        explained,
        registered / len(model.registered),
        max(viewpoint_range, parallax),
        jump,
        extent,
        len(model.points),
    )
    if rigid_explained is not None and confidence != "failed":
        advice.append(
            f"bends: a rigid model explains {rigid_explained:.0%} of its tracks, one that bends {explained:.0%}; "
            "expect less certain poses and depth than of a rigid object."
        )
        confidence = "weak"
    return ModelReport(
        object_id=object_id,
        frames=len(model.registered),
        registered=registered,
        missing_frames=np.flatnonzero(~model.registered).tolist(),
        tracks=num_tracks,
        observations=len(errors),
        points=len(model.points),
        mean_error=float(errors.mean()) if len(errors) else 0.0,
        median_error=float(np.median(errors)) if len(errors) else 0.0,
        explained=explained,
        largest_jump=jump,
        viewpoint_range=viewpoint_range,
        parallax=parallax,
        extent=extent,
        chosen=chosen,
        candidates=candidates,
        seconds=seconds,
        confidence=confidence,
        advice=advice,
        rigid_explained=rigid_explained,
    )


def viewpoint_range_of(model: ObjectModel) -> float:
    """Largest angle in degrees between two registered cameras, seen from the middle of the points."""
    poses = model.cam_from_obj[model.registered]
    centres = -np.einsum("tji,tj->ti", poses[:, :3, :3], poses[:, :3, 3])
    directions = centres - np.median(model.points, axis=0)
    return _largest_angle(directions[None])[0]


def largest_jump_of(model: ObjectModel) -> float:
    """Largest angle in degrees between two neighbouring registered frames' viewpoints, beyond the steps beside it."""
    poses = model.cam_from_obj[model.registered]
    centres = -np.einsum("tji,tj->ti", poses[:, :3, :3], poses[:, :3, 3])
    directions = centres - np.median(model.points, axis=0)
    steps = np.array(_largest_angle(np.stack([directions[:-1], directions[1:]], axis=1)))
    beside = np.minimum(np.r_[steps[1], steps[:-1]], np.r_[steps[1:], steps[-2]])
    return float((steps - beside).max())


def parallax_of(model: ObjectModel) -> float:
    """Median over (some) points of the largest angle in degrees between two rays that see the point."""
    poses = model.cam_from_obj
    centres = -np.einsum("tji,tj->ti", poses[:, :3, :3], poses[:, :3, 3])
    chosen = np.unique(np.linspace(0, len(model.points) - 1, SAMPLED_POINTS).astype(int))
    angles = []
    for point in chosen:
        frames = model.observed_frames[model.observed_points == point]
        angles.append(_largest_angle((centres[frames] - model.points[point])[None])[0])
    return float(np.median(angles))


def _largest_angle(directions: np.ndarray) -> list[float]:
    """Of each set [b n 3] of directions, the largest angle between two in degrees."""
    unit = directions / np.maximum(np.linalg.norm(directions, axis=-1, keepdims=True), 1e-12)
    cosines = (unit @ unit.swapaxes(-1, -2)).min((-1, -2))
    return np.rad2deg(np.arccos(np.clip(cosines, -1, 1))).tolist()


def _judge(
    object_id: int,
    explained: float,
    registered: float,
    turns: float,
    jump: float,
    extent: float,
    num_points: int,
) -> tuple[Confidence, list[str]]:
    advice = []
    if explained < FAILED_EXPLAINED:
        remedy = "use more frames" + ("." if object_id == 0 else ", or merge it into the background (--ignore).")
        advice.append(
            f"its model explains only {explained:.0%} of its tracks, so do not trust it; check its mask, {remedy}"
        )
        return "failed", advice
    if explained < GOOD_EXPLAINED:
        advice.append(
            f"its model explains {explained:.0%} of its tracks; "
            + ("some of it moves" if object_id == 0 else "it may bend")
            + ", or its mask takes in something else."
        )
    if jump > LARGEST_JUMP:
        advice.append(
            f"its pose jumps by {jump:.0f} degrees between two frames: unless it really turns that fast, expect wrong "
            "poses there; look at its path in the report."
        )
    if registered < GOOD_REGISTERED:
        advice.append(f"has a pose in {registered:.0%} of the frames; in the others it is left out.")
    if turns < GOOD_RANGE:
        seen = "the camera moves" if object_id == 0 else "it is seen"
        advice.append(
            f"{seen} over only {turns:.1f} degrees: expect flat geometry and uncertain depth; use more of the video."
        )
    if extent < SMALL_OBJECT:
        advice.append(
            f"only {extent:.0f} pixels across: expect poses several degrees off; use larger images "
            "(--longest-side) if the video has them."
        )
    if num_points < 50:
        advice.append(f"only {num_points} points; more texture or larger images would help.")
    return ("weak" if advice else "good"), advice
