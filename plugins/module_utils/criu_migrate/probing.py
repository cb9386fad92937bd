"""How fast pages cross, tried out over the very way that they will take, before anything is stopped."""

from __future__ import annotations

import socket
import time

from .errors import LinkLost
from .page_images import CLOSES
from .page_runs import ADD, HEADER, OPEN, PAGE, PRESENT

NAME = "probe"  # of the dump that is none: the first real one begins anew
SIZES = (1 << 20, 1 << 23, 1 << 25)  # bytes
ENOUGH = 0.1  # seconds that tell how fast it is
COLD = 1.0  # the same for the first ones, which warm up all that they go through
_PIECE = bytes(1 << 18)


def speed(channel: socket.socket, limit: float) -> float:
    """Bytes/s from the source's memory into the destination's, by as many pages as take a moment.

    What an answer takes by itself does not count. `channel`: to a page server that expects a dump; `limit`: seconds for
    one answer.

    :raises LinkLost: it broke, or was too slow
    """
    channel.settimeout(limit)
    found = 0.0
    try:
        answer = _opened(channel, 0)
        for number, size in enumerate(SIZES, 1):
            began = time.monotonic()
            channel.sendall(HEADER.pack(ADD | PRESENT << 16, size // PAGE, 0, _owner(number - 1)))
            for _piece in range(size // len(_PIECE)):
                channel.sendall(_PIECE)
            seconds = _opened(channel, number, began)  # answered when all that was sent before has been taken in
            found = size / max(seconds - answer, 1e-6)
            if seconds > answer + (ENOUGH if number > 1 else COLD):
                break
        channel.sendall(HEADER.pack(CLOSES[-1], 0, 0, 0))
        _hear(channel, 4)
    except OSError as error:
        raise LinkLost(f"Pages could not be tried out: {error}") from error
    return found


def _owner(number: int) -> int:
    return number + 1 << 8 | 1  # page map of a process


def _opened(channel: socket.socket, number: int, began: float | None = None) -> float:
    """Seconds until the pages of another process are expected."""
    began = time.monotonic() if began is None else began
    channel.sendall(HEADER.pack(OPEN, 0, 0, _owner(number)))
    _hear(channel, 1)
    return time.monotonic() - began


def _hear(channel: socket.socket, size: int) -> None:
    while size:
        found = len(channel.recv(size))
        if not found:
            raise ConnectionResetError("the destination closed the link")
        size -= found
