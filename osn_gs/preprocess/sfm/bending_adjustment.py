"""Bundle adjustment of an object that bends: poses, points and the motion of a few control nodes together.

A rigid model takes sway for turning and, with the turns, puts the surface at wrong depths. Which motion and which
bending made the tracks is open without a prior (Xiao et al. 2004, "A Closed-Form Solution to Non-Rigid Shape and Motion
Recovery"). The one here is that of training: parts move as rigidly as possible (Sorkine and Alexa 2007), smoothly in
time, by blended motions of control nodes (`osn_gs.gaussians.deformation`). Unlike there, the nodes ride on the points:
while the shape is still being found, stretching is measured on the shape as it is, at whatever scale.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from osn_gs.gaussians.deformation import BLEND_WIDTH, NEIGHBOURS, num_coefficients, spline_weights, spread_points
from osn_gs.preprocess.sfm.bundle_adjustment import (
    Geometry,
    GroupSums,
    Observations,
    Smoothness,
    cross_matrices,
    moved_poses,
    observation_terms,
    pose_and_point_equations,
    robust_cost,
    smoothness_terms,
)
from osn_gs.preprocess.sfm.levenberg_marquardt import System, minimize

OUTLYING = 2.5  # times the median distance from the middle: points beyond carry no node
SCALE_HELD = 1e4  # weight on a change of scale, which changes nothing, relative to the strongest pose


@dataclass(frozen=True)
class BendingPrior:
    """How much an object may bend: standard deviations, but for the number of nodes and the knots of their splines.

    Chosen on sway3's cactus; synthetic clips of swaying shapes went along.
    """

    nodes: int = 20
    knot_spacing: float = 2.5
    """Frames between two knots."""
    stretching: float = 0.12
    """Of what lies between two neighbouring nodes, per frame, as a share of their distance."""
    growth: float = 0.005
    """Of the object as a whole, per frame: what bends stretches here and shrinks there, and one that grew would look
    like one that came closer."""
    acceleration: float = 0.4
    """Second differences of the splines' coefficients: radians, and object sizes."""
    magnitude: float = 0.3
    """The coefficients themselves."""


@dataclass(frozen=True)
class ControlNodes:
    """How nodes ride on the points and move them: `carriers` [j n] are the points' shares in a node's place, `weights`
    [n j] the nodes' shares in a point's motion, `neighbours` [j k] the nodes next to each."""

    carriers: Float[np.ndarray, "j n"]
    weights: Float[np.ndarray, "n j"]
    neighbours: Int[np.ndarray, "j k"]


@dataclass(frozen=True)
class BentGeometry(Geometry):
    """Poses and canonical points with the motion of control nodes, by which points are elsewhere in each frame.

    Node j turns by the rotation vector rotations[:, j] about itself and goes by translations[:, j], in units of the
    object's size; both are coefficients of cubic B-splines over the frames.
    """

    nodes: ControlNodes
    rotations: Float[np.ndarray, "c j 3"]
    translations: Float[np.ndarray, "c j 3"]
    knot_spacing: float

    def in_object(self, observations: Observations) -> Float[np.ndarray, "m 3"]:
        linear, offsets = self.blended_motion()
        points = self.points[observations.points]
        seen = observations.frames, observations.points
        return points + np.einsum("mij,mj->mi", linear[seen], points) + offsets[seen]

    @property
    def node_places(self) -> Float[np.ndarray, "j 3"]:
        return self.nodes.carriers @ self.points

    @property
    def object_size(self) -> float:
        """Root mean square distance of the nodes from their middle."""
        places = self.node_places
        return float(np.sqrt(((places - places.mean(axis=0)) ** 2).sum(axis=1).mean()))

    def node_motion(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rotation vectors [t j 3] of the nodes, their matrices, and translations [t j 3] in object units."""
        spline = self.spline()
        vectors = np.einsum("tc,cjk->tjk", spline, self.rotations)
        matrices = Rotation.from_rotvec(vectors.reshape(-1, 3)).as_matrix().reshape(*vectors.shape, 3)
        return vectors, matrices, self.object_size * np.einsum("tc,cjk->tjk", spline, self.translations)

    def blended_motion(self) -> tuple[Float[np.ndarray, "t n 3 3"], Float[np.ndarray, "t n 3"]]:
        """How each frame moves each point x: by `linear @ x + offset`."""
        _, matrices, translations = self.node_motion()
        linear = matrices - np.eye(3)
        offsets = translations - np.einsum("tjab,jb->tja", linear, self.node_places)
        weights = self.nodes.weights
        return np.einsum("nj,tjab->tnab", weights, linear), np.einsum("nj,tja->tna", weights, offsets)

    def spline(self) -> Float[np.ndarray, "t c"]:
        """The share of each coefficient in each frame."""
        shares = np.zeros((len(self.cam_from_obj), len(self.rotations)))
        for frame, row in enumerate(shares):
            first, weights = spline_weights(frame / self.knot_spacing, len(row))
            row[first : first + 4] = weights
        return shares


def with_nodes(geometry: Geometry, observations: Observations, prior: BendingPrior) -> BentGeometry:
    """A geometry with control nodes spread over its observed points, not moving yet.

    Its origin goes to the middle of these points and its unit becomes their size, which conditions the equations.
    """
    body = _body(geometry.points, observations)
    middle = geometry.points[body].mean(axis=0)
    size = np.sqrt(((geometry.points[body] - middle) ** 2).sum(axis=1).mean())
    points, poses = (geometry.points - middle) / size, geometry.cam_from_obj.copy()
    poses[:, :3, 3] = (poses[:, :3, 3] + poses[:, :3, :3] @ middle) / size
    places = spread_points(torch.from_numpy(points[body]), prior.nodes).numpy()
    still = np.zeros((num_coefficients(len(poses), prior.knot_spacing), len(places), 3))
    nodes = _ridden(points, body, places)
    return BentGeometry(poses, points, geometry.focal, geometry.center, nodes, still, still, prior.knot_spacing)


def with_renewed_nodes(bent: BentGeometry, observations: Observations) -> BentGeometry:
    """The same nodes riding on, and moving, the points that are near them now; to be adjusted again, as both change."""
    body = _body(bent.points, observations)
    return replace(bent, nodes=_ridden(bent.points, body, bent.node_places))


def adjust_bending(
    start: BentGeometry,
    observations: Observations,
    prior: BendingPrior,
    smoothness: Smoothness,
    loss_scale: float,
    max_steps: int,
    tolerance: float,
) -> tuple[BentGeometry, float]:
    """Minimize the robust reprojection error and the prior over poses, points and the nodes' motion; the cost, too.

    Costs are comparable where observations, prior, smoothness and loss scale are the same.
    """
    sums = GroupSums(observations, len(start.cam_from_obj), len(start.points))

    def cost(bent: BentGeometry) -> float:
        poses, _ = smoothness_terms(bent, smoothness)
        return robust_cost(bent, observations, loss_scale) + float((poses**2).sum()) + bending_cost(bent, prior)

    def equations(bent: BentGeometry) -> System:
        return _normal_equations(bent, observations, sums, prior, smoothness, loss_scale)

    adjusted, final_cost, _ = minimize(start, cost, equations, _stepped, max_steps, tolerance)
    return adjusted, final_cost


def bending_cost(bent: BentGeometry, prior: BendingPrior) -> float:
    """How much it bends: the sum of squares over the prior's standard deviations."""
    return sum(float((term**2).sum()) for term in _prior_terms(bent, prior))


def _body(points: Float[np.ndarray, "n 3"], observations: Observations) -> Int[np.ndarray, "b"]:
    """The observed points that lie together."""
    observed = np.unique(observations.points)
    distances = np.linalg.norm(points[observed] - np.median(points[observed], axis=0), axis=1)
    return observed[distances <= OUTLYING * np.median(distances)]


def _ridden(
    points: Float[np.ndarray, "n 3"], body: Int[np.ndarray, "b"], places: Float[np.ndarray, "j 3"]
) -> ControlNodes:
    """Nodes at about some places, carried by the points of the body."""
    between = cdist(places, places)
    nearest = np.argsort(between, axis=1)[:, 1 : NEIGHBOURS + 1]
    reach = BLEND_WIDTH * np.sort(between, axis=1)[:, 1:4].mean()
    logits = -(cdist(points, places) ** 2) / (2 * reach**2)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    carriers = np.zeros((len(places), len(points)))
    carriers[:, body] = weights[body].T ** 2  # so that the nearest carry most of it
    carriers /= np.maximum(carriers.sum(axis=1, keepdims=True), 1e-9)
    return ControlNodes(carriers, weights, nearest)


def _prior_terms(bent: BentGeometry, prior: BendingPrior) -> tuple[np.ndarray, ...]:
    """Stretching [t j k 3], growth [t], accelerations [2 c-2 j 3] and magnitudes [2 c j 3] over their standard
    deviations."""
    motion = np.stack([bent.rotations, bent.translations])
    edges, spacing = _edges(bent)
    _, matrices, translations = bent.node_motion()
    neighbours = bent.nodes.neighbours
    carried = np.einsum("tjab,jkb->tjka", matrices, edges)
    stretching = edges + translations[:, neighbours] - translations[:, :, None] - carried
    growth = (stretching * carried).sum(axis=(1, 2, 3)) / (edges**2).sum()
    return (
        stretching / (spacing * prior.stretching),
        growth / prior.growth,
        np.diff(motion, 2, axis=1) / prior.acceleration,
        motion / prior.magnitude,
    )


def _edges(bent: BentGeometry) -> tuple[Float[np.ndarray, "j k 3"], float]:
    """From each node to its neighbours, and the distance between nodes: of the nearest three, as on a surface."""
    places = bent.node_places
    edges = places[bent.nodes.neighbours] - places[:, None]
    return edges, float(np.sqrt((edges[:, :3] ** 2).sum(axis=-1).mean()))


def _normal_equations(
    bent: BentGeometry,
    observations: Observations,
    sums: GroupSums,
    prior: BendingPrior,
    smoothness: Smoothness,
    loss_scale: float,
) -> System:
    """The nodes' coefficients come behind the poses, knot by knot, a node's rotation before its translation.

    That nodes ride on the points is left out of the derivatives.
    """
    terms = observation_terms(bent, observations, loss_scale)
    linear, _ = bent.blended_motion()
    by_point = terms.by_place @ (np.eye(3) + linear[observations.frames, observations.points])
    num_knots, num_nodes, _ = bent.rotations.shape
    per_knot = 6 * num_nodes
    system = pose_and_point_equations(
        bent, observations, sums, terms, by_point, smoothness, num_others=num_knots * per_knot
    )
    num_poses = 6 * len(bent.cam_from_obj)
    _hold_scale(system, bent)
    vectors, matrices, translations = bent.node_motion()
    turning = _left_jacobians(vectors)
    stretching, growth, _, _ = _prior_terms(bent, prior)
    by_knot = system.coupling[:, num_poses:].reshape(len(bent.points), num_knots, per_knot, 3)
    nodes_block, nodes_gradient = np.zeros((num_knots, per_knot, num_knots, per_knot)), np.zeros((num_knots, per_knot))
    mixed = np.zeros((num_poses, num_knots, per_knot))
    for frame in range(len(bent.cam_from_obj)):
        first, shares = spline_weights(frame / bent.knot_spacing, num_knots)
        knots, shares = slice(first, first + 4), np.array(shares)
        by_shape = _shape_jacobian(bent, prior, matrices[frame], translations[frame], turning[frame])
        local = by_shape.T @ by_shape
        gradient = by_shape.T @ np.append(stretching[frame], growth[frame])
        seen = np.flatnonzero(observations.frames == frame)
        if len(seen):
            points = observations.points[seen]
            by_node = _node_jacobian(bent, points, terms.by_place[seen], matrices[frame], turning[frame])
            weighted = by_node * terms.weights[seen, None, None]
            local = local + np.tensordot(weighted, by_node, ((0, 1), (0, 1)))
            gradient = gradient + np.tensordot(weighted, terms.residuals[seen], ((0, 1), (0, 1)))
            pose = slice(6 * frame, 6 * frame + 6)
            by_pose = np.tensordot(terms.by_pose[seen], weighted, ((0, 1), (0, 1)))
            mixed[pose, knots] += shares[:, None] * by_pose[:, None]
            coupled = weighted.swapaxes(-1, -2) @ by_point[seen]
            by_knot[points, knots] += shares[:, None, None] * coupled[:, None]
        nodes_block[knots, :, knots] += shares[:, None, None, None] * shares[:, None] * local[:, None]
        nodes_gradient[knots] += shares[:, None] * gradient
    own, own_gradient = _motion_prior(bent, prior)
    each = np.arange(per_knot)
    nodes_block[:, each, :, each] += own
    nodes_gradient += own_gradient
    size = num_knots * per_knot
    system.cameras[num_poses:, num_poses:] = nodes_block.reshape(size, size)
    system.cameras[:num_poses, num_poses:] = mixed.reshape(num_poses, size)
    system.cameras[num_poses:, :num_poses] = mixed.reshape(num_poses, size).T
    system.cameras_gradient[num_poses:] = nodes_gradient.ravel()
    return system


def _hold_scale(system: System, bent: BentGeometry) -> None:
    """Keep the mean depth: the derivatives do not know that stretching is measured in the object's own size."""
    shifts = bent.cam_from_obj[:, :3, 3]
    growth = np.zeros((len(shifts), 6))
    growth[:, 3:] = shifts / (shifts**2).sum(axis=1, keepdims=True) / len(shifts)
    poses = slice(0, growth.size)
    strongest = np.diag(system.cameras)[poses].max()
    system.cameras[poses, poses] += SCALE_HELD * strongest * np.outer(growth, growth)


def _node_jacobian(
    bent: BentGeometry,
    points: Int[np.ndarray, "s"],
    by_place: Float[np.ndarray, "s 2 3"],
    matrices: Float[np.ndarray, "j 3 3"],
    turning: Float[np.ndarray, "j 3 3"],
) -> Float[np.ndarray, "s 2 6j"]:
    """Derivatives of one frame's residuals by the nodes' motion in it."""
    arms = bent.points[points][:, None] - bent.node_places
    arms = np.einsum("jab,sjb->sja", matrices, arms)
    weights = bent.nodes.weights[points]
    crossed = cross_matrices(arms.reshape(-1, 3)).reshape(*arms.shape, 3)
    by_rotation = -np.einsum("sia,sjab,jbc->sijc", by_place, crossed, turning, optimize=True)
    by_translation = bent.object_size * np.broadcast_to(by_place[:, :, None], by_rotation.shape)
    by_node = weights[:, None, :, None] * np.concatenate([by_rotation, by_translation], axis=-1)
    return by_node.reshape(len(points), 2, -1)


def _shape_jacobian(
    bent: BentGeometry,
    prior: BendingPrior,
    matrices: Float[np.ndarray, "j 3 3"],
    translations: Float[np.ndarray, "j 3"],
    turning: Float[np.ndarray, "j 3 3"],
) -> Float[np.ndarray, "e+1 6j"]:
    """Derivatives of one frame's stretching, and in the last row of its growth, by the nodes' motion in it."""
    edges, spacing = _edges(bent)
    num_nodes, num_neighbours, _ = edges.shape
    carried = np.einsum("jab,jkb->jka", matrices, edges)
    crossed = cross_matrices(carried.reshape(-1, 3)).reshape(*carried.shape, 3)
    jacobian = np.zeros((num_nodes, num_neighbours, 3, num_nodes, 6))
    own = np.arange(num_nodes)
    jacobian[own, :, :, own, :3] = np.einsum("jkab,jbc->jkac", crossed, turning)
    jacobian[own, :, :, own, 3:] -= bent.object_size * np.eye(3)
    for k in range(num_neighbours):
        jacobian[own, k, :, bent.nodes.neighbours[:, k], 3:] += bent.object_size * np.eye(3)
    moved = edges + translations[bent.nodes.neighbours] - translations[:, None]
    by_growth = np.concatenate(
        [
            -np.einsum("jka,jkanb->nb", moved, jacobian[..., :3]),
            np.einsum("jka,jkanb->nb", carried, jacobian[..., 3:]),
        ],
        axis=1,
    )
    by_stretching = jacobian.reshape(-1, 6 * num_nodes) / (spacing * prior.stretching)
    return np.vstack([by_stretching, by_growth.ravel() / ((edges**2).sum() * prior.growth)])


def _motion_prior(bent: BentGeometry, prior: BendingPrior) -> tuple[Float[np.ndarray, "c c"], Float[np.ndarray, "c d"]]:
    """Accelerations and magnitudes: what they add for each of a knot's unknowns alike, and the gradient."""
    num_knots = len(bent.rotations)
    differences = np.diff(np.eye(num_knots), 2, axis=0) / prior.acceleration
    own = differences.T @ differences + np.eye(num_knots) / prior.magnitude**2
    motion = np.concatenate([bent.rotations, bent.translations], axis=-1).reshape(num_knots, -1)
    return own, own @ motion


def _stepped(bent: BentGeometry, system: System, damping: float) -> BentGeometry:
    camera_step, point_step = system.step(damping)
    pose_step, node_step = np.split(camera_step, [6 * len(bent.cam_from_obj)])
    turns, ways = np.split(node_step.reshape(*bent.rotations.shape[:2], 6), 2, axis=-1)
    return replace(
        bent,
        cam_from_obj=moved_poses(bent.cam_from_obj, pose_step),
        points=bent.points + point_step,
        rotations=bent.rotations + turns,
        translations=bent.translations + ways,
    )


def _left_jacobians(vectors: Float[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 3 3"]:
    """J with R(v + d) = R(J d) R(v) to first order."""
    angles = np.linalg.norm(vectors, axis=-1)[..., None, None]
    crossed = cross_matrices(vectors.reshape(-1, 3)).reshape(*vectors.shape, 3)
    safe = np.maximum(angles, 1e-6)
    first = np.where(angles < 1e-4, 0.5, (1 - np.cos(safe)) / safe**2)
    second = np.where(angles < 1e-4, 1 / 6, (safe - np.sin(safe)) / safe**3)
    return np.eye(3) + first * crossed + second * crossed @ crossed
