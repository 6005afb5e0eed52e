"""What a synthetic set knows of a clip made from it: how good the prepared poses are, and the truth to train with."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped

from osn_gs.data.held_out import SPLITS
from osn_gs.data.osn_files import Transforms, read_json, read_transforms
from osn_gs.data.preproc import read_preproc
from osn_gs.data.reconstruction import ObjectReconstruction
from osn_gs.data.set_truth import SetTruth, read_set_truth
from osn_gs.errors import DatasetError
from osn_gs.evaluation.poses import ObjectPoseErrors, object_pose_errors
from osn_gs.files import write_json_atomic

PREPROC = "sfm"
PIXEL_CENTER = 0.5
IN_EVERY_FRAME = ("verts", "bend", "twist", "wave")


@dataclass(frozen=True)
class ClipTruth(SetTruth):
    """A synthetic set's truth for the training frames `kept` of it; `transforms` is the whole set's."""

    kept: Int[np.ndarray, "t"]

    @property
    def data(self) -> Path:
        """The set's folder."""
        return self.transforms.path.parent


@dataclass(frozen=True, kw_only=True)
class ObjectErrors(ObjectPoseErrors):
    """How well one object was prepared: its poses, and the mean distance in pixels between observations and points."""

    reprojection: float


def read_synthetic_set(data: Path) -> Transforms:
    """The training transforms of a set with true poses.

    Raises:
        DatasetError: the set is not there or not usable.
    """
    transforms = read_transforms(data / "transforms_train.json")
    if not transforms.has_object_poses:
        raise DatasetError(f"{transforms.path}: has no `object_poses`; poses can be measured on a synthetic set only.")
    if transforms.pixel_center not in (None, PIXEL_CENTER):
        raise DatasetError(
            f"{transforms.path}: pixel_center is {transforms.pixel_center:g}; expected {PIXEL_CENTER}, as prepared "
            "clips have their principal point in the middle of the image."
        )
    return transforms


def read_clip_truth(transforms: Transforms, kept: Int[np.ndarray, "t"]) -> ClipTruth:
    """True poses, ids and depths of some of a set's training frames.

    Raises:
        DatasetError: the set has no depths, or a file is broken.
    """
    truth = read_set_truth(transforms.path.parent)
    if truth is None:
        raise DatasetError(
            f"{transforms.path.parent / 'depth_train'}: no such folder; poses need true depths to compare."
        )
    return ClipTruth(
        transforms=truth.transforms,
        cam_from_obj=truth.cam_from_obj[:, torch.from_numpy(kept)],
        object_ids=truth.object_ids[kept],
        depths=truth.depths[kept],
        kept=kept,
    )


def compare_with_truth(prepared: Path, truth: ClipTruth) -> tuple[ObjectErrors, ...]:
    """Errors of every object of a prepared scene folder.

    Raises:
        DatasetError: the folder cannot be read, or has another number of objects.
    """
    objects = _read_objects(prepared, truth)
    return tuple(
        ObjectErrors(
            **asdict(object_pose_errors(obj.cam_from_obj, obj.visible, truth, k)),
            reprojection=float(obj.points.errors.mean()),
        )
        for k, obj in enumerate(objects)
    )


def _read_objects(prepared: Path, truth: ClipTruth) -> tuple[ObjectReconstruction, ...]:
    objects = read_preproc(prepared / PREPROC, len(truth.kept), 0.5 - PIXEL_CENTER)
    if len(objects) != len(truth.cam_from_obj):
        raise DatasetError(f"{prepared}: has {len(objects)} objects; expected {len(truth.cam_from_obj)} as in the set.")
    return objects


def true_scales(prepared: Path, truth: ClipTruth) -> Float[np.ndarray, "k"]:
    """True depth over prepared depth of every object: the median over its observations on the object's own pixels.

    Raises:
        DatasetError: none of an object's observations lies on it.
    """
    return np.array([_true_scale(obj, truth, k) for k, obj in enumerate(_read_objects(prepared, truth))])


def _true_scale(obj: ObjectReconstruction, truth: ClipTruth, k: int) -> float:
    frames = obj.points.frames.numpy()
    height, width = truth.object_ids.shape[1:]
    columns, rows = np.floor(obj.points.pixels.numpy()).astype(int).T
    rows, columns = np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)
    depths = truth.depths[frames, rows, columns]
    on_object = (truth.object_ids[frames, rows, columns] == k) & np.isfinite(depths) & (depths > 0)
    if not on_object.any():
        raise DatasetError(f"object {k}: none of its {len(frames)} observations lies on it; its scale is unknown.")
    return float(np.median(depths[on_object] / obj.points.depths.numpy()[on_object]))


def add_truth(prepared: Path, truth: ClipTruth) -> None:
    """Give a prepared folder what the set knows, so that a scene trained on it is scored as one with true poses.

    Adds true cameras and object poses, held-out views, depths, ids, true scales, and the meshes of objects that deform.
    The focal length of the training frames stays what preparation used; the true one stands beside it. Does nothing new
    when done again.
    """
    np.save(prepared / PREPROC / "depth" / "scales_gt.npy", true_scales(prepared, truth))
    _write_training_transforms(prepared / "transforms_train.json", truth)
    _write_arrays(prepared / "segm_train", truth.object_ids)
    _write_arrays(prepared / "depth_train", truth.depths.astype(np.float32))
    for split in SPLITS:
        if (truth.data / f"transforms_{split}.json").is_file():
            _copy_held_out(prepared, truth, split)
    copy_deformations(prepared, truth)


def copy_deformations(prepared: Path, truth: ClipTruth) -> None:
    """The meshes of deforming objects, and their points at rest, in the training frames the clip still has.

    Of a mesh's arrays those in `IN_EVERY_FRAME` have a row for each frame.
    """
    for path in sorted(truth.data.glob("deform_obj*.npz")):
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name][truth.kept] if name in IN_EVERY_FRAME else content[name] for name in content}
        np.savez(prepared / path.name, **arrays)
    _copy_rest_points(prepared, truth, "train", truth.kept.tolist())


def _write_training_transforms(path: Path, truth: ClipTruth) -> None:
    """The synthetic variant of the prepared file: true poses in place of estimated ones."""
    prepared = read_transforms(path)
    frames = read_json(truth.transforms.path)["frames"]
    kept = [
        {**frames[source], "view": frame, "time_step": frame, "file_path": f"images_train/{frame:04d}"}
        for frame, source in enumerate(truth.kept.tolist())
    ]
    content = {key: value for key, value in read_json(path).items() if key != "focal"}
    content["camera_angle_x"] = 2 * math.atan(0.5 * prepared.width / prepared.focal)
    content |= {"true_focal": truth.focal, "pixel_center": PIXEL_CENTER, "frames": kept}
    write_json_atomic(path, content)


def _copy_held_out(prepared: Path, truth: ClipTruth, split: str) -> None:
    """The views of a split at times (and, where they are training cameras, of cameras) that the clip still has."""
    records = read_transforms(truth.data / f"transforms_{split}.json").frames
    content = read_json(truth.data / f"transforms_{split}.json")
    new_number = {source: frame for frame, source in enumerate(truth.kept.tolist())}
    num_frames = len(truth.transforms.frames)
    frames, kept = [], []
    for index, record in enumerate(records):
        replays = split == "test" and record.view is not None and record.view < num_frames
        if record.time_step not in new_number or (replays and record.view not in new_number):
            continue
        for kind in ("images", "segm", "depth"):
            _copy_numbered(truth.data / f"{kind}_{split}", index, prepared / f"{kind}_{split}", len(frames))
        kept.append(index)
        view = new_number[record.view] if replays else num_frames + index
        frames.append({**content["frames"][index], "view": view, "time_step": new_number[record.time_step]})
    write_json_atomic(prepared / f"transforms_{split}.json", {**content, "frames": frames})
    _copy_rest_points(prepared, truth, split, kept)


def _copy_rest_points(prepared: Path, truth: ClipTruth, split: str, kept: list[int]) -> None:
    """Which point of its shape at rest every pixel of a deforming object shows, in the views `kept` of a split.

    canon_obj%d_SPLIT.npz of a set holds arrays pix%04d and rest%04d, numbered as the split's images.
    """
    for path in sorted(truth.data.glob(f"canon_obj*_{split}.npz")):
        with np.load(path, allow_pickle=False) as content:
            names = {f"{kind}{new:04d}": f"{kind}{old:04d}" for new, old in enumerate(kept) for kind in ("pix", "rest")}
            arrays = {new: content[old] for new, old in names.items() if old in content}
        np.savez(prepared / path.name, **arrays)


def _copy_numbered(source: Path, number: int, target: Path, new_number: int) -> None:
    """Copy file %04d of a folder, whatever its kind; sets need not have every folder."""
    for path in source.glob(f"{number:04d}.*"):
        target.mkdir(exist_ok=True)
        shutil.copyfile(path, target / f"{new_number:04d}{path.suffix}")


def _write_arrays(folder: Path, arrays: Shaped[np.ndarray, "t h w"]) -> None:
    folder.mkdir(exist_ok=True)
    for frame, array in enumerate(arrays):
        np.save(folder / f"{frame:04d}.npy", array)
