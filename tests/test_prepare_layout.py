"""Models become a scene folder in the released layout, and test images find their place in it."""

import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import textured_room as room
import torch
from layout_check import check_layout
from torch.testing import assert_close

from osn_gs.data.osn_layout import load_scene
from osn_gs.errors import ConfigError, DatasetError
from osn_gs.geometry.se3 import invert_rigid
from osn_gs.preprocess.arrangement import arrange_objects, choose_near, fill_missing_poses
from osn_gs.preprocess.camera import fit_warp
from osn_gs.preprocess.covisibility import covisible_pixels
from osn_gs.preprocess.frames import FramesRecord, SourceFrame, write_frames_record
from osn_gs.preprocess.held_out_views import read_test_images
from osn_gs.preprocess.layout import LayoutConfig, write_layout
from osn_gs.preprocess.sfm.colmap_model import write_model
from osn_gs.preprocess.sfm.objects import model_folder

FIRST_SOURCE_FRAME, EVERY = 10, 2  # the room's frames are frames 10, 12, 14, ... of their clip
TEST_CAMERAS = (room.camera(-0.5, -0.4), room.camera(0.2, -0.5), room.camera(0.8, 0.3))
TEST_TIMES = (1, 4, 5)


@pytest.fixture(scope="module")
def views():
    return [room.view(camera, t) for t, camera in enumerate(room.training_cameras())]


@pytest.fixture(scope="module")
def models(views):
    return room.true_models(views, noise=0.3)


@pytest.fixture(scope="module")
def test_folder(tmp_path_factory):
    """Images from beside the path at twice the size, named by view and source frame; the last is of another place."""
    folder = tmp_path_factory.mktemp("held_out")
    for i, (camera, t) in enumerate(zip(TEST_CAMERAS, TEST_TIMES, strict=True)):
        image = room.view(camera, t, width=2 * room.WIDTH).image
        write_picture(folder / f"view{i}_t{FIRST_SOURCE_FRAME + EVERY * t:03d}.png", image)
    noise = np.random.default_rng(0).integers(0, 255, (2 * room.HEIGHT, 2 * room.WIDTH, 3), dtype=np.uint8)
    write_picture(folder / f"view3_t{FIRST_SOURCE_FRAME:03d}.png", noise)
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, views, models, test_folder):
    """A scene folder in which every step but the layout has run, the layout's files made from it, and its advice."""
    scene, staging = (tmp_path_factory.mktemp(name) for name in ("scene", "staging"))
    for folder in ("images_train", "segm_sam"):
        (scene / folder).mkdir()
    for t, view in enumerate(views):
        write_picture(scene / "images_train" / f"{t:04d}.png", view.image)
        np.save(scene / "segm_sam" / f"{t:04d}.npy", view.ids)
    write_frames_record(scene, record())
    (scene / "scene.json").write_text(json.dumps({"name": "room", "objects": ["background", "board"]}))
    board = replace(models[1], registered=np.arange(room.NUM_FRAMES) != 2)
    seen = board.observed_frames != 2
    board = replace(
        board,
        observed_frames=board.observed_frames[seen],
        observed_points=board.observed_points[seen],
        observed_pixels=board.observed_pixels[seen],
    )
    for k, model in enumerate((models[0], board)):
        write_model(model_folder(scene, k), model, np.zeros((len(model.points), 3), np.uint8))
    calls = []
    config = LayoutConfig(test_images=test_folder)
    advice = write_layout(scene, staging, config, lambda done, total: calls.append(done / total))
    assert calls == sorted(calls)
    assert calls[-1] == 1
    return scene, staging, advice


@pytest.fixture(scope="module")
def finished(prepared, tmp_path_factory):
    """The scene folder as the steps leave it."""
    scene, staging, _ = prepared
    folder = shutil.copytree(scene, tmp_path_factory.mktemp("finished") / "room")
    return shutil.copytree(staging, folder, dirs_exist_ok=True)


def record():
    frames = tuple(SourceFrame(FIRST_SOURCE_FRAME + EVERY * t, "", None, 1.0) for t in range(room.NUM_FRAMES))
    return FramesRecord(frames, fit_warp((room.WIDTH, room.HEIGHT), None, None), room.FOCAL, "given")


def write_picture(path, image):
    cv2.imwrite(str(path), image[..., ::-1])


def true_poses(k):
    cameras = torch.from_numpy(room.training_cameras())
    return (
        cameras if k == 0 else cameras @ torch.from_numpy(np.stack([room.board_pose(t) for t in range(len(cameras))]))
    )


def assert_same_motion(cam_from_obj, true_cam_from_obj):
    """Equal up to a frame and a unit of the object's own: what the first camera's coordinates become in each other."""

    def motion(poses):
        steps = poses @ invert_rigid(poses[:1])
        return torch.cat([steps[:, :3, :3], steps[:, :3, 3:] / steps[-1, :3, 3].norm()], dim=2)

    assert_close(motion(cam_from_obj.double()), motion(true_cam_from_obj), rtol=0, atol=1e-5)


def test_an_independent_reader_finds_the_layout_as_released(finished):
    measures = check_layout(finished)
    assert measures["outside box"] < 0.02
    assert measures["outside mask"] < 0.03  # noise of the observations near the board's edge
    assert measures["cloud distance"] < 0.01


def test_the_independent_reader_would_find_wrong_axes(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "broken")
    path = folder / "sfm" / "poses" / "pose1.npy"
    np.save(path, np.load(path) * [1, -1, -1, 1])  # as if the poses had OpenCV's camera axes
    assert check_layout(folder)["cloud distance"] > 0.02


def test_what_was_written_loads_with_the_true_motions(finished):
    scene = load_scene(finished)
    assert scene.object_names == ("background", "board")
    assert scene.visible.tolist() == [[True] * 6, [True, True, False, True, True, True]]
    seen = scene.visible[1]
    assert_same_motion(scene.cam_from_obj[0], true_poses(0))
    assert_same_motion(scene.cam_from_obj[1, seen], true_poses(1)[seen])
    assert_close(scene.intrinsics, torch.from_numpy(room.intrinsics()).float())


def test_at_the_true_scale_the_board_stands_where_it_did(finished, views):
    """Its true scale is what brings its depths to the background's units, and it lies within the range."""
    scene = load_scene(finished)
    factors = []
    for k in (0, 1):
        points = scene.sparse_points[k]
        columns, rows = points.pixels.long().unbind(-1)
        true = np.stack([view.depth for view in views])[points.frames, rows.clamp(0, 179), columns.clamp(0, 239)]
        factors.append(float((torch.from_numpy(true) / points.depths).median()))
    lo, hi = scene.scale_ranges[1].tolist()
    assert lo < factors[1] / factors[0] < hi


def test_every_test_image_finds_its_camera(finished):
    """Off the path by half a metre in a room six deep, at twice the resolution: to 0.1 degrees and 1 cm."""
    scene = load_scene(finished)
    assert [view.time_step for view in scene.held_out["test"]] == list(TEST_TIMES)
    cameras = torch.from_numpy(np.linalg.inv(room.training_cameras()))
    background_from_cam = invert_rigid(scene.cam_from_obj[0].double())
    unit = (cameras[-1, :3, 3] - cameras[0, :3, 3]).norm() / (
        background_from_cam[-1, :3, 3] - background_from_cam[0, :3, 3]
    ).norm()
    for view, true in zip(scene.held_out["test"], TEST_CAMERAS, strict=True):
        assert tuple(view.image.shape) == (2 * room.HEIGHT, 2 * room.WIDTH, 3)
        assert_close(view.intrinsics[0, 0], torch.tensor(2 * room.FOCAL))
        found = view.cam_from_background.double() @ background_from_cam[0]  # of the first training camera
        expected = torch.from_numpy(true) @ cameras[0]
        assert (found[:3, :3] - expected[:3, :3]).abs().max() < np.deg2rad(0.1)
        assert (unit * found[:3, 3] - expected[:3, 3]).norm() < 0.01


def test_an_image_of_another_place_is_left_out_and_named(prepared):
    _, staging, advice = prepared
    sources = [frame["source"] for frame in json.loads((staging / "transforms_test.json").read_text())["frames"]]
    assert sources == ["view0_t012.png", "view1_t018.png", "view2_t020.png"]
    assert [line for line in advice if "could not be placed" in line and "view3_t010.png" in line]


def test_covisible_pixels_are_seen_by_training_cameras_too(finished):
    """What the masks mark as seen is seen, by true geometry; and they mark much of what is."""
    for i, camera in enumerate(TEST_CAMERAS):
        marked = cv2.imread(str(finished / "covis_mask" / f"{i:04d}.png"), cv2.IMREAD_UNCHANGED)
        assert set(np.unique(marked)) <= {0, 255}
        marked = cv2.resize(marked, (room.WIDTH, room.HEIGHT), interpolation=cv2.INTER_NEAREST) > 0
        seen = truly_covisible(room.view(camera, TEST_TIMES[i]), camera)
        assert (marked & seen).sum() / marked.sum() > 0.9
        assert (marked & seen).sum() / seen.sum() > 0.5


def truly_covisible(view, camera):
    """Background pixels inside at least two training images, and all of the board's."""
    columns, rows = np.meshgrid(np.arange(room.WIDTH) + 0.5, np.arange(room.HEIGHT) + 0.5)
    rays = np.stack([(columns - 120) / room.FOCAL, (rows - 90) / room.FOCAL, np.ones_like(rows)], -1)
    in_camera = rays * view.depth[..., None]
    count = np.zeros(rows.shape, int)
    for training in room.training_cameras():
        moved = training @ np.linalg.inv(camera)
        there = in_camera @ moved[:3, :3].T + moved[:3, 3]
        pixels = room.FOCAL * there[..., :2] / there[..., 2:] + (120, 90)
        count += ((pixels > 0) & (pixels < (240, 180))).all(-1) & (there[..., 2] > 0)
    return (count >= 2) | (view.ids == 1)


def test_covisibility_needs_a_tenth_of_the_frames_and_at_least_two():
    image = cv2.resize(np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8), (128, 96))
    aside = np.array([[1.0, 0, 128], [0, 1, 0], [0, 0, 1]])  # a camera that looks past what the image shows

    def share(facing, turned_away):
        homographies = np.stack([np.eye(3)] * facing + [aside] * turned_away)
        return covisible_pixels(image, np.stack([image] * len(homographies)), homographies).mean()

    assert share(2, 0) > 0.95
    assert share(1, 1) == 0
    assert share(3, 27) > 0.95
    assert share(2, 28) == 0


def test_homographies_bring_cameras_far_apart_within_the_reach_of_flow():
    image = cv2.resize(np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8), (256, 192))
    shrunk = np.array(
        [[0.5, 0, 70.0], [0, 0.5, 40], [0, 0, 1]]
    )  # training pixels of the image's, which are half as large
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    training = cv2.warpPerspective(image, np.linalg.inv(half) @ shrunk @ half, (256, 192), flags=cv2.INTER_AREA)
    known, unknown = (covisible_pixels(image, np.stack([training] * 2), np.stack([h] * 2)) for h in (shrunk, np.eye(3)))
    assert known.mean() > 0.95
    assert unknown.mean() < 0.5


def test_the_same_input_gives_the_same_bytes(prepared, tmp_path):
    scene, staging, _ = prepared
    write_layout(scene, tmp_path, LayoutConfig())
    for path in sorted(tmp_path.rglob("*.*")):
        assert path.read_bytes() == (staging / path.relative_to(tmp_path)).read_bytes(), path


def test_missing_poses_go_on_at_constant_speed_and_stay_at_the_ends():
    models = np.tile(np.eye(4), (6, 1, 1))
    for t in range(6):
        models[t, :3, :3] = cv2.Rodrigues(np.array([0, 0.1 * t, 0]))[0]
        models[t, 0, 3] = t
    registered = np.array([False, True, False, False, True, False])
    broken = np.where(registered[:, None, None], models, np.nan)
    filled = fill_missing_poses(broken, registered)
    np.testing.assert_allclose(filled[1:5], models[1:5], atol=1e-12)
    np.testing.assert_allclose(filled[[0, 5]], filled[[1, 4]], atol=1e-12)
    only = fill_missing_poses(broken, np.arange(6) == 4)
    np.testing.assert_array_equal(only, np.tile(models[4], (6, 1, 1)))


def test_a_mistaken_point_moves_neither_box_nor_range(models):
    clean = arrange_objects(models, near=1.0, far=8.0)
    board = models[1]
    far_out = board.points.copy()
    far_out[7] += 1e3 * np.linalg.norm(far_out.std(0))
    disturbed = arrange_objects([models[0], replace(board, points=far_out)], near=1.0, far=8.0)
    sides = [arrangement.boxes[1][:, 1] - arrangement.boxes[1][:, 0] for arrangement in (clean, disturbed)]
    assert_close(sides[1], sides[0], rtol=0.05, atol=0)
    assert_close(disturbed.objects[1].scale_range, clean.objects[1].scale_range, rtol=0.01, atol=0)
    assert len(disturbed.objects[1].points.frames) < len(clean.objects[1].points.frames)


def test_the_origin_lies_in_the_middle_of_the_object(models):
    for box in arrange_objects(models, 1.0, 8.0).boxes:
        assert (box[:, 0] < 0).all()
        assert (box[:, 1] > 0).all()


def deeper(model, factor):
    """The model with its depths in the last frame made `factor` times larger in the median."""
    poses = model.cam_from_obj.copy()
    poses[-1, 2, 3] += (factor - 1) * np.median(model.observed_in_camera()[model.observed_frames == 5, 2])
    return replace(model, cam_from_obj=poses)


def test_near_is_one_unless_the_clip_shows_things_nearer(models):
    usual = arrange_objects(models, None, 8.0)
    assert usual.near == 1
    assert arrange_objects(models, None, 24.0).near == 3  # only a choice of units
    background, board = usual.objects
    depths = background.points.depths
    for factor, expected in ((0.9, 1.0), (0.3, 0.35)):
        foreground = depths < depths.quantile(0.3)
        points = replace(background.points, depths=torch.where(foreground, factor * depths, depths))
        begins = min(float(points.depths[points.frames == t].quantile(0.05)) for t in range(6))
        assert (begins < 1.5) == (expected < 1)
        near = choose_near([replace(background, points=points), board], 8.0)
        assert near == 1 if expected == 1 else 0.9 * expected * begins < near <= expected * begins


def test_an_object_whose_depth_varies_much_still_has_scales_to_choose_from(models):
    approaching = deeper(models[1], 8.0)
    arrangement = arrange_objects([models[0], approaching], None, 8.0)
    lo, hi = arrangement.objects[1].scale_range
    assert arrangement.near < 1
    assert hi / lo >= 2
    with pytest.raises(DatasetError, match="object 1: its scale range is empty"):
        arrange_objects([models[0], approaching], 1.0, 8.0)


def test_a_camera_path_with_a_hole_is_refused(models):
    registered = np.arange(6) != 4
    with pytest.raises(DatasetError, match="1 of 6 frames have no camera pose, the first is 4"):
        arrange_objects([replace(models[0], registered=registered), models[1]], None, 8.0)


def test_an_object_without_a_model_is_named(prepared, tmp_path):
    scene = shutil.copytree(prepared[0], tmp_path / "scene")
    shutil.rmtree(model_folder(scene, 1))
    with pytest.raises(DatasetError, match="object 1 has no model"):
        write_layout(scene, tmp_path / "staging", LayoutConfig())


def read(folder, times=None, focal=None):
    return read_test_images(folder, times, focal, record(), room.FOCAL)


def test_times_may_come_from_a_file(test_folder, tmp_path):
    path = tmp_path / "times.json"
    numbers = [20, 18, 16, 14]
    names = sorted(image.name for image in test_folder.iterdir())
    forms = [numbers, dict(zip(names, numbers, strict=True)), {"frames": [{"time_step": n} for n in numbers]}]
    for content in forms:
        path.write_text(json.dumps(content))
        assert read(test_folder, path).time_steps == (5, 4, 3, 2)


def test_moments_between_the_clips_frames_are_left_out(test_folder, tmp_path):
    path = tmp_path / "times.json"
    path.write_text("[10, 11, 12, 99]")
    tests = read(test_folder, path)
    assert tests.time_steps == (0, 1)
    assert "2 of 4 test images" in tests.advice[0]
    assert "view1_t018.png" in tests.advice[0]


def test_images_of_the_sources_size_are_cropped_as_the_frames_were(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (80, 100, 3), dtype=np.uint8)
    write_picture(tmp_path / "3.png", image)
    warp = fit_warp((100, 80), None, 50)
    frames = FramesRecord((SourceFrame(3, "", None, 1.0),), warp, 70.0, "given")
    tests = read_test_images(tmp_path, None, None, frames, 70.0)
    assert tests.focal == 70
    np.testing.assert_array_equal(tests.images[0], warp.image(image))
    assert read_test_images(tmp_path, None, 150.0, frames, 70.0).images.shape == (1, 80, 100, 3)


BAD_TESTS = {
    "another shape": ({"10.png": (30, 80)}, None, "80x30 but the clip's frames are 240x180.*--layout.test-focal"),
    "two sizes": ({"10.png": (90, 120), "12.png": (60, 80)}, None, "12.png: image is 80x60 but 10.png is 120x90"),
    "no number": ({"left.png": (90, 120)}, None, "holds no number.*--layout.test-times"),
    "no such moment": ({"11.png": (90, 120)}, None, "belong to frames 11 to 11 but the clip's are numbered 10 to 20"),
    "too few times": ({"10.png": (90, 120)}, "[10, 12]", "2 frame numbers for 1 test images"),
    "odd times": ({"10.png": (90, 120)}, '["ten"]', "frame number of 10.png is 'ten'; expected a whole number"),
    "unnamed": ({"10.png": (90, 120)}, '{"12.png": 12}', "says nothing of 10.png"),
    "no json": ({"10.png": (90, 120)}, "{", "not valid JSON"),
    "empty": ({}, None, "holds no images"),
}


@pytest.mark.parametrize("case", BAD_TESTS)
def test_test_images_that_cannot_be_used_are_explained(tmp_path, case):
    pictures, times, expected = BAD_TESTS[case]
    (tmp_path / "pictures").mkdir()
    for name, shape in pictures.items():
        write_picture(tmp_path / "pictures" / name, np.zeros((*shape, 3), np.uint8))
    if times is not None:
        (tmp_path / "times.json").write_text(times)
    with pytest.raises(DatasetError, match=expected):
        read(tmp_path / "pictures", None if times is None else tmp_path / "times.json")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"near": 0}, "near: expected a number above 0"),
        ({"near": 9}, "expected 0 < near < far, got 9 and 8"),
        ({"test_focal": 500}, "test_focal: .* test_images is not given"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, expected):
    with pytest.raises(ConfigError, match=expected):
        LayoutConfig(**options)
