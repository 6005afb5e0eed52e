"""How one object bends over time: few control nodes that carry its canonical Gaussians along.

Each node has a rigid motion over time, and each Gaussian follows a blend of the nodes near it. The idea of sparse nodes
with blended rigid motions is that of SC-GS (Huang et al. 2024) and, before it, of embedded deformation (Sumner et al.
2007). Three things differ, because here one object is seen by one camera in few frames:

* No network predicts the nodes' motion, as in Deformable-3DGS (Yang et al. 2024) and SC-GS: a few dozen nodes over tens
  of frames are few numbers, and numbers that start at zero leave the object rigid until an image asks for more.
* Motion is a cubic spline in time per node. What a frame teaches spreads to the frames beside it and is there between
  them, as the few motion bases of Shape-of-Motion (Wang et al. 2024) and MoSca (Lei et al. 2024) also see to.
* All lengths are in units of the object's size. An object scale multiplies a deformed object about the camera centre
  like a rigid one, so its training images stay what they are (METHOD 2).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from osn_gs.gaussians.object_gaussians import ObjectGaussians
from osn_gs.geometry.se3 import quat_multiply, quat_to_rotmat

BLEND_WIDTH = 0.7  # of the distance between neighbouring nodes: the standard deviation of a node's influence
NEIGHBOURS = 6  # of a node, in the terms that keep it in step with them
UNMOVE_STEPS, UNMOVE_DAMPING = 10, 0.8
EPS = 1e-12


class NodeDeformation(nn.Module):
    """Motion of an object's points relative to its canonical frame, over `num_frames` times 0, 1, ...

    `nodes` [J, 3] are points of the canonical frame; `size` is the object's, in its own units: the root mean square
    distance of its points from their middle. Node j moves by the rotation vector rotations[:, j] about itself and by
    translations[:, j] (in sizes), both [B, J, 3] coefficients of cubic B-splines whose knots are `knot_spacing` frames
    apart. All are zero at first: no motion.
    """

    def __init__(self, nodes: Float[Tensor, "j 3"], size: float, num_frames: int, knot_spacing: float) -> None:
        super().__init__()
        self.num_frames = num_frames
        self.knot_spacing = knot_spacing
        count = num_coefficients(num_frames, knot_spacing)
        self.rotations = nn.Parameter(nodes.new_zeros(count, len(nodes), 3))
        self.translations = nn.Parameter(nodes.new_zeros(count, len(nodes), 3))
        self.register_buffer("nodes", nodes)
        self.register_buffer("size", nodes.new_tensor(size))
        distances = torch.cdist(nodes, nodes)
        nearest = distances.topk(min(NEIGHBOURS + 1, len(nodes)), largest=False)
        spacing = nearest.values[:, 1:4].mean() if len(nodes) > 1 else self.size  # three, as on a surface
        self.register_buffer("reach", BLEND_WIDTH * spacing, persistent=False)
        self.register_buffer("neighbours", nearest.indices[:, 1:], persistent=False)

    @classmethod
    def on_gaussians(
        cls, gaussians: ObjectGaussians, num_nodes: int, num_frames: int, knot_spacing: float
    ) -> NodeDeformation:
        """Nodes spread evenly over an object's Gaussians."""
        points = gaussians.means.detach()
        size = float((points - points.mean(dim=0)).square().sum(dim=1).mean().sqrt())
        return cls(spread_points(points, num_nodes), size, num_frames, knot_spacing)

    @property
    def num_nodes(self) -> int:
        return len(self.nodes)

    def node_motion(self, time: float) -> tuple[Float[Tensor, "j 3"], Float[Tensor, "j 3"]]:
        """Rotation vectors of the nodes and their translations, in object units, at a time in frames."""
        first, weights = spline_weights(time / self.knot_spacing, len(self.rotations))
        weights = self.nodes.new_tensor(weights)[:, None, None]
        rotations = (weights * self.rotations[first : first + 4]).sum(dim=0)
        translations = (weights * self.translations[first : first + 4]).sum(dim=0)
        return rotations, self.size * translations

    def move(
        self, means: Float[Tensor, "n 3"], quats: Float[Tensor, "n 4"], time: float
    ) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 4"]]:
        """Canonical means and wxyz quaternions of any length as they are at a time, in the object's frame.

        A mean x goes to sum_j w_j (R_j (x - n_j) + n_j + t_j), a quaternion is turned by the blend of the nodes'.
        All nodes take part, by weights that fall off within about a node's distance: for a few dozen nodes one dense
        product is cheaper than looking the nearest up, and nothing jumps when a Gaussian wanders from one to another.
        """
        rotation_vectors, translations = self.node_motion(time)
        node_quats = quat_of_rotation_vector(rotation_vectors)
        matrices = quat_to_rotmat(node_quats) - torch.eye(3).to(means)  # what moves, so that zero is zero to the bit
        offsets = translations - (matrices @ self.nodes[:, :, None]).squeeze(-1)
        blended = self._weights(means) @ torch.cat([matrices.flatten(1), offsets, node_quats], dim=1)
        moved = means + (blended[:, :9].view(-1, 3, 3) @ means[:, :, None]).squeeze(-1) + blended[:, 9:12]
        return moved, quat_multiply(torch.nn.functional.normalize(blended[:, 12:], dim=-1), quats)

    @torch.no_grad()
    def unmove(self, points: Float[Tensor, "n 3"], time: float) -> Float[Tensor, "n 3"]:
        """Where points seen in the object's frame at a time lie in the canonical frame: `move` undone.

        By fixed-point iteration, which closes in as long as the object does not fold.
        """
        canonical = points
        quats = points.new_tensor([[1.0, 0.0, 0.0, 0.0]]).expand(len(points), 4)
        for _ in range(UNMOVE_STEPS):
            moved, _ = self.move(canonical, quats, time)
            canonical = canonical + UNMOVE_DAMPING * (points - moved)
        return canonical

    @torch.no_grad()
    def _weights(self, means: Float[Tensor, "n 3"]) -> Float[Tensor, "n j"]:
        """The share of each node in each Gaussian; no gradient, so that a Gaussian moves to fit, not to change nodes.

        A softmax, which has nothing to underflow to for a Gaussian far from all nodes.
        """
        squares = torch.cdist(means, self.nodes, compute_mode="donot_use_mm_for_euclid_dist").square()
        return torch.softmax(-squares / (2 * self.reach.square()), dim=1)

    def stretching(self, time: float) -> Float[Tensor, ""]:
        """How far from rigid the nodes' motion is at a time (as-rigid-as-possible, Sorkine and Alexa 2007).

        Mean square of how far neighbours of a node are from where its own motion would carry them, in units of the
        distance between nodes: 0 for any rigid motion of the object.
        """
        if self.num_nodes == 1:
            return self.nodes.new_zeros(())
        rotation_vectors, translations = self.node_motion(time)
        matrices = quat_to_rotmat(quat_of_rotation_vector(rotation_vectors))
        edges = self.nodes[self.neighbours] - self.nodes[:, None]
        moved = edges + translations[self.neighbours] - translations[:, None]
        carried = edges @ matrices.transpose(1, 2)
        return (moved - carried).square().sum(-1).mean() * (BLEND_WIDTH / self.reach) ** 2

    def jerkiness(self) -> Float[Tensor, ""]:
        """Mean square of the motion's acceleration: second differences of the splines' coefficients.

        A turn counts by the way of a point at the object's size from the node.
        """
        if len(self.rotations) < 3:
            return self.nodes.new_zeros(())
        turns, ways = (
            values.diff(n=2, dim=0).square().sum(-1).mean() for values in (self.rotations, self.translations)
        )
        return turns + ways

    def magnitude(self) -> Float[Tensor, ""]:
        """Mean square of the motion itself: what keeps the canonical frame in the middle of it."""
        return self.rotations.square().sum(-1).mean() + self.translations.square().sum(-1).mean()


def num_coefficients(num_frames: int, knot_spacing: float) -> int:
    """How many coefficients a cubic B-spline over the frames 0 to num_frames - 1 has."""
    return math.ceil((num_frames - 1) / knot_spacing - 1e-9) + 3


def spline_weights(position: float, count: int) -> tuple[int, tuple[float, float, float, float]]:
    """The first of four of `count` coefficients that a uniform cubic B-spline blends at a position in knots, and their
    weights."""
    first = min(max(math.floor(position), 0), count - 4)
    u = position - first
    weights = ((1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3)
    return first, tuple(weight / 6 for weight in weights)


def quat_of_rotation_vector(vectors: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 4"]:
    """Unit wxyz quaternions of rotation vectors (axis times angle in radians), smooth at zero."""
    half = 0.5 * (vectors.square().sum(dim=-1, keepdim=True) + EPS).sqrt()
    return torch.cat([half.cos(), 0.5 * vectors * torch.sinc(half / math.pi)], dim=-1)


@torch.no_grad()
def spread_points(points: Float[Tensor, "n 3"], count: int) -> Float[Tensor, "m 3"]:
    """Points spread evenly over others: farthest points first (Gonzalez 1985), each then moved to the mean of those
    it is the nearest to, so that strays do not hold any."""
    picks = [int((points - points.mean(dim=0)).norm(dim=1).argmin())]
    distances = points.new_full((len(points),), torch.inf)
    owners = torch.zeros(len(points), dtype=torch.long, device=points.device)
    for index in range(min(count, len(points))):
        to_pick = (points - points[picks[-1]]).norm(dim=1)
        owners[to_pick < distances] = index
        distances = torch.minimum(distances, to_pick)
        if float(distances.max()) == 0:
            break
        picks.append(int(distances.argmax()))
    return _means_by_owner(points, owners)


def _means_by_owner(points: Float[Tensor, "n 3"], owners: Int[Tensor, "n"]) -> Float[Tensor, "m 3"]:
    counts = torch.bincount(owners)
    sums = points.new_zeros(len(counts), 3).index_add_(0, owners, points)
    return sums / counts[:, None]
