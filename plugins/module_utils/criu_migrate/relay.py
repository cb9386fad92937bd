"""Bytes between a local program and the guards' TLS link: pages of criu, and rsync.

CRIU 4.2 with a socket handed over (--ps-socket) crashes with --tls, and a page server of its own would need a second
port; so criu speaks plain to a socket pair on its own node, and the guards encrypt what leaves it.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import ssl
import subprocess
import threading
from typing import Any

from . import record, wire
from .errors import LinkLost, MigrationError

_PIECE = 1 << 20


def pump(link: ssl.SSLSocket, source: int, sink: int) -> None:
    """Copy `source` into the link and the link into `sink` until either ends.

    One thread, as one TLS connection must not be read and written by two, and no blocking read: a record that carries
    no data (a session ticket) would end it in a wait for more. The protocols carried here never fill both directions
    at once, so a write that waits cannot hold up the other side for good.
    """
    buffer = memoryview(bytearray(_PIECE))
    link.setblocking(False)
    while True:
        watched: list[Any] = [link] if link.pending() else [link, source]
        ready = watched if link.pending() else select.select(watched, [], [])[0]
        if link in ready:
            try:
                count = link.recv_into(buffer)
            except ssl.SSLWantReadError:
                count = -1
            if count == 0:
                return
            place = 0
            while place < count:
                place += os.write(sink, buffer[place:count])
        if source in ready:
            count = os.readv(source, [buffer])
            if not count:
                return
            _send(link, buffer[:count])


def _send(link: ssl.SSLSocket, data: memoryview) -> None:
    while data:
        try:
            data = data[link.send(data) :]
        except ssl.SSLWantWriteError:
            select.select([], [link], [])
        except ssl.SSLWantReadError:
            select.select([link], [], [])


def _pump_and_close(link: ssl.SSLSocket, local: socket.socket) -> None:
    try:
        pump(link, local.fileno(), local.fileno())
    except (OSError, ValueError):
        pass  # criu sees the end of its socket and reports it in its own words
    finally:
        for end in (local, link):
            try:
                end.close()
            except OSError:
                pass


def attach(link: ssl.SSLSocket) -> socket.socket:
    """The end of a socket pair to hand to a program; a thread carries what it says over the link, until either ends."""
    near, far = socket.socketpair()
    for end in (near, far):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * _PIECE)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * _PIECE)
    threading.Thread(target=_pump_and_close, args=(link, near), daemon=True).start()
    return far


def dial(config: dict[str, Any], folder: str, limit: float, secure: bool = True, patient: float = 0) -> socket.socket:
    """A connection to the destination's guard; LinkLost when there is none within `limit` seconds."""
    host, port = config["peer"]["host"], int(config["peer"]["port"])
    try:
        sock = socket.create_connection((host, port), timeout=limit)
    except OSError as error:
        raise LinkLost(f"The destination's guard cannot be reached at {host}:{port}: {error}") from error
    try:
        wire.tune(sock, wire.SILENCE)
        if patient:  # a slow disk at the far end fills the window: that is no dead link (keepalive still sees one)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(patient * 1000))
        if secure:
            names = (os.path.join(folder, "tls", name + ".pem") for name in ("ca", "cert", "key"))
            sock = wire.context(False, *names).wrap_socket(sock)
        sock.settimeout(None)
    except OSError as error:
        sock.close()
        raise LinkLost(f"TLS with the destination's guard failed: {error}") from error
    return sock


def serve_rsync(link: ssl.SSLSocket, argv: list[str], images: str, log: str) -> None:
    """The destination's end: the rsync server for the image directory of this run and nothing else."""
    if (
        argv[:2] != ["rsync", "--server"]
        or os.path.normpath(argv[-1]) != os.path.normpath(images)
        or "--sender" in argv
    ):
        raise MigrationError(f"Refused to run {argv!r} for the source.", "Update both nodes.")
    if shutil.which("rsync") is None:
        raise MigrationError("rsync is not installed on the destination.", "Run playbooks/prepare.yml.")
    local = attach(link)
    with open(log, "ab") as err, local:
        child = subprocess.Popen(argv, stdin=local.fileno(), stdout=local.fileno(), stderr=err)
    child.wait()


def rsh(run_id: str, words: list[str]) -> int:
    """The source's end, which rsync runs as its remote shell: [-l USER] HOST rsync --server ..."""
    from .guard import read_config

    link = dial(read_config(run_id), record.run_dir(run_id), 15.0)
    if not isinstance(link, ssl.SSLSocket):
        return 1
    wire.Link(link).send({"op": "rsync", "argv": words[words.index("rsync") :]})
    pump(link, 0, 1)
    return 0
