"""The part of a client's page that takes worlds away: .ply files, videos, pictures, a page that needs no server."""

from __future__ import annotations

import io
import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import cv2
import torch
import viser

from osn_gs.errors import OsnGsError
from osn_gs.export.camera_path import read_camera_path, write_camera_path
from osn_gs.export.configurations import Configuration, export_configuration, scene_frames
from osn_gs.export.renderings import World, fly_through, with_shown
from osn_gs.export.video import write_video
from osn_gs.geometry.camera_path import CameraPath, Keyframe, interpolate_keyframes, swinging_path
from osn_gs.viewer.offline_page import offline_page
from osn_gs.viewer.server_view import camera_of, draw
from osn_gs.viewer.state import ViewState
from osn_gs.viewer.world_panel import vector

if TYPE_CHECKING:
    from osn_gs.viewer.session import Session

T = TypeVar("T")
VIDEO_HEIGHT = 480  # pixels, by default
SECONDS_BETWEEN_KEYFRAMES = 2.0
FRAMES_PER_SECOND = 24
MOST_PIXELS = 7680 * 4320  # of a picture; a client may ask for any size, and memory is everyone's
SHOWN, KEPT = "the world shown", "all kept worlds"
MOMENT, SEQUENCE = "this moment", "all frames"


class ExportPanel:
    """Everything leaves as a download of the client's browser; nothing is written where the viewer runs."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._keyframes: list[Keyframe] = []
        self._loaded: CameraPath | None = None
        gui = session.client.gui
        self.which = gui.add_dropdown("Export", (SHOWN, KEPT))
        self.span = gui.add_dropdown("Times", (MOMENT, SEQUENCE))
        self.ply = gui.add_button("Gaussians (.ply)", icon=viser.Icon.DOWNLOAD)
        self.page = gui.add_button("Offline page of this world (.html)", icon=viser.Icon.DOWNLOAD, color="gray")
        self.screenshot = gui.add_button("Screenshot (.png)", icon=viser.Icon.CAMERA, color="gray")
        with gui.add_folder("Camera path"):
            self.add_view = gui.add_button("Add this view", icon=viser.Icon.PLUS, color="gray")
            self.clear_views = gui.add_button("Clear views", color="gray")
            self.views = gui.add_markdown("")
            self.height = gui.add_slider("Video height", 120, 1080, 60, VIDEO_HEIGHT)
            self.video = gui.add_button("Video (.mp4)", icon=viser.Icon.MOVIE)
            self.path = gui.add_button("Path (.json)", icon=viser.Icon.DOWNLOAD, color="gray")
            self.load = gui.add_upload_button("Load path", icon=viser.Icon.UPLOAD, mime_type="application/json")
        self.progress = gui.add_progress_bar(0.0, visible=False)
        self._bind()
        self._tell_views()

    def _bind(self) -> None:
        session = self._session
        for button, work in (
            (self.ply, self._export_ply),
            (self.page, self._export_page),
            (self.screenshot, self._export_screenshot),
            (self.video, self._export_video),
            (self.path, self._export_path),
        ):
            button.on_click(session.handler(lambda event, work=work: session.run_long(work)))
        self.add_view.on_click(session.handler(lambda event: self._add_view()))
        self.clear_views.on_click(session.handler(lambda event: self._clear_views()))
        self.load.on_upload(session.handler(lambda event: self._load_path()))

    def show(self, state: ViewState) -> None:
        """Nothing here follows the state; what is exported does, when a button is pressed."""

    def worlds(self) -> tuple[World, ...]:
        """What is to be exported; raises OsnGsError where nothing is kept."""
        state = self._session.state
        if self.which.value == SHOWN:
            return (state.world,)
        if not state.kept:
            raise OsnGsError("no world is kept; keep some in the World tab (hotkey K), or export the world shown.")
        return state.kept

    def _export_ply(self) -> None:
        """One .ply file for one moment of one world, else a .zip of folders with manifests."""
        worlds, state = self.worlds(), self._session.state
        scene = with_shown(self._session.viewed.scene, state.shown)
        if not any(state.shown):
            raise OsnGsError("no object is shown, so none would be exported; show some in the View tab.")
        times = [state.time_step] if self.span.value == MOMENT else list(range(scene.num_frames))
        with tempfile.TemporaryDirectory() as folder:
            for world in worlds:
                scales = scene.intrinsics.new_tensor(world.object_scales)
                export_configuration(
                    Path(folder) / file_stem(world),
                    self._configuration(world),
                    scene.object_names,
                    self._with_bar(scene_frames(scene, scales, times), len(times)),
                )
            files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
            clouds = [path for path in files if path.suffix == ".ply"]
            if len(clouds) == 1:
                name = f"{file_stem(worlds[0])}_{clouds[0].name}"
                self._download(name, clouds[0].read_bytes())
                return
            archive = io.BytesIO()
            with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:  # floats hardly shrink
                for path in files:
                    packed.write(path, path.relative_to(folder))
            self._download(f"{self._stem()}_ply.zip", archive.getvalue())

    def _configuration(self, world: World) -> Configuration:
        verdict = self._session.viewed.worlds.judge(vector(world))
        return Configuration(world.name, world.object_scales, verdict.score, verdict.accuracy)

    def _export_page(self) -> None:
        state = self._session.state
        title = f"{self._session.viewed.name}: {state.world.name}"
        page = offline_page(
            title, self._session.viewed.snapshot, state.world.object_scales, state.shown, state.frames_per_second
        )
        self._download(f"{file_stem(state.world)}.html", page.encode())

    def _export_screenshot(self) -> None:
        """What this client sees, drawn here at the size of its window."""
        camera, state = self._session.client.camera, self._session.state
        check_size(camera.image_width, camera.image_height)
        job = self._session.job()
        picture = draw(job, camera_of(camera), camera.image_width, camera.image_height)
        encoded_well, encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        assert encoded_well, f"OpenCV could not encode a picture of shape {picture.shape}"
        self._download(f"{file_stem(state.world)}_frame_{state.time_step:04d}.png", encoded.tobytes())

    def _export_video(self) -> None:
        """The camera path as a video; several worlds side by side where all kept ones are asked for."""
        worlds, state = self.worlds(), self._session.state
        scene, path = with_shown(self._session.viewed.scene, state.shown), self._camera_path()
        check_size(path.width, path.height)
        pictures = fly_through(scene, worlds, path, state.colouring)
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "path.mp4"
            write_video(target, self._with_bar(pictures, len(path.times)), path.fps)
            self._download(f"{self._stem()}.mp4", target.read_bytes())

    def _with_bar(self, items: Iterable[T], total: int) -> Iterator[T]:
        try:
            self.progress.visible = True
            for done, item in enumerate(items, 1):
                yield item
                if self._session.is_closed:
                    raise OsnGsError("the client has gone: nobody waits for this export.")
                self.progress.value = 100 * done / total
        finally:
            self.progress.visible = False

    def _export_path(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "camera_path.json"
            write_camera_path(target, self._camera_path(), self._keyframes, self._session.viewed.snapshot.num_frames)
            self._download("camera_path.json", target.read_bytes())

    def _load_path(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / Path(self.load.value.name).name
            source.write_bytes(self.load.value.content)
            self._loaded = read_camera_path(source, self._session.viewed.snapshot.num_frames)
        self._keyframes = []
        self._tell_views()

    def _add_view(self) -> None:
        camera = camera_of(self._session.client.camera)
        self._loaded = None
        self._keyframes.append(Keyframe(camera.cam_from_world, camera.fov_y, float(self._session.state.time_step)))
        self._tell_views()

    def _clear_views(self) -> None:
        self._keyframes, self._loaded = [], None
        self._tell_views()

    def _tell_views(self) -> None:
        if self._loaded is not None:
            told = f"A loaded path of {len(self._loaded.times)} pictures."
        elif len(self._keyframes) > 1:
            told = f"{len(self._keyframes)} views: the camera flies through them, time with it."
        elif self._keyframes:
            told = "One view: the camera stands there while the scene moves."
        else:
            told = "No views yet: the camera swings around the training camera while the scene moves."
        self.views.content = told

    def _camera_path(self) -> CameraPath:
        """The loaded path, the one through the views, or a swing around the first training camera."""
        height = int(self.height.value)
        if self._loaded is not None:
            return self._loaded
        width = round(height * self._session.client.camera.aspect)
        if len(self._keyframes) > 1:
            seconds = SECONDS_BETWEEN_KEYFRAMES * (len(self._keyframes) - 1)
            num_views = round(FRAMES_PER_SECOND * seconds) + 1
            return interpolate_keyframes(self._keyframes, num_views, fps=FRAMES_PER_SECOND, width=width, height=height)
        return self._whole_scene(width, height)

    def _whole_scene(self, width: int, height: int) -> CameraPath:
        """The scene's frames once at the speed set, from the one view, or from a swing around the training camera."""
        snapshot = self._session.viewed.snapshot
        num_views = max(round(snapshot.num_frames / self._session.state.frames_per_second * FRAMES_PER_SECOND), 2)
        times = torch.linspace(0, snapshot.num_frames - 1, num_views, dtype=torch.float64)
        if self._keyframes:
            cameras = self._keyframes[0].cam_from_world.expand(num_views, 4, 4)
            fov_y = self._keyframes[0].fov_y
        else:
            cameras = swinging_path(torch.from_numpy(snapshot.cam_from_world[0]), snapshot.distance, num_views)
            fov_y, width = snapshot.fov_y, round(height * snapshot.aspect)
        return CameraPath(cameras, torch.full_like(times, fov_y), times, FRAMES_PER_SECOND, width, height)

    def _download(self, name: str, content: bytes) -> None:
        self._session.client.send_file_download(name, content, save_immediately=True)
        self._session.tell("Exported", f"{name}, {megabytes(len(content))}, is in your downloads.", "green")

    def _stem(self) -> str:
        return file_stem(self._session.state.world) if self.which.value == SHOWN else "kept_worlds"


def check_size(width: int, height: int) -> None:
    """Raise OsnGsError for a picture that cannot be drawn here."""
    if min(width, height) < 1 or width * height > MOST_PIXELS:
        raise OsnGsError(f"a picture of {width}x{height} cannot be drawn; expected 1 to {MOST_PIXELS:,} pixels.")


def megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:.1f} kB"


def file_stem(world: World) -> str:
    """A world's name as a file's."""
    return "_".join(re.findall(r"\w+", world.name)) or "world"
