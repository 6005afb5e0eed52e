"""The part of a client's page that is about looking: camera, what is drawn and how, who else sees it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import viser

from osn_gs.export.renderings import COLOURINGS
from osn_gs.viewer.state import ViewState

if TYPE_CHECKING:
    from osn_gs.viewer.session import Session

IN_BROWSER, ON_SERVER = "in the browser", "on the server"


class ViewPanel:
    """Camera and drawing options of one client; colours and which objects are shown belong to the shared state."""

    def __init__(self, session: Session) -> None:
        self._session = session
        gui = session.client.gui
        self.follow = gui.add_checkbox(
            "View from training camera",
            False,
            hint="Locks the camera to the frame's own: here no scale changes a thing.",
        )
        self.jump = gui.add_button("Jump to training camera", icon=viser.Icon.CAMERA, color="gray")
        self.colours = gui.add_dropdown("Colours", COLOURINGS)
        self.draw = gui.add_dropdown(
            "Draw",
            (IN_BROWSER, ON_SERVER),
            hint="Depth and side-by-side pictures are always drawn on the server.",
        )
        self.cameras = gui.add_checkbox("Cameras", False)
        self.paths = gui.add_checkbox("Object paths", False)
        self.shown = [gui.add_checkbox(f"Show {name}", True) for name in session.viewed.scene.object_names]
        self.shared = gui.add_checkbox("Share with everyone", True, hint="Off: what you change, only you see.")
        self.show_frame = gui.add_checkbox("Video frame", False, visible=session.viewed.frames is not None)
        self.frame = None
        self._framed: int | None = None  # the time that the frame on the page is of
        self._bind()

    def _bind(self) -> None:
        session = self._session
        session.on_value(self.follow, self._follow)
        jump = session.handler(lambda event: session.look_through(session.state.time_step))
        self.jump.on_click(jump)
        gui = session.client.gui
        gui.add_command("Jump to training camera", hotkey="J").on_trigger(jump)
        lock = gui.add_command("View from training camera or leave it", hotkey="L")
        lock.on_trigger(session.handler(lambda event: self._toggle_lock()))
        session.on_value(self.colours, lambda colouring: session.channel.change(colouring=colouring))
        for element in (self.draw, self.cameras, self.paths):
            element.on_update(session.handler(self._choose_drawing))
        for k, checkbox in enumerate(self.shown):
            session.on_value(checkbox, lambda is_shown, k=k: self._show_object(k, is_shown))
        session.on_value(self.shared, session.share)
        self.show_frame.on_update(session.handler(lambda event: session.refresh()))

    def show(self, state: ViewState) -> None:
        """Show the state, and the video's frame where it is wanted."""
        self._session.show_value(self.colours, state.colouring)
        for checkbox, is_shown in zip(self.shown, state.shown, strict=True):
            self._session.show_value(checkbox, is_shown)
        frame = self._video_frame(state)
        if frame is None:
            if self.frame is not None:
                self.frame.remove()
                self.frame = None
        elif self.frame is None:
            with self._session.view_tab:
                self.frame = self._session.client.gui.add_image(frame, label="as filmed", format="jpeg")
        elif self._framed != state.time_step:
            self.frame.image = frame
        self._framed = state.time_step

    def _video_frame(self, state: ViewState) -> np.ndarray | None:
        frames = self._session.viewed.frames
        return frames[state.time_step] if frames is not None and self.show_frame.value else None

    def _toggle_lock(self) -> None:
        self.follow.value = not self._session.follows_camera
        self._follow(self.follow.value)

    def _follow(self, follows: bool) -> None:
        self._session.follows_camera = follows
        if not follows:
            self._session.release_camera()
        self._session.refresh()

    def _choose_drawing(self, event: Any) -> None:
        session = self._session
        session.draws_on_server = self.draw.value == ON_SERVER
        session.browser.shows_frustums = self.cameras.value
        session.browser.shows_paths = self.paths.value
        session.refresh()

    def _show_object(self, k: int, is_shown: bool) -> None:
        self._session.channel.update(
            lambda state: dataclasses.replace(
                state, shown=tuple(is_shown if i == k else shown for i, shown in enumerate(state.shown))
            )
        )
