"""One page of the viewer beside its state: nothing a user gives is lost, nothing that fails or changes goes unsaid."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import viser
from browser import wait_for
from viewer_scene import viewed_wall_and_ball

from osn_gs.benchmarks.page_client import PageClient
from osn_gs.viewer.session import Session
from osn_gs.viewer.viewer import Viewed, Viewer
from osn_gs.viewer.worlds import Worlds


@pytest.fixture(scope="module")
def finished() -> Viewed:
    return viewed_wall_and_ball()


@pytest.fixture
def viewer(finished: Viewed) -> Iterator[Viewer]:
    """Of a run that still trains: it has no configurations."""
    old = finished.worlds
    worlds = Worlds(old.object_names, old.scale_ranges, old._network, old.oracle, old.accuracy_threshold, ())
    server = viser.ViserServer(host="127.0.0.1", port=8850, verbose=False)
    viewer = Viewer(server, dataclasses.replace(finished, worlds=worlds))
    viewer.port = server.get_port()
    yield viewer
    viewer.close()
    server.stop()


@pytest.fixture
def client(viewer: Viewer) -> Iterator[PageClient]:
    client = PageClient(viewer.port)
    client.wait_for_page()
    reading = threading.Thread(target=lambda: list(client.websocket))
    reading.start()
    yield client
    client.close()
    reading.join()


@pytest.fixture
def session(viewer: Viewer, client: PageClient) -> Session:
    (session,) = viewer.sessions.values()
    return session


def test_a_value_given_while_another_is_acted_on_is_the_one_that_stays(
    viewer: Viewer, client: PageClient, session: Session
):
    """The second comes before the first is shown, and waits for the thread that shows it: the only one free."""
    session.client.gui._thread_executor = ThreadPoolExecutor(max_workers=1)
    slider = session.world_panel.sliders[0]
    came = []

    def late() -> None:
        if not came:
            came.append(client.set("ball", -0.5))
            wait_for(lambda: slider.value == -0.5, "the second value")

    viewer.shared.leave(session.refresh)
    viewer.shared.listen(late)
    viewer.shared.listen(session.refresh)
    client.set("ball", 0.3)
    wait_for(lambda: viewer.shared.state.world.object_scales[1] == pytest.approx(2**-0.5), "the last value", 5)
    assert slider.value == -0.5


def test_a_world_that_is_not_valid_is_explained_while_time_runs(client: PageClient, session: Session):
    client.press("Play")
    wait_for(lambda: session.state.playing, "the clock")
    client.set("ball", math.log2(1.4))
    wait_for(lambda: "stands in front of" in session.world_panel.verdict.content, "the explanation", 5)
    assert session.state.playing


def test_a_private_page_hears_of_new_configurations(
    viewer: Viewer, client: PageClient, session: Session, finished: Viewed
):
    client.set("Share with everyone", False)
    wait_for(lambda: session.channel is not viewer.shared, "a state of its own")
    viewer.show(finished)
    assert [world.name for world in session.state.choices] == ["contact", "configuration_000", "configuration_001"]


def test_a_page_that_fails_does_not_stop_the_training(viewer: Viewer, session: Session, finished: Viewed, capfd):
    def broken(*_):
        raise RuntimeError("no such picture")

    session.browser.load = broken
    viewer.show(finished)
    assert "no such picture" in capfd.readouterr().err


def test_a_screenshot_of_a_huge_window_is_refused(client: PageClient, session: Session):
    client.move_camera((0.0, 0.0, 0.0), image_width=100_000, image_height=100_000)
    wait_for(lambda: session.client.camera.image_width == 100_000, "the size")
    told = []
    session.tell = lambda title, text, colour: told.append(text)
    client.press("Screenshot (.png)")
    wait_for(lambda: told, "the refusal", 5)
    assert "100000x100000" in told[0]
