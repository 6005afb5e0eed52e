"""One object's poses and points from its tracks: several hypotheses, each adjusted and scored on all tracks."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float

from osn_gs.preprocess.sfm.balanced import balanced_subset
from osn_gs.preprocess.sfm.bending_adjustment import (
    BendingPrior,
    BentGeometry,
    adjust_bending,
    with_nodes,
    with_renewed_nodes,
)
from osn_gs.preprocess.sfm.bundle_adjustment import AdjustmentOptions, Geometry, Observations, Smoothness, adjust
from osn_gs.preprocess.sfm.config import SfmConfig
from osn_gs.preprocess.sfm.mapping import MatchDatabase, Poses
from osn_gs.preprocess.sfm.motion import continued_poses, net_turn, smoothness_of
from osn_gs.preprocess.sfm.object_model import ObjectModel
from osn_gs.preprocess.sfm.report import CandidateReport, ModelReport, describe
from osn_gs.preprocess.sfm.start_poses import reversed_depth, steadily_turned, weak_perspective_start
from osn_gs.preprocess.sfm.triangulation import observations_of, triangulated
from osn_gs.preprocess.tracks import Tracks

EXPLAINED_ERROR = 1.5  # pixels
FEWEST_FRAMES = 3  # a track must be seen in, and a model must pose
FEWEST_TRACKS = 8
FEWEST_INLIERS = 8  # of a resection
MOST_TRACKS = 1500  # more cost time and hardly help: what errors they have in common stays
MAPPED_TRACKS = 500  # for COLMAP's mappers, whose poses are only a start
SAME_SCORE = 0.002
MOST_STEPS, TOLERANCE = 40, 1e-5  # of a bundle adjustment
WELL_EXPLAINED = 0.9  # a model that explains less is doubted, and the fallback tried
STEADY_TURNS = (-90.0, 90.0)  # degrees over the clip that starts are given
CLEARLY_FARTHER = np.deg2rad(15.0)  # turned, of a model that is to be preferred for that
START_SMOOTHNESS = Smoothness(rotation=np.deg2rad(1.0), translation=0.01)
CATCHING_LOSS = 3.0  # pixels: scale of the loss while frames without a pose of their own are drawn in
FINEST_LOSS, COARSEST_LOSS = 0.25, 1.0  # pixels: bounds of the final loss' scale, which is twice the median error
FEWEST_CAUGHT = 5  # observations that a frame placed by smooth motion must explain, and half of those it has
SCORE_TO_SPARE = 0.005  # what smooth motion may cost
BENDING_ROUNDS, MOST_BENDING_STEPS, BENDING_TOLERANCE = 3, 25, 5e-4  # nodes are renewed between rounds
OBSERVATIONS_PER_NODE = 200  # with fewer, bad tracks are explained by bending
FEWEST_NODES, MOST_KNOTS = 4, 24  # the more knots a long clip had, the longer it would take
DEEPEST = 1.0  # relief over width: an object that bends and comes out deeper is one whose relief no turn supports
CLEARLY_BETTER = 0.01  # in score: on synthetic clips wrong twins came 0.005 above the right one, right ones 0.02
STILL_UNEXPLAINED = 0.5  # at most, of what a rigid model leaves unexplained, where an object is said to bend
DOUBTFUL_TIE = 0.04  # scores of models that explain little: on swaying shapes the right one was that far down


@dataclass(frozen=True)
class Hypothesis:
    """A candidate after its bundle adjustment, with what speaks for it."""

    name: str
    geometry: Geometry
    registered: Bool[np.ndarray, "t"]
    explained: float
    score: float


def reconstruct_object(
    tracks: Tracks, size: tuple[int, int], focal: float, config: SfmConfig, seed: int
) -> tuple[ObjectModel, ModelReport] | None:
    """Poses and points of the one object `tracks` lie on; None where too few tracks leave nothing to work with.

    Candidates are COLMAP's global mapping with two seeds, its incremental mapping, the depth-reversed twin of the
    best of them and, where these leave much unexplained, starts under weak perspective, without a turn and with a
    steady one either way. Every candidate is triangulated from all tracks, adjusted, and scored by the observations it
    explains. In the best, frames without a pose are resected, and all is adjusted once more under smooth motion; where
    much is left unexplained, so are all candidates, and one that turns clearly farther may be taken in place of the
    best (`turned_farther`). Where even that explains little, the object may bend (`_bent_if_that_explains_it`). `size`
    is the images' width and height.
    """
    started = time.monotonic()
    usable = _usable(tracks)
    if usable is None:
        return None
    task = _Task(usable.pixels, usable.visible, focal, np.array(size) / 2)
    hypotheses = _mapped(task, size, seed)
    if hypotheses:
        best = _best_of(hypotheses)
        twin = task.refined(f"{best.name}, depth reversed", reversed_depth(best.geometry), best.registered)
        hypotheses += [twin] if twin is not None else []
    doubtful = not hypotheses or max(hypothesis.explained for hypothesis in hypotheses) < WELL_EXPLAINED
    if doubtful:
        starts = [_weak_perspective(task, seed), _weak_perspective(task, seed + 1)]
        starts += [_weak_perspective(task, seed, turn) for turn in STEADY_TURNS]
        hypotheses += [hypothesis for hypothesis in starts if hypothesis is not None]
    if not hypotheses:
        return None
    leading = _best_of(hypotheses)
    best = _resected(task, leading)
    finalists = [best, *(other for other in hypotheses if other is not leading)] if doubtful else [best]
    polished = [found for found in (_polished(task, finalist) for finalist in finalists) if found is not None]
    if polished:
        hypotheses += polished
        if _best_of(polished).score > best.score - SCORE_TO_SPARE:
            best = _best_of(polished)
        if doubtful:
            best = turned_farther(best, polished)
    rigid, object_id = best, int(tracks.object_ids[0])
    if best.explained < WELL_EXPLAINED and object_id != 0:  # the background never bends
        best, bendings = _bent_if_that_explains_it(task, rigid)
        hypotheses += bendings
    return _finished(task, best, rigid, hypotheses, size, object_id, time.monotonic() - started)


def reconstruct_from_poses(
    tracks: Tracks, size: tuple[int, int], focal: float, poses: Poses
) -> tuple[ObjectModel, ModelReport] | None:
    """Points of the one object `tracks` lie on, under poses that are taken as they stand; frames without are resected.

    None where too few tracks leave nothing to work with.
    """
    started = time.monotonic()
    usable = _usable(tracks)
    if usable is None:
        return None
    task = _Task(usable.pixels, usable.visible, focal, np.array(size) / 2)
    used = task.used(poses.registered)
    start = triangulated(task.pixels, used, poses.cam_from_obj, focal, task.center)
    geometry, registered = _with_resected_frames(task, start, poses.registered)
    geometry = triangulated(task.pixels, task.used(registered), geometry.cam_from_obj, focal, task.center)
    given = task.scored("given poses", geometry, registered)
    if given is None:
        return None
    return _finished(task, given, given, [given], size, int(tracks.object_ids[0]), time.monotonic() - started)


def _usable(tracks: Tracks) -> Tracks | None:
    """Tracks long enough, not too many; None where no model can come of them."""
    usable = tracks.select(tracks.visible.sum(1) >= FEWEST_FRAMES)
    if len(usable) < FEWEST_TRACKS or (usable.visible.sum(0) >= FEWEST_TRACKS).sum() < FEWEST_FRAMES:
        return None
    return usable.select(balanced_subset(usable.pixels, usable.visible, MOST_TRACKS))


def _finished(
    task: _Task,
    best: Hypothesis,
    rigid: Hypothesis,
    hypotheses: list[Hypothesis],
    size: tuple[int, int],
    object_id: int,
    seconds: float,
) -> tuple[ObjectModel, ModelReport]:
    model = _model_of(task, best, size)
    report = describe(
        model,
        object_id=object_id,
        num_tracks=len(task.visible),
        explained=task.explained_where_registered(best),
        rigid_explained=None if model.displacements is None else task.explained_where_registered(rigid),
        extent=_extent(task),
        chosen=best.name,
        candidates=[CandidateReport(h.name, int(h.registered.sum()), h.explained, h.score) for h in hypotheses],
        seconds=seconds,
    )
    return model, report


@dataclass(frozen=True)
class _Task:
    """One object's usable tracks and the camera."""

    pixels: Float[np.ndarray, "n t 2"]
    visible: Bool[np.ndarray, "n t"]
    focal: float
    center: Float[np.ndarray, "2"]

    def hypothesis(self, name: str, poses: Poses | None) -> Hypothesis | None:
        """What the poses of a mapper come to on all tracks."""
        if poses is None:
            return None
        used = self.used(poses.registered)
        start = triangulated(self.pixels, used, poses.cam_from_obj, self.focal, self.center)
        return self.refined(name, start, poses.registered)

    def refined(
        self, name: str, start: Geometry, registered: Bool[np.ndarray, "t"], smoothness: Smoothness | None = None
    ) -> Hypothesis | None:
        """A geometry after bundle adjustment on all tracks, scored; None where it lies behind its cameras.

        Smoothness ties frames to their neighbours, so it takes every frame as registered.
        """
        used = self.used(registered)
        options = AdjustmentOptions(smoothness=smoothness, max_steps=MOST_STEPS, tolerance=TOLERANCE)
        adjusted = adjust(start, observations_of(self.pixels, used), options)
        geometry = triangulated(self.pixels, used, adjusted.geometry.cam_from_obj, self.focal, self.center)
        return self.scored(name, geometry, registered)

    def scored(self, name: str, geometry: Geometry, registered: Bool[np.ndarray, "t"]) -> Hypothesis | None:
        """What speaks for a geometry; None where it lies behind its cameras."""
        observations = observations_of(self.pixels, self.used(registered))
        if len(observations) == 0 or np.median(geometry.in_camera(observations)[:, 2]) <= 0:
            return None
        squared = (geometry.residuals(observations) ** 2).sum(1)
        count = self.visible.sum()
        explained = float((squared < EXPLAINED_ERROR**2).sum() / count)
        score = float((1 / (1 + squared)).sum() / count)
        return Hypothesis(name, geometry, registered, explained, score)

    def used(self, registered: Bool[np.ndarray, "t"]) -> Bool[np.ndarray, "n t"]:
        """Observations in registered frames of tracks that are seen in at least two of them."""
        used = self.visible & registered
        return used & (used.sum(1) >= 2)[:, None]

    def explained_where_registered(self, hypothesis: Hypothesis) -> float:
        share = (self.visible & hypothesis.registered).sum() / self.visible.sum()
        return min(hypothesis.explained / max(float(share), 1e-9), 1.0)


def _mapped(task: _Task, size: tuple[int, int], seed: int) -> list[Hypothesis]:
    """What COLMAP's mappers, on some of the tracks, come to on all of them.

    Two ways that agree on every frame are believed; else more seeds are tried.
    """
    some = balanced_subset(task.pixels, task.visible, MAPPED_TRACKS)
    with tempfile.TemporaryDirectory(prefix="osn_gs_sfm_") as folder:
        database = MatchDatabase(Path(folder), task.pixels[some], task.visible[some], size, task.focal, seed)
        if not database.pairs:
            return []
        found = [
            task.hypothesis("global", database.global_mapping(seed)),
            task.hypothesis("incremental", database.incremental_mapping(seed)),
        ]
        if not _agree(*found):
            found.append(task.hypothesis("global, other seed", database.global_mapping(seed + 1)))
    return [hypothesis for hypothesis in found if hypothesis is not None]


def _agree(one: Hypothesis | None, other: Hypothesis | None) -> bool:
    """Whether two hypotheses pose every frame and explain the tracks well, and equally well."""
    if one is None or other is None or not (one.registered.all() and other.registered.all()):
        return False
    return min(one.explained, other.explained) >= WELL_EXPLAINED and abs(one.score - other.score) < SAME_SCORE


def _weak_perspective(task: _Task, seed: int, turn: float | None = None) -> Hypothesis | None:
    """Every frame posed from weak perspective, without a turn or with a steady one; held smooth, then set free."""
    start = weak_perspective_start(task.pixels, task.visible, task.focal, task.center, seed)
    name, registered = f"weak perspective {seed}", np.ones(task.visible.shape[1], bool)
    if turn is not None:
        name, poses = f"steady turn of {turn:+.0f} degrees", steadily_turned(start, turn).cam_from_obj
        start = triangulated(task.pixels, task.used(registered), poses, task.focal, task.center)
    observations = observations_of(task.pixels, task.visible)
    smooth = adjust(start, observations, AdjustmentOptions(loss_scale=3.0, smoothness=START_SMOOTHNESS)).geometry
    return task.refined(name, smooth, registered, START_SMOOTHNESS)


def _best_of(hypotheses: list[Hypothesis]) -> Hypothesis:
    return max(hypotheses, key=lambda hypothesis: hypothesis.score)


def turned_farther(best: Hypothesis, others: list[Hypothesis]) -> Hypothesis:
    """Of those that score about as well as the best and turn clearly farther, the one that turns farthest; else the
    best.

    For what no rigid model explains well: sway is easily taken for turning to and fro, while what bends without turning
    is explained well by some flat shape. A twin of reversed depth turns as far as its original: the score decides.
    """
    turns = [(net_turn(other.geometry.cam_from_obj, other.registered), other) for other in others]
    least = net_turn(best.geometry.cam_from_obj, best.registered) + CLEARLY_FARTHER
    rivals = [(turn, other) for turn, other in turns if turn > least and other.score > best.score - DOUBTFUL_TIE]
    return max(rivals, key=lambda rival: rival[0], default=(0.0, best))[1]


def _resected(task: _Task, hypothesis: Hypothesis) -> Hypothesis:
    """The hypothesis with poses for the frames that had none, where that explains more."""
    geometry, registered = _with_resected_frames(task, hypothesis.geometry, hypothesis.registered)
    if registered.sum() == hypothesis.registered.sum():
        return hypothesis
    start = triangulated(task.pixels, task.used(registered), geometry.cam_from_obj, task.focal, task.center)
    filled = task.refined(f"{hypothesis.name}, filled", start, registered)
    return filled if filled is not None and filled.score > hypothesis.score else hypothesis


def _polished(task: _Task, hypothesis: Hypothesis) -> Hypothesis | None:
    """The hypothesis adjusted once more, finely, and as smooth in every frame as it is on the whole.

    Smoothness helps frames that see little. Frames that had no pose are placed by the motion and caught by the few
    points they see, if they see any.
    """
    geometry, registered = _centred(hypothesis.geometry, task.used(hypothesis.registered)), hypothesis.registered
    poses = continued_poses(geometry.cam_from_obj, registered)
    observations = observations_of(task.pixels, task.used(registered))
    loss_scale = _final_loss(hypothesis.geometry, observations)
    known = task.used(registered).any(1)
    used = task.visible & known[:, None]
    observations = observations_of(task.pixels, used)
    smoothness = smoothness_of(poses, registered)
    options = AdjustmentOptions(smoothness=smoothness, max_steps=MOST_STEPS, tolerance=TOLERANCE)
    start = replace(geometry, cam_from_obj=poses)
    if not registered.all():
        start = adjust(start, observations, replace(options, loss_scale=CATCHING_LOSS)).geometry
    final = replace(options, loss_scale=loss_scale)
    adjusted = adjust(start, observations, final).geometry
    caught = np.zeros(used.shape, bool)
    errors = np.linalg.norm(adjusted.residuals(observations), axis=1)
    caught[observations.points, observations.frames] = errors < EXPLAINED_ERROR
    enough = (caught.sum(0) >= FEWEST_CAUGHT) & (caught.sum(0) >= 0.5 * used.sum(0))
    return task.scored(f"{hypothesis.name}, polished", adjusted, registered | enough)


def _bent_if_that_explains_it(task: _Task, rigid: Hypothesis) -> tuple[Hypothesis, list[Hypothesis]]:
    """The hypothesis as an object that bends, where that explains most of what a rigid one leaves; what was tried, too.

    Its depth-reversed twin is let bend as well, as sway hides from a rigid model which of the two it is.
    """
    twin = replace(rigid, name=f"{rigid.name}, reversed", geometry=reversed_depth(rigid.geometry))
    bending, bending_twin = _bending(task, rigid), _bending(task, twin)
    better = better_of_twins(bending, bending_twin)
    tried = [found for found in (bending, bending_twin) if found is not None]
    if better is None or 1 - better.explained >= STILL_UNEXPLAINED * (1 - rigid.explained):
        return rigid, tried
    return better, tried


def better_of_twins(bending: Hypothesis | None, twin: Hypothesis | None) -> Hypothesis | None:
    """The first, unless its depth-reversed twin scores clearly better."""
    if bending is None or twin is None:
        return twin if bending is None else bending
    return twin if twin.score > bending.score + CLEARLY_BETTER else bending


def _final_loss(geometry: Geometry, observations: Observations) -> float:
    """Scale of the loss, in pixels, once a geometry is about right: one that forgives early makes good tracks count."""
    median = float(np.median(np.linalg.norm(geometry.residuals(observations), axis=1)))
    return float(np.clip(2 * median, FINEST_LOSS, COARSEST_LOSS))


def _bending(task: _Task, hypothesis: Hypothesis) -> Hypothesis | None:
    """The hypothesis as an object that bends, from where it moves as a rigid one.

    None where it has too few observations, or comes out too deep, to be believed.
    """
    used = task.used(hypothesis.registered)
    observations, prior = observations_of(task.pixels, used), BendingPrior()
    prior = replace(
        prior,
        nodes=min(prior.nodes, len(observations) // OBSERVATIONS_PER_NODE),
        knot_spacing=max(prior.knot_spacing, used.shape[1] / MOST_KNOTS),
    )
    if prior.nodes < FEWEST_NODES:
        return None
    poses = continued_poses(_centred(hypothesis.geometry, used).cam_from_obj, hypothesis.registered)
    smoothness = smoothness_of(poses, hypothesis.registered)
    geometry = with_nodes(triangulated(task.pixels, used, poses, task.focal, task.center), observations, prior)
    loss_scale = COARSEST_LOSS
    for _ in range(BENDING_ROUNDS):
        geometry = with_renewed_nodes(geometry, observations)
        geometry, _ = adjust_bending(
            geometry, observations, prior, smoothness, loss_scale, MOST_BENDING_STEPS, BENDING_TOLERANCE
        )
        loss_scale = _final_loss(geometry, observations)
    if not _relief(geometry, observations) <= DEEPEST:
        return None
    return task.scored(f"{hypothesis.name}, bending", geometry, hypothesis.registered)


def _relief(geometry: Geometry, observations: Observations) -> float:
    """How deep an object is along the view, on the whole, over how wide it is across."""
    in_camera = geometry.in_camera(observations)
    by_frame = [in_camera[observations.frames == frame] for frame in np.unique(observations.frames)]
    offsets = np.concatenate([np.abs(seen - np.median(seen, axis=0)) for seen in by_frame])
    across, along = offsets[:, :2].max(axis=1), offsets[:, 2]
    return float(np.median(along) / max(np.median(across), 1e-12))


def _centred(geometry: Geometry, used: Bool[np.ndarray, "n t"]) -> Geometry:
    """The same with the middle of the used points as the object's origin, whose motion is then the object's."""
    middle = np.median(geometry.points[used.any(1)], axis=0)
    poses = geometry.cam_from_obj.copy()
    poses[:, :3, 3] += poses[:, :3, :3] @ middle
    return replace(geometry, cam_from_obj=poses, points=geometry.points - middle)


def _with_resected_frames(
    task: _Task, geometry: Geometry, registered: Bool[np.ndarray, "t"]
) -> tuple[Geometry, Bool[np.ndarray, "t"]]:
    """Poses added for frames where enough known points are seen; which frames have one now."""
    known = task.used(registered).sum(1) >= FEWEST_FRAMES
    poses, registered = geometry.cam_from_obj.copy(), registered.copy()
    for frame in np.flatnonzero(~registered):
        seen = known & task.visible[:, frame]
        pose = resect(geometry.points[seen], task.pixels[seen, frame], task.focal, task.center)
        if pose is not None:
            poses[frame], registered[frame] = pose, True
    return replace(geometry, cam_from_obj=poses), registered


def resect(
    points: Float[np.ndarray, "n 3"], pixels: Float[np.ndarray, "n 2"], focal: float, center: Float[np.ndarray, "2"]
) -> Float[np.ndarray, "4 4"] | None:
    """cam_from_obj of one frame from points seen in it, robustly; None where too few agree."""
    if len(points) < FEWEST_INLIERS:
        return None
    intrinsics = np.array([[focal, 0, center[0]], [0, focal, center[1]], [0, 0, 1]])
    cv2.setRNGSeed(0)
    found, turn, shift, inliers = cv2.solvePnPRansac(
        points, pixels, intrinsics, None, iterationsCount=500, reprojectionError=2.0, flags=cv2.SOLVEPNP_SQPNP
    )
    if not found or inliers is None or len(inliers) < max(FEWEST_INLIERS, 0.3 * len(points)):
        return None
    inliers = inliers[:, 0]
    turn, shift = cv2.solvePnPRefineLM(points[inliers], pixels[inliers], intrinsics, None, turn, shift)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = cv2.Rodrigues(turn)[0], shift[:, 0]
    return pose


def _model_of(task: _Task, hypothesis: Hypothesis, size: tuple[int, int]) -> ObjectModel:
    """The hypothesis' explained observations, and the points with at least three of them."""
    geometry, used = hypothesis.geometry, task.used(hypothesis.registered)
    observations = observations_of(task.pixels, used)
    explained = np.zeros_like(used)
    errors = np.linalg.norm(geometry.residuals(observations), axis=1)
    explained[observations.points, observations.frames] = errors < EXPLAINED_ERROR
    kept = explained.sum(1) >= FEWEST_FRAMES
    observations = observations_of(task.pixels, explained & kept[:, None])
    poses = np.where(hypothesis.registered[:, None, None], geometry.cam_from_obj, np.eye(4))
    displacements = geometry.in_object(observations) - geometry.points[observations.points]
    return ObjectModel(
        cam_from_obj=poses,
        registered=hypothesis.registered,
        points=geometry.points[kept],
        observed_frames=observations.frames,
        observed_points=np.cumsum(kept)[observations.points] - 1,
        observed_pixels=observations.pixels,
        focal=task.focal,
        size=size,
        displacements=displacements if isinstance(geometry, BentGeometry) else None,
    )


def _extent(task: _Task) -> float:
    """Median over the frames of the longer side of the tracks' box, in pixels."""
    extents = [
        float(np.ptp(task.pixels[seen, frame], axis=0).max())
        for frame, seen in enumerate(task.visible.T)
        if seen.sum() >= 2
    ]
    return float(np.median(extents)) if extents else 0.0
