"""COLMAP's mappers on one object's tracks: candidates for its poses."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
from jaxtyping import Bool, Float

# Frames this far apart are paired: near ones tie the path together, far ones give parallax.
GAPS = (1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 90)
SMALLEST_PAIR = 12  # matches; COLMAP asks for 15, which small objects miss
RELAXED_ANGLES = (4.0, 2.0, 1.0, 0.4)  # degrees of parallax asked of the start pair, tried in turn
BEST_PARALLAX = 12.0  # degrees; a start pair gains nothing by more


@dataclass(frozen=True)
class Poses:
    """cam_from_obj of one hypothesis, and the frames that have one."""

    cam_from_obj: Float[np.ndarray, "t 4 4"]
    registered: Bool[np.ndarray, "t"]


@dataclass(frozen=True)
class FramePair:
    """Two frames whose matches fit one calibrated motion."""

    first: int
    second: int
    inliers: int
    parallax: float
    """Median triangulation angle in degrees."""


class MatchDatabase:
    """A COLMAP database of one object's tracks, in a folder of its own: made once, mapped several times."""

    def __init__(
        self,
        folder: Path,
        pixels: Float[np.ndarray, "n t 2"],
        visible: Bool[np.ndarray, "n t"],
        size: tuple[int, int],
        focal: float,
        seed: int,
    ) -> None:
        self.folder, self.path = folder, folder / "database.db"
        self.num_frames = visible.shape[1]
        self.image_ids: list[int] = []
        self.pairs: list[FramePair] = []
        with contextlib.closing(pycolmap.Database.open(self.path)) as database:
            camera = self._write_camera(database, size, focal)
            rows = np.full(visible.shape, -1)
            keypoints = []
            for frame in range(self.num_frames):
                seen = np.flatnonzero(visible[:, frame])
                rows[seen, frame] = np.arange(len(seen))
                keypoints.append(pixels[seen, frame])
                self._write_frame(database, camera, frame, keypoints[-1])
            for first in range(self.num_frames):
                for second in (first + gap for gap in GAPS if first + gap < self.num_frames):
                    both = np.flatnonzero(visible[:, first] & visible[:, second])
                    if len(both) >= SMALLEST_PAIR:
                        matches = rows[both][:, [first, second]].astype(np.uint32)
                        self._write_pair(database, camera, keypoints, first, second, matches, seed)

    def _write_camera(self, database: pycolmap.Database, size: tuple[int, int], focal: float) -> pycolmap.Camera:
        camera = make_camera(size, focal)
        camera.camera_id = database.write_camera(camera)
        rig = pycolmap.Rig()
        rig.add_ref_sensor(pycolmap.sensor_t(pycolmap.SensorType.CAMERA, camera.camera_id))
        self.rig_id = database.write_rig(rig)
        return camera

    def _write_frame(
        self, database: pycolmap.Database, camera: pycolmap.Camera, frame: int, keypoints: Float[np.ndarray, "m 2"]
    ) -> None:
        image_id = database.write_image(pycolmap.Image(name=f"{frame:04d}.png", camera_id=camera.camera_id))
        self.image_ids.append(image_id)
        entry = pycolmap.Frame()
        entry.rig_id = self.rig_id
        sensor = pycolmap.sensor_t(pycolmap.SensorType.CAMERA, camera.camera_id)
        entry.add_data_id(pycolmap.data_t(sensor, image_id))
        database.write_frame(entry)
        database.write_keypoints(image_id, keypoints.astype(np.float32))

    def _write_pair(
        self,
        database: pycolmap.Database,
        camera: pycolmap.Camera,
        keypoints: list[Float[np.ndarray, "m 2"]],
        first: int,
        second: int,
        matches: np.ndarray,
        seed: int,
    ) -> None:
        options = pycolmap.TwoViewGeometryOptions()
        options.min_num_inliers = SMALLEST_PAIR
        options.detect_watermark = False
        options.compute_relative_pose = True
        options.ransac.max_error = 2.0
        options.ransac.max_num_trials = 500
        options.ransac.random_seed = seed
        found = pycolmap.estimate_calibrated_two_view_geometry(
            camera, keypoints[first], camera, keypoints[second], matches, options
        )
        ids = self.image_ids[first], self.image_ids[second]
        database.write_matches(*ids, matches)
        if len(found.inlier_matches) >= SMALLEST_PAIR:
            database.write_two_view_geometry(*ids, found)
            self.pairs.append(
                FramePair(first, second, len(found.inlier_matches), float(np.rad2deg(max(found.tri_angle, 0))))
            )

    def global_mapping(self, seed: int) -> Poses | None:
        """GLOMAP's way: all rotations, then all positions at once."""
        options = pycolmap.GlobalPipelineOptions()
        options.min_num_matches = SMALLEST_PAIR
        options.multiple_models = False
        options.num_threads = 1
        options.random_seed = seed
        options.mapper.global_positioning.use_gpu = False
        options.mapper.bundle_adjustment.refine_focal_length = False
        options.mapper.bundle_adjustment.refine_extra_params = False
        options.mapper.bundle_adjustment.ceres.use_gpu = False
        with tempfile.TemporaryDirectory(dir=self.folder) as output, quiet_colmap():
            return self._largest(pycolmap.global_mapping(self.path, self.folder, Path(output), options))

    def incremental_mapping(self, seed: int) -> Poses | None:
        """Frame after frame, from a pair with many inliers at a good angle; the angle asked for is relaxed in turn."""
        best: Poses | None = None
        for angle in RELAXED_ANGLES:
            options = pycolmap.IncrementalPipelineOptions()
            options.multiple_models = False
            options.min_model_size = 3
            options.min_num_matches = SMALLEST_PAIR
            options.extract_colors = False
            options.num_threads = 1
            options.random_seed = seed
            options.ba_refine_focal_length = False
            options.ba_refine_extra_params = False
            start = self._start_pair(angle)
            if start is not None:
                options.init_image_id1 = self.image_ids[start.first]
                options.init_image_id2 = self.image_ids[start.second]
            mapper, triangulation = options.mapper, options.triangulation
            mapper.init_min_tri_angle = angle
            mapper.init_min_num_inliers = 30
            mapper.init_max_forward_motion = 0.99
            mapper.abs_pose_refine_focal_length = False
            mapper.abs_pose_refine_extra_params = False
            mapper.abs_pose_min_num_inliers = 10
            mapper.abs_pose_min_inlier_ratio = 0.2
            mapper.abs_pose_max_error = 8.0
            mapper.filter_max_reproj_error = 3.0
            mapper.filter_min_tri_angle = 0.5
            mapper.ba_local_min_tri_angle = 2.0
            triangulation.min_angle = 0.5
            with tempfile.TemporaryDirectory(dir=self.folder) as output, quiet_colmap():
                found = self._largest(pycolmap.incremental_mapping(self.path, self.folder, Path(output), options))
            if found is not None and (best is None or found.registered.sum() > best.registered.sum()):
                best = found
            if best is not None and best.registered.mean() >= 0.9:
                break
        return best

    def _start_pair(self, angle: float) -> FramePair | None:
        wide = [pair for pair in self.pairs if pair.parallax >= angle and pair.inliers >= 30]
        return max(wide, key=lambda pair: pair.inliers * min(pair.parallax, BEST_PARALLAX), default=None)

    def _largest(self, models: dict[int, pycolmap.Reconstruction]) -> Poses | None:
        if not models:
            return None
        model = max(models.values(), key=lambda model: model.num_reg_images())
        cam_from_obj, registered = np.tile(np.eye(4), (self.num_frames, 1, 1)), np.zeros(self.num_frames, bool)
        for frame, image_id in enumerate(self.image_ids):
            if model.exists_image(image_id) and model.image(image_id).has_pose:
                cam_from_obj[frame, :3] = model.image(image_id).cam_from_world().matrix()
                registered[frame] = True
        return Poses(cam_from_obj, registered) if registered.sum() >= 3 else None


def make_camera(size: tuple[int, int], focal: float) -> pycolmap.Camera:
    """A pinhole camera with its principal point in the middle."""
    width, height = size
    camera = pycolmap.Camera(model="PINHOLE", width=width, height=height, params=[focal, focal, width / 2, height / 2])
    camera.has_prior_focal_length = True
    return camera


@contextlib.contextmanager
def quiet_colmap() -> Iterator[None]:
    """COLMAP tells its progress on stderr; only what ends a process may be heard."""
    before = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = int(pycolmap.logging.Level.FATAL)
    try:
        yield
    finally:
        pycolmap.logging.minloglevel = before
