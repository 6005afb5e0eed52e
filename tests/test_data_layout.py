"""Scene folders: conventions at the border, and what a broken folder is told."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from osn_gs.data.held_out import align_cameras
from osn_gs.data.osn_layout import load_scene
from osn_gs.data.pinhole import project, unproject
from osn_gs.data.scene_data import HeldOutView
from osn_gs.errors import DatasetError
from osn_gs.geometry.alignment import Similarity
from osn_gs.geometry.se3 import invert_rigid, quat_to_rotmat, rigid_matrix, transform_points


@pytest.fixture(scope="module")
def scene(demo_folder):
    return load_scene(demo_folder, poses="truth")


@pytest.fixture
def folder(demo_folder, tmp_path):
    """A copy to break."""
    return shutil.copytree(demo_folder, tmp_path / "copy")


@pytest.fixture
def normal():
    def draw(*shape, seed=0):
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    return draw


def pixel_grid(scene):
    rows, columns = torch.meshgrid(torch.arange(scene.height), torch.arange(scene.width), indexing="ij")
    return torch.stack([columns, rows], dim=-1) + 0.5


def true_depth(scene, t):
    """Depth of what is seen in a training frame, in the scene's units."""
    return (scene.truth.layer_depths[t] * scene.truth.object_scales[:, None, None]).amin(0)


@pytest.mark.parametrize("poses", ["preproc", "truth"])
def test_at_the_true_scales_the_layers_are_the_masks(demo_folder, poses):
    scene = load_scene(demo_folder, poses=poses)
    depths = scene.truth.layer_depths * scene.truth.object_scales[:, None, None]
    assert torch.equal(depths.argmin(1).to(torch.uint8), scene.object_ids)


def test_sparse_points_lie_on_their_object_and_on_its_surface(scene):
    for k, points in enumerate(scene.sparse_points):
        columns, rows = points.pixels.long().unbind(-1)
        inside = (columns >= 0) & (rows >= 0) & (columns < scene.width) & (rows < scene.height)
        frames, columns, rows = points.frames[inside], columns[inside], rows[inside]
        assert (scene.object_ids[frames, rows, columns] == k).float().mean() > 0.9
        surface = scene.truth.layer_depths[frames, k, rows, columns]
        assert (points.depths[inside] / surface - 1).abs().median() < 0.01


def test_every_object_has_a_gauge_of_its_own(scene):
    scales, rotations = scene.truth.object_scales, scene.cam_from_obj[:, 0, :3, :3]
    assert (scales[1:] - 1).abs().min() > 1e-3
    turns = [torch.linalg.matrix_norm(rotations[0] - rotations[k]) for k in range(1, scene.num_objects)]
    assert min(turns) > 0.1


def test_scale_ranges_have_middle_one_and_hold_the_true_scales(scene):
    assert_close(scene.scale_ranges.mean(1), torch.ones(scene.num_objects))
    assert scene.scale_ranges[0].tolist() == [1, 1]
    lo, hi = scene.scale_ranges[1:].unbind(-1)
    assert ((lo < scene.truth.object_scales[1:]) & (scene.truth.object_scales[1:] < hi)).all()


def test_far_points_of_the_background_stand_just_before_far(scene):
    background = scene.sparse_points[0]
    per_frame = [background.depths[background.frames == t].quantile(0.95) for t in range(scene.num_frames)]
    assert_close(max(per_frame), torch.tensor(0.95 * scene.far))


def test_the_same_seed_gives_the_same_gauge_and_another_another(demo_folder, scene):
    again, other = (load_scene(demo_folder, poses="truth", seed=seed) for seed in (0, 1))
    assert torch.equal(again.cam_from_obj, scene.cam_from_obj)
    assert not torch.allclose(other.cam_from_obj[1], scene.cam_from_obj[1])
    assert_close(other.truth.object_scales, scene.truth.object_scales, rtol=0.02, atol=0)


@pytest.mark.parametrize(("poses", "split"), [("truth", "test"), ("truth", "stereo"), ("preproc", "stereo")])
def test_training_depth_carried_into_a_held_out_camera_meets_its_depth(demo_folder, poses, split):
    scene = load_scene(demo_folder, poses=poses)
    medians = {}
    for shift in (-0.5, 0.0, 0.5):  # a half-pixel mistake must be worse than none
        differences = [held_out_depth_difference(scene, view, shift) for view in scene.held_out[split]]
        medians[shift] = torch.cat(differences).median()
    assert medians[0.0] < 0.01
    assert medians[0.0] < min(medians[-0.5], medians[0.5])


def held_out_depth_difference(scene, view, shift):
    """Relative differences between carried and true depth where both see the same surface; principal point moved."""
    t = view.time_step
    pixels = pixel_grid(scene).reshape(-1, 2) + shift
    points_cam = unproject(pixels, true_depth(scene, t).reshape(-1), scene.intrinsics)
    background_from_cam = invert_rigid(scene.cam_from_obj[0, t])
    carried = transform_points(view.cam_from_background @ background_from_cam, points_cam)
    columns, rows = (project(carried, view.intrinsics) - shift).floor().long().unbind(-1)
    inside = (carried[:, 2] > 0) & (columns >= 0) & (rows >= 0) & (columns < scene.width) & (rows < scene.height)
    units = true_depth(scene, 0)[0, 0] / np.load(scene.folder / "depth_train" / "0000.npy")[0, 0]
    relative = carried[inside, 2] / (units * view.depth[rows[inside], columns[inside]]) - 1
    return relative.abs()[relative.abs() < 0.05]


def test_cameras_on_a_straight_path_are_placed_by_their_orientations(normal):
    """Their centres alone leave the turn about the path open."""
    path = torch.arange(5.0)[:, None] * torch.tensor([1.0, 2.0, 0.5])
    world_from_cam = rigid_matrix(quat_to_rotmat(normal(5, 4)), path)
    true = Similarity(1.7, quat_to_rotmat(normal(4, seed=1)), torch.tensor([0.3, -1.0, 2.0]))
    background_from_cam = rigid_matrix(true.rotation @ world_from_cam[:, :3, :3], true.apply(path))
    for found, expected in zip(align_cameras(world_from_cam, background_from_cam), true, strict=True):
        assert_close(torch.as_tensor(found), torch.as_tensor(expected), rtol=1e-4, atol=1e-4)


def test_every_held_out_view_has_a_lens_of_its_own(folder):
    edit_transforms(folder, lambda c: c.update(camera_angle_x=2 * np.arctan(32 / 100)), "transforms_stereo.json")
    held_out = load_scene(folder).held_out
    assert_close(held_out["stereo"][0].intrinsics.diagonal(), torch.tensor([100.0, 100, 1]))
    assert held_out["test"][0].intrinsics[0, 0] < 90
    with pytest.raises(TypeError, match="intrinsics"):
        HeldOutView("view", 0, torch.eye(4), held_out["test"][0].image)


def test_released_folders_count_pixels_from_their_centres(folder):
    """Without the key, a pixel number u has the ray (u - W/2)/f: our principal point is half a pixel further."""
    path = folder / "transforms_train.json"
    content = json.loads(path.read_text())
    del content["pixel_center"]
    path.write_text(json.dumps(content))
    ours, released = load_scene(folder, pixel_center=0.5), load_scene(folder)
    assert_close(released.intrinsics[:2, 2], ours.intrinsics[:2, 2] + 0.5)
    for a, b in zip(ours.sparse_points, released.sparse_points, strict=True):
        assert_close(b.pixels, a.pixels + 0.5)
        assert_close(unproject(b.pixels, b.depths, released.intrinsics), unproject(a.pixels, a.depths, ours.intrinsics))
    assert load_scene(folder, poses="truth").intrinsics[0, 2] == 32  # true poses: Blender's word


def test_downscaling_keeps_rays_and_averages_colours(demo_folder):
    full, half = load_scene(demo_folder), load_scene(demo_folder, downscale=2)
    assert half.images.shape == (8, 24, 32, 3)
    rays_full = unproject(pixel_grid(full), torch.ones(48, 64), full.intrinsics)
    rays_half = unproject(pixel_grid(half), torch.ones(24, 32), half.intrinsics)
    assert_close(rays_half, rays_full.reshape(24, 2, 32, 2, 3).mean((1, 3)))
    averaged = full.images.float().reshape(8, 24, 2, 32, 2, 3).mean((2, 4))
    assert (half.images.float() - averaged).abs().max() <= 0.5
    for k in range(full.num_objects):
        assert_close(half.sparse_points[k].pixels, full.sparse_points[k].pixels / 2)


def test_masks_may_be_indexed_pictures_and_images_jpegs(folder, demo_folder):
    for path in sorted((folder / "segm_sam").glob("*.npy")):
        picture = Image.fromarray(np.load(path)).convert("P")
        picture.putpalette([200, 30, 30, 30, 200, 30, 30, 30, 200, 90, 90, 90])
        picture.save(path.with_suffix(".png"))
        path.unlink()
    for path in sorted((folder / "images_train").glob("*.png")):
        Image.open(path).save(path.with_suffix(".jpg"), quality=95, subsampling=0)
        path.unlink()
    scene, expected = load_scene(folder), load_scene(demo_folder)
    assert torch.equal(scene.object_ids, expected.object_ids)
    assert (scene.images.float() - expected.images.float()).abs().mean() < 6


def edit_transforms(folder, change, name="transforms_train.json"):
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def edit_frames(folder, change, name="transforms_train.json"):
    """`change` is called with the number and the entry of every frame of a transforms file."""
    edit_transforms(folder, lambda c: [change(i, frame) for i, frame in enumerate(c["frames"])], name)


def make_real(folder):
    """The real variant of the demo folder: a focal length, no object poses, cameras without a number."""
    for path in folder.glob("transforms_*.json"):
        focal = 32 / np.tan(0.5 * json.loads(path.read_text())["camera_angle_x"])
        edit_transforms(folder, lambda c, f=focal: (c.pop("camera_angle_x"), c.update(focal=f)), path.name)
        edit_frames(folder, lambda i, frame: (frame.pop("object_poses"), frame.pop("view")), path.name)


def edit_masks(folder, change):
    for path in (folder / "segm_sam").iterdir():
        np.save(path, change(np.load(path)))


def set_pose_nan(folder):
    path = folder / "sfm" / "poses" / "pose2.npy"
    poses = np.load(path)
    poses[5, 0, 3] = np.nan
    np.save(path, poses)


def hide(folder, k, frames):
    path = folder / "sfm" / "poses" / f"vis{k}.npy"
    visible = np.load(path)
    visible[list(frames)] = False
    np.save(path, visible)


def set_layer_nan(folder):
    path = folder / "layers_train" / "0002.npz"
    with np.load(path) as content:
        depth = content["depth"]
    depth[1, 5, 5] = np.nan
    np.savez(path, depth=depth)


BROKEN = {
    "no transforms": (lambda f: (f / "transforms_train.json").unlink(), "transforms_train.json: no such file"),
    "bad json": (lambda f: (f / "transforms_train.json").write_text("{"), "not valid JSON"),
    "no focal": (lambda f: edit_transforms(f, lambda c: c.pop("camera_angle_x")), "neither `camera_angle_x`"),
    "missing frame": (lambda f: (f / "images_train" / "0003.png").unlink(), "image of frame 3 is missing"),
    "missing held-out": (lambda f: (f / "images_test" / "0001.png").unlink(), "image of frame 1 is missing"),
    "no image": (lambda f: (f / "images_train" / "0003.png").write_text("x"), "0003.png: cannot be read"),
    "image size": (lambda f: edit_transforms(f, lambda c: c.update(img_w=80)), "image is 48x64 but"),
    "mask count": (lambda f: (f / "segm_sam" / "0002.npy").unlink(), "holds 7 masks but"),
    "mask size": (lambda f: edit_masks(f, lambda m: m[:-1]), "mask is 47x64 but the images are 48x64"),
    "mask values": (lambda f: edit_masks(f, lambda m: m + 0.5), "whole object ids"),
    "id gap": (lambda f: edit_masks(f, lambda m: np.where(m == 2, 0, m)), r"gap: \[2\] never occur"),
    "one object": (lambda f: edit_masks(f, lambda m: 0 * m), "only one object"),
    "unposed object": (lambda f: edit_masks(f, lambda m: np.where(m == 3, 2, m)), "poses of 4"),
    "NaN pose": (set_pose_nan, r"pose2.npy: pose of frame 5: holds NaN"),
    "NaN camera": (
        lambda f: edit_transforms(f, lambda c: c["frames"][4]["transform_matrix"][1].__setitem__(3, float("nan"))),
        r"transforms_train.json: frame 4: transform_matrix: holds NaN",
    ),
    "scaled pose": (
        lambda f: edit_transforms(f, lambda c: c["frames"][1]["object_poses"][2][0].__setitem__(0, 7.0)),
        r"frame 1: object_poses\[2\]: the 3x3 part is no rotation",
    ),
    "point frames": (
        lambda f: np.save(f / "sfm/depth/vid1.npy", np.load(f / "sfm/depth/vid1.npy") + 9),
        "expected 0 to 7",
    ),
    "true scales": (lambda f: np.save(f / "sfm/depth/scales_gt.npy", np.ones(3)), r"shape \(3,\); expected \(4\)"),
    "two preprocs": (lambda f: shutil.copytree(f / "sfm", f / "other"), "several preprocessed folders"),
    "time step": (
        lambda f: edit_transforms(f, lambda c: c["frames"][0].update(time_step=8), "transforms_stereo.json"),
        "time_step is 8; expected a training frame 0 to 7",
    ),
    "no time step": (
        lambda f: edit_frames(f, lambda i, frame: frame.pop("time_step"), "transforms_stereo.json"),
        "transforms_stereo.json: frame 0: has no `time_step`",
    ),
    "no view": (
        lambda f: edit_frames(f, lambda i, frame: frame.pop("view"), "transforms_test.json"),
        "transforms_test.json: frame 0: has no `view`",
    ),
    "no time step, real": (
        lambda f: (make_real(f), edit_frames(f, lambda i, frame: frame.pop("time_step"), "transforms_test.json")),
        "transforms_test.json: frame 0: has no `time_step`",
    ),
    "broken time step": (
        lambda f: edit_transforms(f, lambda c: c["frames"][2].update(time_step=1.5), "transforms_test.json"),
        "frame 2: expected a whole number for `time_step`, got 1.5",
    ),
    "every other frame": (
        lambda f: edit_frames(f, lambda i, frame: frame.update(time_step=2 * i)),
        "transforms_train.json: frame 1: time_step is 2; expected 1",
    ),
    "background lost": (lambda f: hide(f, 0, [6]), "vis0.npy: the background is not visible in frame 6"),
    "background never seen": (lambda f: hide(f, 0, range(8)), "vis0.npy: the background is not visible in frame 0"),
    "no frame shows anything": (lambda f: [hide(f, k, [3]) for k in range(4)], "not visible in frame 3"),
    "no background": (lambda f: edit_masks(f, lambda m: np.maximum(m, 1)), r"gap: \[0\] never occur"),
    "NaN layer": (lambda f: set_layer_nan(f), r"layers_train.0002.npz: 1 of \d+ depths are NaN"),
    "other path": (
        lambda f: (
            edit_frames(f, lambda i, frame: frame.pop("time_step")),
            edit_transforms(f, lambda c: c["frames"].insert(0, c["frames"].pop())),
        ),
        "camera path of transforms_train.json and the background's poses differ",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_gets_one_clear_line(folder, case):
    damage, message = BROKEN[case]
    damage(folder)
    with pytest.raises(DatasetError, match=message) as caught:
        load_scene(folder)
    assert "\n" not in str(caught.value)


def test_training_frames_need_not_say_their_number_nor_real_cameras_theirs(folder, demo_folder):
    make_real(folder)
    edit_frames(folder, lambda i, frame: frame.pop("time_step"))
    real, synthetic = load_scene(folder), load_scene(demo_folder)
    assert_close(real.cam_from_obj, synthetic.cam_from_obj)
    for a, b in zip(real.held_out["test"], synthetic.held_out["test"], strict=True):
        assert a.time_step == b.time_step
        assert_close(a.cam_from_background, b.cam_from_background, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("missing", [(1, 2, 3), (2,)])
def test_without_ranges_in_its_files_a_scene_is_the_same_whatever_the_unit_of_its_background(
    folder, demo_folder, missing
):
    """near and far hold in the background's units, which are arbitrary until its far points are put before far."""
    background_unit = 3.0
    poses, points = np.load(folder / "sfm/poses/pose0.npy"), np.load(folder / "sfm/depth/depth0.npy")
    scales = np.load(folder / "sfm/depth/scales_gt.npy")
    poses[:, :3, 3] *= background_unit
    points[:, 2] *= background_unit
    scales[0] /= background_unit
    np.save(folder / "sfm/poses/pose0.npy", poses)
    np.save(folder / "sfm/depth/depth0.npy", points)
    np.save(folder / "sfm/depth/scales_gt.npy", scales)
    for k in (1, 2, 3):
        path = folder / f"sfm/depth/scale{k}.npy"
        np.save(path, background_unit * np.load(path))  # the scene is larger by as much
    for k in missing:
        (folder / f"sfm/depth/scale{k}.npy").unlink()
    found, expected = load_scene(folder), load_scene(demo_folder)
    assert_close(found.scale_ranges, expected.scale_ranges)
    assert_close(found.truth.object_scales, expected.truth.object_scales)
    assert_close(found.cam_from_obj, expected.cam_from_obj)
    assert_close(found.held_out["stereo"][1].cam_from_background, expected.held_out["stereo"][1].cam_from_background)


def test_unknown_depth_is_left_to_the_evaluation_of_held_out_views_but_refused_where_points_are_drawn(folder):
    unknown = np.array([np.inf, np.nan, 0, -1], np.float32)
    for name in ("depth_test/0001.npy", "depth_train/0004.npy"):
        depth = np.load(folder / name)
        depth[7, 10:14] = unknown
        np.save(folder / name, depth)
    kept = load_scene(folder).held_out["test"][1].depth
    assert_close(kept[7, 10:14], torch.from_numpy(unknown), equal_nan=True)
    with pytest.raises(DatasetError, match=r"0004\.npy: 1 of 3072 depths are NaN"):
        load_scene(folder, poses="truth")


def test_the_background_is_there_behind_a_toy_that_fills_the_frame(folder):
    """With true poses its own is known in every frame, and other views of that time show it."""
    np.save(folder / "segm_train" / "0002.npy", np.ones((48, 64), np.uint8))
    assert load_scene(folder, poses="truth").visible[0].all()


def test_no_such_folder(tmp_path):
    with pytest.raises(DatasetError, match="no such folder"):
        load_scene(tmp_path / "nowhere")


def test_a_set_without_preprocessed_poses_points_to_its_true_ones(folder):
    shutil.rmtree(folder / "sfm")
    with pytest.raises(DatasetError, match="--poses truth"):
        load_scene(folder)
    assert load_scene(folder, poses="truth").num_objects == 4


def test_a_frame_without_the_object_may_hold_any_pose(folder):
    poses, visible = np.load(folder / "sfm/poses/pose3.npy"), np.load(folder / "sfm/poses/vis3.npy")
    poses[7], visible[7] = np.nan, False
    np.save(folder / "sfm/poses/pose3.npy", poses)
    np.save(folder / "sfm/poses/vis3.npy", visible)
    scene = load_scene(folder)
    assert not scene.visible[3, 7]
    assert torch.equal(scene.cam_from_obj[3, 7], scene.cam_from_obj[3, 6])


def test_objects_that_never_overlap_are_no_error(folder):
    """Masks without any mutual occlusion load as any others: near and far bound the scales then."""
    stripes = np.where(np.arange(64) % 16 < 4, np.arange(64) // 16, 0)
    edit_masks(folder, lambda ids: np.broadcast_to(stripes, ids.shape))
    assert load_scene(folder).num_objects == 4


def test_near_and_far_are_the_folders_unless_given(folder, demo_folder):
    expected = load_scene(demo_folder)
    assert (expected.near, expected.far) == (1, 8)
    edit_transforms(folder, lambda c: c.update(near=0.5))
    kept = load_scene(folder)
    assert (kept.near, kept.far) == (0.5, 8)
    assert_close(kept.scale_ranges, expected.scale_ranges)  # the ranges its preparation has found
    assert_close(load_scene(folder, near=1).scale_ranges, expected.scale_ranges)  # found anew, as they were found


def test_another_near_than_the_folders_finds_the_ranges_anew(demo_folder):
    usual, nearer = load_scene(demo_folder), load_scene(demo_folder, near=0.5)
    ratios = [scene.scale_ranges[1:, 1] / scene.scale_ranges[1:, 0] for scene in (usual, nearer)]
    assert_close(ratios[1], 2 * ratios[0])
    upper = [scene.scale_ranges[1:, 1] / scene.truth.object_scales[1:] for scene in (usual, nearer)]
    assert_close(upper[1], upper[0])  # only the near end has moved


@pytest.mark.parametrize(("given", "named"), [({}, "transforms_train.json: `near`"), ({"near": 9}, "near and far: ")])
def test_near_must_be_before_far(folder, given, named):
    if not given:
        edit_transforms(folder, lambda c: c.update(near=8.5))
    with pytest.raises(DatasetError, match=named):
        load_scene(folder, **given)


def test_held_out_ids_are_those_of_the_objects(folder):
    path = sorted((folder / "segm_test").iterdir())[1]
    ids = np.load(path)
    ids[:2] = 255
    np.save(path, ids)
    with pytest.raises(DatasetError, match="mask 1 has the id 255"):
        load_scene(folder)
