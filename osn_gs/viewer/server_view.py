"""One client's pictures, drawn here by `rasterize` (gsplat on CUDA, Numba on the CPU) and sent as it flies.

For machines whose browser is slow, for colours that depend on the direction, depth, and several worlds side by side.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import torch
import viser
from jaxtyping import UInt8

from osn_gs.export.renderings import Camera, Colouring, World, draw_worlds, grid_columns, with_shown
from osn_gs.geometry.se3 import invert_rigid, quat_to_rotmat, rigid_matrix
from osn_gs.scene.scene import Scene
from osn_gs.viewer.state import NewestWins

LARGEST_HEIGHT = 1080  # pixels, of a picture at rest on CUDA
LARGEST_HEIGHT_CPU = 480
LARGEST_ASPECT = 8.0  # of a picture; a client may say anything of its window
SMALLEST_PIXELS = 96 * 54
SECONDS_BETWEEN_COMPLAINTS = 10.0
MOVING_SECONDS = 0.06  # for one picture while the camera moves; its size follows


class Job(NamedTuple):
    """What to draw: one world, or several side by side."""

    scene: Scene
    worlds: tuple[World, ...]
    shown: tuple[bool, ...]
    time_step: int
    colouring: Colouring


class ServerView:
    """Draws the newest job whenever asked: coarsely while asked again and again, fully once it is quiet."""

    def __init__(
        self, client: viser.ClientHandle, job: Callable[[], Job | None], failed: Callable[[Exception], None]
    ) -> None:
        self._client = client
        self._job = job
        self._failed = failed
        self._moving_pixels = 320.0 * 180.0
        self._shows_picture = False
        self._told = -math.inf
        self.num_pictures = 0
        self._worker = NewestWins(f"server view of client {client.client_id}", self._draw)

    def ask(self) -> None:
        self._worker.ask()

    def stop(self) -> None:
        self._worker.stop()

    def _draw(self, settled: bool) -> None:
        """Send one picture; what goes wrong is told now and then, and the next request tries again."""
        try:
            job = self._job()
            if job is None:
                if self._shows_picture:
                    self._client.scene.set_background_image(None)
                    self._shows_picture = False
                return
            if min(self._client.camera.image_width, self._client.camera.image_height) < 1:  # folded to nothing
                return
            started = time.monotonic()
            picture = draw(job, camera_of(self._client.camera), *self._size(job, settled))
            self._client.scene.set_background_image(picture, format="jpeg", jpeg_quality=90 if settled else 65)
            self._shows_picture = True
            self.num_pictures += 1
            if not settled:
                hurry = MOVING_SECONDS / max(time.monotonic() - started, 1e-4)
                self._moving_pixels = max(SMALLEST_PIXELS, self._moving_pixels * min(max(hurry, 0.5), 2.0))
        except Exception as error:
            if settled or time.monotonic() > self._told + SECONDS_BETWEEN_COMPLAINTS:
                self._told = time.monotonic()
                self._failed(error)

    def _size(self, job: Job, settled: bool) -> tuple[int, int]:
        camera = self._client.camera
        aspect = min(camera.aspect, LARGEST_ASPECT)
        on_cuda = job.scene.intrinsics.is_cuda
        height = min(camera.image_height, LARGEST_HEIGHT if on_cuda else LARGEST_HEIGHT_CPU)
        if not settled:
            height = min(height, math.sqrt(self._moving_pixels / aspect))
        height = max(int(height), 2)
        return max(round(height * aspect), 2), height


def draw(job: Job, camera: Camera, width: int, height: int) -> UInt8[np.ndarray, "h w 3"]:
    """A picture of `width` x `height`: of one world, or a grid of several that fills it."""
    scene = with_shown(job.scene, job.shown)
    columns = grid_columns(len(job.worlds))
    rows = math.ceil(len(job.worlds) / columns)
    picture = draw_worlds(
        scene, job.worlds, job.time_step, camera, width // columns, height // rows, job.colouring
    ).numpy()
    return picture if len(job.worlds) == 1 else _letterboxed(picture, width / height)


def _letterboxed(picture: UInt8[np.ndarray, "h w 3"], aspect: float) -> UInt8[np.ndarray, "h2 w2 3"]:
    """White margins that bring a picture to an aspect: the browser stretches it over its whole canvas."""
    height, width = picture.shape[:2]
    missing_width, missing_height = max(round(height * aspect) - width, 0), max(round(width / aspect) - height, 0)
    left, top = missing_width // 2, missing_height // 2
    return cv2.copyMakeBorder(
        picture, top, missing_height - top, left, missing_width - left, cv2.BORDER_CONSTANT, value=(255, 255, 255)
    )


def camera_of(camera: viser.CameraHandle) -> Camera:
    """A client's camera; viser's have OpenCV axes."""
    rotation = quat_to_rotmat(torch.from_numpy(np.array(camera.wxyz)))
    world_from_cam = rigid_matrix(rotation, torch.from_numpy(np.array(camera.position)))
    return Camera(invert_rigid(world_from_cam), float(camera.fov))
