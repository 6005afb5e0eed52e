"""The fly-through viewer: a page for everyone who connects, one shared state unless they ask for their own."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import viser
from jaxtyping import UInt8

from osn_gs.export.renderings import World
from osn_gs.scene.scene import Scene
from osn_gs.viewer.measure_panel import Length, lengths_of
from osn_gs.viewer.session import Session
from osn_gs.viewer.snapshot import SceneSnapshot
from osn_gs.viewer.state import Channel, ViewState
from osn_gs.viewer.worlds import Worlds

TICK = 0.01  # seconds between two looks at who plays
LONG_WORKERS = 4  # searches and exports at a time


@dataclass(frozen=True)
class Viewed:
    """What all clients look at; `Viewer.show` swaps it whole while a run trains.

    `scene` is rendered on the server and must not change any more, `snapshot` is what browsers draw of it.
    `frames` are the video's, where they are at hand.
    """

    name: str
    scene: Scene
    snapshot: SceneSnapshot
    worlds: Worlds
    frames: UInt8[np.ndarray, "t h w 3"] | None = None

    @cached_property
    def lengths(self) -> tuple[Length, ...]:
        """What can be measured of the scene, once for all clients: finding the ground takes most of a page's time."""
        return lengths_of(self.scene)


class Viewer:
    """Serves one run on a viser server, which stays the caller's."""

    def __init__(self, server: viser.ViserServer, viewed: Viewed) -> None:
        self.viewed = viewed
        self.shared = Channel(self.first_state())
        self.sessions: dict[int, Session] = {}
        self.long_work = ThreadPoolExecutor(LONG_WORKERS, "viewer long work")
        self._server = server
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._configure()
        server.on_client_connect(self._connect)
        server.on_client_disconnect(self._disconnect)
        self._player = threading.Thread(target=self._play, name="viewer clock", daemon=True)
        self._player.start()

    def first_state(self) -> ViewState:
        """The first configuration at the first moment, all objects shown; scale 1 for each where there is none yet."""
        num_objects = self.viewed.scene.num_objects
        choices = tuple(World(sample.name, sample.object_scales) for sample in self.viewed.worlds.configurations)
        if not choices:
            choices = (World("start of the training", (1.0,) * num_objects),)
        return ViewState(choices[0], choices, shown=(True,) * num_objects, held=(False,) * num_objects)

    def show(self, viewed: Viewed) -> None:
        """Swap what is looked at, for a run that has learned more of the same objects; up stays where it was."""
        self.viewed = replace(viewed, snapshot=replace(viewed.snapshot, up=self.viewed.snapshot.up))
        with self._lock:
            sessions = tuple(self.sessions.values())
        choices = self.first_state().choices
        for channel in {self.shared, *(session.channel for session in sessions)}:
            if not channel.state.known_sizes and channel.state.choices != choices:
                channel.change(choices=choices, choice=None)
        for session in sessions:
            session.reload()

    def close(self) -> None:
        """Stop all threads of the viewer."""
        self._stopped.set()
        with self._lock:
            sessions, self.sessions = tuple(self.sessions.values()), {}
        for session in sessions:
            session.close()
        self.long_work.shutdown(wait=False, cancel_futures=True)

    def _configure(self) -> None:
        server, snapshot = self._server, self.viewed.snapshot
        server.request_share_url = _stay_private  # any client can ask for it, button or not
        server.gui.configure_theme(show_logo=False, show_share_button=False, control_width="medium")
        server.gui.set_panel_label(self.viewed.name)
        server.gui.main_panel.dock_right()
        server.scene.set_up_direction(tuple(snapshot.up))
        server.scene.world_axes.visible = False
        rotation, centre = snapshot.cam_from_world[0, :3, :3].T, snapshot.camera_centres[0]
        server.initial_camera.position = tuple(centre)
        server.initial_camera.look_at = tuple(centre + snapshot.distance * rotation[:, 2])
        server.initial_camera.up = tuple(snapshot.up)
        server.initial_camera.fov = snapshot.fov_y

    def _connect(self, client: viser.ClientHandle) -> None:
        session = Session(self, client)
        with self._lock:
            self.sessions[client.client_id] = session
        if session.browser.snapshot is not self.viewed.snapshot:  # swapped while the page was built
            session.reload()
        if self._stopped.is_set() or client.client_id not in self._server.get_clients():  # and who left meanwhile
            self._disconnect(client)

    def _disconnect(self, client: viser.ClientHandle) -> None:
        with self._lock:
            session = self.sessions.pop(client.client_id, None)
        if session is not None:
            session.close()

    def _play(self) -> None:
        """Advance the time of every state that plays, until the viewer closes."""
        advanced: dict[Channel, float] = {}
        while not self._stopped.wait(TICK):
            with self._lock:
                channels = {self.shared, *(session.channel for session in self.sessions.values())}
            now = time.monotonic()
            last = {channel: advanced.get(channel, now) for channel in channels if channel.state.playing}
            for channel, then in last.items():
                steps = int((now - then) * channel.state.frames_per_second)
                if steps > 0:
                    last[channel] = then + steps / channel.state.frames_per_second
                    channel.update(lambda state, steps=steps: self._later(state, steps))
            advanced = last

    def _later(self, state: ViewState, steps: int) -> ViewState:
        return replace(state, time_step=(state.time_step + steps) % self.viewed.snapshot.num_frames)


def _stay_private(verbose: bool = True) -> None:
    """In place of viser's way to a public address, which leads through a server that is not the user's."""
