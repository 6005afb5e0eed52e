"""One client of the viewer: its page, its camera, its pictures, and the state it looks at."""

from __future__ import annotations

import math
import threading
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import viser

from osn_gs.errors import OsnGsError
from osn_gs.viewer.browser_view import BrowserView
from osn_gs.viewer.export_panel import ExportPanel
from osn_gs.viewer.measure_panel import MeasurePanel
from osn_gs.viewer.server_view import Job, ServerView
from osn_gs.viewer.state import Channel, NewestWins, ViewState
from osn_gs.viewer.timeline import Timeline
from osn_gs.viewer.view_panel import ViewPanel
from osn_gs.viewer.world_panel import WorldPanel

if TYPE_CHECKING:
    from osn_gs.viewer.viewer import Viewed, Viewer

NOTICE_SECONDS = 8.0
SAME_PLACE = 1e-3  # of the objects' distance: nearer, a camera is where it was put
SAME_DIRECTION = 1e-6  # 1 - cosine
SAME_FIELD = 1e-3  # radians


class Session:
    """Binds one client to a channel. Everything a client sees is its own: nothing is drawn on the server's scene."""

    def __init__(self, viewer: Viewer, client: viser.ClientHandle) -> None:
        self.viewer = viewer
        self.client = client
        self.channel = viewer.shared
        self.draws_on_server = False
        self.follows_camera = False
        self._closed = False
        self._workers: list[NewestWins | ServerView] = []
        self._judged: object = None  # what the verdict on the page is of
        self.lock = threading.RLock()  # of everything on this client's page
        self._busy = threading.Lock()
        self._given: dict[int, Any] = {}  # by id of the element: values from the page that are still to be acted on
        self._acting = threading.Lock()
        try:
            with client.atomic():  # the page comes whole: nothing can be pressed that leads to what is not there yet
                self._build_page()
        except BaseException:
            self.close()
            raise
        client.camera.on_update(lambda camera: self._camera_moved())

    def _build_page(self) -> None:
        client = self.client
        self.browser = BrowserView(client, self.viewed.snapshot, self.state)
        self.server_view = ServerView(client, self._server_job, self.failed)
        self._workers.append(self.server_view)
        self.timeline = Timeline(self)
        tabs = client.gui.add_tab_group()
        with tabs.add_tab("World"):
            self.world_panel = WorldPanel(self)
        self.view_tab = tabs.add_tab("View")
        with self.view_tab:
            self.view_panel = ViewPanel(self)
        with tabs.add_tab("Measure"):
            self.measure_panel = MeasurePanel(self)
        with tabs.add_tab("Export"):
            self.export_panel = ExportPanel(self)
        self._judge = NewestWins(f"judge of client {client.client_id}", self.world_panel.judge)
        self._workers.append(self._judge)
        self.channel.listen(self.refresh)
        self.refresh()

    @property
    def viewed(self) -> Viewed:
        return self.viewer.viewed

    @property
    def state(self) -> ViewState:
        return self.channel.state

    def close(self) -> None:
        """End this client's threads and hear no more of the state."""
        with self.lock:
            self._closed = True
            self.channel.leave(self.refresh)
        for worker in self._workers:
            worker.stop()

    def share(self, shared: bool) -> None:
        """Look at the state that everyone shares, or at one's own, which starts as a copy of it."""
        with self.lock:
            if self._closed:  # the click was handled after the client had gone
                return
            self.channel.leave(self.refresh)
            self.channel = self.viewer.shared if shared else Channel(self.state)
            self.channel.listen(self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """Show the newest state. Whoever changed it waits for this, so what fails is told to this client alone."""
        try:
            with self.lock:
                if self._closed:
                    return
                self._show(self.state)
        except Exception as error:
            self.failed(error)
        self.server_view.ask()

    def _show(self, state: ViewState) -> None:
        self.browser.draws_splats = not self._is_server_drawn(state)
        self.browser.draws_lines = not self._compares(state)  # they belong to one view
        self.browser.marks_frame = self.follows_camera
        self.browser.place(state)
        for panel in (self.timeline, self.world_panel, self.view_panel, self.measure_panel, self.export_panel):
            panel.show(state)
        if self.follows_camera:
            self.look_through(state.time_step)
        to_judge = (state.world, state.choice, state.choices, self.viewed.worlds)
        if to_judge != self._judged:  # not at every tick of the clock: why it is not valid is said at rest
            self._judged = to_judge
            self._judge.ask()

    def reload(self) -> None:
        """Send the scene again: it has been trained on. What fails is told to this client, not to the training."""
        try:
            with self.lock:
                if not self._closed:
                    self.browser.load(self.viewed.snapshot, self.state)
        except Exception as error:
            self.failed(error)
        self.refresh()

    def look_through(self, time_step: int) -> None:
        """Put the client's camera where a frame was filmed from, so that the whole frame is in view."""
        snapshot, camera = self.viewed.snapshot, self.client.camera
        rotation = snapshot.cam_from_world[time_step, :3, :3].T
        centre = snapshot.camera_centres[time_step]
        with self.client.atomic():
            camera.position = centre
            camera.look_at = centre + snapshot.distance * rotation[:, 2]
            camera.up_direction = -rotation[:, 1]
            camera.fov = self._fitting_fov()

    def release_camera(self) -> None:
        """Fly on from here with the world's own up."""
        self.client.camera.up_direction = self.viewed.snapshot.up

    def _fitting_fov(self) -> float:
        """Vertical field of view at which a training frame is as large as the canvas allows."""
        snapshot, camera = self.viewed.snapshot, self.client.camera
        aspect = max(camera.image_width, 1) / max(camera.image_height, 1)  # a window may be folded to nothing
        too_narrow = max(1.0, snapshot.aspect / aspect)
        return 2 * math.atan(math.tan(snapshot.fov_y / 2) * too_narrow)

    def _camera_moved(self) -> None:
        """A camera that follows the training camera goes back to it; pictures drawn here are drawn again."""
        snapshot = self.viewed.snapshot
        if self.follows_camera:
            camera, time_step = self.client.camera, self.state.time_step
            away = np.linalg.norm(np.array(camera.position) - snapshot.camera_centres[time_step])
            look = np.array(camera.look_at) - np.array(camera.position)
            along = float(look @ snapshot.cam_from_world[time_step, 2, :3]) / max(float(np.linalg.norm(look)), 1e-12)
            refitted = abs(camera.fov - self._fitting_fov()) > SAME_FIELD  # the window has another shape
            if away > SAME_PLACE * snapshot.distance or 1 - along > SAME_DIRECTION or refitted:
                with self.lock:
                    self.look_through(self.state.time_step)
        self.server_view.ask()

    def _is_server_drawn(self, state: ViewState) -> bool:
        return self.draws_on_server or state.colouring == "depth" or self._compares(state)

    @staticmethod
    def _compares(state: ViewState) -> bool:
        return state.comparing and len(state.kept) > 0

    def _server_job(self) -> Job | None:
        """What the server has to draw for this client; None where the browser draws."""
        return self.job() if self._is_server_drawn(self.state) else None

    def job(self) -> Job:
        """What this client looks at, for the server to draw."""
        state = self.state
        others = [world for world in state.kept if world.object_scales != state.world.object_scales]
        worlds = (state.world, *others) if self._compares(state) else (state.world,)
        return Job(self.viewed.scene, worlds, state.shown, state.time_step, state.colouring)

    def handler(self, act: Callable[[Any], object]) -> Callable[[Any], None]:
        """`act` as a callback of this client's page: what goes wrong becomes a notice, and the viewer lives on."""

        def handle(event: Any) -> None:
            if getattr(event, "client", self.client) is not None:  # else not the user but `refresh` changed an element
                self._attempt(lambda: act(event))

        return handle

    def _attempt(self, work: Callable[[], object]) -> None:
        try:
            work()
        except OsnGsError as error:
            self.tell("That does not work", str(error), "red")
        except Exception as error:
            self.failed(error)

    def on_value(self, element: Any, act: Callable[[Any], object]) -> None:
        """Call `act` with what the user gives an element: one value after the other, those overtaken left out.

        viser hands every message to another thread, and any of them may be the last to run.
        """

        async def note(event: viser.GuiEvent) -> None:  # at once and in order: the event loop runs it
            if event.client is not None:
                self._given[id(element)] = element.value

        def act_on_newest(event: viser.GuiEvent) -> None:
            with self._acting:
                if id(element) in self._given:
                    act(self._given.pop(id(element)))

        element.on_update(note)
        element.on_update(self.handler(act_on_newest))

    def show_value(self, element: Any, value: Any) -> None:
        """Give an element the state's value if it has another one: the browser moves what the user is at.

        Not while the user's own value is on its way into the state: it would be lost.
        """
        if element.value != value and id(element) not in self._given:
            element.value = value

    def run_long(self, work: Callable[[], object]) -> None:
        """One long piece of work at a time for each client, a few at a time for all: clicks and cameras do not wait."""
        if not self._busy.acquire(blocking=False):
            self.tell("Still at work", "Wait for what was asked before.", "yellow")
            return

        def run() -> None:
            try:
                if not self._closed:
                    self._attempt(work)
            finally:
                self._busy.release()

        self.viewer.long_work.submit(run)

    @property
    def is_closed(self) -> bool:
        """Whether the client has gone: nobody waits for what is still at work."""
        return self._closed

    def failed(self, error: Exception) -> None:
        """What nobody foresaw: the user is told, whoever runs the viewer sees where."""
        traceback.print_exception(error)
        self.tell("This failed", f"{type(error).__name__}: {error}", "red")

    def tell(self, title: str, text: str, colour: Any) -> None:
        self.client.add_notification(title, text, color=colour, auto_close_seconds=NOTICE_SECONDS)
