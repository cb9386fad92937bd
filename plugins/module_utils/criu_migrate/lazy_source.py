"""The source's end of the lazy channel: memory of the stopped tree for the destination's guard, as far as it asks.

Frames in both directions: kind, PID, address, count, little endian. Answers come in the order of the requests; one may
be shorter than asked for.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from typing import Any, Callable

from .errors import LinkLost, MigrationError
from .secure import Secure

PAGE = mmap.PAGESIZE
PIECE = 1 << 18  # bytes of one request at most
FRAME = struct.Struct("<IIQI")
GET, PAGES, FAILED, COMPLETE = 1, 2, 3, 4  # count: pages, pages that follow, errno of the first page, bytes of JSON
_REQUESTS = 1 << 14  # bytes of requests taken at once
_COUNTS = 1 << 12  # bytes of the JSON in COMPLETE at most


class Memory:
    """Memory of processes by /proc/PID/mem. A descriptor stays with the process that it was opened for."""

    def __init__(self, pids: Callable[[], set[int]]) -> None:
        self._pids = pids
        self._open: dict[int, int] = {}

    def read_into(self, pid: int, vaddr: int, room: memoryview) -> int:
        """Bytes of whole pages read; MigrationError for a process that is not of the run, OSError as of pread(2)."""
        fd = self._open.get(pid)
        if fd is None:
            if pid not in self._pids():
                raise MigrationError(
                    f"The destination asked for memory of process {pid}, which is not part of this migration.",
                    "Do both nodes hold the records of the same run?",
                )
            fd = self._open[pid] = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        count = os.preadv(fd, [room], vaddr)
        return count - count % PAGE

    def close(self) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()


class _Answers:
    """Answers in one buffer, which leaves when a whole piece is in it or nothing more was asked for."""

    def __init__(self, link: Secure, memory: Memory) -> None:
        self._link, self._memory = link, memory
        self._buffer = memoryview(bytearray(2 * PIECE + 2 * FRAME.size))
        self._filled = 0

    def add(self, pid: int, vaddr: int, pages: int) -> None:
        body = self._filled + FRAME.size
        try:
            count = self._memory.read_into(pid, vaddr, self._buffer[body : body + pages * PAGE])
            error = 0 if count else 5  # EIO: the process is gone, or less than a page could be read
        except OSError as failure:
            count, error = 0, failure.errno or 5
        if error:
            FRAME.pack_into(self._buffer, self._filled, FAILED, pid, vaddr, error)
        else:
            FRAME.pack_into(self._buffer, self._filled, PAGES, pid, vaddr, count // PAGE)
        self._filled = body + count
        if self._filled >= PIECE:
            self.flush()

    def flush(self) -> None:
        if self._filled:
            self._link.sendall(self._buffer[: self._filled])
            self._filled = 0


def serve(link: Secure, pids: Callable[[], set[int]], say: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Answer until the destination has everything; its counts (pages, seconds, bytes per second).

    `pids` names the processes of the run, all of them stopped. LinkLost when the link breaks: call again with the next
    one. MigrationError for a request that nobody may make; the link is closed then.
    """
    memory = Memory(pids)
    try:
        counts = _serve(link, memory)
    except MigrationError as error:
        if not isinstance(error, LinkLost):
            link.close()
        raise
    except (OSError, ValueError) as error:
        raise LinkLost(f"The link for lazy pages broke: {error}") from error
    finally:
        memory.close()
    if say is not None:
        say(f"the destination has all of its {counts.get('pages_total')} lazy pages")
    return counts


def _serve(link: Secure, memory: Memory) -> dict[str, Any]:
    answers = _Answers(link, memory)
    asked = memoryview(bytearray(_REQUESTS))
    held = 0
    while True:
        count = link.recv_into(asked[held:])
        if not count:
            raise LinkLost("The destination closed the link for lazy pages.")
        held += count
        place = 0
        while held - place >= FRAME.size:
            kind, pid, vaddr, size = FRAME.unpack_from(asked, place)
            place += FRAME.size
            if kind == COMPLETE and size <= _COUNTS:
                return _completed(link, bytes(asked[place:held]), size)
            if kind != GET or not 0 < size <= PIECE // PAGE:
                raise MigrationError(
                    f"The destination sent no request for pages: {kind}, {size}.", "Update both nodes."
                )
            answers.add(pid, vaddr, size)
        answers.flush()
        asked[: held - place] = bytes(asked[place:held])
        held -= place


def _completed(link: Secure, text: bytes, size: int) -> dict[str, Any]:
    """Read the counts to their end and say that they have come."""
    while len(text) < size:
        more = bytearray(size - len(text))
        count = link.recv_into(memoryview(more))
        if not count:
            raise LinkLost("The destination closed the link for lazy pages.")
        text += more[:count]
    counts: dict[str, Any] = json.loads(text[:size])
    try:
        link.sendall(FRAME.pack(COMPLETE, 0, 0, 0))
    except OSError:
        pass  # the destination knows already that it has everything
    return counts
