"""CRIU's page server for `criu lazy-pages` on the same node, over a socket pair, out of the guard's store.

The protocol is CRIU 4.2's (criu/page-xfer.c): a header of 32 bytes, requests pipelined, answers in their order.
"""

from __future__ import annotations

import os
import queue
import socket
import struct
import threading
from typing import Optional, Protocol

from .errors import MigrationError
from .lazy_source import PAGE
from .page_images import CLOSES
from .page_runs import ADD, HEADER, PRESENT

_GET = 7
_ANSWER = ADD | PRESENT << 16
_Request = Optional[tuple[int, int, int, int]]


class Pages(Protocol):
    """What is needed of a store: RemoteStore and MixedStore have it."""

    def locate(self, pid: int, vaddr: int, pages: int) -> tuple[int, int, int]: ...
    def want(self, pid: int, vaddr: int, pages: int) -> None: ...


def serve(sock: socket.socket, store: Pages) -> bool:
    """Answer until lazy-pages says that it is done (True) or its end of `sock` is gone (False).

    An error of the store is raised (OSError, LinkLost, ...), MigrationError for what is no request; the socket is shut
    down then, so that lazy-pages ends with an error.
    """
    sock.settimeout(None)
    requests: queue.SimpleQueue[_Request] = queue.SimpleQueue()
    reader = threading.Thread(target=_take, args=(sock, store, requests), daemon=True)
    reader.start()
    try:
        while True:
            request = requests.get()
            if request is None:
                return False
            command, pages, vaddr, pid = request
            if command in CLOSES:
                _send(sock, struct.pack("<i", 0))
                return True
            if command != _GET:
                raise MigrationError(f"criu lazy-pages sent command {command:#x}.", "Use CRIU 4.2 on both nodes.")
            fd, place, count = _find(store, pid, vaddr, pages)
            header = HEADER.pack(_ANSWER, count, vaddr, pid)
            if not (_send(sock, header) and _send_file(sock, fd, place, count * PAGE)):
                return False
    finally:
        try:
            sock.shutdown(socket.SHUT_RDWR)  # wakes the reader
        except OSError:
            pass
        reader.join()


def _find(store: Pages, pid: int, vaddr: int, pages: int) -> tuple[int, int, int]:
    try:
        return store.locate(pid, vaddr, pages)
    except KeyError as error:
        remedy = "See criu-lazy-pages.log."
        raise MigrationError(f"criu lazy-pages asked for what is no lazy page: {error}", remedy) from error


def _take(sock: socket.socket, store: Pages, requests: queue.SimpleQueue[_Request]) -> None:
    """Take every request at once: criu fails when it cannot write one, and a demand may overtake what is answered."""
    held = b""
    try:
        while True:
            data = sock.recv(1 << 14)
            if not data:
                break
            held += data
            whole = len(held) - len(held) % HEADER.size
            for request in HEADER.iter_unpack(held[:whole]):
                command, pages, vaddr, pid = request
                if command == _GET:
                    try:
                        store.want(pid, vaddr, pages)
                    except KeyError:
                        pass  # said when its turn comes
                requests.put((command, pages, vaddr, pid))
            held = held[whole:]
    except OSError:
        pass
    requests.put(None)


def _send(sock: socket.socket, data: bytes) -> bool:
    try:
        sock.sendall(data)
    except OSError:
        return False  # lazy-pages is gone; how it ended its parent knows
    return True


def _send_file(sock: socket.socket, fd: int, place: int, size: int) -> bool:
    """From the file into the socket without a copy in between."""
    while size:
        try:
            count = os.sendfile(sock.fileno(), fd, place, size)
        except OSError as error:
            if isinstance(error, (BrokenPipeError, ConnectionError)):
                return False
            raise
        if not count:
            raise OSError("The file of the lazy pages is shorter than its list says.")
        place, size = place + count, size - count
    return True
