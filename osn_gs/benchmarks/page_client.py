"""A viewer's client without a browser: it speaks viser's protocol, draws nothing, and can misbehave."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import viser
import zstandard
from websockets.sync.client import connect
from websockets.typing import Subprotocol

HEADER = struct.Struct("<QQ")  # bytes of the msgpack payload, plain and as compressed by zstd


class PageClient:
    """One page: it counts as connected once its camera is known to the server.

    `elements[label]` is the uuid of a GUI element, `html` what HTML elements hold by uuid, `nodes` the scene's nodes.
    After `read_ahead` messages that nobody took from it, it reads no more, and the server has to wait for it.
    """

    def __init__(self, port: int, read_ahead: int | None = None) -> None:
        self.elements: dict[str, str] = {}
        self.html: dict[str, str] = {}
        self.nodes: set[str] = set()
        self.websocket = connect(
            f"ws://127.0.0.1:{port}",
            subprotocols=[Subprotocol(f"viser-v{viser.__version__}")],
            max_size=None,
            compression=None,
            open_timeout=30.0,
            ping_interval=None,
            max_queue=read_ahead,
        )
        self.move_camera((0.0, 0.0, 0.0))

    def send(self, type: str, **fields: Any) -> None:
        self.websocket.send(msgspec.msgpack.encode({"type": type, **fields}))

    def move_camera(self, position: tuple[float, float, float], **fields: Any) -> None:
        """Look along the world's z axis from a position; `fields` replace others of viser's message."""
        camera = {
            "wxyz": (1.0, 0.0, 0.0, 0.0),
            "position": position,
            "fov": 0.8,
            "near": 0.01,
            "far": 1000.0,
            "image_height": 90,
            "image_width": 160,
            "look_at": (position[0], position[1], position[2] + 1.0),
            "up_direction": (0.0, -1.0, 0.0),
        }
        self.send("ViewerCameraMessage", **{**camera, **fields})

    def set(self, label: str, value: Any) -> None:
        """Give the element with a label a value, as if its user did."""
        self.send("GuiUpdateMessage", uuid=self.elements[label], updates={"value": value})

    def press(self, label: str) -> None:
        self.set(label, True)

    def messages(self, timeout: float) -> Iterator[dict[str, Any]]:
        """The messages of the next window; none if the server stays silent."""
        try:
            window = self.websocket.recv(timeout)
        except TimeoutError:
            return
        _, compressed = HEADER.unpack_from(window)
        packed = zstandard.ZstdDecompressor().decompress(window[HEADER.size : HEADER.size + compressed])
        for message in msgspec.msgpack.decode(packed)["messages"]:
            self._note(message)
            yield message

    def wait_for(self, condition: Callable[[dict[str, Any]], bool], seconds: float = 30.0) -> dict[str, Any]:
        """The first message that meets a condition; raises TimeoutError where none comes."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            found = [message for message in self.messages(left) if condition(message)]
            if found:
                return found[0]
        raise TimeoutError(f"no such message within {seconds:g} s")

    def wait_for_page(self, seconds: float = 30.0) -> None:
        """Wait until the splats and a verdict on the world have come."""
        self.wait_for(lambda message: "/objects/0" in self.nodes and "osn-verdict" in str(self.html), seconds)

    def close(self) -> None:
        self.websocket.close()

    def drop(self) -> None:
        """Be gone without a word, as a laptop whose lid is closed."""
        self.websocket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.websocket.socket.shutdown(socket.SHUT_RDWR)
        self.websocket.socket.close()

    def _note(self, message: dict[str, Any]) -> None:
        kind, properties = message["type"], message.get("props")
        if kind == "GaussianSplatsMessage":
            self.nodes.add(message["name"])
        elif kind == "GuiHtmlMessage":
            self.html[message["uuid"]] = properties["content"]
        elif kind == "GuiUpdateMessage" and "content" in message["updates"]:
            self.html[message["uuid"]] = message["updates"]["content"]
        elif kind.startswith("Gui") and properties and properties.get("label"):
            self.elements[properties["label"]] = message["uuid"]


def watch(port: int) -> None:
    """Look at a viewer until it closes: what a browser costs it, in a process of its own."""
    for _ in PageClient(port).websocket:
        pass
