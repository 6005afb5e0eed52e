"""The part of a client's page that is about time: a slider over the frames, play and its speed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import viser

from osn_gs.viewer.state import ViewState

if TYPE_CHECKING:
    from osn_gs.viewer.session import Session

PLAY, PAUSE = "Play", "Pause"


class Timeline:
    """Time slider, play button (hotkey space is the browser's own, so P) and speed."""

    def __init__(self, session: Session) -> None:
        self._session = session
        gui = session.client.gui
        last = max(session.viewed.snapshot.num_frames - 1, 1)
        self.time = gui.add_slider("Frame", 0, last, 1, 0)
        self.play = gui.add_button(PLAY, icon=viser.Icon.PLAYER_PLAY, color="gray")
        self.speed = gui.add_slider("Frames a second", 1, 60, 1, 10)
        session.on_value(self.time, self._go_to)
        self.play.on_click(session.handler(self._toggle))
        session.on_value(self.speed, lambda speed: session.channel.change(frames_per_second=float(speed)))
        command = gui.add_command("Play or pause", hotkey="P")
        command.on_trigger(session.handler(self._toggle))

    def show(self, state: ViewState) -> None:
        """Show the time and whether it runs."""
        self._session.show_value(self.time, state.time_step)
        self._session.show_value(self.speed, int(state.frames_per_second))
        label = PAUSE if state.playing else PLAY
        if self.play.label != label:
            self.play.label = label
            self.play.icon = viser.Icon.PLAYER_PAUSE if state.playing else viser.Icon.PLAYER_PLAY

    def _go_to(self, time_step: int) -> None:
        self._session.channel.change(time_step=min(time_step, self._session.viewed.snapshot.num_frames - 1))

    def _toggle(self, event: Any) -> None:
        self._session.channel.change(playing=not self._session.state.playing)
