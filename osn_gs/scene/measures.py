"""Lengths in a scene that a user may know in metres, each in the own units of the object it belongs to.

They do not depend on the object scales: an object of scale s is s times as large in the scene as in its own units.
The background's own units are the scene's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from osn_gs.errors import OsnGsError
from osn_gs.geometry.se3 import invert_rigid, quat_to_rotmat, transform_points
from osn_gs.scene.render import render_layers
from osn_gs.scene.scene import NEAR_PLANE, PlacedGaussians, Scene

TRIMMED_SHARE = 0.01  # of the opacity, at each end of an object's extent: floaters
CORE_SHARE = 0.95
SOLID_ALPHA = 0.9  # of pixels that show a surface
SURVEYED_FRAMES = 5
LARGEST_TILT = math.radians(45.0)  # of the ground against the cameras' mean up; a camera that looks down steeply
LEAST_SUPPORT = 0.1  # share of the seen background that lies in the ground
GROUND_THICKNESS = 0.01  # of the median distance from the camera: how far from a plane a point still lies in it
NUM_PLANES = 3_000  # of a ground that holds a tenth of the background, 1 trial in 1,000 has all three points
MOST_POINTS = 2_000
LEAST_ALPHA = 1 / 255  # as in pictures: what stops less of a ray is not there
LEAST_HIT = 0.5  # share of the ray that must end on something


@dataclass(frozen=True)
class GroundPlane:
    """Points with normal . x = offset in the background's frame; the unit normal points up, toward the cameras.

    `support` is the share of the background, in pixels of training views, that lies in it.
    """

    normal: Float[Tensor, "3"]
    offset: float
    support: float


@dataclass(frozen=True)
class Picked:
    """What a ray hits: a point in the frame and units of the object it belongs to, and the same point in the world."""

    object: int
    point: Float[Tensor, "3"]
    world_point: Float[Tensor, "3"]


@torch.no_grad()
def object_length(scene: Scene, object_index: int) -> float:
    """The longest side of a box around the object's Gaussian centres, along the principal axes of their core.

    Centres count by opacity. The core is the 95 % nearest to their median, so that a few floaters turn no axis; 1 % of
    all is left out at either end of each side.
    """
    gaussians = scene.objects[object_index].gaussians
    means, weights = gaussians.means.double(), gaussians.opacities.double()
    centred = means - means.median(dim=0).values
    weights = weights / weights.sum()
    distances = centred.norm(dim=1)
    core = distances <= _quantile(distances, weights, CORE_SHARE)
    _, axes = torch.linalg.eigh(torch.cov(centred[core].T, aweights=weights[core]))
    return max(
        _quantile(along, weights, 1 - TRIMMED_SHARE) - _quantile(along, weights, TRIMMED_SHARE)
        for along in (centred @ axes).T
    )


def _quantile(values: Float[Tensor, "n"], weights: Float[Tensor, "n"], share: float) -> float:
    """The value up to which `share` of the weights, which sum to 1, lie."""
    order = values.argsort()
    place = int(torch.searchsorted(weights[order].cumsum(0), share))
    return float(values[order[min(place, len(order) - 1)]])


def camera_travel(scene: Scene) -> float:
    """Length of the training camera's path, in the background's units."""
    centres = _camera_poses(scene)[:, :3, 3]
    return float(centres.diff(dim=0).norm(dim=1).sum())


def camera_height(scene: Scene) -> float | None:
    """The training camera's median height over `ground_plane`, in the background's units; None where there is none.

    On reconstructions of known truth 2 % (tabletop3) and 4 % (demo) too large.
    """
    plane = ground_plane(scene)
    if plane is None:
        return None
    return float((_camera_poses(scene)[:, :3, 3] @ plane.normal).median()) - plane.offset


@torch.no_grad()
def ground_plane(scene: Scene) -> GroundPlane | None:
    """The plane most of the seen background lies in, of those below all cameras and at most 45 degrees from level.

    Level is square to the cameras' mean up. None where no such plane holds a tenth of what is seen: no ground in
    sight, or it is not flat. Found by random trials (RANSAC, Fischler and Bolles 1981) from a fixed seed, so that a
    scene has one answer, then fitted to all that lies in it.
    """
    points = _seen_background(scene)
    poses = _camera_poses(scene)
    centres, up = poses[:, :3, 3], -poses[:, :3, 1].mean(dim=0)
    if len(points) < 3:
        return None
    thickness = GROUND_THICKNESS * float(torch.cdist(centres, points).median())
    corners = points[torch.randint(len(points), (NUM_PLANES, 3), generator=torch.Generator().manual_seed(0))]
    normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = torch.nn.functional.normalize(normals, dim=1)
    normals = torch.where((normals @ up < 0)[:, None], -normals, normals)
    offsets = (normals * corners[:, 0]).sum(dim=1)
    lies_in = (normals @ points.T - offsets[:, None]).abs() <= thickness
    supports = lies_in.double().mean(dim=1) * _can_be_ground(normals, offsets, centres, up)
    best = int(supports.argmax())
    if supports[best] < LEAST_SUPPORT:
        return None
    ground = points[lies_in[best]]
    _, axes = torch.linalg.eigh(torch.cov(ground.T))
    normal = axes[:, 0] * torch.sign(axes[:, 0] @ up)
    offset = normal @ ground.mean(dim=0)
    if not bool(_can_be_ground(normal[None], offset[None], centres, up)):
        return None  # what lies in the plane is a strip of something steeper
    return GroundPlane(normal, float(offset), float(supports[best]))


def _can_be_ground(
    normals: Float[Tensor, "n 3"], offsets: Float[Tensor, "n"], centres: Float[Tensor, "t 3"], up: Float[Tensor, "3"]
) -> Bool[Tensor, "n"]:
    """Which planes are nearly level and below all cameras."""
    is_level = normals @ up >= math.cos(LARGEST_TILT) * up.norm()
    return is_level & (normals @ centres.T > offsets[:, None]).all(dim=1)


def _seen_background(scene: Scene) -> Float[Tensor, "n 3"]:
    """Points of the background's surface, as training cameras see it, at most `MOST_POINTS`; float64 on the CPU.

    Not the Gaussians' centres: on tabletop3 the table's lie up to 6 cm below the surface that they show.
    """
    height, width = scene.height, scene.width
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = torch.stack([columns, rows, torch.ones_like(rows)], dim=-1).double()
    rays = pixels @ torch.linalg.inv(scene.intrinsics.cpu().double()).T
    frames = torch.nonzero(scene.objects[0].visible.cpu()).flatten()
    chosen = frames[torch.linspace(0, len(frames) - 1, min(SURVEYED_FRAMES, len(frames))).long()]
    seen = []
    for time_step in chosen.tolist():
        layers = render_layers(scene, time_step)
        is_solid = (layers.alphas[0] >= SOLID_ALPHA).cpu()
        in_camera = (layers.depths[0].cpu().double()[..., None] * rays)[is_solid]
        seen.append(transform_points(invert_rigid(scene.cam_from_world(time_step).cpu().double()), in_camera))
    points = torch.cat(seen)
    return points[torch.linspace(0, len(points) - 1, min(MOST_POINTS, len(points))).long()]


def _camera_poses(scene: Scene) -> Float[Tensor, "t 4 4"]:
    """world_from_cam of the frames in which the camera is known, float64 on the CPU."""
    background = scene.objects[0]
    return invert_rigid(background.cam_from_obj[background.visible].to("cpu", torch.float64))


@torch.no_grad()
def pick_point(
    scene: Scene,
    object_scales: Float[Tensor, "k"],
    time_step: int,
    origin: Float[Tensor, "3"],
    direction: Float[Tensor, "3"],
) -> Picked | None:
    """What a ray of the world hits first under given object scales at a time; None where it hits nothing much.

    The Gaussians are blended along the ray in the order in which they are densest on it. The object is the one that
    weighs most, and the point lies at the mean distance of what is seen of this object, other objects left out.
    Exact along the ray, without the projection of a picture; on the outline of an object a picture may differ.
    """
    object_scales = object_scales.to(scene.intrinsics)
    placed = scene.place(object_scales, time_step)
    origin = origin.to(placed.means)
    direction = torch.nn.functional.normalize(direction.to(placed.means), dim=0)
    distances, alphas = _along_ray(placed, origin, direction)
    order = distances.argsort()
    order = order[(alphas[order] > LEAST_ALPHA) & (distances[order] > NEAR_PLANE)]
    distances, alphas = distances[order], alphas[order]
    passed = torch.cumprod(torch.cat([alphas.new_ones(1), 1 - alphas]), dim=0)[:-1]
    weights = alphas.new_zeros(scene.num_objects).index_add(0, placed.object_index[order], passed * alphas)
    if float(weights.sum()) < LEAST_HIT:
        return None
    k = int(weights.argmax())
    of_object = passed * alphas * (placed.object_index[order] == k)
    world_point = origin + (of_object @ distances / of_object.sum()) * direction
    placement = scene.placement(object_scales, time_step)
    point = (world_point - placement.translations[k]) @ placement.rotations[k] / placement.scales[k]
    return Picked(k, point.double().cpu(), world_point.double().cpu())


def _along_ray(
    placed: PlacedGaussians, origin: Float[Tensor, "3"], direction: Float[Tensor, "3"]
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Where on a ray each Gaussian is densest, and how much of the ray it stops: opacity exp(-d^2 / 2).

    d is the ray's distance from the centre in standard deviations, so it is taken where the Gaussian is a unit ball.
    """
    rotations = quat_to_rotmat(placed.quats)
    from_centre = ((origin - placed.means)[:, None] @ rotations).squeeze(1) / placed.scales
    along = (direction @ rotations) / placed.scales
    distances = -(from_centre * along).sum(dim=1) / along.square().sum(dim=1)
    squares = (from_centre + distances[:, None] * along).square().sum(dim=1)
    return distances, placed.opacities * torch.exp(-squares / 2)


def length_between(a: Picked, b: Picked) -> float:
    """Distance of two points picked on one object, in its own units; they may be picked at different times."""
    if a.object != b.object:
        raise OsnGsError(
            f"the two points are on objects {a.object} and {b.object}; pick both on one object: what lies between two "
            "objects changes with their scales."
        )
    return float((a.point - b.point).norm())
