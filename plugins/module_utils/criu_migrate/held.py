"""Where pages that a node has taken in lie, and their memory given back when nobody needs them any more."""

from __future__ import annotations

import bisect
import ctypes
import os
from collections.abc import Iterable
from typing import NamedTuple

from .errors import MigrationError

_PUNCH = 1 | 2  # FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Held(NamedTuple):
    """Pages from `start` to before `end` (bytes) that lie at `offset` of the file `path`; flags as criu's."""

    start: int
    end: int
    flags: int
    path: str
    offset: int

    def part(self, start: int, end: int) -> Held:
        """What of it lies between these addresses."""
        low, high = max(self.start, start), min(self.end, end)
        return Held(low, high, self.flags, self.path, self.offset + low - self.start)


def all_within(items: list[Held], start: int, end: int) -> list[Held]:
    """As `within`; MigrationError where something is missing (criu's check_pagehole_in_parent)."""
    found = within(items, start, end)
    if sum(item.end - item.start for item in found) != end - start:
        raise MigrationError(
            f"The earlier dumps lack pages between {start:#x} and {end:#x} that criu left out of this one.",
            "Use migration_strategy=full.",
        )
    return found


def within(items: list[Held], start: int, end: int) -> list[Held]:
    """The parts of `items` (in order of address) that lie between these addresses."""
    found = []
    at = max(0, bisect.bisect_left(items, (start + 1,)) - 1)  # a slice would copy the rest of them
    while at < len(items) and items[at].start < end:
        if items[at].end > start:
            found.append(items[at].part(start, end))
        at += 1
    return found


def give_back(item: Held, kept: Iterable[Held] = ()) -> None:
    """The memory of what lies between the kept parts, where the file system can."""
    gone = []
    at = item.start
    for part in kept:
        gone.append((at, part.start))
        at = part.end
    gone = [(start, end) for start, end in [*gone, (at, item.end)] if start < end]
    if not gone:
        return
    fd = os.open(item.path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for start, end in gone:
            _libc.fallocate(fd, _PUNCH, item.offset + start - item.start, end - start)
    finally:
        os.close(fd)


def tight(held: int, coming: int, free: int, memory: int) -> bool:
    """Whether another dump may find no room beside these pages, with the process itself still to come.

    held: bytes of pages that are there, and of the process; coming: of another dump, at most; free: of their file
    system; memory: for that, if it is in memory, and for the process.
    """
    return free < coming or memory < held + coming
