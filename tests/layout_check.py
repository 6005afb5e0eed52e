"""An independent check of a scene folder: the released layout as METHOD 5 states it, read with NumPy and json alone.

Nothing of the package is used here, so that a mistake shared by its writer and its reader shows.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np


def png_size(path: Path) -> tuple[int, int]:
    """Width and height from a PNG's header."""
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n", f"{path}: not a PNG"
    return struct.unpack(">II", header[16:24])


def check_layout(folder: Path, preproc: str = "sfm") -> dict[str, float]:
    """Assert everything the layout promises of a real scene; returns measures of how well files fit each other."""
    content = json.loads((folder / "transforms_train.json").read_text())
    width, height, frames = content["img_w"], content["img_h"], content["frames"]
    num_frames = len(frames)
    assert content["focal"] > 0
    assert "camera_angle_x" not in content  # that would make it a synthetic set
    assert [frame["time_step"] for frame in frames] == list(range(num_frames))
    assert [frame["view"] for frame in frames] == list(range(num_frames))
    assert [frame["time"] for frame in frames] == list(np.arange(num_frames) / (num_frames - 1))
    _check_images(folder / "images_train", num_frames, (width, height))
    masks = sorted((folder / "segm_sam").iterdir())
    assert len(masks) == num_frames
    ids = np.stack([np.load(path) for path in masks])
    assert ids.shape == (num_frames, height, width)
    num_objects = int(ids.max()) + 1

    cameras = np.array([frame["transform_matrix"] for frame in frames])
    measures = {"outside box": 0.0, "outside mask": 0.0, "cloud distance": 0.0}
    for k in range(num_objects):
        poses, visible, box, rows, seen_in = _read_object(folder / preproc, k, num_frames)
        if k == 0:
            assert visible.all()
            assert np.isclose(_depth_extent(rows[:, 2], seen_in)[1], 0.95 * content.get("far", 8.0))
            np.testing.assert_allclose(poses, cameras, atol=1e-9)  # the world is the background's frame
        else:
            _check_range(np.load(folder / preproc / "depth" / f"scale{k}.npy"), rows[:, 2], seen_in, content)
        assert visible[seen_in].all()
        points = _points(poses, rows, seen_in, content)
        outside = ((points < box[:, 0]) | (points > box[:, 1])).any(1).mean()
        columns, lines = np.clip(rows[:, :2].astype(int), 0, (width - 1, height - 1)).T  # pixel_center 0.5
        measures["outside box"] = max(measures["outside box"], outside)
        measures["outside mask"] = max(measures["outside mask"], (ids[seen_in, lines, columns] != k).mean())
        distance = _distance_between_frames(points, seen_in) / np.linalg.norm(box[:, 1] - box[:, 0])
        measures["cloud distance"] = max(measures["cloud distance"], distance)
    assert not (folder / preproc / "depth" / "scale0.npy").exists()
    if (folder / "transforms_test.json").exists():
        _check_test_views(folder, num_frames)
    return measures


def _check_images(folder: Path, count: int, size: tuple[int, int]) -> None:
    assert [path.name for path in sorted(folder.iterdir())] == [f"{i:04d}.png" for i in range(count)]
    assert {png_size(path) for path in folder.iterdir()} == {size}


def _read_object(preproc: Path, k: int, num_frames: int) -> tuple[np.ndarray, ...]:
    poses, visible = np.load(preproc / "poses" / f"pose{k}.npy"), np.load(preproc / "poses" / f"vis{k}.npy")
    box = np.load(preproc / "poses" / f"bbox{k}.npy")
    rows, seen_in = np.load(preproc / "depth" / f"depth{k}.npy"), np.load(preproc / "depth" / f"vid{k}.npy")
    assert poses.shape == (num_frames, 4, 4)
    assert visible.shape == (num_frames,)
    assert box.shape == (3, 2)
    assert rows.shape == (len(seen_in), 5)
    assert all(np.isfinite(array).all() for array in (poses, box, rows))
    np.testing.assert_allclose(
        poses[:, :3, :3] @ poses[:, :3, :3].swapaxes(1, 2), np.tile(np.eye(3), (num_frames, 1, 1)), atol=1e-9
    )
    np.testing.assert_allclose(np.linalg.det(poses[:, :3, :3]), 1)
    np.testing.assert_allclose(poses[:, 3], np.tile([0, 0, 0, 1], (num_frames, 1)))
    assert (box[:, 0] < box[:, 1]).all()
    assert rows[:, 2].min() > 0
    assert np.issubdtype(seen_in.dtype, np.integer)
    assert 0 <= seen_in.min() <= seen_in.max() < num_frames
    errors, weights = rows[:, 3], rows[:, 4]
    np.testing.assert_allclose(weights, 2 * np.exp(-((errors / errors.mean()) ** 2)), atol=1e-9)
    return poses, visible, box, rows, seen_in


def _check_range(scale: np.ndarray, depths: np.ndarray, seen_in: np.ndarray, content: dict) -> None:
    """[1.05 near/close, 0.95 far/inf] with the object's units such that the middle is 1."""
    near, far = content.get("near", 1.0), content.get("far", 8.0)
    close, inf = _depth_extent(depths, seen_in)
    np.testing.assert_allclose(scale, [1.05 * near / close, 0.95 * far / inf])
    np.testing.assert_allclose(scale.mean(), 1)


def _depth_extent(depths: np.ndarray, seen_in: np.ndarray) -> tuple[float, float]:
    """Smallest 5th and largest 95th percentile of depth over the frames."""
    per_frame = [depths[seen_in == t] for t in np.unique(seen_in)]
    return min(np.quantile(d, 0.05) for d in per_frame), max(np.quantile(d, 0.95) for d in per_frame)


def _points(poses: np.ndarray, rows: np.ndarray, seen_in: np.ndarray, content: dict) -> np.ndarray:
    """Every observation in the object's frame: the ray ((u - W/2)/f, -(v - H/2)/f, -1) times depth, then the pose."""
    width, height, focal = content["img_w"], content["img_h"], content["focal"]
    u, v, depth = rows[:, 0], rows[:, 1], rows[:, 2]
    in_camera = np.stack([(u - width / 2) / focal, -(v - height / 2) / focal, -np.ones_like(u)], 1) * depth[:, None]
    pose = poses[seen_in]
    return np.einsum("mij,mj->mi", pose[:, :3, :3], in_camera) + pose[:, :3, 3]


def _distance_between_frames(points: np.ndarray, seen_in: np.ndarray) -> float:
    """Median distance from a frame's points to the nearest ones of the frame before: one object, one place."""
    distances = []
    for t in range(1, int(seen_in.max()) + 1):
        before, now = points[seen_in == t - 1], points[seen_in == t]
        if len(before) and len(now):
            distances.append(np.linalg.norm(now[:200, None] - before[None], axis=-1).min(1))
    return float(np.median(np.concatenate(distances)))


def _check_test_views(folder: Path, num_frames: int) -> None:
    content = json.loads((folder / "transforms_test.json").read_text())
    size = (content["img_w"], content["img_h"])
    assert content["focal"] > 0
    for i, frame in enumerate(content["frames"]):
        assert 0 <= frame["time_step"] < num_frames
        assert frame["view"] == num_frames + i
        rotation = np.array(frame["transform_matrix"])[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
        assert np.linalg.det(rotation) > 0
    _check_images(folder / "images_test", len(content["frames"]), size)
    if (folder / "covis_mask").is_dir():
        _check_images(folder / "covis_mask", len(content["frames"]), size)
