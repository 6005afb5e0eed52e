"""Serving a page: where it is bound, and what the user is told of it."""

from __future__ import annotations

import ipaddress
import socket

import viser
from rich.console import Console

from osn_gs.errors import ConfigError

LOOPBACK = "127.0.0.1"


def start_server(host: str, port: int, label: str, console: Console) -> viser.ViserServer:
    """A viser server at an address, the next free port where `port` is taken; warns where others can reach it.

    Raises ConfigError where the address cannot be bound.
    """
    if not 0 < port < 65536:
        raise ConfigError(f"--port {port}: expected a number from 1 to 65535.")
    _check_address(host)
    server = viser.ViserServer(host=host, port=port, label=label, verbose=False)
    if not _is_loopback(host):
        console.print(
            f"[yellow]Everyone who reaches this machine at {host} can look and change what is shown:[/] there is no "
            "password and no encryption. Without --host only this machine can."
        )
    return server


def address(server: viser.ViserServer) -> str:
    """What to open in a browser."""
    host = server.get_host()
    return f"http://{LOOPBACK if host == '0.0.0.0' else host}:{server.get_port()}"


def _check_address(host: str) -> None:
    """viser waits for ever at an address that is not this machine's."""
    try:
        socket.create_server((host, 0)).close()
    except OSError as error:
        raise ConfigError(
            f"--host {host}: no page can be served at this address ({error.strerror}); expected one of this machine's, "
            f"such as {LOOPBACK} or 0.0.0.0."
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
