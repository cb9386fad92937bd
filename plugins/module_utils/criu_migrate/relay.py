"""Bytes between a local program and the guards' TLS link: pages of criu, and rsync.

CRIU 4.2 with a socket handed over (--ps-socket) crashes with --tls, and a page server of its own would need a second
port; so criu speaks plain to a socket pair on its own node, and the guards encrypt what leaves it.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from typing import Any

from . import limits, polling, record, wire
from .errors import LinkLost, MigrationError
from .secure import PIECE, Secure

RSYNC_TARGET = "images/"  # stands for the image directory, which may be another one on either node
_BUFFER = 4 << 20  # bytes on their way between criu and this relay
_SNDBUFFORCE, _RCVBUFFORCE = 32, 33  # asm-generic/socket.h, absent from Python: past net.core.wmem_max and rmem_max


def pump(link: Secure, source: int, sink: int) -> None:
    """Copy `source` into the link and the link into `sink` until either ends.

    One thread, as one TLS connection must not be read and written by two. The protocols carried here never fill both
    directions at once, so a write that waits cannot hold up the other side for good.
    """
    buffer = memoryview(bytearray(PIECE))
    while True:
        count = link.read_into(buffer)
        if count == 0:
            return
        if count > 0:
            _write(sink, buffer[:count])
            continue  # TLS may hold more than the buffer took; the socket would not tell
        watched: list[Any] = [link, source]
        ready = polling.readable(watched)
        if link in ready:
            link.take()
        if source in ready:
            count = os.readv(source, [buffer])
            if not count:
                return
            link.sendall(buffer[:count])


def _write(sink: int, data: memoryview) -> None:
    while data:
        data = data[os.write(sink, data) :]


def _pump_and_close(link: Secure, local: socket.socket) -> None:
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


def _widen(sock: socket.socket) -> None:
    for forced, asked in ((_SNDBUFFORCE, socket.SO_SNDBUF), (_RCVBUFFORCE, socket.SO_RCVBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, _BUFFER)
        except PermissionError:  # root without CAP_NET_ADMIN
            sock.setsockopt(socket.SOL_SOCKET, asked, _BUFFER)


def attach(link: Secure) -> socket.socket:
    """The end of a socket pair to hand to a program; a thread carries what it says over the link, until either ends."""
    near, far = socket.socketpair()
    for end in (near, far):
        _widen(end)
    threading.Thread(target=_pump_and_close, args=(link, near), daemon=True).start()
    return far


def dial(
    config: dict[str, Any], folder: str, limit: float, secure: bool = True, patient: float = 0
) -> socket.socket | Secure:
    """A connection to the destination's guard; LinkLost when there is none within `limit` seconds. patient: so long
    a cut is only a stall of this connection."""
    host, port = config["peer"]["host"], int(config["peer"]["port"])
    try:
        sock = socket.create_connection((host, port), timeout=limit)
    except OSError as error:
        raise LinkLost(f"The destination's guard cannot be reached at {host}:{port}: {error}") from error
    try:
        # Nobody dials again in the middle of a dump or of rsync: a cut has to be waited out, as has a slow disk
        wire.tune(sock, patient or wire.SILENCE)
        link: socket.socket | Secure = sock
        if secure:
            names = (os.path.join(folder, "tls", name + ".pem") for name in ("ca", "cert", "key"))
            link = Secure(sock, wire.context(False, *names), server=False)
        sock.settimeout(None)
    except OSError as error:
        sock.close()
        raise LinkLost(f"TLS with the destination's guard failed: {error}") from error
    return link


def serve_rsync(link: Secure, argv: list[str], images: str, log: str) -> None:
    """The destination's end: the rsync server for the image directory of this run, which only this side names."""
    if argv[:2] != ["rsync", "--server"] or argv[-1] != RSYNC_TARGET or "--sender" in argv:
        raise MigrationError(f"Refused to run {argv!r} for the source.", "Update both nodes.")
    argv = [*argv[:-1], images + "/"]
    if shutil.which("rsync") is None:
        raise MigrationError("rsync is not installed on the destination.", "Run playbooks/prepare.yml.")
    local = attach(link)
    with open(log, "ab") as err, local:
        child = subprocess.Popen(argv, stdin=local.fileno(), stdout=local.fileno(), stderr=err)
    child.wait()


def _insist(config: dict[str, Any], folder: str, limit: dict[str, float]) -> socket.socket | Secure:
    """Dial again while the link is down, for the limit "link"."""
    deadline = time.monotonic() + limit["link"]
    while True:
        try:
            return dial(config, folder, limit["connect"], patient=limit["link"])
        except LinkLost:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)  # a cut link gives no event when it heals


def rsh(run_id: str, words: list[str]) -> int:
    """The source's end, which rsync runs as its remote shell: [-l USER] HOST rsync --server ..."""
    from .guard import read_config

    config = read_config(run_id)
    limit = limits.merged(config.get("limits") or {})
    link = _insist(config, record.run_dir(run_id), limit)
    if not isinstance(link, Secure):
        return 1
    wire.Link(link).send({"op": "rsync", "argv": words[words.index("rsync") :]})
    try:
        pump(link, 0, 1)
    except OSError as error:
        print(f"criu-migrate: the link to the destination broke: {error}", file=sys.stderr)
        return 12  # rsync's own code for it
    return 0
