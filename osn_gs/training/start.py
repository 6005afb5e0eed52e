"""The scene a training run starts from: sparse points of each object, coloured by the images."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from osn_gs.data.pinhole import unproject
from osn_gs.data.scene_data import SceneData
from osn_gs.errors import DatasetError
from osn_gs.gaussians.deformation import NodeDeformation
from osn_gs.gaussians.object_gaussians import ObjectGaussians
from osn_gs.geometry.se3 import invert_rigid
from osn_gs.scene.scene import ObjectGroup, Scene
from osn_gs.training.config import GaussiansConfig

MIN_START_POINTS = 16  # fewer say nothing of a surface; a neighbour distance needs four


def initial_scene(data: SceneData, config: GaussiansConfig, device: torch.device | str = "cpu") -> Scene:
    """One group of Gaussians per object, on its sparse points, with everything on `device`.

    Raises DatasetError for an object with too few points.
    """
    groups = []
    for k, name in enumerate(data.object_names):
        gaussians = start_gaussians(data, k, config, device)
        groups.append(ObjectGroup(name, gaussians, data.cam_from_obj[k].float(), data.visible[k]))
    scene = Scene(
        groups, data.intrinsics.float(), data.width, data.height, data.scale_ranges.float(), data.near, data.far
    )
    return scene.to(device)


def start_gaussians(
    data: SceneData,
    k: int,
    config: GaussiansConfig,
    device: torch.device | str = "cpu",
    deformation: NodeDeformation | None = None,
) -> ObjectGaussians:
    """Gaussians on object k's sparse points; with a deformation on what it was before it bent.

    Raises DatasetError for too few points.
    """
    points, colors = _canonical_points(data, k)
    if deformation is not None:
        points = _unbent(points, data.sparse_points[k].frames, deformation)
    cell = config.start_cell * object_extent(data, k) / float(data.intrinsics[0, 0])
    points, colors = _merge_in_cells(points, colors, cell)
    if len(points) < MIN_START_POINTS:
        raise DatasetError(
            f"object {k} ({data.object_names[k]}): {len(points)} distinct sparse points, at least {MIN_START_POINTS} "
            "are needed to start its Gaussians; prepare the scene with more tracks on it."
        )
    return ObjectGaussians.from_points(points.to(device), colors.to(device), config.sh_degree)


def object_extent(data: SceneData, k: int) -> float:
    """Median distance of object k's points from the camera, in its own units.

    The length 3DGS calls the scene's extent: at this distance an image-plane step is a fixed share of it.
    """
    return float(data.sparse_points[k].depths.median())


def _canonical_points(data: SceneData, k: int) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
    """Sparse observations of object k taken to its canonical frame, with the colours of their pixels in [0, 1]."""
    sparse = data.sparse_points[k]
    frames, pixels = sparse.frames, sparse.pixels
    in_camera = unproject(pixels, sparse.depths, data.intrinsics.to(pixels))
    obj_from_cam = invert_rigid(data.cam_from_obj[k].to(pixels))[frames]
    points = (obj_from_cam[:, :3, :3] @ in_camera[:, :, None]).squeeze(-1) + obj_from_cam[:, :3, 3]
    columns, rows = pixels.floor().long().unbind(-1)
    colors = data.images[frames, rows.clamp(0, data.height - 1), columns.clamp(0, data.width - 1)]
    return points.float(), colors.float() / 255


def _unbent(
    points: Float[Tensor, "n 3"], frames: Int[Tensor, "n"], deformation: NodeDeformation
) -> Float[Tensor, "n 3"]:
    """Points of the object's frame, each as it was seen in its video frame, in the canonical frame."""
    unbent = torch.empty_like(points)
    for t in frames.unique().tolist():
        seen = frames == t
        unbent[seen] = deformation.unmove(points[seen].to(deformation.nodes), t).to(points)
    return unbent


def _merge_in_cells(
    points: Float[Tensor, "n 3"], colors: Float[Tensor, "n 3"], cell: float
) -> tuple[Float[Tensor, "m 3"], Float[Tensor, "m 3"]]:
    """Means of points and colours in cubes of side `cell`: the observations of one track become one point."""
    _, cube, counts = torch.unique((points / cell).floor(), dim=0, return_inverse=True, return_counts=True)
    totals = points.new_zeros(len(counts), 6).index_add_(0, cube, torch.cat([points, colors], dim=-1))
    means = totals / counts[:, None]
    return means[:, :3], means[:, 3:]
