"""Every object's true depth alone, hidden surfaces included, for synthetic sets that bring depths but no layers.

What one frame hides of an object others may show: their true depth maps are carried into it by the true poses. Each of
their pixels stands for a small piece of surface with a tangent plane (a surfel: Pfister et al. 2000), so that its depth
is right beside its own centre too, where a bare point of a grazing surface is off by its slope. No other frame shows
the shape an object has while it deforms; there the set's own mesh is sampled (`deform_obj%d.npz`).

Surfaces that no frame saw stay unknown (inf), and no piece comes to stand before what the frame itself shows, as none
does in truth: at the true scales these layers explain every pixel of the true masks. Training needs none of this, and
loading a scene does not pay for it: reports call `true_layer_depths`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from osn_gs.data.downscale import downscale_depth, downscale_ids
from osn_gs.data.osn_files import MeshSequence, read_mesh_sequence
from osn_gs.data.pinhole import intrinsics_of, project, unproject
from osn_gs.data.scene_data import SceneData
from osn_gs.data.set_truth import SetTruth, read_set_truth
from osn_gs.geometry.se3 import invert_rigid, transform_points

RENDERED_PIXEL_CENTER = 0.5  # of rendered sets that do not say; `osn_layout.py`
SAME_SURFACE = 0.02  # relative depth difference below which neighbours belong to one surface
JUST_BEHIND = 1 + 1e-5  # clear of float32 rounding, so that the layer that is shown stays the nearest
LARGEST_TILT = 0.05  # relative depth difference from a piece's centre to a pixel's; more is a plane fitted across a rim
GAP = 3  # pixels: narrower gaps are closed

# Half the width of a piece in pixels of the frame it is carried into. A surface ends somewhere beside its outermost
# pixels, and of many frames some have theirs just there: pieces at a rim must hardly reach on, or it grows by as much.
INNER_REACH, LARGEST_REACH = 0.5, 1.0  # one pixel each at the least, and no piece reaches more than four
RIM_REACH = 0.15
SAMPLE_SPACING, SAMPLE_REACH = 0.3, 0.15  # samples of a mesh are known to lie on it


@dataclass(frozen=True)
class Surfels:
    """Pieces of surface in one frame of reference, in true units.

    `planes` (a, b, c, d) hold the points with a x + b y + c z + d = 0; d < 0 seen from the side the piece was seen
    from. `widths` is how wide pieces are; `least_reach` half the width, in pixels, that they have at the least.
    """

    centres: Float[Tensor, "n 3"]
    planes: Float[Tensor, "n 4"]
    widths: Float[Tensor, "n"]
    least_reach: Float[Tensor, "n"]

    def select(self, chosen: Bool[Tensor, "n"]) -> Surfels:
        """Some of the pieces."""
        return Surfels(self.centres[chosen], self.planes[chosen], self.widths[chosen], self.least_reach[chosen])

    def moved(self, rigid: Float[Tensor, "4 4"]) -> Surfels:
        """The pieces under a rigid transform; planes go by its inverse transposed."""
        rigid = rigid.to(self.centres)
        return replace(self, centres=transform_points(rigid, self.centres), planes=self.planes @ invert_rigid(rigid))


def true_layer_depths(data: SceneData) -> Float[Tensor, "t k h w"] | None:
    """Z-depths of every object alone in the training frames: those the scene brings, else found from its folder.

    In the objects' own units and the scene's size, as `SceneTruth.layer_depths`. They are seen by the camera that took
    the images, whatever focal length training goes by. None where true scales, poses or depths are not known, or are
    those of another number of objects.

    Raises:
        DatasetError: a file of the folder is missing or broken.
    """
    if data.truth is None or data.truth.layer_depths is not None:
        return None if data.truth is None else data.truth.layer_depths
    truth = None if data.folder is None else read_set_truth(data.folder)
    if truth is None or len(truth.cam_from_obj) != data.num_objects:
        return None
    meshes = {
        k: mesh
        for k in range(data.num_objects)
        if (mesh := read_mesh_sequence(data.folder / f"deform_obj{k}.npz", data.num_frames)) is not None
    }
    downscale = round(truth.transforms.focal / float(data.intrinsics[0, 0]))
    depths = fuse_layer_depths(truth, meshes, downscale)
    true_scales = data.truth.object_scales.double() * data.truth.background_scale
    return depths / true_scales.float()[:, None, None]


def fuse_layer_depths(truth: SetTruth, meshes: dict[int, MeshSequence], downscale: int) -> Float[Tensor, "t k h w"]:
    """The layers in true units, `downscale` times smaller than the set's images; `meshes` of the objects that deform.

    What a frame shows of an object has the frame's own depth. As in `downscale_depth`, a layer's depth is that of the
    middle pixel of every block.
    """
    intrinsics = _intrinsics_of_middles(truth, downscale)
    ids = torch.from_numpy(np.stack([downscale_ids(frame, downscale) for frame in truth.object_ids]))
    shown = torch.stack(
        [
            torch.from_numpy(downscale_depth(_known(depth), downscale, frame_ids)).float()
            for depth, frame_ids in zip(truth.depths, truth.object_ids, strict=True)
        ]
    )
    seen = surfels_of_frames(truth, intrinsics, downscale)
    layers = torch.full((len(ids), len(seen), *ids.shape[1:]), torch.inf)
    for k, cam_from_obj in enumerate(truth.cam_from_obj):
        for t in range(len(ids)):
            if k in meshes:
                surfels = surfels_of_mesh(meshes[k], t, cam_from_obj[t], intrinsics)
            else:
                surfels = seen[k].moved(cam_from_obj[t])
            hidden = ids[t] != k
            splatted = splat_surfels(surfels, intrinsics, hidden, shown[t])
            layers[t, k] = close_gaps(torch.where(hidden, splatted, shown[t]), hidden, shown[t])
    return layers


def _intrinsics_of_middles(truth: SetTruth, downscale: int) -> Float[Tensor, "3 3"]:
    """Of the camera that took the images, for pixels whose centres (+0.5) are the middle pixels of the blocks."""
    transforms = replace(truth.transforms, focal=truth.focal)
    center = RENDERED_PIXEL_CENTER if transforms.pixel_center is None else transforms.pixel_center
    intrinsics = intrinsics_of(transforms, center, downscale)
    intrinsics[:2, 2] += 0.5 - (downscale // 2 + 0.5) / downscale
    return intrinsics


def _known(depth: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Some files mark pixels that see nothing by zero or NaN; here they are inf."""
    return np.where(depth > 0, depth, np.inf)


def surfels_of_frames(truth: SetTruth, intrinsics: Float[Tensor, "3 3"], downscale: int) -> tuple[Surfels, ...]:
    """All that the frames together show of every object, in its frame: a piece for the middle pixel of every block."""
    height, width = (size // downscale for size in truth.depths.shape[1:])
    middles = tuple(slice(downscale // 2, size * downscale, downscale) for size in (height, width))
    parts: list[list[Surfels]] = [[] for _ in truth.cam_from_obj]
    for t, (all_depths, all_ids) in enumerate(zip(truth.depths, truth.object_ids, strict=True)):
        ids, depths = torch.from_numpy(all_ids[middles]), torch.from_numpy(_known(all_depths[middles]))
        surfels = _surfels_of_depths(depths, ids, intrinsics)
        for k, cam_from_obj in enumerate(truth.cam_from_obj):
            parts[k].append(surfels.select(ids[depths.isfinite()] == k).moved(invert_rigid(cam_from_obj[t])))
    return tuple(_joined(of_object) for of_object in parts)


def _surfels_of_depths(
    depths: Float[Tensor, "h w"], ids: UInt8[Tensor, "h w"], intrinsics: Float[Tensor, "3 3"]
) -> Surfels:
    """A piece for every pixel of finite depth, row by row, in the camera's frame.

    On a plane 1 / z is linear in the pixel position, so that its slopes give the tangent plane.
    """
    known, inverse = depths.isfinite(), 1 / depths
    (across, ends_across), (down, ends_down) = (_slope(inverse, ids, dim) for dim in (1, 0))
    across, down = across * intrinsics[0, 0], down * intrinsics[1, 1]
    rows, columns = torch.meshgrid(*(torch.arange(size) + 0.5 for size in ids.shape), indexing="ij")
    rays = unproject(torch.stack([columns, rows], dim=-1).to(depths), torch.ones_like(depths), intrinsics)
    ahead = inverse - across * rays[..., 0] - down * rays[..., 1]
    rim = (ends_across | ends_down)[known]
    return Surfels(
        centres=rays[known] * depths[known][:, None],
        planes=torch.stack([across, down, ahead, -torch.ones_like(depths)], dim=-1)[known],
        widths=torch.where(rim, 0.0, depths[known] / intrinsics[0, 0]),
        least_reach=torch.where(rim, RIM_REACH, INNER_REACH).to(depths),
    )


def _slope(
    inverse_depths: Float[Tensor, "h w"], ids: UInt8[Tensor, "h w"], dim: int
) -> tuple[Float[Tensor, "h w"], Bool[Tensor, "h w"]]:
    """Change of 1 / z a pixel along `dim`, and where the surface, or what is shown of it, ends at one side.

    The slope is that to the neighbour of the same object that differs less: the other may lie beyond a rim.
    """
    last = ids.shape[dim] - 1
    steps = inverse_depths.diff(dim=dim)
    same_object = ids.narrow(dim, 1, last) == ids.narrow(dim, 0, last)
    steps = torch.where(same_object & steps.isfinite(), steps, torch.inf)
    before = torch.cat([steps.narrow(dim, 0, 1), steps], dim)  # at the picture's edge nothing is seen to end
    after = torch.cat([steps, steps.narrow(dim, last - 1, 1)], dim)
    smaller = torch.where(before.abs() < after.abs(), before, after)
    alone = smaller.isinf()
    ends = alone | ((before - after).abs() > SAME_SURFACE * inverse_depths)
    return torch.where(alone, 0.0, smaller), ends


def surfels_of_mesh(
    mesh: MeshSequence, t: int, cam_from_obj: Float[Tensor, "4 4"], intrinsics: Float[Tensor, "3 3"]
) -> Surfels:
    """The mesh as it is at frame t, in that frame's camera, sampled as densely as its pixels ask for.

    Both sides of a face count as seen: what is in front hides a mesh's back.
    """
    corners = transform_points(cam_from_obj, torch.from_numpy(mesh.vertices[t]))[torch.from_numpy(mesh.faces)]
    corners = corners[(corners[..., 2] > 0).all(dim=1)]
    normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    offsets = -(normals * corners[:, 0]).sum(dim=1, keepdim=True)
    planes = torch.where(offsets < 0, 1.0, -1.0) * torch.cat([normals, offsets], dim=1)
    parts = [_sampled_faces(corners[:0], planes[:0], halvings=0)]
    halvings = _halvings(project(corners, intrinsics))
    for level in halvings.unique().tolist():
        parts.append(_sampled_faces(corners[halvings == level], planes[halvings == level], level))
    return _joined(parts)


def _halvings(positions: Float[Tensor, "f 3 2"]) -> Int[Tensor, "f"]:
    """How often edges must be halved for the longest one's parts, in the picture, to be no longer than wanted."""
    longest = (positions - positions.roll(1, dims=1)).norm(dim=-1).amax(dim=1)
    return (longest / SAMPLE_SPACING).clamp_min(1).log2().ceil().long()


def _sampled_faces(corners: Float[Tensor, "f 3 3"], planes: Float[Tensor, "f 4"], halvings: int) -> Surfels:
    """A piece in the middle of each of the 4^halvings small triangles that every face is divided into."""
    weights = _triangle_middles(2**halvings).to(corners)
    centres = (weights @ corners).reshape(-1, 3)
    return Surfels(
        centres=centres,
        planes=planes.repeat_interleave(len(weights), dim=0),
        widths=torch.zeros_like(centres[:, 0]),
        least_reach=torch.full_like(centres[:, 0], SAMPLE_REACH),
    )


def _triangle_middles(parts: int) -> Float[Tensor, "n 3"]:
    """Middles of the parts^2 small triangles of one whose edges are divided evenly, as weights of its corners."""
    i, j = torch.meshgrid(torch.arange(parts), torch.arange(parts), indexing="ij")
    upright, inverted = i + j < parts, i + j < parts - 1
    first = torch.cat([i[upright] + 1 / 3, i[inverted] + 2 / 3])
    second = torch.cat([j[upright] + 1 / 3, j[inverted] + 2 / 3])
    return torch.stack([first, second, parts - first - second], dim=1) / parts


def _joined(parts: list[Surfels]) -> Surfels:
    """All pieces, in float32: a metre's scene is good to a thousandth of a millimetre."""
    return Surfels(
        centres=torch.cat([part.centres for part in parts]).float(),
        planes=torch.cat([part.planes for part in parts]).float(),
        widths=torch.cat([part.widths for part in parts]).float(),
        least_reach=torch.cat([part.least_reach for part in parts]).float(),
    )


def splat_surfels(
    surfels: Surfels,
    intrinsics: Float[Tensor, "3 3"],
    wanted: Bool[Tensor, "h w"],
    shown_depths: Float[Tensor, "h w"],
) -> Float[Tensor, "h w"]:
    """Depth of the front-most surface in every wanted pixel, inf where there is none; never before `shown_depths`.

    The depth is the mean over the pieces of that surface: the least of many, each a little off, leans to the camera.
    """
    flat_wanted, flat_shown = wanted.flatten(), shown_depths.flatten()
    parts = []
    for pixels, depths in _covered_pixels(surfels, intrinsics.float(), wanted):
        shown = flat_shown[pixels]
        kept = flat_wanted[pixels] & (depths > (1 - SAME_SURFACE) * shown)
        parts.append((pixels[kept], depths.maximum(JUST_BEHIND * shown)[kept]))
    pixels, depths = (torch.cat(values) for values in zip(*parts, strict=True))
    nearest = torch.full_like(flat_shown, torch.inf).scatter_reduce(0, pixels, depths, "amin")
    in_front = depths < (1 + SAME_SURFACE) * nearest[pixels]
    mean = nearest.scatter_reduce(0, pixels[in_front], depths[in_front], "mean", include_self=False)
    return mean.reshape(wanted.shape)


def _covered_pixels(
    surfels: Surfels, intrinsics: Float[Tensor, "3 3"], wanted: Bool[Tensor, "h w"]
) -> Iterator[tuple[Int[Tensor, "m"], Float[Tensor, "m"]]]:
    """Numbers of the pixels whose centres pieces cover, and the pieces' depths there; up to four of every piece.

    Only pieces near a wanted pixel count, and none that turns its back: that belongs to a far side whose near side no
    frame saw, and says nothing of the near side's depth.
    """
    facing = surfels.select((surfels.centres[:, 2] > 0) & (surfels.planes[:, 3] < 0))
    positions = project(facing.centres, intrinsics)
    useful = _is_near(wanted, positions)
    surfels, positions = facing.select(useful), positions[useful]
    height, width = wanted.shape
    own_depths = surfels.centres[:, 2]
    reach = 0.5 * surfels.widths * intrinsics[0, 0] / own_depths
    reach = reach.maximum(surfels.least_reach).clamp(max=LARGEST_REACH)
    first_centres = (positions - 0.5).floor() + 0.5
    size = torch.tensor([width, height])
    for step in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
        centres = first_centres + torch.tensor(step)
        covers = ((centres - positions).abs() <= reach[:, None]).all(1) & ((centres > 0) & (centres < size)).all(1)
        centres, planes, own = centres[covers], surfels.planes[covers], own_depths[covers]
        rays = unproject(centres, torch.ones_like(own), intrinsics)
        depths = -planes[:, 3] / (planes[:, :3] * rays).sum(1)
        depths = torch.where((depths / own - 1).abs() < LARGEST_TILT, depths, own)
        columns, rows = centres.long().unbind(1)
        yield rows * width + columns, depths


def _is_near(wanted: Bool[Tensor, "h w"], positions: Float[Tensor, "n 2"]) -> Bool[Tensor, "n"]:
    """Which positions lie in a wanted pixel or one next to it."""
    framed = torch.nn.functional.pad(wanted[None].float(), (2, 2, 2, 2))
    grown = torch.nn.functional.max_pool2d(framed, kernel_size=3, stride=1)[0] > 0
    columns, rows = (positions.floor() + 1).unbind(1)  # of the grown grid, which has a pixel more at every side
    height, width = grown.shape
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    numbers = torch.where(inside, rows * width + columns, 0).long()
    return inside & grown.flatten()[numbers]


def close_gaps(
    depths: Float[Tensor, "h w"], hidden: Bool[Tensor, "h w"], shown_depths: Float[Tensor, "h w"]
) -> Float[Tensor, "h w"]:
    """Fill narrow gaps of the front-most surface among the hidden pixels, whatever shows through; the rest stays.

    A grey opening of the depth (around a pixel the largest of the smallest depths around) is the surface as if it had
    no gaps; a gap gets the mean depth of the surface's pixels next to it.
    """
    opened = torch.from_numpy(cv2.morphologyEx(depths.numpy(), cv2.MORPH_OPEN, np.ones((GAP, GAP), np.uint8)))
    gaps = hidden & (depths > (1 + SAME_SURFACE) * opened) & (opened > (1 - SAME_SURFACE) * shown_depths)
    around = torch.nn.functional.pad(depths[None, None], (1, 1, 1, 1), value=torch.inf)
    around = torch.nn.functional.unfold(around, kernel_size=3).reshape(9, *depths.shape)
    of_surface = (around / opened - 1).abs() < SAME_SURFACE
    mean = torch.where(of_surface, around, 0).sum(0) / of_surface.sum(0)
    filled = torch.where(of_surface.any(0), mean, opened).maximum(JUST_BEHIND * shown_depths)
    return torch.where(gaps, filled, depths)
