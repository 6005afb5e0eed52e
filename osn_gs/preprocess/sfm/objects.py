"""The sfm step: every object's model from the tracks, under one focal length."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from osn_gs.data.osn_files import read_json
from osn_gs.errors import DatasetError
from osn_gs.files import write_json_atomic
from osn_gs.preprocess.frames import FramesRecord, read_frames, read_frames_record
from osn_gs.preprocess.object_names import read_object_names, title_of
from osn_gs.preprocess.progress import Progress, no_progress
from osn_gs.preprocess.sfm.colmap_model import read_background_poses, write_model
from osn_gs.preprocess.sfm.config import SfmConfig
from osn_gs.preprocess.sfm.focal import FocalEstimate, estimate_focal
from osn_gs.preprocess.sfm.mapping import Poses
from osn_gs.preprocess.sfm.object_model import ObjectModel
from osn_gs.preprocess.sfm.own_process import call_in_own_process
from osn_gs.preprocess.sfm.reconstruct import reconstruct_from_poses, reconstruct_object
from osn_gs.preprocess.sfm.report import ModelReport
from osn_gs.preprocess.tracks import Tracks, load_tracks

MODELS_FILE = Path("prepare") / "models.json"
LISTED = 8  # frames that a message names

Reconstructed = tuple[ObjectModel, ModelReport] | None


@dataclass(frozen=True)
class ModelsRecord:
    """prepare/models.json: the focal length of all objects and what is said of each model, by object id."""

    focal: float
    focal_uncertainty: float | None
    focal_source: str
    objects: tuple[ModelReport, ...]


def model_folder(scene: Path, object_id: int) -> Path:
    """Where an object's COLMAP model lies."""
    return scene / "sfm" / f"sparse{object_id}" / "0"


def reconstruct_objects(
    scene: Path, staging: Path, config: SfmConfig, progress: Progress = no_progress
) -> tuple[str, ...]:
    """Write sfm/sparseK/0/*.bin of every object K and prepare/models.json; returns advice.

    Raises:
        DatasetError: files of earlier steps are missing, the background has no pose in some frame, or an object
            has too few tracks for any model.
    """
    record = read_frames_record(scene)
    names = read_object_names(scene)
    tracks = load_tracks(scene / "sfm")
    if tracks.num_frames != len(record.frames):
        raise DatasetError(
            f"{scene / 'sfm'}: tracks over {tracks.num_frames} frames, but the clip has {len(record.frames)}; run the "
            "tracks step again."
        )
    focal, focal_advice = _choose_focal(tracks, record, config)
    found = _reconstruct_all(tracks, record, len(names), focal.focal, config, progress)
    for object_id, result in enumerate(found):
        _check(result, tracks, object_id, title_of(object_id, names))
    images = read_frames(scene)
    for object_id, (model, _) in enumerate(found):
        write_model(model_folder(staging, object_id), model, _colors(model, images))
    reports = tuple(report for _, report in found)
    models = ModelsRecord(focal.focal, focal.uncertainty, focal.how, reports)
    write_json_atomic(staging / MODELS_FILE, dataclasses.asdict(models))
    named = (f"{title_of(report.object_id, names)}: {line}" for report in reports for line in report.advice)
    return (*focal_advice, *named)


def read_models_record(scene: Path) -> ModelsRecord:
    """Read prepare/models.json.

    Raises:
        DatasetError: it is missing or not a record of this step.
    """
    path = scene / MODELS_FILE
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; run the sfm step first.")
    content = read_json(path)
    try:
        reports = tuple(ModelReport.from_json(entry) for entry in content.pop("objects"))
        return ModelsRecord(objects=reports, **content)
    except (KeyError, TypeError):
        raise DatasetError(f"{path}: not a record of the sfm step; run that step again.") from None


def _choose_focal(tracks: Tracks, record: FramesRecord, config: SfmConfig) -> tuple[FocalEstimate, tuple[str, ...]]:
    if record.focal is not None and record.focal_source != "EXIF":
        return FocalEstimate(record.focal, None, record.focal_source), ()
    if config.background_model is not None:
        raise DatasetError(
            f"{config.background_model}: a model's poses are used with the camera they were found with; give the same "
            "folder as --camera too."
        )
    background = tracks.select(tracks.object_ids == 0)
    return call_in_own_process(estimate_focal, background, record.size, config.seed, record.focal)


def _reconstruct_all(
    tracks: Tracks, record: FramesRecord, num_objects: int, focal: float, config: SfmConfig, progress: Progress
) -> list[Reconstructed]:
    given = None
    if config.background_model is not None:
        source_names = [frame.name or f"{frame.index:04d}" for frame in record.frames]
        given = Poses(*read_background_poses(config.background_model, source_names))

    def reconstruct(object_id: int) -> Reconstructed:
        own = tracks.select(tracks.object_ids == object_id)
        if object_id == 0 and given is not None:
            return call_in_own_process(reconstruct_from_poses, own, record.size, focal, given)
        return call_in_own_process(reconstruct_object, own, record.size, focal, config, config.seed)

    return _in_threads(reconstruct, range(num_objects), config.workers, progress)


def _in_threads(
    work: Callable[[int], Reconstructed], items: Iterable[int], workers: int, progress: Progress
) -> list[Reconstructed]:
    """`[work(item) for item in items]`, several at a time."""
    with ThreadPoolExecutor(workers, thread_name_prefix="osn_gs_sfm") as pool:
        pieces = [pool.submit(work, item) for item in items]
        try:
            for done, piece in enumerate(as_completed(pieces), start=1):
                piece.result()
                progress(done, len(pieces))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [piece.result() for piece in pieces]


def _check(result: Reconstructed, tracks: Tracks, object_id: int, title: str) -> None:
    """Refuse what cannot become a scene."""
    if result is None:
        count = int((tracks.object_ids == object_id).sum())
        raise DatasetError(
            f"{title}: no motion fits its {count} tracks, so it has no poses; its mask may be too small, without "
            "texture or in too few frames. Use larger images or more frames"
            + ("." if object_id == 0 else ", or leave it out with --ignore and the value it has in your masks.")
        )
    if object_id == 0 and not result[0].registered.all():
        missing = np.flatnonzero(~result[0].registered)
        listed = ", ".join(map(str, missing[:LISTED])) + (", ..." if len(missing) > LISTED else "")
        raise DatasetError(
            f"the background has no pose in {len(missing)} of {len(result[0].registered)} frames ({listed}): too few "
            "of its tracks reach them (blur, a cut, or objects that fill the image). Choose another time range, or "
            "take more frames a second."
        )


def _colors(model: ObjectModel, images: UInt8[np.ndarray, "t h w 3"]) -> UInt8[np.ndarray, "n 3"]:
    """Each point's colour where it was first seen."""
    colors = np.zeros((len(model.points), 3), np.uint8)
    points, first = np.unique(model.observed_points, return_index=True)
    columns, rows = np.floor(model.observed_pixels[first]).astype(int).T
    height, width = images.shape[1:3]
    frames = model.observed_frames[first]
    colors[points] = images[frames, np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)]
    return colors
