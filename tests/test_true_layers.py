"""Layers found from true depths are those a ray caster finds, wherever a frame saw the surface; none is invented."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from osn_gs.data.demo import write_demo_scene
from osn_gs.data.osn_files import MeshSequence, read_mesh_sequence
from osn_gs.data.osn_layout import load_scene
from osn_gs.data.scene_data import SceneData
from osn_gs.data.set_truth import read_set_truth
from osn_gs.data.true_layers import close_gaps, fuse_layer_depths, splat_surfels, surfels_of_mesh, true_layer_depths
from osn_gs.errors import DatasetError
from osn_gs.geometry.se3 import invert_rigid, transform_points
from osn_gs.object_scales.nested_sets import nested_sets_up_to
from osn_gs.object_scales.oracle import ScaleOracle

INTRINSICS = torch.tensor([[40.0, 0, 32], [0, 40.0, 24], [0, 0, 1]], dtype=torch.float64)
EVERYWHERE = torch.ones(48, 64, dtype=torch.bool)
NOTHING_SHOWN = torch.zeros(48, 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """All toys rigid, so that every frame's depths say where they are in all others."""
    folder = tmp_path_factory.mktemp("set") / "demo"
    return write_demo_scene(folder, num_frames=16, width=128, height=96, bending=False)


@pytest.fixture(scope="module")
def without_layers(folder, tmp_path_factory) -> Path:
    """The demo scene as a set that brings depths, ids and poses only."""
    return shutil.copytree(
        folder, tmp_path_factory.mktemp("set") / "demo", ignore=shutil.ignore_patterns("layers_train")
    )


@pytest.fixture(scope="module")
def exact(folder) -> SceneData:
    return load_scene(folder)


@pytest.fixture(scope="module")
def found(without_layers) -> torch.Tensor:
    return true_layer_depths(load_scene(without_layers))


def hidden_pixels(scene: SceneData) -> torch.Tensor:
    return scene.object_ids[:, None] != torch.arange(scene.num_objects)[:, None, None]


def test_loading_a_scene_does_not_pay_for_its_layers(without_layers):
    assert load_scene(without_layers).truth.layer_depths is None


def test_layers_a_set_brings_are_taken_as_they_are(exact):
    assert true_layer_depths(exact) is exact.truth.layer_depths


def test_what_a_frame_shows_has_the_frames_own_depth(exact, found):
    shown = ~hidden_pixels(exact)
    assert_close(found[shown], exact.truth.layer_depths[shown])


def test_hidden_surfaces_are_where_a_ray_caster_finds_them(exact, found):
    hidden = hidden_pixels(exact)
    for k in (0, 2, 3):  # nothing ever hides object 1
        covered, expected = (layers[:, k].isfinite() & hidden[:, k] for layers in (found, exact.truth.layer_depths))
        both = covered & expected
        assert both.sum() > 0.85 * expected.sum()  # the rest no frame saw
        assert both.sum() > 0.9 * covered.sum()  # outlines are good to a fraction of a pixel
        deviation = (found[:, k][both] / exact.truth.layer_depths[:, k][both] - 1).abs()
        assert deviation.median() < 1e-3
        assert (deviation < 0.01).float().mean() > 0.95


def test_the_set_of_valid_scales_is_that_of_the_exact_layers(exact, found):
    oracle, expected = (
        ScaleOracle.from_frames(exact.object_ids, layers, exact.scale_ranges)
        for layers in (found, exact.truth.layer_depths)
    )
    generator = torch.Generator().manual_seed(0)
    shares = []
    for one, other in ((oracle, expected), (expected, oracle)):
        inside = nested_sets_up_to(one.accuracy, 0.995, one.scale_ranges, generator).object_scales[-1]
        shares.append(float((other.accuracy(inside) >= 0.995).double().mean()))
    assert 1 / (1 / shares[0] + 1 / shares[1] - 1) > 0.9  # intersection over union


def test_at_the_true_scales_the_layers_are_the_masks(exact, found):
    oracle = ScaleOracle.from_frames(exact.object_ids, found, exact.scale_ranges)
    assert float(oracle.accuracy(exact.truth.object_scales[None].double())) == 1


def test_of_smaller_pictures_the_layers_are_smaller(exact, without_layers):
    scene = load_scene(without_layers, downscale=2)
    layers = true_layer_depths(scene)
    assert layers.shape == (16, 4, 48, 64)
    expected = exact.truth.layer_depths[:, :, 1::2, 1::2]  # the middle pixels of the blocks
    both = layers.isfinite() & expected.isfinite() & hidden_pixels(scene)
    assert ((layers[both] / expected[both] - 1).abs() < 0.01).float().mean() > 0.95


def test_the_focal_length_is_that_of_the_camera_that_took_the_images(without_layers, found, tmp_path):
    folder = shutil.copytree(without_layers, tmp_path / "estimated")
    path = folder / "transforms_train.json"
    content = json.loads(path.read_text())
    true_focal = 64 / np.tan(0.5 * content["camera_angle_x"])
    content |= {"true_focal": true_focal, "camera_angle_x": 2 * np.arctan(64 / (1.05 * true_focal))}
    path.write_text(json.dumps(content))
    scene = load_scene(folder)
    assert scene.intrinsics[0, 0] == pytest.approx(1.05 * true_focal)
    assert_close(true_layer_depths(scene), found, atol=0, rtol=1e-4)


@pytest.mark.parametrize("missing", ["depth_train", "sfm/depth/scales_gt.npy"])
def test_without_depths_or_scales_there_is_no_truth(without_layers, tmp_path, missing):
    folder = shutil.copytree(without_layers, tmp_path / "less")
    shutil.rmtree(folder / missing) if (folder / missing).is_dir() else (folder / missing).unlink()
    assert true_layer_depths(load_scene(folder)) is None


def square_mesh(depths: list[float]) -> MeshSequence:
    """A square of two triangles, 1 wide, that stands across the camera's axis at another depth in every frame."""
    corners = np.array([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]])
    forward = np.array([0.0, 0.0, 1.0])
    return MeshSequence(
        faces=np.array([[0, 1, 2], [0, 2, 3]]), vertices=np.stack([corners + z * forward for z in depths])
    )


def test_a_mesh_covers_the_pixels_whose_centres_lie_on_it():
    surfels = surfels_of_mesh(square_mesh([2.0, 1.0]), 0, torch.eye(4, dtype=torch.float64), INTRINSICS)
    depths = splat_surfels(surfels, INTRINSICS, EVERYWHERE, NOTHING_SHOWN)
    expected = torch.full((48, 64), torch.inf)
    expected[14:34, 22:42] = 2.0  # 40 px x 1 / 2 about (32, 24)
    assert_close(depths, expected)


def test_a_slanted_mesh_has_its_depth_at_every_pixels_centre():
    corners = torch.tensor([[-1.0, 0.4, 1.2], [1.0, 0.4, 1.2], [1.0, 0.5, 4.0], [-1.0, 0.5, 4.0]])  # a table top
    mesh = MeshSequence(np.array([[0, 1, 2], [0, 2, 3]]), corners.double().numpy()[None])
    depths = splat_surfels(
        surfels_of_mesh(mesh, 0, torch.eye(4, dtype=torch.float64), INTRINSICS), INTRINSICS, EVERYWHERE, NOTHING_SHOWN
    )
    rows = torch.arange(48).float() + 0.5
    slope = 0.1 / 2.8  # y = 0.4 + slope (z - 1.2) on the plane, y = z (row - 24) / 40 on the ray
    expected = ((0.4 - 1.2 * slope) / ((rows - 24) / 40 - slope)).clamp(max=100)
    inside = depths[:, 32].isfinite() & (expected < 3.9)
    assert inside.sum() > 5
    assert_close(depths[inside, 32], expected[inside], rtol=1e-3, atol=0)


def test_a_deforming_object_is_its_mesh_at_the_frames_own_time(without_layers):
    truth = read_set_truth(without_layers)
    distances = torch.linspace(20, 24, 16)  # behind everything else
    in_camera = torch.from_numpy(square_mesh([4.0] * 16).vertices) * distances.double()[:, None, None] / 4
    in_object = transform_points(invert_rigid(truth.cam_from_obj[2]), in_camera)
    mesh = MeshSequence(square_mesh([4.0]).faces, in_object.numpy())
    layers, rigid = (fuse_layer_depths(truth, meshes, downscale=1) for meshes in ({2: mesh}, {}))
    assert_close(layers[:, [0, 1, 3]], rigid[:, [0, 1, 3]])
    hidden = torch.from_numpy(truth.object_ids != 2)
    middle = torch.zeros_like(hidden)
    half = int(truth.focal / 8) - 1  # of the square's image, 1 / 4 of the focal length wide
    middle[:, 48 - half : 48 + half, 64 - half : 64 + half] = True
    expected = distances[:, None, None].expand(hidden.shape)
    found = layers[:, 2][hidden & middle]
    assert found.numel() > 1000
    as_meshed = (found / expected[hidden & middle] - 1).abs() < 1e-4
    assert as_meshed.float().mean() > 0.99  # the rest are narrow gaps beside what the frames show of the object


def test_the_demos_bent_tower_is_found_from_its_stored_mesh(tmp_path):
    """Where its rings meet, pieces of both blend, so that a few pixels are off by part of a ring's depth."""
    folder = write_demo_scene(tmp_path / "demo", num_frames=16, width=128, height=96, num_held_out=1)
    exact = load_scene(folder)
    shutil.rmtree(folder / "layers_train")
    layers, expected = (layers[:, 2] for layers in (true_layer_depths(load_scene(folder)), exact.truth.layer_depths))
    hidden = exact.object_ids != 2
    both = hidden & layers.isfinite() & expected.isfinite()
    assert both.sum() > 0.99 * (hidden & expected.isfinite()).sum()
    assert both.sum() > 0.9 * (hidden & layers.isfinite()).sum()
    deviation = (layers[both] / expected[both] - 1).abs()
    assert deviation.median() < 1e-3
    assert (deviation < 0.01).float().mean() > 0.92


def test_gaps_of_a_surface_are_closed_and_what_is_shown_stays():
    depths = torch.full((9, 9), 2.0)
    depths[:, 7:] = torch.inf  # beyond the surface's edge
    depths[2, 2], depths[2, 5], depths[6, 2] = torch.inf, 3.0, 3.0  # nothing, and twice a far side, shows through
    hidden = torch.ones(9, 9, dtype=torch.bool)
    hidden[6, 2] = False
    closed = close_gaps(depths, hidden, torch.where(hidden, 0.5, depths))
    expected = torch.full((9, 9), 2.0)
    expected[:, 7:], expected[6, 2] = torch.inf, 3.0
    assert_close(closed, expected)


def test_a_gap_is_not_closed_before_what_the_frame_shows():
    depths = torch.full((9, 9), 2.0)
    depths[4, 4] = torch.inf
    shown = torch.full((9, 9), 0.5)
    shown[4, 4] = 4.0  # the frame looks through: the gap is a hole
    assert close_gaps(depths, torch.ones(9, 9, dtype=torch.bool), shown)[4, 4].isinf()


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({"faces": np.zeros((2, 3), int)}, "without the arrays `faces` and `verts`"),
        ({"faces": np.zeros((2, 3), int), "verts": np.zeros((5, 4, 3))}, r"expected \(16, V, 3\)"),
        ({"faces": np.full((2, 3), 4), "verts": np.zeros((16, 4, 3))}, "faces of vertices 0 to 3"),
    ],
)
def test_a_broken_mesh_gets_one_clear_line(tmp_path, arrays, named):
    np.savez(tmp_path / "deform_obj1.npz", **arrays)
    with pytest.raises(DatasetError, match=rf"deform_obj1.npz: .*{named}"):
        read_mesh_sequence(tmp_path / "deform_obj1.npz", num_frames=16)
