"""The segmenter's page: say in a few frames where objects are, see what follows, correct it, save masks.

The frame lies as a picture in viser's scene, one unit high, in the plane z = 0 with its middle at the origin, x right
and y up. So zooming and panning are viser's own, and a click is where its ray meets that plane.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import viser
from jaxtyping import Float

from osn_gs.errors import OsnGsError
from osn_gs.preprocess.prompts import Point
from osn_gs.viewer.annotation_session import AnnotationSession

ON_OBJECT, NOT_OBJECT, OUTLINE = "On object", "Not object", "Outline"
FIELD_OF_VIEW = math.radians(40.0)
USUAL_ASPECT = 1.1  # width over height of a browser window without the panel; the button fits any
FIT_MARGIN = 1.06  # of the picture's size, so that its border can be clicked

HELP = (
    "**Drag** a box around the object, or **click** on it; **Shift+click** on what is not it. Outline: click its "
    "corners, then close it. Propagate, look through the frames, correct with clicks where it went wrong. "
    "Wheel zooms, right drag moves."
)


class AnnotationPage:
    """Binds a session to the elements of a viser server; one user at a time is assumed."""

    def __init__(self, server: viser.ViserServer, session: AnnotationSession) -> None:
        self.session = session
        self._server = server
        self._busy = threading.Lock()
        self._drawing = threading.Lock()
        width, height = session.size
        self._aspect = width / height
        server.gui.configure_theme(show_logo=False, show_share_button=False)
        server.gui.main_panel.dock_right()
        server.scene.set_up_direction("+y")
        server.scene.world_axes.visible = False
        server.initial_camera.position = (0.0, 0.0, self._distance(USUAL_ASPECT))
        server.initial_camera.look_at = (0.0, 0.0, 0.0)
        server.initial_camera.up = (0.0, 1.0, 0.0)
        server.initial_camera.fov = FIELD_OF_VIEW
        self._image = server.scene.add_image(
            "/frame", session.picture(0), self._aspect, 1.0, format="jpeg", jpeg_quality=90, wxyz=(0.0, 1.0, 0.0, 0.0)
        )
        self._build_controls()
        self._bind()
        self.refresh()

    def _build_controls(self) -> None:
        gui = self._server.gui
        gui.add_markdown(HELP)
        self.frame = gui.add_slider("Frame", 0, len(self.session.images) - 1, 1, 0)
        self.step = gui.add_button_group("Go to", ("Back", "Next", "Next key"))
        self.object = gui.add_dropdown("Object", tuple(self._object_labels()))
        self.name = gui.add_text("Name", self.session.prompts.names[0])
        self.objects = gui.add_button_group("Objects", ("Add", "Remove"))
        self.marks = gui.add_dropdown("Click marks", (ON_OBJECT, NOT_OBJECT, OUTLINE))
        self.close = gui.add_button("Close outline", disabled=True)
        self.absent = gui.add_button("Not to be seen in this frame", color="gray")
        self.clear = gui.add_button("Clear this frame", color="gray")
        self.undo = gui.add_button("Undo", icon=viser.Icon.ARROW_BACK_UP, color="gray")
        self.propagate = gui.add_button("Propagate", icon=viser.Icon.PLAYER_PLAY)
        self.save = gui.add_button("Save masks", icon=viser.Icon.DEVICE_FLOPPY)
        self.progress = gui.add_progress_bar(0.0, visible=False)
        self.show_masks = gui.add_checkbox("Show masks", True)
        self.fit = gui.add_button("Fit picture", icon=viser.Icon.MAXIMIZE, color="gray")
        self.status = gui.add_markdown("")

    def _bind(self) -> None:
        self.frame.on_update(self._handler(lambda event: self._select_frame(int(self.frame.value))))
        self.step.on_click(self._handler(lambda event: self._step(self.step.value)))
        self.object.on_update(self._handler(lambda event: self._select_object(self.object.value)))
        self.name.on_update(self._handler(lambda event: self._rename(self.name.value)))
        self.objects.on_click(self._handler(lambda event: self._change_objects(self.objects.value)))
        self.marks.on_update(self._handler(lambda event: self.session.select()))
        self.close.on_click(self._handler(lambda event: self.session.close_outline()))
        self.absent.on_click(self._handler(lambda event: self.session.mark_absent()))
        self.clear.on_click(self._handler(lambda event: self.session.clear_prompt()))
        self.undo.on_click(self._handler(lambda event: self.session.undo()))
        self.show_masks.on_update(self._handler(lambda event: None))
        self.propagate.on_click(self._handler(self._propagate))
        self.save.on_click(self._handler(self._save))
        self.fit.on_click(lambda event: self._fit(event.client))
        self._server.scene.on_click()(self._handler(lambda event: self._clicked(event, self.marks.value)))
        self._server.scene.on_click(modifier="shift")(self._handler(lambda event: self._clicked(event, NOT_OBJECT)))
        self._server.scene.on_rect_select()(self._handler(self._dragged))

    def _handler(self, act: Callable[[Any], object]) -> Callable[[Any], None]:
        """`act` as a callback: what the user did wrong becomes a notice, and the page shows what has changed."""

        def handle(event: Any) -> None:
            if event.client is None:  # not the user but `refresh` changed an element
                return
            try:
                act(event)
            except OsnGsError as error:
                self._tell(event, "That does not work", str(error), "red")
            self.refresh()

        return handle

    def refresh(self) -> None:
        """Show the session as it is now."""
        with self._drawing:
            session = self.session
            self._image.image = session.picture(session.frame, self.show_masks.value)
            labels = tuple(self._object_labels())
            if self.object.options != labels:
                self.object.options = labels
            _set(self.object, labels[session.object_id - 1])
            _set(self.name, session.prompts.names[session.object_id - 1])
            _set(self.frame, session.frame)
            self.close.disabled = len(session.corners) < 3
            self.status.content = self._status()

    def _status(self) -> str:
        session = self.session
        keys = session.prompts.key_frames(session.object_id)
        told = "no frame yet" if not keys else "frames " + ", ".join(map(str, keys))
        if (
            session.frame in keys
            and not session.prompts.get(session.frame, session.object_id).absent
            and not (session.shown_ids(session.frame) == session.object_id).any()
        ):
            advice = "Nothing stands out here: click on the object, or outline it."
        elif session.is_saved:
            advice = "Masks of all frames are saved."
        elif session.is_propagated:
            advice = "Masks follow from all prompts: look through the frames, then save."
        elif keys:
            advice = "Prompts have changed: propagate to see all frames."
        else:
            advice = "Show this object in one frame."
        return (
            f"Frame {session.frame} of {len(session.images)} (`{session.names[session.frame]}`). "
            f"This object was shown in {told}. {advice}"
        )

    def _object_labels(self) -> list[str]:
        return [f"{k} {name}" for k, name in enumerate(self.session.prompts.names, 1)]

    def _select_frame(self, frame: int) -> None:
        if frame != self.session.frame:
            self.session.select(frame=frame)

    def _step(self, where: str) -> None:
        frame, last = self.session.frame, len(self.session.images) - 1
        if where == "Next key":
            keys = self.session.prompts.key_frames(self.session.object_id)
            later = [key for key in keys if key > frame] or keys
            target = later[0] if later else frame
        else:
            target = frame + (1 if where == "Next" else -1)
        self._select_frame(min(max(target, 0), last))

    def _select_object(self, label: str) -> None:
        labels = self._object_labels()
        if label in labels and labels.index(label) + 1 != self.session.object_id:
            self.session.select(object_id=labels.index(label) + 1)

    def _rename(self, name: str) -> None:
        if name != self.session.prompts.names[self.session.object_id - 1]:
            self.session.rename_object(name)

    def _change_objects(self, change: str) -> None:
        if change == "Add":
            self.session.add_object()
        else:
            self.session.remove_object()

    def _clicked(self, event: viser.SceneClickEvent, marks: str) -> None:
        point = self._pixel(np.array(event.ray_origin), np.array(event.ray_direction))
        if point is None or not self.session.contains(point):
            return
        if marks == OUTLINE:
            self.session.add_corner(point)
        else:
            self.session.add_point(point, marks == ON_OBJECT)

    def _dragged(self, event: viser.SceneRectSelectEvent) -> None:
        corners = [self._pixel(*_camera_ray(event.client.camera, at)) for at in (event.screen_min, event.screen_max)]
        if corners[0] is not None and corners[1] is not None:
            self.session.add_box(corners[0], corners[1])

    def _pixel(self, origin: Float[np.ndarray, "3"], direction: Float[np.ndarray, "3"]) -> Point | None:
        """Where a ray meets the picture's plane, in pixels; None where it does not."""
        if direction[2] * origin[2] >= 0:
            return None
        x, y = (origin - direction * origin[2] / direction[2])[:2]
        width, height = self.session.size
        return round(float(x / self._aspect + 0.5) * width, 2), round(float(0.5 - y) * height, 2)

    def _propagate(self, event: Any) -> None:
        self._run_long(event, lambda: self.session.propagate(self._show_progress))

    def _save(self, event: Any) -> None:
        def save() -> None:
            self.session.save(self._show_progress)
            self._tell(event, "Saved", f"{len(self.session.names)} masks in {self.session.folder}", "green")

        self._run_long(event, save)

    def _run_long(self, event: Any, work: Callable[[], None]) -> None:
        if not self._busy.acquire(blocking=False):
            self._tell(event, "Still at work", "Wait until the bar is full.", "yellow")
            return
        try:
            self.progress.value, self.progress.visible = 0.0, True
            work()
        finally:
            self.progress.visible = False
            self._busy.release()

    def _show_progress(self, done: int, total: int) -> None:
        self.progress.value = 100.0 * done / total

    def _tell(self, event: Any, title: str, text: str, colour: Any) -> None:
        if event.client is not None:
            event.client.add_notification(title, text, color=colour, auto_close_seconds=6.0)

    def _fit(self, client: viser.ClientHandle | None) -> None:
        """Look straight at the whole picture."""
        if client is None:
            return
        client.camera.position = (0.0, 0.0, self._distance(client.camera.aspect))
        client.camera.look_at = (0.0, 0.0, 0.0)  # after the position, which takes it along
        client.camera.up_direction = (0.0, 1.0, 0.0)

    def _distance(self, canvas_aspect: float) -> float:
        """From where a canvas of some width over height shows all of the picture."""
        return FIT_MARGIN * 0.5 * max(1.0, self._aspect / canvas_aspect) / math.tan(FIELD_OF_VIEW / 2)


def _set(element: Any, value: Any) -> None:
    """Give an element a value, if it is another one: the browser would be told, and move what the user is at."""
    if element.value != value:
        element.value = value


def _camera_ray(
    camera: viser.CameraHandle, screen: tuple[float, float]
) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """Origin and direction of the ray through a point of the canvas, from (0, 0) upper left to (1, 1) lower right."""
    half_height = math.tan(camera.fov / 2)
    in_camera = np.array([(2 * screen[0] - 1) * half_height * camera.aspect, (2 * screen[1] - 1) * half_height, 1.0])
    return np.array(camera.position), viser.transforms.SO3(np.asarray(camera.wxyz)) @ in_camera
