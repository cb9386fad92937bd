"""Pages of one process in runs without a gap, kept so that the next dump can take them over many at once.

In a dump on another one criu says of each run that has not changed that it is in the parent. Of a heap full of gaps
those are ten thousands of messages, and the process may stand still meanwhile. What criu will say of a run and what a
page map says of it is therefore made when the run comes, and what criu does say is compared in whole pieces.
"""

from __future__ import annotations

import bisect
import functools
import mmap
import struct
from collections.abc import Iterable, Iterator
from itertools import chain

from . import lazymap
from .held import Held, all_within

PAGE = mmap.PAGESIZE
HEADER = struct.Struct("<I4xQQQ")  # command, with flags in the upper half; pages, address, what they belong to
OPEN, PARENT, ADD = 4, 5, 6  # commands of criu/page-xfer.c at v4.2
IN_PARENT, LAZY, PRESENT = 1, 2, 4  # criu/include/pagemap.h: in an earlier dump; may come late; the pages follow
# Ours: may come late, and an earlier dump has it. CRIU sees PE_LAZY alone and asks its page server, which is the guard;
# with PE_PARENT beside it its daemon would read the page and then forget whom it was for (criu/uffd.c at v4.2).
HERE = lazymap.HERE
_WINDOW = 16 * HEADER.size  # bytes compared at once, and twice as many each time
_MEANT = b"\xff" * 4 + bytes(4) + b"\xff" * 24  # of a word; between its fields criu sends what its stack held
_LENGTHS = [struct.pack("<I", size) for size in range(64)]  # of messages


class Runs:
    """All pages of a process, or of one piece of shared memory, in order of address."""

    def __init__(self, owner: int, followed: bool = True) -> None:
        """`followed`: another dump may be put on this one."""
        self._owner = owner
        self._followed = followed
        self._starts: list[int] = []
        self._runs: list[tuple[Held, ...]] = []
        self._said = bytearray()  # what criu says of each run where it is in the parent
        self._entries: dict[bool, list[bytes]] = {False: [], True: []}  # of a page map then; True: may come late
        self._open: list[Held] = []  # the last run, which may still grow
        self._all: list[Held] | None = None

    def add(self, piece: Held) -> None:
        """Behind all others."""
        if self._open and self._open[-1].end != piece.start:
            self.close()
        self._open.append(piece)

    def last(self) -> Held:
        """The piece that was added last."""
        return self._open[-1]

    def close(self) -> None:
        """Nothing is added to the last run any more."""
        self._all = None
        if not self._open:
            return
        run, self._open = tuple(self._open), []
        start = run[0].start
        self._starts.append(start)
        self._runs.append(run)
        if not self._followed:
            return
        self._said += HEADER.pack(ADD | IN_PARENT << 16, (run[-1].end - start) // PAGE, start, self._owner)
        for late, entries in self._entries.items():
            entries.append(inherited(run, late))

    def all(self) -> list[Held]:
        """Every piece; after close()."""
        if self._all is None:
            self._all = list(chain.from_iterable(self._runs))
        return self._all

    def size(self) -> int:
        """Bytes of them; after close()."""
        return sum(run[-1].end - run[0].start for run in self._runs)

    def not_in(self, later: Runs) -> Iterator[Held]:
        """Pieces of runs that a later dump has not taken over as they are."""
        same = set(map(id, later._runs))
        return chain.from_iterable(run for run in self._runs if id(run) not in same)

    def between(self, start: int, end: int, late: bool) -> tuple[list[Held], bytes]:
        """The pieces between these addresses, and the entries of the page map of a dump that has them in its parent.
        MigrationError where something is missing."""
        at = bisect.bisect_left(self._starts, start)
        if at < len(self._entries[late]) and self._starts[at] == start and self._runs[at][-1].end == end:
            return list(self._runs[at]), self._entries[late][at]
        found = all_within(self.all(), start, end)
        return found, inherited(found, late)

    def take_over(self, parent: Runs, said: memoryview, late: bool) -> tuple[int, bytes]:
        """Take from the parent the runs that these words of criu's begin with; the bytes of the words, and the entries
        of the page map. (0, b"") where the first one is none of them, which says nothing against it."""
        if len(said) < HEADER.size:
            return 0, b""
        _command, _pages, start, _owner = HEADER.unpack_from(said)
        begin = bisect.bisect_left(parent._starts, start)
        count = _alike(said, memoryview(parent._said)[begin * HEADER.size :]) // HEADER.size
        if not count:
            return 0, b""
        end = begin + count
        # Between runs of the parent are gaps, so only the first and the last of them may have neighbours here.
        for piece in parent._runs[begin]:
            self.add(piece)
        if count > 1:
            self.close()
            self._starts += parent._starts[begin + 1 : end - 1]
            self._runs += parent._runs[begin + 1 : end - 1]
            if self._followed:
                self._said += parent._said[(begin + 1) * HEADER.size : (end - 1) * HEADER.size]
                for kind, entries in self._entries.items():
                    entries.extend(parent._entries[kind][begin + 1 : end - 1])
            self._open = list(parent._runs[end - 1])
        return count * HEADER.size, b"".join(parent._entries[late][begin:end])


def _alike(one: memoryview, two: memoryview) -> int:
    """With how many bytes of words that mean the same both begin: compared in pieces, each as one number."""
    found, window = 0, _WINDOW
    while True:
        size = min(window, len(one) - found, len(two) - found)
        size -= size % HEADER.size
        apart = int.from_bytes(one[found : found + size], "big") ^ int.from_bytes(two[found : found + size], "big")
        if apart:
            apart &= int.from_bytes(_MEANT * (size // HEADER.size), "big")
        if apart:
            return found + size - (apart.bit_length() + 7) // 8
        found += size
        if size < window:
            return found
        window *= 2


def inherited(pieces: Iterable[Held], late: bool) -> bytes:
    """The entries of a page map for neighbours in an earlier dump, one for all with the same flags."""
    found = b""
    start = end = flags = 0
    for piece in pieces:
        its = LAZY | HERE if late and piece.flags & LAZY else IN_PARENT
        if its != flags:
            if flags:
                found += entry(start, flags, (end - start) // PAGE)
            start, flags = piece.start, its
        end = piece.end
    return found + entry(start, flags, (end - start) // PAGE) if flags else found


def head(number: int) -> bytes:
    """The first message of a page map: which pages-N.img is its own (images/pagemap.proto: pages_id)."""
    return _sized(b"\x08" + _varint(number))


def entry(vaddr: int, flags: int, pages: int) -> bytes:
    """Another one (vaddr, compat_nr_pages, flags, nr_pages)."""
    return _sized(b"\x08" + _varint(vaddr) + _kind(flags, pages))


@functools.lru_cache(maxsize=4096)
def _kind(flags: int, pages: int) -> bytes:
    return b"\x10\x00\x20" + _varint(flags) + b"\x28" + _varint(pages)


def _varint(value: int) -> bytes:
    """A whole number as protobuf has it; of an address the upper part is that of its neighbours."""
    low = bytes((value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14 & 0x7F | 0x80))
    return low + _septets(value >> 21) if value >> 21 else _septets(value)


@functools.lru_cache(maxsize=4096)
def _septets(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _sized(body: bytes) -> bytes:
    """Behind its length, as criu writes messages."""
    return _LENGTHS[len(body)] + body
