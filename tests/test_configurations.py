"""Sampled configurations on disk: they read back equal, say clearly what is wrong, and are whole or not there."""

import dataclasses
import itertools
import json
import os

import pytest
import torch
from clouds import random_cloud

from osn_gs.errors import OsnGsError
from osn_gs.export.configurations import (
    Configuration,
    ConfigurationSet,
    ExportFrame,
    ObjectInterval,
    PlacedObject,
    export_configuration,
    read_configurations,
    scene_frames,
    spread_over_frames,
    write_configurations,
)
from osn_gs.export.ply import read_gaussian_ply
from osn_gs.gaussians.object_gaussians import ObjectGaussians
from osn_gs.geometry.alignment import Similarity
from osn_gs.geometry.se3 import quat_to_rotmat, rigid_matrix, transform_points
from osn_gs.object_scales.valid_bounds import ValidBounds
from osn_gs.scene.scene import ObjectGroup, Scene

NAMES = ("room", "car", "dog")
SAMPLE = Configuration("contact", (1.0, 0.7, 1.2), score=0.93, oracle_accuracy=0.996)
SAMPLES = ConfigurationSet(
    object_names=NAMES,
    intervals=(ObjectInterval("car", 0.4, 0.9, "near/far", "occlusion"),),
    configurations=(SAMPLE, dataclasses.replace(SAMPLE, name="configuration_000", object_scales=(1.0, 0.1, 1 / 3))),
)


def test_configurations_read_back_equal(tmp_path):
    write_configurations(tmp_path / "configurations.json", SAMPLES)
    assert read_configurations(tmp_path / "configurations.json") == SAMPLES


def test_an_interval_is_the_bounds_of_a_named_object():
    bounds = ValidBounds(1, lo=0.4, hi=0.9, lo_bounded_by="near/far", hi_bounded_by="occlusion")
    assert ObjectInterval.from_bounds(bounds, NAMES) == SAMPLES.intervals[0]


def test_scales_take_device_and_dtype_from_a_tensor():
    scales = SAMPLE.scales_like(torch.zeros(2, dtype=torch.float64))
    assert scales.dtype == torch.float64
    assert scales.tolist() == list(SAMPLE.object_scales)


@pytest.mark.parametrize("count", range(9))
def test_frames_are_spread_from_the_first_to_the_last(count):
    frames = spread_over_frames(7, count)
    assert len(set(frames)) == (7 if count == 0 else min(count, 7))
    assert frames == sorted(frames)
    assert frames[0] == 0
    assert count == 1 or frames[-1] == 6
    steps = {after - before for before, after in itertools.pairwise(frames)}
    assert max(steps, default=1) - min(steps, default=1) <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"object_scales": (1.0, 0.5)}, "'contact' has 2 object scales for 3 objects"),
        ({"object_scales": (1.0, float("nan"), 1.0)}, "needs positive finite object scales"),
        ({"object_scales": (1.0, -1.0, 1.0)}, "needs positive finite object scales"),
        ({"score": 1.2}, r"needs score in \[0, 1\], got 1.2"),
        ({"oracle_accuracy": float("inf")}, r"needs oracle_accuracy in \[0, 1\]"),
    ],
)
def test_a_configuration_that_cannot_be_is_not_written(tmp_path, change, message):
    wrong = dataclasses.replace(SAMPLES, configurations=(dataclasses.replace(SAMPLE, **change),))
    with pytest.raises(OsnGsError, match=message):
        write_configurations(tmp_path / "configurations.json", wrong)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a JSON file"),
        ("[]", "not a list of configurations"),
        ('{"format_version": 9}', "format version 9, this program reads version 1"),
        ('{"format_version": 1, "object_names": []}', "KeyError: 'intervals'"),
        (None, "no such file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, text, message):
    path = tmp_path / "configurations.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(OsnGsError, match=rf"configurations\.json: .*{message}"):
        read_configurations(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"object_name": "cat"}, "'cat' names no object; the objects are room, car, dog"),
        ({"lo": 2.0}, "needs 0 < lo <= hi, got lo 2.0 and hi 0.9"),
        ({"hi": "1"}, "needs 0 < lo <= hi"),
        ({"hi_bounded_by": "luck"}, "bounded by 'luck'; expected occlusion or near/far"),
    ],
)
def test_an_interval_changed_by_hand_is_found(tmp_path, change, message):
    path = tmp_path / "configurations.json"
    write_configurations(path, SAMPLES)
    content = json.loads(path.read_text())
    content["intervals"][0].update(change)
    path.write_text(json.dumps(content))
    with pytest.raises(OsnGsError, match=message):
        read_configurations(path)


def random_scene(num_frames: int = 3) -> Scene:
    """Three objects with different counts; the dog has no pose in frame 1."""
    generator = torch.Generator().manual_seed(0)
    groups = []
    for k, name in enumerate(NAMES):
        cloud = random_cloud(30 + 10 * k, degree=2, seed=k)
        gaussians = ObjectGaussians(
            {
                "means": cloud.means,
                "quats": cloud.quats,
                "scales": cloud.log_scales,
                "opacities": cloud.opacity_logits,
                "sh0": cloud.sh_coeffs[:, :1],
                "shN": cloud.sh_coeffs[:, 1:],
            }
        )
        rotations = quat_to_rotmat(torch.randn(num_frames, 4, generator=generator))
        poses = rigid_matrix(rotations, torch.randn(num_frames, 3, generator=generator))
        visible = torch.tensor([not (name == "dog" and t == 1) for t in range(num_frames)])
        groups.append(ObjectGroup(name, gaussians, poses, visible))
    ranges = torch.tensor([[1.0, 1.0], [0.5, 2.0], [0.5, 2.0]])
    return Scene(groups, torch.eye(3), width=8, height=6, scale_ranges=ranges, near=0.1, far=10.0)


def test_an_exported_scene_stands_where_rendering_places_it(tmp_path):
    scene, object_scales = random_scene(), torch.tensor(SAMPLE.object_scales)
    folder = tmp_path / "export" / "configuration_000"
    export_configuration(folder, SAMPLE, NAMES, scene_frames(scene, object_scales, [0, 1]))
    assert sorted(path.name for path in folder.iterdir()) == ["frame_0000.ply", "frame_0001.ply", "manifest.json"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["object_scales"] == list(SAMPLE.object_scales)
    assert manifest["score"] == SAMPLE.score
    for frame, counts in zip(manifest["frames"], ([30, 40, 50], [30, 40, 0]), strict=True):
        cloud = read_gaussian_ply(folder / frame["file"])
        placed = scene.place(object_scales, frame["index"])
        torch.testing.assert_close(cloud.means, placed.means)
        torch.testing.assert_close(cloud.log_scales.exp(), placed.scales)
        torch.testing.assert_close(cloud.opacity_logits.sigmoid(), placed.opacities)
        assert frame["num_gaussians"] == cloud.num_gaussians == sum(counts)
        for k, (first, last) in enumerate(frame["object_rows"]):
            assert last - first == counts[k]
            assert torch.equal(placed.object_index[first:last], torch.full((counts[k],), k))
            matrix = frame["world_from_obj"][k]
            if counts[k]:
                canonical = scene.objects[k].gaussians.means
                torch.testing.assert_close(transform_points(torch.tensor(matrix), canonical), cloud.means[first:last])
            else:
                assert matrix is None


def one_object_frame(index: int, seed: int = 0) -> ExportFrame:
    identity = Similarity(1.0, torch.eye(3), torch.zeros(3))
    return ExportFrame(index, (PlacedObject(random_cloud(10, seed=seed), identity),))


ONE_OBJECT = Configuration("configuration_000", (1.0,), score=0.9, oracle_accuracy=0.99)


def test_a_later_export_replaces_an_earlier_one_wholly(tmp_path):
    folder = tmp_path / "configuration_000"
    export_configuration(folder, ONE_OBJECT, ["room"], [one_object_frame(0), one_object_frame(1)])
    export_configuration(folder, ONE_OBJECT, ["room"], [one_object_frame(7, seed=1)])
    assert sorted(path.name for path in folder.iterdir()) == ["frame_0007.ply", "manifest.json"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_failed_export_leaves_the_earlier_one_and_nothing_else(tmp_path):
    folder = tmp_path / "configuration_000"
    export_configuration(folder, ONE_OBJECT, ["room"], [one_object_frame(0)])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    diverged = one_object_frame(1)
    diverged.objects[0].gaussians.means[3] = torch.nan
    with pytest.raises(OsnGsError, match=r"configuration_000/frame_0001\.ply: not written.*3 of means"):
        export_configuration(folder, ONE_OBJECT, ["room"], [one_object_frame(0, seed=1), diverged])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_an_export_that_cannot_take_its_place_gives_the_earlier_one_back(tmp_path, monkeypatch):
    folder = tmp_path / "configuration_000"
    export_configuration(folder, ONE_OBJECT, ["room"], [one_object_frame(0)])
    rename = os.rename

    def fail_for_the_new_one(source, target):
        if source.name == "unfinished":
            raise OSError("disk full")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_for_the_new_one)
    with pytest.raises(OSError, match="disk full"):
        export_configuration(folder, ONE_OBJECT, ["room"], [one_object_frame(7)])
    assert sorted(path.name for path in folder.iterdir()) == ["frame_0000.ply", "manifest.json"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_first_export_that_fails_leaves_no_folder(tmp_path):
    with pytest.raises(OsnGsError, match="no frames to export for configuration_000"):
        export_configuration(tmp_path / "configuration_000", ONE_OBJECT, ["room"], [])
    assert not list(tmp_path.iterdir())


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(OsnGsError, match=r"no manifest\.json: not an earlier export"):
        export_configuration(tmp_path, ONE_OBJECT, ["room"], [one_object_frame(0)])
    assert (tmp_path / "thesis.tex").read_text() == "all of it"
