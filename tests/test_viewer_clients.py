"""The viewer under many clients, rude ones among them: it lives on, and keeps nothing of those who left."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import viser
from browser import wait_for
from viewer_scene import FRAMES, viewed_wall_and_ball
from websockets.exceptions import WebSocketException

from osn_gs.benchmarks.page_client import PageClient
from osn_gs.viewer.session import Session
from osn_gs.viewer.viewer import Viewer

NUM_CLIENTS = 30
OPEN_FILES = Path("/proc/self/fd")
GONE = (WebSocketException, OSError, TimeoutError)  # what a client may see whose server has enough of it


@pytest.fixture(scope="module")
def server() -> Iterator[viser.ViserServer]:
    server = viser.ViserServer(host="127.0.0.1", port=8810, verbose=False)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def viewer(server: viser.ViserServer) -> Iterator[Viewer]:
    viewer = Viewer(server, viewed_wall_and_ball())
    with open_page(server) as client:  # what is made once and stays: the rasterizer's threads, viser's own
        client.set("Draw", "on the server")
        client.wait_for(lambda message: message["type"] == "BackgroundImageMessage", 60)
    yield viewer
    viewer.close()


@pytest.fixture(autouse=True)
def nothing_stays(viewer: Viewer, server: viser.ViserServer) -> Iterator[None]:
    """After every test: all sessions gone, with their threads and files, and a new client gets its page."""
    wait_for(lambda: not viewer.sessions, "the clients before to be gone")
    viewer.shared.update(lambda state: viewer.first_state())
    files, threads = num_files(), lasting_threads()
    yield
    wait_for(lambda: not viewer.sessions, "all sessions to end")
    wait_for(lambda: lasting_threads() <= threads, "all threads to end")
    wait_for(lambda: num_files() <= files, "all files to be closed")
    with open_page(server):
        assert len(viewer.sessions) == 1


@contextlib.contextmanager
def open_page(server: viser.ViserServer) -> Iterator[PageClient]:
    client = PageClient(server.get_port())
    try:
        client.wait_for_page()
        yield client
    finally:
        client.close()


def num_files() -> int:
    """Open files and sockets, but for the fonts that Matplotlib keeps open for the latest 64 threads."""
    names = []
    for link in OPEN_FILES.iterdir() if OPEN_FILES.exists() else ():
        with contextlib.suppress(OSError):  # the listing's own
            names.append(os.readlink(link))
    return sum(not name.endswith(".ttf") for name in names)


def lasting_threads() -> set[str]:
    """Names of threads, but for the pools, viser's and the viewer's own, which start a few and keep them."""
    pools = ("ThreadPoolExecutor", "viewer long work")
    return {thread.name for thread in threading.enumerate() if not thread.name.startswith(pools)}


def num_living(kind: type) -> int:
    gc.collect()
    return sum(isinstance(thing, kind) for thing in gc.get_objects())


ACTIONS: tuple[Callable[[PageClient, random.Random], None], ...] = (
    lambda client, chance: client.move_camera((chance.uniform(-1, 1), 0.0, chance.uniform(-1, 1))),
    lambda client, chance: client.set("ball", chance.uniform(-1.0, 0.5)),
    lambda client, chance: client.set("Frame", chance.randrange(FRAMES)),
    lambda client, chance: client.set("Worlds", chance.choice(("Next", "Previous", "Surprise me"))),
    lambda client, chance: client.set("Draw", chance.choice(("in the browser", "on the server"))),
    lambda client, chance: client.set("Share with everyone", chance.random() < 0.5),
    lambda client, chance: client.set("View from training camera", chance.random() < 0.5),
    lambda client, chance: client.press("Play" if "Play" in client.elements else "Pause"),
    lambda client, chance: client.press(chance.choice(("Keep this world", "Let kept worlds go"))),
    lambda client, chance: client.set("Side by side", chance.random() < 0.5),
    lambda client, chance: client.press("Gaussians (.ply)"),
)


def come_and_go(port: int, until: float, seed: int, failures: list[BaseException]) -> None:
    """Connect, do something at random and leave in one of several ways, again and again."""
    chance = random.Random(seed)
    try:
        while time.monotonic() < until:
            client = PageClient(port)
            leave = client.drop if chance.random() < 0.5 else client.close
            with contextlib.closing(client), contextlib.suppress(*GONE):
                if chance.random() < 0.8:  # others leave while their page is being built
                    client.wait_for_page(chance.uniform(0.5, 5.0))
                    for _ in range(chance.randrange(12)):
                        chance.choice(ACTIONS)(client, chance)
                        list(client.messages(chance.uniform(0.0, 0.1)))
                leave()
    except BaseException as error:
        failures.append(error)


def test_many_clients_come_and_go(viewer: Viewer, server: viser.ViserServer, request: pytest.FixtureRequest):
    """A minute of it: `--crowd-seconds 60`."""
    seconds = request.config.getoption("--crowd-seconds")
    failures: list[BaseException] = []
    until = time.monotonic() + seconds
    crowd = [
        threading.Thread(target=come_and_go, args=(server.get_port(), until, seed, failures))
        for seed in range(NUM_CLIENTS)
    ]
    for thread in crowd:
        thread.start()
    most = 0
    while any(thread.is_alive() for thread in crowd):
        most = max(most, len(viewer.sessions))
        time.sleep(0.05)
    assert failures == []
    wait_for(lambda: num_living(Session) == 0, "all sessions to be forgotten", 120)  # the work at hand is finished
    assert most >= NUM_CLIENTS / 6, "there was a crowd"


def test_a_client_that_leaves_while_its_page_is_built(viewer: Viewer, server: viser.ViserServer, monkeypatch):
    """Connecting and leaving are told on threads of their own: leaving may be heard of first."""
    leaves, left = threading.Event(), threading.Event()
    build = Session.__init__

    def slowly(session: Session, *arguments: object) -> None:
        leaves.set()
        assert left.wait(20)
        build(session, *arguments)

    monkeypatch.setattr(Session, "__init__", slowly)
    server.on_client_disconnect(lambda client: left.set())
    client = PageClient(server.get_port())
    assert leaves.wait(20)
    client.drop()
    assert left.wait(20)


def test_a_client_that_leaves_while_it_exports(viewer: Viewer, server: viser.ViserServer):
    with open_page(server) as client:
        client.set("Times", "all frames")
        client.press("Gaussians (.ply)")
        client.drop()


def test_a_client_that_does_not_read_holds_nobody_up(viewer: Viewer, server: viser.ViserServer):
    deaf = PageClient(server.get_port(), read_ahead=1)
    with open_page(server) as client:
        client.set("Draw", "on the server")
        for step in range(30):
            started = time.monotonic()
            client.set("ball", -0.01 * (step + 1))
            client.wait_for(lambda message: message["type"] == "BackgroundImageMessage")
            assert time.monotonic() - started < 5
    deaf.drop()
    with contextlib.suppress(*GONE):
        list(deaf.websocket)


def test_a_click_on_share_that_comes_late_keeps_nobody(viewer: Viewer, server: viser.ViserServer):
    """The thread that handles it may run after the one that closed the session."""
    with open_page(server):
        (session,) = viewer.sessions.values()
    wait_for(lambda: not viewer.sessions, "the session to end")
    session.share(False)
    session.share(True)
    del session
    wait_for(lambda: num_living(Session) == 0, "the session to be forgotten")


def test_sharing_from_many_threads_listens_once(viewer: Viewer, server: viser.ViserServer):
    with open_page(server):
        (session,) = viewer.sessions.values()
        crowd = [
            threading.Thread(target=lambda i=i: [session.share(bool((i + j) % 2)) for j in range(20)]) for i in range(8)
        ]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join()
    del session, crowd, thread
    wait_for(lambda: num_living(Session) == 0, "the session to be forgotten")


@pytest.mark.parametrize(
    "message",
    [
        "text",
        b"",
        b"\xc1 is never msgpack",
        b"\xdd\xff\xff\xff\xff",
        b"\xdc\xff\xff" + b"\x91" * 60_000,
        msgspec.msgpack.encode([1, 2, 3]),
        msgspec.msgpack.encode({"no": "type"}),
        msgspec.msgpack.encode({"type": 7}),
        msgspec.msgpack.encode({"type": "NoSuchMessage"}),
        msgspec.msgpack.encode({"type": "ViewerCameraMessage"}),
        msgspec.msgpack.encode({"type": "GuiUpdateMessage", "uuid": "unknown", "updates": {"value": 1}}),
        msgspec.msgpack.encode({"type": "GuiUpdateMessage", "uuid": None, "updates": None}),
        msgspec.msgpack.encode({"type": "RemoveSceneNodeMessage", "name": "/objects/0"}),
        msgspec.msgpack.encode({"type": "FileTransferPart", "source_component_uuid": "", "transfer_uuid": "no"}),
    ],
    ids=range(14),
)
def test_a_malformed_message_harms_only_its_sender(viewer: Viewer, server: viser.ViserServer, message: bytes | str):
    with open_page(server) as bystander:
        rude = PageClient(server.get_port())
        with contextlib.suppress(*GONE):
            rude.wait_for_page()
            rude.websocket.send(message)
            list(rude.messages(0.2))
        bystander.set("ball", -0.5)
        wait_for(lambda: abs(viewer.shared.state.world.object_scales[1] - 2**-0.5) < 1e-6, "the other client's scale")
        rude.close()


def test_a_message_that_is_too_long_is_refused(server: viser.ViserServer):
    rude = PageClient(server.get_port())
    with contextlib.suppress(*GONE):
        rude.websocket.send(bytes(51 * 1024 * 1024))
        for _ in rude.websocket:
            pass
    assert rude.websocket.close_code in (1006, 1009), "too big, or cut off before it could be told"


def test_a_stranger_to_the_protocol_is_refused(server: viser.ViserServer):
    with socket.create_connection(("127.0.0.1", server.get_port())) as stranger:
        stranger.sendall(os.urandom(4096))
        stranger.settimeout(10)
        with contextlib.suppress(ConnectionError):
            while stranger.recv(4096):
                pass


@pytest.mark.parametrize(
    ("element", "value"),
    [
        ("ball", float("nan")),
        ("ball", float("inf")),
        ("ball", -1e6),
        ("ball", 1000.0),
        ("ball", "wide"),
        ("Frame", -1000),
        ("Frame", 10**9),
        ("Frames a second", 0),
        ("Frames a second", -7),
        ("Frames a second", 10**15),
        ("Colours", "sepia"),
        ("Worlds", "no such button"),
        ("Draw", "on the moon"),
        ("Times", "never"),
        ("What is known", "nothing"),
        ("Metres", float("nan")),
    ],
)
def test_a_value_no_page_offers_breaks_no_other_page(viewer, server, element: str, value: object):
    with open_page(server) as bystander, open_page(server) as rude:
        rude.set(element, value)
        rude.set("Draw", "on the server")
        rude.press("Play")
        time.sleep(0.3)
        bystander.set("Worlds", "Next")
        wait_for(lambda: viewer.shared.state.choice is not None, "the next world")
        bystander.set("Draw", "on the server")
        bystander.wait_for(lambda message: message["type"] == "BackgroundImageMessage")
        with open_page(server):
            pass
        seen = set()
        wait_for(lambda: seen.add(viewer.shared.state.time_step) or len(seen) > 1, "the clock to run on", 5)


@pytest.mark.parametrize(
    "camera",
    [
        {"position": (float("nan"),) * 3},
        {"position": (1e300,) * 3},
        {"wxyz": (0.0,) * 4},
        {"fov": 0.0},
        {"fov": float("nan")},
        {"image_width": 0},
        {"image_height": 0},
        {"image_width": 10**9},
        {"image_width": 10**9, "image_height": 10**9},
        {"image_width": -5, "image_height": -5},
    ],
)
def test_an_impossible_camera_harms_only_its_owner(viewer: Viewer, server: viser.ViserServer, camera: dict):
    with open_page(server) as bystander, open_page(server) as rude:
        rude.set("Draw", "on the server")
        rude.set("View from training camera", True)
        rude.move_camera(**{"position": (0.0, 0.0, 0.0), **camera})
        time.sleep(0.5)  # until the picture that is drawn at rest
        rude.move_camera((0.1, 0.0, 0.0))
        rude.wait_for(lambda message: message["type"] == "BackgroundImageMessage")
        bystander.set("Draw", "on the server")
        bystander.wait_for(lambda message: message["type"] == "BackgroundImageMessage")


def test_nobody_can_have_the_page_published(server: viser.ViserServer, viewer: Viewer, monkeypatch):
    """viser takes a request for a public address from any client; it would lead through a server elsewhere."""
    asked = []
    monkeypatch.setattr("viser._viser.ViserTunnel", lambda *arguments: asked.append(arguments))
    with open_page(server) as client:
        client.send("ShareUrlRequest")
        client.set("ball", -0.25)
        wait_for(lambda: abs(viewer.shared.state.world.object_scales[1] - 2**-0.25) < 1e-6, "the next message")
        time.sleep(0.2)
    assert asked == []


@pytest.mark.parametrize(
    "path",
    [
        "/../..",
        "/../../../../../../etc/passwd",
        "/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/..%2f..%2f..%2f..%2fetc/passwd",
        "/..%5c..%5cetc/passwd",
        "//etc/passwd",
        "/etc/passwd",
        "/%00",
        "/index.html%00.png",
        "/" + "a" * 5_000,
        "/" + "a/" * 40_000,
        "/assets",
        "/%ff%fe",
    ],
    ids=lambda path: path[:24],
)
def test_nothing_but_the_page_is_served(server: viser.ViserServer, path: str):
    assert answer(server, "/").startswith(b"HTTP/1.1 200")
    response = answer(server, path)
    assert response[:13] in (b"", b"HTTP/1.1 404 ", b"HTTP/1.1 500 ", b"HTTP/1.1 400 ", b"HTTP/1.1 414 ")
    assert b"root:" not in response


def answer(server: viser.ViserServer, path: str) -> bytes:
    """What comes back for a path sent as it is: HTTP clients would tidy it."""
    with socket.create_connection(("127.0.0.1", server.get_port())) as raw:
        raw.settimeout(10)
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        parts = []
        with contextlib.suppress(ConnectionError):
            while part := raw.recv(65536):
                parts.append(part)
        return b"".join(parts)
