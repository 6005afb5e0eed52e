"""A room of two textured planes with a textured board moving in it, seen by cameras whose places are known exactly."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from osn_gs.preprocess.sfm.object_model import ObjectModel

FOCAL, WIDTH, HEIGHT = 220.0, 240, 180
FLOOR, WALL = 1.0, 6.0  # y (down) and z (away) in metres
BOARD = 0.5  # half its side
TEXELS = 60  # per metre
NUM_FRAMES = 6


@dataclass(frozen=True)
class RoomView:
    """One image with truth: z-depth and object ids."""

    image: np.ndarray
    depth: np.ndarray
    ids: np.ndarray


def camera(x: float, y: float = 0.0) -> np.ndarray:
    """cam_from_world of a camera that stands at (x, y, 0) and looks at the middle of the room."""
    forward = np.array([0.0, 0.5, 4.5]) - (x, y, 0)
    forward /= np.linalg.norm(forward)
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)
    world_from_cam = np.eye(4)
    world_from_cam[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    world_from_cam[:3, 3] = (x, y, 0)
    return np.linalg.inv(world_from_cam)


def training_cameras() -> np.ndarray:
    return np.stack([camera(x) for x in np.linspace(-0.9, 0.9, NUM_FRAMES)])


def board_pose(time_step: int) -> np.ndarray:
    """world_from_board: it moves to the right and turns."""
    angle = 0.1 * time_step
    pose = np.eye(4)
    pose[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    pose[:3, 3] = (-0.6 + 0.15 * time_step, FLOOR - BOARD, 3.2)
    return pose


def view(cam_from_world: np.ndarray, time_step: int, width: int = WIDTH) -> RoomView:
    """What a camera sees; `width` other than 240 changes the resolution, not the field of view."""
    height = width * HEIGHT // WIDTH
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    focal = FOCAL * width / WIDTH
    rays = np.stack([(columns - width / 2) / focal, (rows - height / 2) / focal, np.ones_like(rows)], axis=-1)
    image, ids = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
    depth = np.full((height, width), np.inf)
    floor, wall, board = np.eye(4), np.eye(4), board_pose(time_step)
    floor[:3, :3], floor[:3, 3] = [[1, 0, 0], [0, 0, 1], [0, -1, 0]], (0, FLOOR, 4)
    wall[:3, 3] = (0, 0, WALL)
    for plane, half_size, k, seed in ((floor, 20.0, 0, 0), (wall, 20.0, 0, 1), (board, BOARD, 1, 2)):
        plane_from_cam = np.linalg.inv(cam_from_world @ plane)
        turned = rays @ plane_from_cam[:3, :3].T
        with np.errstate(divide="ignore", invalid="ignore"):
            z = -plane_from_cam[2, 3] / turned[..., 2]
            place = turned * z[..., None] + plane_from_cam[:3, 3]
        seen = (z > 0) & (z < depth) & (np.abs(place[..., :2]) < half_size).all(-1)
        texels = (np.nan_to_num(place[..., :2]) * TEXELS).astype(np.float32)
        colors = cv2.remap(_texture(seed), texels[..., 0], texels[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        image[seen], depth[seen], ids[seen] = colors[seen], z[seen], k
    return RoomView(image, depth, ids)


def _texture(seed: int) -> np.ndarray:
    """Blots of several sizes, repeating after 512 texels."""
    generator = np.random.default_rng(seed)
    total = np.zeros((512, 512, 3), np.float32)
    for cells in (32, 64, 128):
        noise = generator.uniform(-1, 1, (cells, cells, 3)).astype(np.float32)
        total += cv2.resize(np.tile(noise, (3, 3, 1)), (1536, 1536), interpolation=cv2.INTER_CUBIC)[512:1024, 512:1024]
    return np.clip(128 + 70 * total, 0, 255).astype(np.uint8)


def true_models(views: list[RoomView], noise: float, seed: int = 0, points: int = 500) -> list[ObjectModel]:
    """Models of room and board as good structure from motion finds them, each in a frame and unit of its own."""
    generator = np.random.default_rng(seed)
    cameras = training_cameras()
    models = []
    for k in (0, 1):
        world_from_obj = np.stack([board_pose(t) if k else np.eye(4) for t in range(NUM_FRAMES)])
        cam_from_obj = cameras @ world_from_obj
        ids, depths = np.stack([v.ids for v in views]), np.stack([v.depth for v in views])
        frames, rows, columns = np.nonzero(ids == k)
        chosen = generator.choice(len(frames), points, replace=False)
        frames, rows, columns = frames[chosen], rows[chosen], columns[chosen]
        z = depths[frames, rows, columns]
        in_camera = np.stack(
            [(columns + 0.5 - WIDTH / 2) / FOCAL * z, (rows + 0.5 - HEIGHT / 2) / FOCAL * z, z], axis=1
        )
        obj_from_cam = np.linalg.inv(cam_from_obj)[frames]
        points_obj = np.einsum("nij,nj->ni", obj_from_cam[:, :3, :3], in_camera) + obj_from_cam[:, :3, 3]
        models.append(_observed(points_obj, cam_from_obj, ids == k, depths, noise, generator))
    return models


def _observed(points_obj, cam_from_obj, mask, depths, noise, generator) -> ObjectModel:
    points_cam = np.einsum("tij,nj->tni", cam_from_obj[:, :3, :3], points_obj) + cam_from_obj[:, None, :3, 3]
    pixels = FOCAL * points_cam[..., :2] / points_cam[..., 2:] + (WIDTH / 2, HEIGHT / 2)
    inside = ((pixels >= 0) & (pixels < (WIDTH, HEIGHT))).all(-1) & (points_cam[..., 2] > 0)
    columns, rows = np.where(inside[..., None], pixels, 0).astype(int).transpose(2, 0, 1)
    frame = np.arange(len(mask))[:, None]
    seen = inside & mask[frame, rows, columns]
    seen &= np.abs(depths[frame, rows, columns] / points_cam[..., 2] - 1) < 0.02
    frames, points = np.nonzero(seen)
    turn = np.linalg.qr(generator.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    shift, unit = generator.normal(size=3), np.exp(generator.normal())
    own = cam_from_obj.copy()  # x_own = unit (turn x + shift), and every length in the camera grows by unit
    own[:, :3, :3] = cam_from_obj[:, :3, :3] @ turn.T
    own[:, :3, 3] = unit * (cam_from_obj[:, :3, 3] - own[:, :3, :3] @ shift)
    return ObjectModel(
        cam_from_obj=own,
        registered=np.ones(len(mask), bool),
        points=unit * (points_obj @ turn.T + shift),
        observed_frames=frames,
        observed_points=points,
        observed_pixels=pixels[frames, points] + noise * generator.normal(size=(len(frames), 2)),
        focal=FOCAL,
        size=(WIDTH, HEIGHT),
    )


def intrinsics() -> np.ndarray:
    return np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])
