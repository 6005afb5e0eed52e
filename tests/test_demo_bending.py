"""The demo's ring tower bends, and what is stored of its bending is what the images show."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from osn_gs.data import demo_scene
from osn_gs.data.bending_truth import SurfaceTracks, bending_objects, read_bending_truth
from osn_gs.data.carried_solids import moved_along
from osn_gs.data.demo import write_demo_scene
from osn_gs.data.osn_files import read_transforms
from osn_gs.data.osn_layout import load_scene
from osn_gs.data.pinhole import project, unproject
from osn_gs.data.ray_casting import Ball, Cube, Frustum, Ring, Solid
from osn_gs.data.scene_data import SceneData
from osn_gs.data.set_truth import true_cam_from_obj
from osn_gs.data.tessellation import tessellate
from osn_gs.geometry.se3 import invert_rigid, transform_points

TOWER, TEAPOT = 2, 3
CLIP = np.linspace(0, 1, 24)


@pytest.fixture(scope="module")
def scene(demo_folder: Path) -> SceneData:
    return load_scene(demo_folder)


@pytest.fixture(scope="module")
def surface(demo_folder: Path) -> dict[str, np.ndarray]:
    with np.load(demo_folder / f"deform_obj{TOWER}.npz") as content:
        return dict(content)


def size_of(points: np.ndarray) -> float:
    return float(np.linalg.norm(points.max(axis=0) - points.min(axis=0)))


def distances_after_best_rigid_fit(points: np.ndarray, moved: np.ndarray) -> np.ndarray:
    points, moved = points - points.mean(axis=0), moved - moved.mean(axis=0)
    rotation, _ = Rotation.align_vectors(moved, points)
    return np.linalg.norm(rotation.apply(points) - moved, axis=1)


def test_only_the_tower_bends(demo_folder):
    assert bending_objects(demo_folder) == (TOWER,)
    for progress in (0.2, 0.7):
        for k, (solids, at_start) in enumerate(zip(*map(demo_scene.objects, (progress, 0.0)), strict=True)):
            moves = [abs(a.centre - b.centre).max() for a, b in zip(solids, at_start, strict=True)]
            assert (max(moves) > 0) == (k == TOWER)


def test_no_rigid_motion_explains_the_tower(surface):
    size = size_of(surface["rest"])
    errors = [distances_after_best_rigid_fit(*pair).mean() / size for pair in combinations(surface["verts"], 2)]
    assert max(errors) > 0.03
    assert np.median(errors) > 0.015


def test_the_base_stands_still_and_nothing_sinks_into_the_table(surface):
    base = surface["rest"][:, 2] < 0.9 * demo_scene.SPINE_FOOT
    assert base.sum() > 100
    for moved in surface["verts"]:
        assert_allclose(moved[base], surface["rest"][base], atol=1e-6)
        assert moved[:, 2].min() > -1e-6


def test_the_top_sways_two_fifths_of_the_height_to_either_side(surface):
    top = np.array([0, 0, surface["rest"][:, 2].max(), 1])
    for times, side in ((CLIP[:16], 1), (CLIP[16:], -1)):
        aside = [
            demo_scene.object_poses(p)[TOWER, 0, :3]
            @ (demo_scene.spine_motion(top[2], demo_scene.tower_bend(p)) @ top - top)[:3]
            for p in times
        ]
        assert 0.35 < (side * np.array(aside)).max() / top[2] < 0.45


def test_the_tower_sways_across_the_view():
    """Wherever it leans much, and although it turns by 100 degrees."""
    for progress in CLIP:
        lean = demo_scene.object_poses(progress)[TOWER, :3, :2] @ demo_scene.tower_bend(progress)
        across = demo_scene.camera_pose(progress)[:3, 0] @ lean
        assert abs(across) > 0.85 * np.linalg.norm(lean) or np.linalg.norm(lean) < 0.5 * demo_scene.SWAY


def test_the_spine_keeps_its_length_and_turns_evenly():
    bend = np.array([1.1, -0.7])
    heights = np.linspace(0, 0.6, 601)
    motions = [demo_scene.spine_motion(height, bend) for height in heights]
    spine = np.array([motion @ [0, 0, height, 1] for height, motion in zip(heights, motions, strict=True)])
    assert_allclose(np.linalg.norm(np.diff(spine, axis=0), axis=1), 1e-3, rtol=1e-4)
    for (height, below), (_, above) in pairwise(zip(heights, motions, strict=True)):
        turned = Rotation.from_matrix(above[:3, :3] @ below[:3, :3].T).magnitude()
        expected = 1e-3 * np.linalg.norm(bend) if height > demo_scene.SPINE_FOOT - 1e-6 else 0
        assert turned == pytest.approx(expected, abs=1e-6)
    tangents = np.diff(spine[:, :3], axis=0) / 1e-3
    axes = np.array([motion[:3, 2] for motion in motions[1:]])
    assert_allclose(tangents, axes, atol=1e-3)  # what sits on the spine stays square to it
    for height in (0.0, 0.3):
        assert_allclose(demo_scene.spine_motion(height, np.zeros(2)), np.eye(4), atol=1e-12)


def test_the_tower_and_the_teapot_never_touch():
    for progress in CLIP[1::2]:
        poses = demo_scene.object_poses(progress)
        clouds = []
        for k in (TOWER, TEAPOT):
            vertices, _, _ = tessellate(demo_scene.objects(progress)[k], spacing=0.02)
            clouds.append(vertices @ poses[k, :3, :3].T + poses[k, :3, 3])
        distances, _ = cKDTree(clouds[0]).query(clouds[1])
        assert distances.min() > 0.03


def test_a_solids_texture_goes_along_with_it():
    solids = demo_scene.objects(0.0, bending=False)[TOWER]
    motion = demo_scene.spine_motion(0.5, np.array([1.0, 0.8]))
    vertices, faces, solid_of_vertex = tessellate(solids, spacing=0.03)
    middles = vertices[faces].mean(axis=1)  # unlike vertices none lies on a rim, where normals jump
    solid_of_face = solid_of_vertex[faces[:, 0]]
    for number, solid in enumerate(solids):
        points = middles[solid_of_face == number]
        colours, normals = solid.colours_and_normals(points)
        carried = solid.carried(motion).colours_and_normals(points @ motion[:3, :3].T + motion[:3, 3])
        assert_allclose(carried[0], colours, atol=2e-3)
        assert_allclose(carried[1], normals @ motion[:3, :3].T, atol=2e-3)


def true_depth(folder: Path, split: str, i: int) -> torch.Tensor:
    return torch.from_numpy(np.load(folder / f"depth_{split}" / f"{i:04d}.npy")).double()


@pytest.fixture(scope="module")
def tracks(demo_folder) -> tuple[SurfaceTracks, ...]:
    return read_bending_truth(demo_folder, TOWER, tuple(range(8)), num_points=200).tracks


def test_points_carried_from_rest_are_where_their_pixels_show_them(demo_folder, scene, tracks):
    """To within what the nearest vertex's turn leaves of the way to it."""
    intrinsics = scene.intrinsics.double()
    for from_frame in tracks:
        pixels = from_frame.pixels * torch.tensor([scene.width, scene.height])
        columns, rows = pixels.long().unbind(1)
        depths = true_depth(demo_folder, "train", from_frame.frame)[rows, columns]
        carried = from_frame.in_camera[from_frame.frame]
        assert len(pixels) > 50
        distances = (carried - unproject(pixels, depths, intrinsics)).norm(dim=1)
        assert (project(carried, intrinsics) - pixels).norm(dim=1).median() < 0.15
        assert distances.mean() < 0.004
        assert (distances < 0.01).double().mean() > 0.9


def test_a_point_has_its_colour_in_every_frame_that_shows_it(demo_folder, scene, tracks):
    """What is painted on the tower goes where the stored truth says, not where the poses alone carry it."""
    cam_from_obj = true_cam_from_obj(read_transforms(demo_folder / "transforms_train.json"))[TOWER]
    followed, rigid = [], []
    for from_frame in tracks:
        start = from_frame.frame
        rigid_way = transform_points(cam_from_obj @ invert_rigid(cam_from_obj[start]), from_frame.in_camera[start])
        followed += colour_changes(demo_folder, scene, start, from_frame.in_camera)
        rigid += colour_changes(demo_folder, scene, start, rigid_way)
    assert torch.cat(followed).median() < 0.7 * torch.cat(rigid).median()


def colour_changes(folder: Path, scene: SceneData, start: int, way: torch.Tensor) -> list[torch.Tensor]:
    """Mean colour differences of points from the start frame's, for each other frame, where their depth is shown."""
    colours, seen = [], []
    for t, points in enumerate(way):
        columns, rows = project(points, scene.intrinsics.double()).long().unbind(1)
        colours.append(scene.images[t, rows, columns].double() / 255)
        seen.append((true_depth(folder, "train", t)[rows, columns] - points[:, 2]).abs() < 0.01)
    return [
        (colours[t] - colours[start]).abs().mean(dim=1)[seen[t] & seen[start]] for t in range(len(way)) if t != start
    ]


@pytest.mark.parametrize("split", ["test", "stereo"])
def test_held_out_views_show_the_tower_as_it_is_bent_at_their_time(demo_folder, scene, surface, split):
    transforms = read_transforms(demo_folder / f"transforms_{split}.json")
    cam_from_obj = true_cam_from_obj(transforms)[TOWER]
    for i, view in enumerate(scene.held_out[split]):
        shown = view.object_ids == TOWER
        pixels = torch.nonzero(shown).flip(1) + 0.5
        in_camera = unproject(pixels.double(), true_depth(demo_folder, split, i)[shown], scene.intrinsics.double())
        in_object = transform_points(invert_rigid(cam_from_obj[i]), in_camera)
        distances, _ = cKDTree(surface["verts"][view.time_step]).query(in_object)
        assert len(distances) > 50
        assert distances.max() < 0.025


def test_without_bending_the_tower_is_straight_at_all_times(tmp_path):
    folder = write_demo_scene(tmp_path / "rigid", 3, 64, 48, num_held_out=1, bending=False)
    assert not list(folder.glob("*.npz"))
    straight = demo_scene.objects(0.0, bending=False)[TOWER]
    for progress in (0.3, 1.0):
        for part, rest in zip(demo_scene.objects(progress, bending=False)[TOWER], straight, strict=True):
            assert_allclose(part.centre, rest.centre, atol=0)
            assert_allclose(part.rotation, rest.rotation, atol=0)
        assert all((part.centre[:2] == 0).all() for part in straight)


ROUND = [
    (Ball(), (0.3, 0.3, 0.2), 4 / 3 * math.pi * 0.018),
    (Frustum(0.5), (0.3, 0.3, 0.2), 0.4 / 3 * math.pi * 0.09 * 1.75),
    (Ring(0.3), (0.3, 0.3, 0.3), 2 * math.pi**2 * 0.3 * 0.09**2),
]


@pytest.mark.parametrize(("shape", "half_size", "volume"), ROUND)
def test_a_mesh_is_closed_faces_outwards_and_encloses_its_solid(shape, half_size, volume):
    solid = Solid(
        shape, np.array([0.1, -0.2, 0.4]), np.array(half_size), demo_scene.turn(0, 40), lambda points, normals: points
    )
    vertices, faces, solid_of_vertex = tessellate([solid, solid], spacing=0.02)
    half = len(faces) // 2
    assert solid_of_vertex.tolist() == [0] * (len(vertices) // 2) + [1] * (len(vertices) // 2)
    assert_allclose(vertices[faces[half:]], vertices[faces[:half]])
    edges = Counter(tuple(edge) for a, b, c in faces[:half].tolist() for edge in ((a, b), (b, c), (c, a)))
    assert set(edges.values()) == {1}
    assert all((b, a) in edges for a, b in edges)  # each edge is shared by two faces that run against each other
    corners = vertices[faces[:half]]
    enclosed = np.linalg.det(corners - solid.centre).sum() / 6
    assert enclosed == pytest.approx(volume, rel=0.02)
    assert np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max() < 2 * 0.02


def test_a_cube_has_no_mesh_of_revolution():
    solid = Solid(Cube(), np.zeros(3), np.ones(3), np.eye(3), lambda points, normals: points)
    with pytest.raises(TypeError, match="not round about its z axis"):
        tessellate([solid], spacing=0.1)


def test_points_move_with_the_solid_they_are_fixed_to():
    bent, rest = (demo_scene.objects(0.4, bending)[TOWER] for bending in (True, False))
    vertices, _, solid_of_vertex = tessellate(rest, spacing=0.03)
    there = moved_along(vertices, solid_of_vertex, rest, bent)
    assert_allclose(moved_along(there, solid_of_vertex, bent, rest), vertices, atol=1e-6)
    distances = np.linalg.norm(np.diff(there, axis=0), axis=1)[np.diff(solid_of_vertex) == 0]
    expected = np.linalg.norm(np.diff(vertices, axis=0), axis=1)[np.diff(solid_of_vertex) == 0]
    assert_allclose(distances, expected, atol=1e-6)
