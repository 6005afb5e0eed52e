"""The preparation benchmark: its bad input is bad in the way it says, and its errors are those of the poses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from rich.console import Console

from osn_gs.benchmarks import preparation
from osn_gs.benchmarks.degraded_clips import degraded_focal, degraded_ids, write_degraded_clip
from osn_gs.benchmarks.preparation import PreparationBenchmark, benchmark_preparation
from osn_gs.benchmarks.synthetic_truth import (
    ClipTruth,
    add_truth,
    compare_with_truth,
    copy_deformations,
    read_clip_truth,
    read_synthetic_set,
    true_scales,
)
from osn_gs.data.demo import write_demo_scene
from osn_gs.data.osn_layout import load_scene
from osn_gs.errors import ConfigError, DatasetError

NUM_FRAMES = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A synthetic set whose folder `sfm` holds exact poses in gauges of the objects' own."""
    return write_demo_scene(tmp_path_factory.mktemp("set") / "demo", num_frames=NUM_FRAMES, width=96, height=72)


@pytest.fixture
def truth(data) -> ClipTruth:
    return read_clip_truth(read_synthetic_set(data), np.arange(NUM_FRAMES))


@pytest.fixture
def prepared(data, tmp_path) -> Path:
    """The set as if prepared from its images: without any truth."""
    folder = tmp_path / "prepared"
    shutil.copytree(data, folder)
    for path in (
        *folder.glob("*_test*"),
        *folder.glob("*_stereo*"),
        *folder.glob("depth_train"),
        *folder.glob("sfm/depth/scales_gt.npy"),
    ):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    forget_truth(folder / "transforms_train.json")
    return folder


def forget_truth(path: Path) -> None:
    content = json.loads(path.read_text())
    focal = read_synthetic_set(path.parent).focal
    content.pop("camera_angle_x")
    for frame in content["frames"]:
        frame.pop("object_poses")
    path.write_text(json.dumps({**content, "focal": focal, "near": 0.9}))


def square(size: int, low: int, high: int, value: int = 1) -> np.ndarray:
    ids = np.zeros((size, size), dtype=np.uint8)
    ids[low:high, low:high] = value
    return ids


def test_masks_grow_and_shrink_by_two_pixels():
    ids = square(20, 6, 14)
    grown, shrunk = degraded_ids(ids, "dilate2"), degraded_ids(ids, "erode2")
    assert np.flatnonzero(grown.any(0)).tolist() == list(range(4, 16))
    assert np.flatnonzero(shrunk.any(0)).tolist() == list(range(8, 12))
    np.testing.assert_array_equal(degraded_ids(ids, "clean"), ids)


def test_shrunk_masks_part_objects_that_touch_but_not_from_the_image_edge():
    ids = np.repeat([[1] * 6 + [2] * 6], 12, axis=0).astype(np.uint8)
    np.testing.assert_array_equal(degraded_ids(ids, "erode2"), np.repeat([[1] * 4 + [0] * 4 + [2] * 4], 12, axis=0))


def test_the_focal_length_is_told_wrong_or_not_at_all():
    assert [degraded_focal(200.0, variant) for variant in ("clean", "focal-5%", "focal+5%", "focal-unknown")] == [
        200.0,
        pytest.approx(190),
        pytest.approx(210),
        None,
    ]


def test_half_the_frames_keep_their_names(data, tmp_path):
    clip = write_degraded_clip(tmp_path, read_synthetic_set(data), "half")
    assert clip.kept.tolist() == [0, 2, 4, 6]
    assert sorted(path.name for path in clip.images.iterdir()) == ["0000.png", "0002.png", "0004.png", "0006.png"]
    np.testing.assert_array_equal(np.load(clip.masks / "0006.npy"), np.load(data / "segm_sam" / "0006.npy"))
    np.testing.assert_array_equal(
        cv2.imread(str(clip.images / "0006.png")), cv2.imread(str(data / "images_train" / "0006.png"))
    )


def test_jpeg_images_differ_a_little(data, tmp_path):
    clip = write_degraded_clip(tmp_path, read_synthetic_set(data), "jpeg50")
    original = cv2.imread(str(data / "images_train" / "0003.png")).astype(float)
    difference = np.abs(cv2.imread(str(clip.images / "0003.jpg")) - original)
    assert 0.5 < difference.mean() < 20


def test_exact_poses_have_no_error(prepared, truth):
    errors = compare_with_truth(prepared, truth)
    assert len(errors) == 4
    for found in errors:
        assert found.registered == found.frames
        assert found.rotation_max < 1e-4
        assert found.centre_max < 1e-3
        assert 0 < found.reprojection < 1  # the set's points are noisy


def test_an_object_turned_in_one_frame_is_found_out(prepared, truth):
    path = prepared / "sfm" / "poses" / "pose2.npy"
    obj_from_cam = np.load(path)
    cosine, sine = np.cos(np.radians(5)), np.sin(np.radians(5))
    obj_from_cam[4, :3, :3] = obj_from_cam[4, :3, :3] @ [[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]
    np.save(path, obj_from_cam)
    errors = compare_with_truth(prepared, truth)
    assert errors[2].rotation_max == pytest.approx(5 * (1 - 1 / NUM_FRAMES), rel=0.05)
    assert errors[1].rotation_max < 1e-4


def test_frames_without_a_pose_are_counted(prepared, truth):
    visible = np.ones(NUM_FRAMES, dtype=bool)
    visible[[1, 2]] = False
    np.save(prepared / "sfm" / "poses" / "vis1.npy", visible)
    found = compare_with_truth(prepared, truth)[1]
    assert (found.registered, found.frames) == (NUM_FRAMES - 2, NUM_FRAMES)
    np.save(prepared / "sfm" / "poses" / "vis1.npy", np.arange(NUM_FRAMES) == 3)
    assert compare_with_truth(prepared, truth)[1].rotation_mean is None


def test_true_scales_are_told_from_the_depths_of_the_observations(prepared, data, truth):
    np.testing.assert_allclose(
        true_scales(prepared, truth), np.load(data / "sfm" / "depth" / "scales_gt.npy"), rtol=0.01
    )


def test_with_its_truth_added_a_prepared_clip_loads_as_the_set_does(prepared, data, truth):
    add_truth(prepared, truth)
    found, expected = load_scene(prepared), load_scene(data)
    assert found.object_names == expected.object_names
    assert found.near == 0.9  # what preparation decided stays
    torch.testing.assert_close(found.truth.object_scales, expected.truth.object_scales, rtol=0.02, atol=0)
    torch.testing.assert_close(found.intrinsics, expected.intrinsics)
    for split in ("test", "stereo"):
        for view, original in zip(found.held_out[split], expected.held_out[split], strict=True):
            assert torch.equal(view.image, original.image)
            assert torch.equal(view.object_ids, original.object_ids)
            assert torch.equal(view.depth, original.depth)
            torch.testing.assert_close(
                view.cam_from_background[:3, :3], original.cam_from_background[:3, :3], atol=1e-5, rtol=0
            )
    assert load_scene(prepared, poses="truth").num_frames == NUM_FRAMES


def test_adding_the_truth_twice_changes_nothing(prepared, truth):
    add_truth(prepared, truth)
    once = {path: path.read_bytes() for path in prepared.rglob("*") if path.is_file()}
    add_truth(prepared, truth)
    assert {path: path.read_bytes() for path in prepared.rglob("*") if path.is_file()} == once


def test_of_half_a_clip_the_views_at_its_times_and_cameras_stay(data, prepared):
    kept = np.arange(0, NUM_FRAMES, 2)
    for name in ("pose", "vis"):
        for path in (prepared / "sfm" / "poses").glob(f"{name}*.npy"):
            np.save(path, np.load(path)[kept])
    for path in (prepared / "sfm" / "depth").glob("vid*.npy"):
        frames = np.load(path)
        rows = path.with_name(path.name.replace("vid", "depth"))
        np.save(rows, np.load(rows)[frames % 2 == 0])
        np.save(path, frames[frames % 2 == 0] // 2)
    add_truth(prepared, read_clip_truth(read_synthetic_set(data), kept))
    original = json.loads((data / "transforms_test.json").read_text())["frames"]
    left = json.loads((prepared / "transforms_test.json").read_text())["frames"]
    expected = [frame for frame in original if frame["view"] % 2 == 0 and frame["time_step"] % 2 == 0]
    assert len(left) == len(list((prepared / "images_test").iterdir())) == len(expected) > 0
    assert [(frame["view"], frame["time_step"]) for frame in left] == [
        (frame["view"] // 2, frame["time_step"] // 2) for frame in expected
    ]
    training = json.loads((prepared / "transforms_train.json").read_text())["frames"]
    assert [frame["time_step"] for frame in training] == [0, 1, 2, 3]


def test_the_truth_of_deforming_objects_comes_along_for_the_frames_that_are_kept(data, prepared, tmp_path):
    deforming = shutil.copytree(data, tmp_path / "deforming")
    faces, vertices = np.array([[0, 1, 2]]), np.random.default_rng(0).normal(size=(NUM_FRAMES, 3, 3))
    np.savez(deforming / "deform_obj1.npz", rest=vertices[0], faces=faces, verts=vertices, bend=np.arange(NUM_FRAMES))
    numbered = {f"{kind}{t:04d}": np.array([t]) for t in range(NUM_FRAMES) for kind in ("pix", "rest")}
    np.savez(deforming / "canon_obj1_train.npz", **numbered)
    kept = np.array([0, 3, 6])
    truth = read_clip_truth(read_synthetic_set(deforming), kept)
    copy_deformations(prepared, truth)
    with np.load(prepared / "deform_obj1.npz") as content:
        np.testing.assert_array_equal(content["verts"], vertices[kept])
        np.testing.assert_array_equal(content["bend"], kept)
        np.testing.assert_array_equal(content["faces"], faces)
    with np.load(prepared / "canon_obj1_train.npz") as content:
        assert {name: int(content[name][0]) for name in content} == {
            "pix0000": 0, "rest0000": 0, "pix0001": 3, "rest0001": 3, "pix0002": 6, "rest0002": 6
        }  # fmt: skip


def test_a_set_without_true_poses_is_refused(prepared):
    with pytest.raises(DatasetError, match="has no `object_poses`; poses can be measured on a synthetic set only"):
        read_synthetic_set(prepared)


def test_a_variant_that_cannot_be_prepared_says_why_and_the_next_one_follows(data, tmp_path, monkeypatch):
    told = []

    def prepare(config, console):
        told.append((config.out.name, config.frames.focal))
        raise DatasetError("object 1: no motion fits its tracks.")

    monkeypatch.setattr(preparation, "prepare", prepare)
    options = PreparationBenchmark(data, tmp_path / "out", variants=("focal-5%", "focal-unknown"))
    console = Console(record=True, quiet=False, width=160, file=(tmp_path / "printed").open("w"))
    figures = benchmark_preparation(options, console)
    focal = read_synthetic_set(data).focal
    assert told == [("focal-5%", pytest.approx(0.95 * focal)), ("focal-unknown", None)]
    assert console.export_text().count("not prepared") == 2
    assert json.loads((tmp_path / "out" / "preparation.json").read_text()) == figures
    for found in figures["variants"].values():
        assert found["error"] == "object 1: no motion fits its tracks."


def test_folders_of_an_earlier_run_are_refused_before_anything_is_prepared(data, tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "prepare", lambda config, console: pytest.fail("prepared"))
    (tmp_path / "half").mkdir()
    with pytest.raises(ConfigError, match="half: exists already; delete it, or choose another --out"):
        benchmark_preparation(PreparationBenchmark(data, tmp_path, ("clean", "half")), Console(quiet=True))


def test_variants_named_twice_or_not_at_all_are_refused(data, tmp_path):
    for variants, message in (((), "expected at least one"), (("half", "half"), "expected each once, got half half")):
        with pytest.raises(ConfigError, match=message):
            benchmark_preparation(PreparationBenchmark(data, tmp_path, variants), Console(quiet=True))


@pytest.mark.slow
def test_a_ray_cast_clip_is_prepared_to_within_a_few_degrees(tmp_path):
    data = write_demo_scene(tmp_path / "demo", num_frames=12, width=240, height=180)
    options = PreparationBenchmark(data, tmp_path / "out", with_truth=True)
    found = benchmark_preparation(options, Console(quiet=True))["variants"]["clean"]
    assert found["error"] is None
    assert [obj["name"] for obj in found["objects"]] == list(load_scene(data).object_names)
    background = found["objects"][0]
    assert background["registered"] == 12
    assert background["rotation_max"] < 1
    assert background["centre_max"] < 2
    scene = load_scene(tmp_path / "out" / "clean")
    assert scene.truth is not None
    assert len(scene.held_out["test"]) == len(load_scene(data).held_out["test"])
