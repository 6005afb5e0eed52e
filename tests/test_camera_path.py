"""Camera paths go through their keyframes, stay cameras in between, and mean the same in nerfstudio's files."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from osn_gs.errors import OsnGsError
from osn_gs.export.camera_path import read_camera_path, read_keyframes, write_camera_path
from osn_gs.geometry.camera_path import CameraPath, Keyframe, interpolate_keyframes, spiral_path, swinging_path
from osn_gs.geometry.cameras import orbit
from osn_gs.geometry.se3 import invert_rigid, quat_to_rotmat, rigid_matrix, transform_points

FORMAT = {"fps": 24.0, "width": 320, "height": 240}


def random_pose(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    quat, centre = (torch.randn(size, generator=generator, dtype=torch.float64) for size in (4, 3))
    return rigid_matrix(quat_to_rotmat(quat), centre)


def random_keyframes(num_keyframes: int) -> list[Keyframe]:
    return [Keyframe(random_pose(seed), 0.6 + 0.1 * seed, 3.0 * seed) for seed in range(num_keyframes)]


def centres(camera_path: CameraPath) -> torch.Tensor:
    return invert_rigid(camera_path.cam_from_world)[:, :3, 3]


def steps_in_degrees(poses: torch.Tensor) -> torch.Tensor:
    """Angle between each pose and the next."""
    rotations = Rotation.from_matrix(poses[:, :3, :3].numpy())
    return torch.from_numpy((rotations[1:] * rotations[:-1].inv()).magnitude()).rad2deg()


def assert_rigid(poses: torch.Tensor) -> None:
    rotations = poses[:, :3, :3]
    identity = torch.eye(3, dtype=poses.dtype).expand_as(rotations)
    torch.testing.assert_close(rotations @ rotations.mT, identity, atol=1e-9, rtol=0)
    assert (torch.linalg.det(rotations) > 0).all()
    assert (poses[:, 3] == torch.tensor([0, 0, 0, 1.0])).all()


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("num_keyframes", [1, 2, 3, 7])
def test_a_path_goes_through_its_keyframes_by_rigid_poses(num_keyframes, closed):
    keyframes = random_keyframes(num_keyframes)
    segments = num_keyframes if closed else num_keyframes - 1
    views_each = 12
    camera_path = interpolate_keyframes(keyframes, segments * views_each + (not closed), closed, **FORMAT)
    assert_rigid(camera_path.cam_from_world)
    for index, keyframe in enumerate(keyframes):
        at = index * views_each
        torch.testing.assert_close(camera_path.cam_from_world[at], keyframe.cam_from_world)
        assert float(camera_path.fov_y[at]) == pytest.approx(keyframe.fov_y)
        assert float(camera_path.times[at]) == pytest.approx(keyframe.time)


@pytest.mark.parametrize("closed", [False, True])
def test_a_path_has_no_jumps_and_no_kinks(closed):
    camera_path = interpolate_keyframes(random_keyframes(5), 4001, closed, **FORMAT)
    poses = camera_path.cam_from_world
    if closed:
        poses = torch.cat([poses, poses[:2]])
    velocities = poses.diff(dim=0)
    assert float(velocities.abs().max()) < 0.02
    assert float(velocities.diff(dim=0).abs().max()) < 1e-4  # Slerp through the same keyframes: 2.5e-3


def test_between_two_keyframes_the_camera_moves_straight_and_turns_about_one_axis():
    first = random_pose(0)
    angle = torch.tensor([math.cos(0.4), 0, math.sin(0.4), 0], dtype=torch.float64)
    turn = rigid_matrix(quat_to_rotmat(angle), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    second = turn @ first
    camera_path = interpolate_keyframes([Keyframe(first, 1.0, 0.0), Keyframe(second, 2.0, 10.0)], 11, **FORMAT)
    places, times = centres(camera_path), torch.arange(11, dtype=torch.float64)
    torch.testing.assert_close(places, places[0] + (places[-1] - places[0]) * times[:, None] / 10)
    turns = Rotation.from_matrix((camera_path.cam_from_world[:, :3, :3] @ first[:3, :3].T).numpy()).as_rotvec()
    assert abs(turns[:, [0, 2]]).max() < 1e-9
    assert (turns[1:, 1] > turns[:-1, 1]).all()
    torch.testing.assert_close(camera_path.times, times)
    torch.testing.assert_close(camera_path.fov_y, 1 + times / 10)


def test_a_turn_takes_the_shorter_way_round():
    """Nine steps of 50 degrees: quaternions change their sign on the way, and the last is as far from the first."""
    steps = [orbit(torch.eye(4, dtype=torch.float64), 0.0, yaw_degrees=50.0 * step) for step in range(10)]
    keyframes = [Keyframe(pose, 1.0, 0.0) for pose in steps]
    camera_path = interpolate_keyframes(keyframes, 9 * 10 + 1, **FORMAT)
    torch.testing.assert_close(steps_in_degrees(camera_path.cam_from_world).sum().item(), 450.0)


@pytest.mark.parametrize("closed", [False, True])
def test_the_camera_rests_between_equal_keyframes(closed):
    first, second, third = random_keyframes(3)
    keyframes = [first, second, replace(second, time=50.0), third]
    camera_path = interpolate_keyframes(keyframes, 40 if closed else 31, closed, **FORMAT)
    resting = camera_path.cam_from_world[10:21]
    torch.testing.assert_close(resting, second.cam_from_world.expand(11, 4, 4))
    torch.testing.assert_close(camera_path.times[10:21], torch.linspace(3, 50, 11, dtype=torch.float64))


def test_a_moved_world_moves_the_path():
    keyframes, other_from_world = random_keyframes(4), random_pose(9)
    moved = [replace(key, cam_from_world=key.cam_from_world @ invert_rigid(other_from_world)) for key in keyframes]
    expected = interpolate_keyframes(keyframes, 50, **FORMAT).cam_from_world @ invert_rigid(other_from_world)
    torch.testing.assert_close(interpolate_keyframes(moved, 50, **FORMAT).cam_from_world, expected)


def test_a_path_keeps_the_dtype_of_its_keyframes():
    keyframes = [replace(key, cam_from_world=key.cam_from_world.float()) for key in random_keyframes(3)]
    camera_path = interpolate_keyframes(keyframes, 5, **FORMAT)
    assert {camera_path.cam_from_world.dtype, camera_path.fov_y.dtype, camera_path.times.dtype} == {torch.float32}


@pytest.mark.parametrize(("num_keyframes", "num_views", "message"), [(0, 10, "one keyframe"), (2, 0, "one view")])
def test_no_keyframes_or_views_are_refused(num_keyframes, num_views, message):
    with pytest.raises(OsnGsError, match=message):
        interpolate_keyframes(random_keyframes(num_keyframes), num_views, **FORMAT)


def test_a_swing_starts_and_ends_at_its_camera_and_keeps_the_pivot_in_the_middle():
    start, depth = random_pose(3), 2.5
    swing = swinging_path(start, depth, 41, yaw_degrees=20, pitch_degrees=6)
    assert_rigid(swing)
    torch.testing.assert_close(swing[0], start)
    torch.testing.assert_close(swing[-1], start)
    middle = torch.tensor([[0, 0, depth]], dtype=torch.float64)
    pivot = transform_points(invert_rigid(start), middle)
    torch.testing.assert_close(transform_points(swing, pivot.expand(41, 1, 3)), middle.expand(41, 1, 3))
    assert float(steps_in_degrees(swing).max()) < 5


def test_a_swing_goes_right_then_left_and_never_below_its_camera():
    places = invert_rigid(swinging_path(torch.eye(4, dtype=torch.float64), 2.0, 41))[:, :3, 3]
    right, down = places[:, 0], places[:, 1]
    reach = 2 * math.sin(math.radians(20)) * math.cos(math.radians(3))  # half way up
    assert float(right[10]) == pytest.approx(reach)
    assert float(right[30]) == pytest.approx(-reach)
    assert float(down.max()) <= 1e-12
    assert float(down[20]) == pytest.approx(-2 * math.sin(math.radians(6)))


def test_a_spiral_circles_its_camera_and_keeps_the_pivot_in_the_middle():
    start, depth = random_pose(3), 2.5
    spiral = spiral_path(start, depth, 81, turns=2, yaw_degrees=8, pitch_degrees=4, depth_share=0.15)
    assert_rigid(spiral)
    torch.testing.assert_close(spiral[0], spiral[-1])
    pivot = transform_points(invert_rigid(start), torch.tensor([[0, 0, depth]], dtype=torch.float64))
    seen = transform_points(spiral, pivot.expand(81, 1, 3))[:, 0]
    assert float(seen[:, :2].abs().max()) < 1e-12
    assert float(seen[20, 2]) == pytest.approx(0.85 * depth)
    assert float(seen[60, 2]) == pytest.approx(1.15 * depth)
    in_start = transform_points(start[None], invert_rigid(spiral)[:, None, :3, 3])[:, 0]
    turns = np.unwrap(np.arctan2(in_start[:, 1].numpy(), in_start[:, 0].numpy()))
    assert abs(turns[-1] - turns[0]) == pytest.approx(4 * math.pi, abs=0.01)


@pytest.mark.parametrize("closed", [False, True])
def test_a_file_gives_back_what_was_written(tmp_path, closed):
    keyframes = random_keyframes(3)
    camera_path = interpolate_keyframes(keyframes, 20, closed, **FORMAT)
    write_camera_path(tmp_path / "paths" / "fly.json", camera_path, keyframes, num_frames=10)
    read = read_camera_path(tmp_path / "paths" / "fly.json", num_frames=10)
    for name in ("cam_from_world", "fov_y", "times"):
        torch.testing.assert_close(getattr(read, name), getattr(camera_path, name))
    assert (read.fps, read.width, read.height, read.closed) == (24.0, 320, 240, closed)
    again = read_keyframes(tmp_path / "paths" / "fly.json", num_frames=10)
    assert [(key.fov_y, key.time) for key in again] == [pytest.approx((key.fov_y, key.time)) for key in keyframes]
    for key, other in zip(again, keyframes, strict=True):
        torch.testing.assert_close(key.cam_from_world, other.cam_from_world)


def test_a_still_scene_has_one_time(tmp_path):
    keyframes = [Keyframe(random_pose(0), 1.0, 0.0)]
    write_camera_path(tmp_path / "still.json", interpolate_keyframes(keyframes, 3, **FORMAT), keyframes, num_frames=1)
    assert read_camera_path(tmp_path / "still.json", num_frames=1).times.tolist() == [0, 0, 0]


def test_what_is_written_is_what_nerfstudio_reads(tmp_path):
    """A camera at (1, 2, 3) that looks along +x of a world whose z is up, with the numbers worked out by hand."""
    right, down, forward = [0.0, -1, 0], [0.0, 0, -1], [1.0, 0, 0]
    world_from_cam = torch.eye(4, dtype=torch.float64)
    world_from_cam[:3, :3] = torch.tensor([right, down, forward], dtype=torch.float64).T
    world_from_cam[:3, 3] = torch.tensor([1, 2, 3])
    keyframe = Keyframe(invert_rigid(world_from_cam), math.radians(50), time=4.0)
    camera_path = interpolate_keyframes([keyframe], 48, **FORMAT)
    write_camera_path(tmp_path / "fly.json", camera_path, [keyframe], num_frames=9)
    content = json.loads((tmp_path / "fly.json").read_text())
    # OpenGL: x right, y up, z backward, as columns; then the centre.
    opengl = [0, 0, -1, 1, -1, 0, 0, 2, 0, 1, 0, 3, 0, 0, 0, 1]
    assert len(content["camera_path"]) == 48
    for camera in content["camera_path"]:
        assert camera["camera_to_world"] == pytest.approx(opengl)
        assert camera["fov"] == pytest.approx(50)
        assert camera["aspect"] == pytest.approx(4 / 3)
        assert camera["render_time"] == pytest.approx(0.5)
    assert content["keyframes"][0]["matrix"] == pytest.approx(opengl)
    assert (content["camera_type"], content["render_width"], content["render_height"]) == ("perspective", 320, 240)
    assert (content["fps"], content["seconds"], content["is_cycle"]) == (24, 2, False)


def nerfstudio_file(num_views: int = 3) -> dict:
    """As nerfstudio's viewer writes it for a scene that does not move: a camera at (1, 2, 3) that looks along -z."""
    matrix = [1.0, 0, 0, 1, 0, 1, 0, 2, 0, 0, 1, 3, 0, 0, 0, 1]
    transition = {"override_transition_enabled": False, "override_transition_sec": None}
    return {
        "default_fov": 75,
        "default_transition_sec": 2.0,
        "keyframes": [{"matrix": matrix, "fov": 60, "aspect": 16 / 9, **transition}] * 2,
        "camera_type": "perspective",
        "render_height": 1080,
        "render_width": 1920,
        "fps": 30,
        "seconds": num_views / 30,
        "is_cycle": False,
        "smoothness_value": 0.0,
        "camera_path": [{"camera_to_world": matrix, "fov": 60, "aspect": 16 / 9}] * num_views,
    }


def write(path, content: dict):
    path.write_text(json.dumps(content))
    return path


def test_a_file_of_nerfstudios_viewer_is_read(tmp_path):
    path = write(tmp_path / "ns.json", nerfstudio_file())
    camera_path = read_camera_path(path, num_frames=21)
    # OpenCV: what is 5 ahead of the camera along the world's -z and 1 up along its y is at x 0, y -1, z 5.
    seen = transform_points(camera_path.cam_from_world[0], torch.tensor([[1, 3, -2]], dtype=torch.float64))
    torch.testing.assert_close(seen, torch.tensor([[0, -1, 5]], dtype=torch.float64))
    assert camera_path.fov_y.tolist() == pytest.approx([math.radians(60)] * 3)
    assert camera_path.times.tolist() == [0, 10, 20]  # evenly over the scene where the file has no times
    assert (camera_path.fps, camera_path.width, camera_path.height) == (30, 1920, 1080)
    assert [keyframe.time for keyframe in read_keyframes(path, num_frames=21)] == [0, 20]


def test_keyframes_of_nerfstudios_first_viewer_are_read(tmp_path):
    content = nerfstudio_file()
    by_columns = torch.tensor(content["keyframes"][0]["matrix"]).reshape(4, 4).T.flatten().tolist()
    new = read_keyframes(write(tmp_path / "new.json", content), num_frames=5)
    content["keyframes"] = [{"matrix": json.dumps(by_columns), "fov": 60, "aspect": 1.6}] * 2
    old = read_keyframes(write(tmp_path / "old.json", content), num_frames=5)
    for key, other in zip(new, old, strict=True):
        torch.testing.assert_close(key.cam_from_world, other.cam_from_world)


def damaged(place: str, value) -> dict:
    """A good file with the value at a place like `camera_path/1/fov` replaced, or removed by None."""
    content = json.loads(json.dumps(nerfstudio_file()))
    *parents, key = [int(part) if part.isdigit() else part for part in place.split("/")]
    inside = content
    for part in parents:
        inside = inside[part]
    if value is None:
        del inside[key]
    else:
        inside[key] = value
    return content


MIRRORED = [-1.0, 0, 0, 1, 0, 1, 0, 2, 0, 0, 1, 3, 0, 0, 0, 1]
WORDS, NOT_FINITE = ["a"] * 16, [float("nan")] * 16
BY_COLUMNS = [1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 1, 2, 3, 1]


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("camera_path", None, "has no `camera_path`"),
        ("camera_path", [], "camera_path is empty"),
        ("camera_path", ["camera"], "has no `camera_path`, a list of objects"),
        ("camera_type", "fisheye", "camera_type is 'fisheye'"),
        ("render_height", None, "render_height: expected a number from 1 to 65536, got nothing"),
        ("render_width", 1.5, "render_width: expected whole pixels, got 1.5"),
        ("fps", 0, "fps: expected a number from 0.001 to 1000, got 0"),
        ("fps", True, "fps: .* got True"),
        ("camera_path/1/fov", None, r"camera_path\[1\]: fov: .* got nothing"),
        ("camera_path/1/fov", "60", r"camera_path\[1\]: fov: .* got '60'"),
        ("camera_path/1/fov", float("nan"), r"camera_path\[1\]: fov: .* got nan"),
        ("camera_path/2/render_time", 0.5, r"camera_path\[0\]: has no render_time, though 1 of 3 entries have one"),
        ("camera_path/2/camera_to_world", None, r"camera_path\[2\]: camera_to_world: expected .* 16 numbers"),
        ("camera_path/2/camera_to_world", [1.0] * 12, r"camera_path\[2\]: camera_to_world: expected .* 16 numbers"),
        ("camera_path/2/camera_to_world", WORDS, r"camera_path\[2\]: camera_to_world: expected .* 16 numbers"),
        ("camera_path/2/camera_to_world", NOT_FINITE, r"camera_path\[2\]: camera_to_world: expected .* 16 numbers"),
        ("camera_path/2/camera_to_world", "[1, 2", r"camera_path\[2\]: camera_to_world: expected .* 16 numbers"),
        ("camera_path/2/camera_to_world", BY_COLUMNS, r"camera_path\[2\]: camera_to_world: the last row is \[1.0"),
        ("camera_path/2/camera_to_world", MIRRORED, r"camera_path\[2\]: camera_to_world: .* no rotation"),
    ],
)
def test_a_bad_file_is_refused_in_one_line_that_says_where(tmp_path, place, value, message):
    path = write(tmp_path / "bad.json", damaged(place, value))
    with pytest.raises(OsnGsError, match=message) as caught:
        read_camera_path(path, num_frames=5)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_time_outside_the_scene_is_refused(tmp_path):
    content = nerfstudio_file(num_views=1)
    content["camera_path"][0]["render_time"] = 7
    with pytest.raises(OsnGsError, match=r"camera_path\[0\]: render_time: expected a number from 0 to 1, got 7"):
        read_camera_path(write(tmp_path / "late.json", content), num_frames=5)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"{", "not a JSON file"), (b"\xff", "not a JSON file"), (b"[1]", "holds a list")],
)
def test_what_is_no_camera_path_is_refused(tmp_path, content, message):
    path = tmp_path / "fly.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OsnGsError, match=message):
        read_camera_path(path, num_frames=5)
