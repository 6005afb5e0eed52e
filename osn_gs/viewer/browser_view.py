"""One client's splats, drawn by the browser: uploaded once, then only moved and scaled.

An object that bends is sent again for another frame, it alone: 32 bytes a splat. One node per frame, sent beforehand,
would have the browser sort the splats of all frames for every picture.
"""

from __future__ import annotations

import numpy as np
import viser
from jaxtyping import Float

from osn_gs.export.previews import BACKGROUND_COLOR, OBJECT_COLORS
from osn_gs.export.renderings import Colouring
from osn_gs.viewer.snapshot import ObjectSnapshot, SceneSnapshot
from osn_gs.viewer.state import ViewState

FRUSTUM_DEPTH = 0.12  # of the objects' distance
OBJECT_TINT = 0.65  # of an object's colour, the rest is the brightness of its splats
FRUSTUM_COLOR, CURRENT_COLOR = (150, 150, 150), (230, 120, 20)


class BrowserView:
    """The nodes of one client's scene. Not thread-safe: the session calls it under its lock."""

    def __init__(self, client: viser.ClientHandle, snapshot: SceneSnapshot, state: ViewState) -> None:
        self._client = client
        self._scene = client.scene
        self._colouring: Colouring = "colour"
        self._bent_to: dict[int, int] = {}  # the frame whose splats each object's node holds
        self.draws_splats = True
        self.draws_lines = True
        self.marks_frame = False  # seen from its own camera, a frustum is the border of the frame
        self.shows_frustums = False
        self.shows_paths = False
        self.load(snapshot, state)

    def load(self, snapshot: SceneSnapshot, state: ViewState) -> None:
        """Send a scene, in place of the one before."""
        self.snapshot = snapshot
        self._colouring = state.colouring
        with self._client.atomic():
            self._splats = [self._add_splats(k, part, state) for k, part in enumerate(snapshot.objects)]
            self._frustums = self._scene.add_line_segments(
                "/cameras/all",
                _frustum_lines(snapshot, range(snapshot.num_frames)),
                FRUSTUM_COLOR,
                thickness=1.0,
                thickness_units="screen",
                visible=self.shows_frustums,
            )
            self._current = self._scene.add_line_segments(
                "/cameras/current",
                _frustum_lines(snapshot, [state.time_step]),
                CURRENT_COLOR,
                thickness=2.5,
                thickness_units="screen",
                visible=self.shows_frustums,
            )
            self._paths = [
                self._scene.add_line_segments(
                    f"/paths/{k}",
                    _segments(snapshot.trajectory(k, state.world.object_scales[k])),
                    object_color(k),
                    thickness=2.5,
                    thickness_units="screen",
                    visible=False,
                )
                for k in range(1, len(snapshot.objects))
            ]
            self.place(state)

    def place(self, state: ViewState) -> None:
        """Put everything where a state has it."""
        if state.colouring != self._colouring and "objects" in (state.colouring, self._colouring):
            self._colouring = state.colouring
            self._splats = [self._add_splats(k, part, state) for k, part in enumerate(self.snapshot.objects)]
        self._colouring = state.colouring
        with self._client.atomic():
            self._bend(state)
            for k, node in enumerate(self._splats):
                pose = self.snapshot.pose(k, state.world.object_scales[k], state.time_step)
                node.wxyz, node.position, node.scale = pose.wxyz, pose.position, float(pose.scale)
                node.visible = bool(self._is_drawn(k, state))
            self._frustums.visible = self.shows_frustums and self.draws_lines
            self._current.visible = (self.shows_frustums or self.marks_frame) and self.draws_lines
            self._current.points = _frustum_lines(self.snapshot, [state.time_step]).astype(np.float32)
            for k, path in enumerate(self._paths, 1):
                path.visible = self.shows_paths and self.draws_lines and state.shown[k]
                if path.visible:
                    points = _segments(self.snapshot.trajectory(k, state.world.object_scales[k]))
                    path.points = points.astype(np.float32)

    def _bend(self, state: ViewState) -> None:
        """Send the splats that lie elsewhere in the state's frame, of objects that are seen."""
        for k, part in enumerate(self.snapshot.objects):
            if part.bending is None or self._bent_to[k] == state.time_step or not self._is_drawn(k, state):
                continue
            means, covariances = part.splats(state.time_step)
            rgbs, opacities = self._rgbs(k, part, state), part.opacities[:, None]
            self._splats[k].set_gaussians(means, covariances, rgbs, opacities)
            self._bent_to[k] = state.time_step

    def _is_drawn(self, k: int, state: ViewState) -> bool:
        return self.draws_splats and state.shown[k] and self.snapshot.objects[k].visible[state.time_step]

    def _add_splats(self, k: int, part: ObjectSnapshot, state: ViewState) -> viser.GaussianSplatHandle:
        pose = self.snapshot.pose(k, state.world.object_scales[k], state.time_step)
        means, covariances = part.splats(state.time_step)
        self._bent_to[k] = state.time_step
        return self._scene.add_gaussian_splats(
            f"/objects/{k}",
            means,
            covariances,
            self._rgbs(k, part, state),
            part.opacities[:, None],
            scale=float(pose.scale),
            wxyz=pose.wxyz,
            position=pose.position,
            visible=bool(self._is_drawn(k, state)),
        )

    @staticmethod
    def _rgbs(k: int, part: ObjectSnapshot, state: ViewState) -> Float[np.ndarray, "n 3"]:
        return _tinted(k, part.rgbs) if state.colouring == "objects" else part.rgbs


def object_color(k: int) -> tuple[int, int, int]:
    """The colour of object k in pictures of object ids (`previews.color_ids`)."""
    return BACKGROUND_COLOR if k == 0 else OBJECT_COLORS[(k - 1) % len(OBJECT_COLORS)]


def _tinted(k: int, rgbs: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    brightness = rgbs.mean(axis=1, keepdims=True)
    return OBJECT_TINT * np.array(object_color(k)) / 255 + (1 - OBJECT_TINT) * brightness


def _frustum_lines(snapshot: SceneSnapshot, frames: range | list[int]) -> Float[np.ndarray, "n 2 3"]:
    """Eight edges for each camera: from its centre to the corners of its picture, and around the picture."""
    depth = FRUSTUM_DEPTH * snapshot.distance
    y = depth * np.tan(snapshot.fov_y / 2)
    x = y * snapshot.aspect
    corners = np.array([[-x, -y, depth], [x, -y, depth], [x, y, depth], [-x, y, depth]])
    edges = [(np.zeros(3), corner) for corner in corners]
    edges += [(corners[i], corners[(i + 1) % 4]) for i in range(4)]
    local = np.array(edges)
    rotations = snapshot.cam_from_world[list(frames), :3, :3].transpose(0, 2, 1)
    centres = snapshot.camera_centres[list(frames)]
    lines = np.einsum("fij,evj->fevi", rotations, local) + centres[:, None, None]
    return lines.reshape(-1, 2, 3)


def _segments(points: Float[np.ndarray, "v 3"]) -> Float[np.ndarray, "n 2 3"]:
    """A line through points, as pieces; a single point becomes a piece without length."""
    if len(points) == 0:
        return np.zeros((1, 2, 3))
    if len(points) == 1:
        points = np.repeat(points, 2, axis=0)
    return np.stack([points[:-1], points[1:]], axis=1)
