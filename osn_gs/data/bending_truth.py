"""How an object of a synthetic set truly bends: extra files of our own beside the layout of the released code.

`deform_objK.npz` holds a mesh of object K's surface: `rest` (V, 3), its vertices at rest, `faces` (F, 3), and `verts`
(T, V, 3), where the vertices are in each frame, in the object's true frame and units. `canon_objK_train.npz` says for
pixels of the training images, numbered row by row in `pix%04d` (P,), which point of the surface at rest they show, in
`rest%04d` (P, 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial import cKDTree
from torch import Tensor

from osn_gs.data.osn_files import read_transforms
from osn_gs.data.set_truth import true_cam_from_obj
from osn_gs.errors import DatasetError


@dataclass(frozen=True)
class SurfaceBending:
    """How the surface of one object bends, as the files hold it; in its true frame and units.

    `rest` are its vertices at rest, `vertices` where they are in every frame. `pixels` are for every training frame the
    numbers, row by row, of those that show the object, `rest_points` the points of the surface at rest that they show.
    """

    rest: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]
    vertices: Float[np.ndarray, "t v 3"]
    pixels: tuple[Int[np.ndarray, "p"], ...]
    rest_points: tuple[Float[np.ndarray, "p 3"], ...]


@dataclass(frozen=True)
class SurfaceTracks:
    """Points on one object's surface that a frame shows, followed through all frames.

    `pixels` [P, 2] are where `frame` shows them, as shares of the image's width and height; `in_camera` [T, P, 3] is
    where they truly are in the camera of every frame (OpenCV axes), in true units.
    """

    frame: int
    pixels: Float[Tensor, "p 2"]
    in_camera: Float[Tensor, "t p 3"]


@dataclass(frozen=True)
class BendingTruth:
    """The true motion of one object's surface: tracks from several frames, its size (the diagonal of a box around it at
    rest) and the true camera centres [T, 3], all in true units."""

    tracks: tuple[SurfaceTracks, ...]
    size: float
    camera_centres: Float[Tensor, "t 3"]


def write_bending_truth(folder: Path, k: int, bending: SurfaceBending) -> None:
    """Write object k's two files into a scene folder.

    Rest points are halves (float16): within a metre of the object's origin they are good to 0.25 mm.
    """
    np.savez_compressed(
        folder / f"deform_obj{k}.npz",
        rest=bending.rest.astype(np.float32),
        faces=bending.faces.astype(np.int32),
        verts=bending.vertices.astype(np.float32),
    )
    numbered = {}
    for t, (pixels, points) in enumerate(zip(bending.pixels, bending.rest_points, strict=True)):
        numbered |= {f"pix{t:04d}": pixels.astype(np.int32), f"rest{t:04d}": points.astype(np.float16)}
    np.savez_compressed(folder / f"canon_obj{k}_train.npz", **numbered)


def bending_objects(folder: Path) -> tuple[int, ...]:
    """The objects of a scene folder whose true bending is stored."""
    numbers = (path.stem.removeprefix("deform_obj") for path in folder.glob("deform_obj*.npz"))
    return tuple(sorted(int(number) for number in numbers if number.isdigit()))


def read_bending_truth(folder: Path, k: int, frames: tuple[int, ...], num_points: int) -> BendingTruth:
    """Up to `num_points` tracks from each of some frames; a point moves with the vertex nearest to it at rest.

    Raises DatasetError for a folder without this truth.
    """
    surface = _read(folder / f"deform_obj{k}.npz", ("rest", "verts"))
    transforms = read_transforms(folder / "transforms_train.json")
    seen = _read(
        folder / f"canon_obj{k}_train.npz", tuple(f"{name}{t:04d}" for t in frames for name in ("pix", "rest"))
    )
    cam_from_obj = true_cam_from_obj(transforms)
    world_from_background_cam = cam_from_obj[0].inverse()
    vertices = cKDTree(surface["rest"])
    tracks = []
    for t in frames:
        numbers, points = seen[f"pix{t:04d}"], seen[f"rest{t:04d}"].astype(np.float64)
        chosen = np.linspace(0, len(numbers) - 1, min(num_points, len(numbers))).astype(int)
        numbers, points = numbers[chosen], points[chosen]
        _, nearest = vertices.query(points)
        in_object = torch.from_numpy(surface["verts"][:, nearest] + (points - surface["rest"][nearest]))
        rotations, translations = cam_from_obj[k][:, :3, :3], cam_from_obj[k][:, None, :3, 3]
        rows, columns = np.divmod(numbers, transforms.width)
        shares = np.stack([(columns + 0.5) / transforms.width, (rows + 0.5) / transforms.height], axis=1)
        tracks.append(
            SurfaceTracks(
                frame=t,
                pixels=torch.from_numpy(shares),
                in_camera=in_object.double() @ rotations.transpose(1, 2) + translations,
            )
        )
    rest = surface["rest"]
    return BendingTruth(
        tracks=tuple(tracks),
        size=float(np.linalg.norm(rest.max(axis=0) - rest.min(axis=0))),
        camera_centres=world_from_background_cam[:, :3, 3],
    )


def _read(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in names}
    except (OSError, ValueError, KeyError) as error:
        raise DatasetError(f"{path}: missing or without {', '.join(names[:4])}: {error}.") from None
