"""TLS in big pieces: what goes in comes out, in both directions, through the relay, and up to the end."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from pathlib import Path

import pytest

from ansible_collections.criu.migrate.plugins.action import migration_certificates
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import relay, wire
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.errors import LinkLost
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.secure import PIECE, Secure


def contexts(folder: Path, run: str = "test") -> dict[str, list[str]]:
    made = migration_certificates.make(run, 1)
    paths: dict[str, list[str]] = {}
    for role, texts in made.items():
        paths[role] = []
        for name in ("ca", "cert", "key"):
            path = folder / f"{run}-{role}-{name}.pem"
            path.write_text(texts[name])
            paths[role].append(str(path))
    return paths


def pair(source: list[str], destination: list[str]) -> tuple[Secure, Secure]:
    near, far = socket.socketpair()
    near.settimeout(10)
    far.settimeout(10)
    made: list[Secure] = []

    def shake() -> None:
        try:
            made.append(Secure(far, wire.context(True, *destination), server=True))
        except OSError:
            far.close()

    thread = threading.Thread(target=shake)
    thread.start()
    try:
        client = Secure(near, wire.context(False, *source), server=False)
        if not made:
            thread.join()
        return client, made[0]
    finally:
        thread.join()


@pytest.fixture
def links(tmp_path: Path) -> tuple[Secure, Secure]:
    paths = contexts(tmp_path)
    return pair(paths["source"], paths["destination"])


def test_frames_of_any_size_arrive_whole(links: tuple[Secure, Secure]) -> None:
    client, server = links
    bodies = [os.urandom(size) for size in (0, 1, 16384, 16385, PIECE, 3 * PIECE + 7)]

    def send() -> None:
        for body in bodies:
            wire.Link(client).send({"n": len(body)}, body)

    sender = threading.Thread(target=send)
    sender.start()
    received = wire.Link(server)
    for body in bodies:
        header, got = received.receive(10)
        assert header["n"] == len(body)
        assert got == body
    sender.join()
    wire.Link(server).send({"answer": True})
    assert wire.Link(client).receive(10)[0]["answer"] is True


def test_the_end_of_the_connection_is_an_end_not_an_error(links: tuple[Secure, Secure]) -> None:
    client, server = links
    client.sendall(b"last")
    client.close()
    buffer = memoryview(bytearray(10))
    assert server.recv_into(buffer) == 4
    assert server.recv_into(buffer) == 0


def test_a_relay_carries_all_bytes_and_the_answer(links: tuple[Secure, Secure]) -> None:
    client, server = links
    for link in links:
        link.settimeout(None)
    # What came together with the last frame belongs to the relay: it begins before the relay is attached.
    client.sendall(b"early")
    data = os.urandom(5 * PIECE + 1)
    near, far = relay.attach(client), relay.attach(server)
    with near, far:
        sender = threading.Thread(target=near.sendall, args=(data,))
        sender.start()
        got = b""
        while len(got) < len(data) + 5:
            got += far.recv(1 << 20)
        sender.join()
        assert got == b"early" + data
        far.sendall(b"done")
        assert near.recv(10) == b"done"
        far.shutdown(socket.SHUT_WR)
        assert near.recv(10) == b""


def test_a_stranger_is_refused(tmp_path: Path) -> None:
    ours, theirs = contexts(tmp_path), contexts(tmp_path, "stranger")
    with pytest.raises((ssl.SSLError, OSError, IndexError)):
        client, _server = pair([ours["source"][0], *theirs["source"][1:]], ours["destination"])
        assert client.recv_into(memoryview(bytearray(1))) == 1  # TLS 1.3: the refusal may come after our own handshake


def test_silence_beyond_the_limit_is_a_lost_link(links: tuple[Secure, Secure]) -> None:
    with pytest.raises(LinkLost):
        wire.Link(links[0]).receive(0.05)
