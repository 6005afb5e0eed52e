"""How an object moves from frame to frame: guessing poses that are missing, and how smooth the motion is."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial.transform import Rotation

from osn_gs.preprocess.sfm.bundle_adjustment import Smoothness

SMOOTHEST = Smoothness(rotation=np.deg2rad(0.25), translation=0.0025)  # no motion is trusted to be smoother


def continued_poses(
    cam_from_obj: Float[np.ndarray, "t 4 4"], registered: Bool[np.ndarray, "t"]
) -> Float[np.ndarray, "t 4 4"]:
    """Poses of missing frames as steady motion gives them, from their registered neighbours.

    Between two registered frames the turn and the shift of the object's origin are shared out evenly; before the
    first and after the last they go on as they were. At least two frames are registered.
    """
    known = np.flatnonzero(registered)
    poses = cam_from_obj.copy()
    for frame in np.flatnonzero(~registered):
        after = min(int(np.searchsorted(known, frame)), len(known) - 1)
        first, second = known[max(after, 1) - 1], known[max(after, 1)]
        share = (frame - first) / (second - first)
        turn = Rotation.from_matrix(cam_from_obj[second, :3, :3] @ cam_from_obj[first, :3, :3].T).as_rotvec()
        poses[frame, :3, :3] = Rotation.from_rotvec(share * turn).as_matrix() @ cam_from_obj[first, :3, :3]
        poses[frame, :3, 3] = (1 - share) * cam_from_obj[first, :3, 3] + share * cam_from_obj[second, :3, 3]
    return poses


def net_turn(cam_from_obj: Float[np.ndarray, "t 4 4"], registered: Bool[np.ndarray, "t"]) -> float:
    """How far an object turns on the whole, in radians: its turns from frame to frame, over the registered ones, added
    up as vectors, so that what goes to and fro cancels out and several full turns count."""
    rotations = cam_from_obj[registered, :3, :3]
    if len(rotations) < 2:
        return 0.0
    turns = Rotation.from_matrix(rotations[1:] @ rotations[:-1].swapaxes(-1, -2)).as_rotvec()
    return float(np.linalg.norm(turns.sum(axis=0)))


def smoothness_of(cam_from_obj: Float[np.ndarray, "t 4 4"], registered: Bool[np.ndarray, "t"]) -> Smoothness:
    """How much the motion changes between frames, on the whole: medians over registered frames with such neighbours.

    As standard deviations of single components these are generous: a frame that sees enough goes its own way.
    """
    inner = np.flatnonzero(registered[:-2] & registered[1:-1] & registered[2:])
    if len(inner) == 0:
        return SMOOTHEST
    rotations, shifts = cam_from_obj[:, :3, :3], cam_from_obj[:, :3, 3]
    before = Rotation.from_matrix(rotations[inner + 1] @ rotations[inner].swapaxes(-1, -2)).as_rotvec()
    after = Rotation.from_matrix(rotations[inner + 2] @ rotations[inner + 1].swapaxes(-1, -2)).as_rotvec()
    bends = shifts[inner + 2] - 2 * shifts[inner + 1] + shifts[inner]
    depth = float(np.median(np.abs(shifts[registered, 2])))
    return Smoothness(
        rotation=max(float(np.median(np.linalg.norm(after - before, axis=1))), SMOOTHEST.rotation),
        translation=max(float(np.median(np.linalg.norm(bends, axis=1))) / depth, SMOOTHEST.translation),
    )
