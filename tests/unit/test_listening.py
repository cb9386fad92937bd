"""The destination's end of a connection that is not encrypted."""

from __future__ import annotations

import socket
import ssl
from typing import cast

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import wire
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.destination import DestinationGuard


class Guard(DestinationGuard):
    """Takes one connection for pages."""

    def __init__(self) -> None:
        self.limits = {"connect": 5.0}
        self.encrypted = False
        self.taken: list[tuple[int, int]] = []

    def say(self, text: str) -> None:
        raise AssertionError(text)

    def take_plain(self, sock: socket.socket, token: str) -> None:
        assert token == "t" * wire.TOKEN and sock.gettimeout() is None
        options = (socket.SO_KEEPALIVE, socket.SOL_SOCKET), (socket.TCP_USER_TIMEOUT, socket.IPPROTO_TCP)
        self.taken += [(name, sock.getsockopt(level, name)) for name, level in options]


def test_a_dead_link_is_noticed_without_encryption_too() -> None:
    """Whoever waits for pages only reads: without keepalive it would never hear of the end."""
    guard = Guard()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as dialled:
        dialled.sendall(wire.PAGE_MAGIC + b"t" * wire.TOKEN)
        with server.accept()[0] as sock:
            guard.serve(sock, None, cast(ssl.SSLContext, None))
    assert guard.taken == [(socket.SO_KEEPALIVE, 1), (socket.TCP_USER_TIMEOUT, int(wire.SILENCE * 1000))]
