"""One object's model as a COLMAP sparse model, and back.

COLMAP's points stand still. Where the points of an object that bends were when they were seen is in a file of our own
beside its files: `displacements.npy` (M, 3), in the order of the points and, for each, of its track.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
from jaxtyping import Bool, Float, UInt8

from osn_gs.data.osn_files import read_array
from osn_gs.errors import DatasetError
from osn_gs.preprocess.sfm.mapping import make_camera
from osn_gs.preprocess.sfm.object_model import ObjectModel

DISPLACEMENTS_FILE = "displacements.npy"


def write_model(folder: Path, model: ObjectModel, colors: UInt8[np.ndarray, "n 3"]) -> None:
    """Write cameras.bin, images.bin, points3D.bin, frames.bin and rigs.bin; frame t is image "%04d.png" % t, id t + 1.

    Of an object that bends displacements.npy, too. Frames without a pose are left out, as COLMAP does. `colors` are
    the points', sRGB.
    """
    reconstruction = pycolmap.Reconstruction()
    camera = make_camera(model.size, model.focal)
    camera.camera_id = 1
    reconstruction.add_camera_with_trivial_rig(camera)
    rows = np.zeros(len(model.observed_frames), int)
    for frame in np.flatnonzero(model.registered):
        seen = np.flatnonzero(model.observed_frames == frame)
        rows[seen] = np.arange(len(seen))
        image = pycolmap.Image(
            name=f"{frame:04d}.png", keypoints=model.observed_pixels[seen], camera_id=1, image_id=int(frame) + 1
        )
        reconstruction.add_image_with_trivial_frame(image, pycolmap.Rigid3d(model.cam_from_obj[frame, :3]))
    by_point = np.argsort(model.observed_points, kind="stable")
    ends = np.searchsorted(model.observed_points[by_point], np.arange(len(model.points) + 1))
    errors = model.reprojection_errors()
    for point, xyz in enumerate(model.points):
        seen = by_point[ends[point] : ends[point + 1]]
        track = pycolmap.Track()
        for frame, row in zip(model.observed_frames[seen], rows[seen], strict=True):
            track.add_element(int(frame) + 1, int(row))
        added = reconstruction.add_point3D(xyz, track, colors[point])
        reconstruction.point3D(added).error = float(errors[seen].mean()) if len(seen) else 0.0
    folder.mkdir(parents=True, exist_ok=True)
    reconstruction.write_binary(str(folder))
    if model.displacements is None:
        (folder / DISPLACEMENTS_FILE).unlink(missing_ok=True)
    else:
        np.save(folder / DISPLACEMENTS_FILE, model.displacements[by_point])


def read_model(folder: Path, num_frames: int) -> ObjectModel:
    """Read what `write_model` wrote.

    Raises:
        DatasetError: there is no such model, or it is not one of `num_frames` frames named "%04d.png".
    """
    reconstruction = _open(folder)
    if len(reconstruction.cameras) != 1:
        raise DatasetError(f"{folder}: has {len(reconstruction.cameras)} cameras; expected one for all frames.")
    camera = next(iter(reconstruction.cameras.values()))
    poses, registered = np.tile(np.eye(4), (num_frames, 1, 1)), np.zeros(num_frames, bool)
    frame_of = {}
    for image_id, image in reconstruction.images.items():
        stem = image.name.split(".")[0]
        if not stem.isdigit() or int(stem) >= num_frames:
            raise DatasetError(
                f"{folder}: has an image {image.name!r}; expected names 0000.png to {num_frames - 1:04d}.png. "
                "Run the sfm step again."
            )
        frame_of[image_id] = int(stem)
        if image.has_pose:
            poses[int(stem), :3] = image.cam_from_world().matrix()
            registered[int(stem)] = True
    points = [reconstruction.points3D[key] for key in sorted(reconstruction.points3D)]
    observed = [
        (row, frame_of[element.image_id], *reconstruction.image(element.image_id).points2D[element.point2D_idx].xy)
        for row, point in enumerate(points)
        for element in point.track.elements
    ]
    table = np.array(observed, dtype=np.float64).reshape(-1, 4)
    return ObjectModel(
        cam_from_obj=poses,
        registered=registered,
        points=np.array([point.xyz for point in points]).reshape(-1, 3),
        observed_frames=table[:, 1].astype(np.int64),
        observed_points=table[:, 0].astype(np.int64),
        observed_pixels=table[:, 2:],
        focal=float(camera.focal_length_x),
        size=(camera.width, camera.height),
        displacements=_read_displacements(folder / DISPLACEMENTS_FILE, len(table)),
    )


def _read_displacements(path: Path, num_observations: int) -> Float[np.ndarray, "m 3"] | None:
    if not path.is_file():
        return None
    return read_array(path, (num_observations, 3)).astype(np.float64)


def read_background_poses(
    folder: Path, source_names: list[str]
) -> tuple[Float[np.ndarray, "t 4 4"], Bool[np.ndarray, "t"]]:
    """cam_from_world of the frames that somebody's COLMAP model has, and which those are.

    An image belongs to the frame whose source file has its name, folders and endings aside.

    Raises:
        DatasetError: there is no model, or fewer than three frames are in it.
    """
    reconstruction = _open(folder)
    image_of = {Path(image.name).stem: image for image in reconstruction.images.values() if image.has_pose}
    poses, registered = np.tile(np.eye(4), (len(source_names), 1, 1)), np.zeros(len(source_names), bool)
    for frame, name in enumerate(source_names):
        image = image_of.get(Path(name).stem)
        if image is not None:
            poses[frame, :3], registered[frame] = image.cam_from_world().matrix(), True
    if registered.sum() < 3:
        example = next((image.name for image in image_of.values()), "none")
        raise DatasetError(
            f"{folder}: has poses for {int(registered.sum())} of the {len(source_names)} frames; expected at least 3 "
            f"whose image names match the source files (frames are called {source_names[0] or 'by number only'!r}, "
            f"its images {example!r})."
        )
    return poses, registered


def _open(folder: Path) -> pycolmap.Reconstruction:
    if not any((folder / f"images.{ending}").is_file() for ending in ("bin", "txt")):
        raise DatasetError(f"{folder}: has no images.bin or images.txt; expected the folder of a COLMAP sparse model.")
    try:
        return pycolmap.Reconstruction(str(folder))
    except (RuntimeError, ValueError, IndexError, OSError) as error:
        raise DatasetError(f"{folder}: cannot be read as a COLMAP model: {' '.join(str(error).split())}") from error
