"""rsync over the guards' own TLS: no SSH key between the nodes, no second port.

rsync on the source calls `guard.pyz rsh RUN_ID HOST rsync --server ...` as its remote shell.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import ssl
import subprocess
from typing import Optional, Union

from . import record, wire
from .errors import MigrationError

Sock = Union[socket.socket, ssl.SSLSocket]
_PIECE = 1 << 18


def shuttle(sock: Sock, source: int, sink: int) -> None:
    """Bytes from descriptor `source` into the link and from the link into `sink`, until the link or the source ends.

    One thread, as one TLS connection must not be read and written by two; a full pipe never blocks the other way.
    """
    waiting = bytearray()
    reading: Optional[int] = source
    os.set_blocking(sink, False)
    while True:
        pending = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
        room = len(waiting) < 4 * _PIECE
        readers = ([sock] if room else []) + ([reading] if reading is not None else [])
        ready, writable, _ = select.select(readers, [sink] if waiting else [], [], 0 if pending and room else None)
        if writable:
            del waiting[: os.write(sink, waiting)]
        if reading is not None and reading in ready:
            data = os.read(reading, _PIECE)
            if data:
                sock.sendall(data)
            else:
                reading = None
                sock.shutdown(socket.SHUT_WR) if not isinstance(sock, ssl.SSLSocket) else None
                if sink != 1:
                    return  # the server's rsync has said all it had to say
        if room and (pending or sock in ready):
            data = sock.recv(_PIECE)
            if not data:
                break
            waiting += data
    os.set_blocking(sink, True)
    while waiting:
        del waiting[: os.write(sink, waiting)]


def serve(sock: Sock, argv: list[str], images: str, log: str) -> None:
    """The destination's end: run the rsync server for the image directory of this run and nothing else."""
    if argv[:2] != ["rsync", "--server"] or os.path.normpath(argv[-1]) != os.path.normpath(images) or "--sender" in argv:
        raise MigrationError(f"Refused to run {argv!r} for the source.", "Update both nodes.")
    if shutil.which("rsync") is None:
        raise MigrationError("rsync is not installed on the destination.", "Run playbooks/prepare.yml.")
    with open(log, "ab") as err:
        child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err)
    try:
        if child.stdin is not None and child.stdout is not None:
            shuttle(sock, child.stdout.fileno(), child.stdin.fileno())
    finally:
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
        child.wait()


def relay(run_id: str, words: list[str]) -> int:
    """The source's end, run by rsync: stdin and stdout go through the link. words: [-l USER] HOST COMMAND..."""
    from .guard import read_config

    config = read_config(run_id)
    folder = os.path.join(record.run_dir(run_id), "tls")
    context = wire.context(False, *(os.path.join(folder, name + ".pem") for name in ("ca", "cert", "key")))
    raw = socket.create_connection((config["peer"]["host"], config["peer"]["port"]), timeout=15)
    wire.tune(raw, 10.0)
    sock = context.wrap_socket(raw)
    sock.settimeout(None)
    wire.Link(sock).send({"op": "rsync", "argv": words[words.index("rsync") :]})
    shuttle(sock, 0, 1)
    return 0
