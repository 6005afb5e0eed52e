"""Structure from motion of one object: what it finds, what it refuses, and what it says about itself."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from scipy.spatial.transform import Rotation
from synthetic_tracks import DISTANCE, SyntheticClip, make_clip, project

from osn_gs.errors import ConfigError, DatasetError
from osn_gs.evaluation.poses import pose_errors
from osn_gs.files import write_json_atomic
from osn_gs.preprocess.frames import FramesConfig, extract_frames
from osn_gs.preprocess.pictures import write_picture
from osn_gs.preprocess.sfm.balanced import balanced_subset
from osn_gs.preprocess.sfm.bundle_adjustment import AdjustmentOptions, Geometry, Smoothness, adjust
from osn_gs.preprocess.sfm.colmap_model import read_model, write_model
from osn_gs.preprocess.sfm.config import SfmConfig
from osn_gs.preprocess.sfm.focal import estimate_focal
from osn_gs.preprocess.sfm.mapping import Poses
from osn_gs.preprocess.sfm.motion import continued_poses, net_turn
from osn_gs.preprocess.sfm.objects import model_folder, read_models_record, reconstruct_objects
from osn_gs.preprocess.sfm.own_process import call_in_own_process
from osn_gs.preprocess.sfm.reconstruct import (
    Hypothesis,
    reconstruct_from_poses,
    reconstruct_object,
    resect,
    turned_farther,
)
from osn_gs.preprocess.sfm.report import ModelReport, largest_jump_of
from osn_gs.preprocess.sfm.start_poses import reversed_depth, steadily_turned
from osn_gs.preprocess.sfm.triangulation import observations_of, triangulate, triangulated
from osn_gs.preprocess.tracks import Tracks, save_tracks

CONFIG = SfmConfig()


def errors_of(model, clip: SyntheticClip):
    return pose_errors(model.cam_from_obj, model.registered, clip.cam_from_obj, DISTANCE)


def moved(poses: np.ndarray, turn: float, shift: float, seed: int = 0) -> np.ndarray:
    """Poses off by about `turn` degrees and `shift` units."""
    generator = np.random.default_rng(seed)
    moved = poses.copy()
    for pose in moved:
        turns = pycolmap.Rotation3d(generator.normal(0, np.deg2rad(turn), 3)).matrix()
        pose[:3, :3] = turns @ pose[:3, :3]
        pose[:3, 3] += generator.normal(0, shift, 3)
    return moved


def start_of(clip: SyntheticClip, poses: np.ndarray) -> Geometry:
    return triangulated(clip.tracks.pixels, clip.tracks.visible, poses, clip.focal, np.array(clip.size) / 2)


# Pieces


def test_exact_tracks_triangulate_to_their_points():
    clip = make_clip(noise=0, outliers=0)
    points = triangulate(
        clip.tracks.pixels, clip.tracks.visible, clip.cam_from_obj, clip.focal, np.array(clip.size) / 2
    )
    np.testing.assert_allclose(points, clip.points, atol=1e-6)


def test_one_bad_frame_of_a_track_hardly_moves_its_point():
    clip = make_clip(noise=0, outliers=0, num_tracks=100)
    long = clip.tracks.select(clip.tracks.visible.sum(1) >= 8)
    truth = clip.points[clip.tracks.visible.sum(1) >= 8]
    pixels = long.pixels.copy()
    pixels[np.arange(len(long)), long.visible.argmax(1)] += 30.0
    points = triangulate(pixels, long.visible, clip.cam_from_obj, clip.focal, np.array(clip.size) / 2)
    assert len(long) > 5
    assert np.median(np.linalg.norm(points - truth, axis=1)) < 0.01


def test_bundle_adjustment_takes_disturbed_poses_back_to_exact_ones():
    clip = make_clip(noise=0, outliers=0)
    start = start_of(clip, moved(clip.cam_from_obj, 2.0, 0.02))
    observations = observations_of(clip.tracks.pixels, clip.tracks.visible)
    adjusted = adjust(start, observations, AdjustmentOptions(tolerance=1e-12, max_steps=100))
    assert np.linalg.norm(start.residuals(observations), axis=1).mean() > 0.5
    assert np.linalg.norm(adjusted.geometry.residuals(observations), axis=1).max() < 1e-4


def test_a_smoothness_prior_smooths_the_path():
    clip = make_clip(noise=0.5, num_tracks=60)
    start = start_of(clip, moved(clip.cam_from_obj, 3.0, 0.1))
    observations = observations_of(clip.tracks.pixels, clip.tracks.visible)
    strict = AdjustmentOptions(smoothness=Smoothness(rotation=1e-3, translation=1e-3))
    adjusted = adjust(start, observations, strict).geometry

    def roughness(geometry):
        return np.linalg.norm(np.diff(geometry.cam_from_obj[:, :3, 3], 2, axis=0))

    assert roughness(adjusted) < 0.3 * roughness(start)
    assert np.linalg.norm(adjusted.residuals(observations), axis=1).mean() < 3.0


def test_a_free_focal_length_is_found_from_a_wrong_start():
    clip = make_clip("room", focal=500.0, noise=0.1, outliers=0)
    start = replace(start_of(clip, clip.cam_from_obj), focal=560.0)
    observations = observations_of(clip.tracks.pixels, clip.tracks.visible)
    adjusted = adjust(start, observations, AdjustmentOptions(adjust_focal=True, max_steps=100, tolerance=1e-9))
    assert adjusted.geometry.focal == pytest.approx(500.0, rel=0.02)


def test_reversing_depth_keeps_the_image_of_a_small_object_and_mirrors_its_shape():
    clip = make_clip(extent=0.2, noise=0, outliers=0, arc=15.0)
    truth = Geometry(clip.cam_from_obj, clip.points, clip.focal, np.array(clip.size) / 2)
    twin = reversed_depth(truth)
    observations = observations_of(clip.tracks.pixels, clip.tracks.visible)
    assert np.linalg.norm(twin.residuals(observations), axis=1).mean() < 1.0
    first = observations.select(observations.frames == 0)
    assert np.corrcoef(truth.in_camera(first)[:, 2], twin.in_camera(first)[:, 2])[0, 1] < -0.7
    np.testing.assert_allclose(np.linalg.det(twin.cam_from_obj[:, :3, :3]), 1.0)


def test_a_steady_turn_goes_on_evenly_about_the_image_vertical():
    clip = make_clip(num_frames=5)
    still = replace(start_of(clip, clip.cam_from_obj), cam_from_obj=np.tile(np.eye(4), (5, 1, 1)))
    turned = steadily_turned(still, 40.0).cam_from_obj
    angles = Rotation.from_matrix(turned[:, :3, :3]).as_rotvec(degrees=True)
    np.testing.assert_allclose(angles, [[0, angle, 0] for angle in (-20, -10, 0, 10, 20)], atol=1e-9)
    assert net_turn(turned, np.ones(5, bool)) == pytest.approx(np.deg2rad(40))
    assert net_turn(turned, np.array([False, True, True, True, False])) == pytest.approx(np.deg2rad(20))


def test_resection_finds_a_pose_among_outliers_and_refuses_noise():
    clip = make_clip(num_tracks=100)
    pixels = project(clip.points, clip.cam_from_obj, clip.focal, clip.size)[:, 3]
    generator = np.random.default_rng(0)
    pixels[:20] += generator.normal(0, 30, (20, 2))
    center = np.array(clip.size) / 2
    np.testing.assert_allclose(resect(clip.points, pixels, clip.focal, center), clip.cam_from_obj[3], atol=1e-3)
    assert resect(clip.points, generator.uniform(0, 300, pixels.shape), clip.focal, center) is None
    assert resect(clip.points[:5], pixels[:5], clip.focal, center) is None


def test_missing_poses_continue_a_steady_motion_exactly():
    steady = np.tile(np.eye(4), (8, 1, 1))
    steady[:, :3, :3] = [pycolmap.Rotation3d(np.array([0.02, 0.1, 0.0]) * t).matrix() for t in range(8)]
    steady[:, :3, 3] = [[0.1 * t, 0.2, 4 - 0.05 * t] for t in range(8)]
    registered = np.ones(8, bool)
    registered[[0, 3, 4, 7]] = False
    given = np.where(registered[:, None, None], steady, np.eye(4))
    np.testing.assert_allclose(continued_poses(given, registered), steady, atol=1e-12)


def test_a_subset_of_tracks_leaves_no_frame_bare():
    generator = np.random.default_rng(0)
    visible = np.zeros((1100, 20), bool)
    visible[:1000, :15] = True  # the longest tracks never see the last five frames
    visible[1000:, 14:] = True
    subset = balanced_subset(generator.uniform(0, 100, (1100, 20, 2)), visible, 200)
    assert 150 <= len(subset) <= 240
    assert visible[subset].sum(0).min() >= 40


# One object


@pytest.mark.parametrize(
    ("options", "rotation", "centre"),
    [
        ({}, 0.2, 0.005),
        ({"shape": "plane", "noise": 0.1}, 0.4, 0.01),
        ({"extent": 0.5, "num_tracks": 700}, 0.6, 0.01),
    ],
    ids=["egg", "plane", "half the size"],
)
def test_an_object_is_posed_in_every_frame(options, rotation, centre):
    clip = make_clip(**options)
    model, report = reconstruct_object(clip.tracks, clip.size, clip.focal, CONFIG, seed=0)
    errors = errors_of(model, clip)
    assert model.registered.all()
    assert errors.rotation.mean() < rotation
    assert errors.centre.mean() < centre
    assert report.median_error < 0.4
    assert report.explained > 0.9
    assert report.confidence == "good"
    assert (model.observed_in_camera()[:, 2] > 0).all()


@pytest.mark.slow
def test_what_bends_and_turns_turns_on():
    """The model with the best score has it turn to and fro with its sway."""
    clip = make_clip(num_frames=20, arc=90.0, sway=0.2, noise=0.15, outliers=0, seed=2)
    model, report = reconstruct_object(clip.tracks, clip.size, clip.focal, CONFIG, seed=0)
    assert report.confidence == "weak"
    assert errors_of(model, clip).rotation.mean() < 10
    polished = [candidate for candidate in report.candidates if candidate.name.endswith("polished")]
    assert len({candidate.name for candidate in polished}) == len(polished)
    assert max(polished, key=lambda candidate: candidate.score).name != report.chosen


@pytest.mark.slow
def test_a_rigid_object_with_many_bad_tracks_keeps_the_better_of_two_twins():
    """The twin of reversed depth scores within a few thousandths and turns a little farther."""
    clip = make_clip(outliers=0.25, extent=0.5, num_tracks=200, seed=1)
    model, _ = reconstruct_object(clip.tracks, clip.size, clip.focal, CONFIG, seed=0)
    assert errors_of(model, clip).rotation.mean() < 1


def turning(degrees: list[float], score: float) -> Hypothesis:
    """A model that turns about one axis from angle to angle."""
    poses = np.tile(np.eye(4), (len(degrees), 1, 1))
    poses[:, :3, :3] = Rotation.from_euler("y", np.array(degrees)[:, None], degrees=True).as_matrix()
    geometry = Geometry(poses, np.zeros((1, 3)), 500.0, np.zeros(2))
    return Hypothesis("turning", geometry, np.ones(len(degrees), bool), 0.6, score)


def test_a_model_that_turns_clearly_farther_is_preferred_where_scores_are_about_alike():
    to_and_fro = turning([0, 40, 80, 40, 0], 0.50)
    onwards, farther, bad = (turning(list(np.linspace(0, end, 5)), score) for end, score in
                             ((80, 0.48), (400, 0.47), (500, 0.40)))  # fmt: skip
    assert turned_farther(to_and_fro, [onwards]) is onwards
    assert turned_farther(to_and_fro, [onwards, farther, bad]) is farther
    assert turned_farther(to_and_fro, [bad]) is to_and_fro
    twin = turning(list(np.linspace(0, -90, 5)), 0.495)
    assert turned_farther(onwards, [twin]) is onwards


def test_only_observations_the_model_explains_are_kept():
    clip = make_clip(outliers=0.3)
    model, report = reconstruct_object(clip.tracks, clip.size, clip.focal, CONFIG, seed=0)
    assert model.reprojection_errors().max() < 1.5
    assert report.observations == len(model.observed_frames) < 0.95 * clip.tracks.visible.sum()
    assert np.bincount(model.observed_points).min() >= 3


def test_the_same_seed_gives_the_same_model():
    clip = make_clip(num_tracks=400, num_frames=8)
    first, _ = reconstruct_object(clip.tracks, clip.size, clip.focal, CONFIG, seed=3)
    second, _ = reconstruct_object(clip.tracks, clip.size, clip.focal, CONFIG, seed=3)
    np.testing.assert_array_equal(first.cam_from_obj, second.cam_from_obj)
    np.testing.assert_array_equal(first.points, second.points)


def test_a_frame_without_tracks_stays_unregistered_and_is_named():
    clip = make_clip(hidden=(5,))
    model, report = reconstruct_object(clip.tracks, clip.size, clip.focal, CONFIG, seed=0)
    assert report.missing_frames == [5]
    assert not model.registered[5]
    assert report.confidence == "weak"
    assert any("92%" in line for line in report.advice)


def test_a_frame_that_sees_seven_points_is_placed_by_smooth_motion():
    clip = make_clip(num_tracks=700)
    few = clip.intact(1.0)[:, 11].nonzero()[0]
    visible = clip.tracks.visible.copy()
    visible[few[7:], 11] = False
    visible[~clip.intact(1.0)[:, 11], 11] = False
    tracks = replace(clip.tracks, visible=visible)
    model, report = reconstruct_object(tracks, clip.size, clip.focal, CONFIG, seed=0)
    assert model.registered[11]
    assert errors_of(model, clip).rotation[11] < 2.0
    assert report.candidates[0].registered == 11


def test_little_motion_is_told():
    clip = make_clip(arc=2.0, noise=0.1)
    result = reconstruct_object(clip.tracks, clip.size, clip.focal, CONFIG, seed=0)
    assert result is not None
    _, report = result
    assert report.confidence != "good"
    assert report.advice


def test_a_jump_in_the_path_is_told(reconstructed):
    model, report = reconstructed
    assert report.largest_jump < 6
    turned = model.cam_from_obj.copy()
    turn = Rotation.from_euler("y", 50, degrees=True).as_matrix()
    middle = np.median(model.points, axis=0)
    turned[8, :3, 3] += turned[8, :3, :3] @ (middle - turn @ middle)
    turned[8, :3, :3] = turned[8, :3, :3] @ turn
    assert largest_jump_of(replace(model, cam_from_obj=turned)) == pytest.approx(50, abs=8)


def test_random_tracks_are_not_called_good():
    generator = np.random.default_rng(0)
    pixels = np.array([240, 180]) + np.cumsum(generator.normal(0, 8, (40, 6, 2)), axis=1)
    result = reconstruct_object(
        Tracks(pixels, np.ones((40, 6), bool), np.ones(40, int)), (480, 360), 500.0, CONFIG, seed=0
    )
    assert result is None or result[1].confidence == "failed"


def test_a_handful_of_tracks_gives_no_model():
    clip = make_clip()
    assert reconstruct_object(clip.tracks.select(np.arange(5)), clip.size, clip.focal, CONFIG, seed=0) is None


def test_given_poses_are_kept_and_missing_ones_resected():
    clip = make_clip()
    known = np.ones(12, bool)
    known[[2, 7]] = False
    poses = np.where(known[:, None, None], clip.cam_from_obj, np.eye(4))
    model, report = reconstruct_from_poses(clip.tracks, clip.size, clip.focal, Poses(poses, known))
    assert model.registered.all()
    np.testing.assert_array_equal(model.cam_from_obj[known], clip.cam_from_obj[known])
    np.testing.assert_allclose(model.cam_from_obj[[2, 7]], clip.cam_from_obj[[2, 7]], atol=0.02)
    assert report.chosen == "given poses"


# The focal length


def test_the_focal_length_comes_from_the_background():
    clip = make_clip("room", focal=430.0, noise=0.1, object_id=0)
    estimate, advice = estimate_focal(clip.tracks, clip.size, seed=0)
    assert estimate.how == "estimated"
    assert estimate.focal == pytest.approx(430.0, rel=0.02)
    assert abs(np.log(estimate.focal / 430.0)) < 4 * estimate.uncertainty
    assert advice == ()


def test_a_camera_that_stands_still_keeps_the_default_and_says_so():
    clip = make_clip("plane", arc=0.2, noise=0.3, num_tracks=100, num_frames=6, object_id=0)
    estimate, advice = estimate_focal(clip.tracks, clip.size, seed=0)
    assert (estimate.how, estimate.focal) == ("default", pytest.approx(1.2 * 480))
    assert "--focal" in advice[0]
    estimate, advice = estimate_focal(clip.tracks, clip.size, seed=0, prior=510.0)
    assert (estimate.how, estimate.focal) == ("EXIF", 510.0)
    assert "EXIF" in advice[0]


# Files


@pytest.fixture(scope="module")
def reconstructed():
    clip = make_clip(hidden=(5,), num_tracks=400)
    return reconstruct_object(clip.tracks, clip.size, clip.focal, CONFIG, seed=0)


def test_a_model_opens_in_colmap_and_reads_back(tmp_path, reconstructed):
    model, _ = reconstructed
    colors = np.arange(3 * len(model.points), dtype=np.uint8).reshape(-1, 3)
    write_model(tmp_path, model, colors)
    theirs = pycolmap.Reconstruction(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cameras.bin",
        "frames.bin",
        "images.bin",
        "points3D.bin",
        "rigs.bin",
    ]
    assert sorted(image.name for image in theirs.images.values()) == [f"{t:04d}.png" for t in range(12) if t != 5]
    theirs.update_point_3d_errors()
    assert theirs.compute_mean_reprojection_error() == pytest.approx(model.reprojection_errors().mean(), rel=0.2)
    np.testing.assert_array_equal(theirs.points3D[1].color, colors[0])
    ours = read_model(tmp_path, 12)
    np.testing.assert_array_equal(ours.registered, model.registered)
    np.testing.assert_allclose(ours.cam_from_obj, model.cam_from_obj, atol=1e-12)
    np.testing.assert_allclose(ours.points, model.points)
    assert (ours.focal, ours.size) == (model.focal, model.size)
    np.testing.assert_allclose(np.sort(ours.reprojection_errors()), np.sort(model.reprojection_errors()), atol=1e-9)


def test_a_report_survives_json(reconstructed):
    _, report = reconstructed
    assert ModelReport.from_json(json.loads(json.dumps(asdict(report)))) == report


def test_a_folder_that_is_no_model_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"images\.bin"):
        read_model(tmp_path, 3)
    (tmp_path / "images.bin").write_bytes(b"no model")
    with pytest.raises(DatasetError, match="cannot be read as a COLMAP model"):
        read_model(tmp_path, 3)


def test_a_model_of_more_frames_is_refused(tmp_path, reconstructed):
    model, _ = reconstructed
    write_model(tmp_path, model, np.zeros((len(model.points), 3), np.uint8))
    with pytest.raises(DatasetError, match=r"0011\.png"):
        read_model(tmp_path, 8)


# The step


def make_scene(folder: Path, clips: list[SyntheticClip], focal: float | None) -> Path:
    """What the earlier steps leave behind, with grey images."""
    source = folder / "source"
    num_frames, (width, height) = clips[0].tracks.num_frames, clips[0].size
    generator = np.random.default_rng(0)
    for frame in range(num_frames):
        write_picture(
            source / f"shot_{frame}.png", generator.integers(0, 255, (height, width, 3), endpoint=True, dtype=np.uint8)
        )
    scene = folder / "scene"
    extract_frames(scene, scene, FramesConfig(images=source, focal=focal))
    tracks = [replace(clip.tracks, object_ids=np.full(len(clip.tracks), k)) for k, clip in enumerate(clips)]
    together = (
        np.concatenate([getattr(part, name) for part in tracks]) for name in ("pixels", "visible", "object_ids")
    )
    save_tracks(scene / "sfm", Tracks(*together))
    write_json_atomic(scene / "scene.json", {"name": "made", "objects": ["background", "box"][: len(clips)]})
    return scene


SMALL = {"num_frames": 8, "num_tracks": 500, "size": (160, 120), "focal": 170.0, "noise": 0.1}


def test_the_step_writes_a_model_of_every_object(tmp_path):
    clips = [make_clip("room", **SMALL), make_clip(extent=1.5, **SMALL)]
    scene = make_scene(tmp_path, clips, 170.0)
    told = []
    reconstruct_objects(scene, tmp_path / "staging", CONFIG, lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]
    record = read_models_record(tmp_path / "staging")
    assert (record.focal, record.focal_source) == (170.0, "given")
    for object_id, clip in enumerate(clips):
        model = read_model(model_folder(tmp_path / "staging", object_id), 8)
        assert errors_of(model, clip).rotation.mean() < 0.5
        assert record.objects[object_id].object_id == object_id
        assert record.objects[object_id].registered == model.registered.sum() == 8


def test_an_object_that_cannot_be_reconstructed_is_named(tmp_path):
    box = make_clip(**SMALL)
    clips = [make_clip("room", **SMALL), replace(box, tracks=box.tracks.select(np.arange(4)))]
    scene = make_scene(tmp_path, clips, 170.0)
    with pytest.raises(DatasetError, match=r"object 1 \(box\).* 4 tracks.*--ignore"):
        reconstruct_objects(scene, tmp_path / "staging", CONFIG)


def test_a_background_without_a_pose_in_some_frame_is_refused(tmp_path):
    scene = make_scene(tmp_path, [make_clip("room", hidden=(4,), **SMALL)], 170.0)
    with pytest.raises(DatasetError, match=r"no pose in 1 of 8 frames \(4\)"):
        reconstruct_objects(scene, tmp_path / "staging", CONFIG)


def test_the_background_can_be_somebodys_model(tmp_path):
    clip = make_clip("room", **SMALL)
    scene = make_scene(tmp_path, [clip], 170.0)
    model, _ = reconstruct_from_poses(clip.tracks, clip.size, clip.focal, Poses(clip.cam_from_obj, np.ones(8, bool)))
    theirs = tmp_path / "theirs"
    write_model(theirs, model, np.zeros((len(model.points), 3), np.uint8))
    config = SfmConfig(background_model=theirs)
    with pytest.raises(DatasetError, match=r"poses for 0 of the 8 frames.*shot_0\.png.*000\d\.png"):
        reconstruct_objects(scene, tmp_path / "staging", config)
    reconstruction = pycolmap.Reconstruction(str(theirs))
    for image in reconstruction.images.values():
        image.name = f"folder/shot_{int(image.name[:4])}.jpg"
    reconstruction.write(str(theirs))
    reconstruct_objects(scene, tmp_path / "staging", config)
    ours = read_model(model_folder(tmp_path / "staging", 0), 8)
    np.testing.assert_allclose(ours.cam_from_obj, clip.cam_from_obj, atol=1e-9)


def test_options_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="workers"):
        SfmConfig(workers=0)
    with pytest.raises(ConfigError, match="seed"):
        SfmConfig(seed=-1)


def test_what_a_process_of_its_own_raises_is_told():
    assert call_in_own_process(balanced_subset, np.zeros((2, 3, 2)), np.ones((2, 3), bool), 5).tolist() == [0, 1]
    with pytest.raises(RuntimeError, match=r"(?s)SfmConfig ended with code 1.*workers is 0"):
        call_in_own_process(SfmConfig, workers=0)
