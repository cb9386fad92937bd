"""The file that lazy pages are gathered in, process by process in order of address, and the list of what is there."""

from __future__ import annotations

import bisect
import ctypes
import hashlib
import mmap
import os
import weakref
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from .errors import MigrationError
from .lazy_source import PAGE

# Asked for, not here yet: flying; unreadable at the source: bad; was here and is where it belongs: gone.
MISSING, FLYING, THERE, BAD, GONE = b"\0", b"\1", b"\2", b"\3", b"\4"
NOT_FLYING = bytes(0 if value == 1 else value for value in range(256))  # translations of the list
ONLY_CAME = bytes(value if value in (2, 4) else 0 for value in range(256))
_PUNCH = 1 | 2  # FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
_STAMP = 32  # bytes of the digest behind the list, which says whose pages these are
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
NAME = "lazy-pages"  # of the file, among the images


class Run(NamedTuple):
    """Lazy pages without a gap: `first` is their place in the file, in pages."""

    pid: int
    start: int
    first: int
    pages: int


def lay_out(
    ranges_by_pid: Mapping[int, Iterable[tuple[int, int]]], soon: Collection[tuple[int, int]] = ()
) -> list[Run]:
    """Ranges (start, end, in bytes) one after another, those that `soon` names by (PID, start) before all others; those
    that touch become one."""
    order = sorted(
        ((pid, start) not in soon, pid, start, (end - start) // PAGE)
        for pid, ranges in ranges_by_pid.items() for start, end in ranges
    )  # fmt: skip
    runs: list[Run] = []
    first = 0
    for late, pid, start, pages in order:
        last = runs[-1] if runs else None
        touch = last is not None and last.pid == pid and last.start + last.pages * PAGE == start
        if last is not None and touch and late == ((last.pid, last.start) not in soon):
            runs[-1] = last._replace(pages=last.pages + pages)
        elif pages:
            runs.append(Run(pid, start, first, pages))
        first += pages
    return runs


def _open(path: str | None, runs: list[Run]) -> tuple[int, bytearray | mmap.mmap]:
    """The file of the pages, and one byte a page that says what is there; both as they were left, if they are these."""
    total = sum(run.pages for run in runs)
    stamp = hashlib.sha256(repr([tuple(run) for run in runs]).encode()).digest()
    if path is None:
        fd = os.memfd_create("lazy-pages", os.MFD_CLOEXEC)
        os.ftruncate(fd, total * PAGE)
        return fd, bytearray(total) + stamp
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    listed = os.open(path + ".map", flags, 0o600)
    try:
        known = os.pread(listed, _STAMP, total) == stamp and os.fstat(fd).st_size == total * PAGE
        if not known:
            os.ftruncate(listed, 0)  # the pages are left: whoever made them before the freeze has warm ones
        os.ftruncate(fd, total * PAGE)
        os.ftruncate(listed, total + _STAMP)
        state = mmap.mmap(listed, total + _STAMP)
        state[total:] = stamp
        return fd, state
    finally:
        os.close(listed)


def all_came(images: str) -> bool:
    """Whether no page of the copy restored from this directory is still on the source only."""
    try:
        with open(os.path.join(images, NAME + ".map"), "rb") as handle:
            return whole(handle.read())
    except FileNotFoundError:
        return False


def whole(listed: bytes) -> bool:
    """The same of what the file with the list holds."""
    # Where no page was left for later, there is nothing but the digest.
    return len(listed) >= _STAMP and not listed[:-_STAMP].strip(THERE + GONE)


class PageFile:
    """Pages by number. Any thread may read; only one changes what is in the list."""

    def __init__(
        self,
        ranges_by_pid: Mapping[int, Iterable[tuple[int, int]]],
        path: str | None,
        soon: Collection[tuple[int, int]] = (),
    ) -> None:
        """`path`: the pages are kept there, the list in `path`.map; none: in memory of this process."""
        self.runs = lay_out(ranges_by_pid, soon)
        self.total = sum(run.pages for run in self.runs)
        self.soon = sum(run.pages for run in self.runs if (run.pid, run.start) in soon)  # the first so many pages
        self._firsts = [run.first for run in self.runs]
        self._by_pid: dict[int, tuple[list[int], list[Run]]] = {}
        for run in sorted(self.runs):
            starts, own = self._by_pid.setdefault(run.pid, ([], []))
            starts.append(run.start)
            own.append(run)
        self.fd, self.state = _open(path, self.runs)
        weakref.finalize(self, os.close, self.fd)  # never while another thread may be reading it
        self.translate(ONLY_CAME)

    def place(self, pid: int, vaddr: int, pages: int) -> tuple[int, int]:
        """The page's number, and how many of `pages` follow it without a gap. KeyError: not a lazy page."""
        starts, runs = self._by_pid[pid]
        at = bisect.bisect_right(starts, vaddr) - 1
        offset = (vaddr - starts[at]) // PAGE
        if at < 0 or pages < 1 or offset >= runs[at].pages:
            raise KeyError(f"{vaddr:#x} is not a lazy page of process {pid}")
        return runs[at].first + offset, min(pages, runs[at].pages - offset)

    def address(self, page: int) -> tuple[int, int, int]:
        """PID, address, and how many pages follow without a gap, this one included."""
        run = self.runs[bisect.bisect_right(self._firsts, page) - 1]
        offset = page - run.first
        return run.pid, run.start + offset * PAGE, run.pages - offset

    def count(self, page: int, most: int, kind: bytes) -> int:
        """Pages from `page` on that are of this kind without a gap."""
        piece = self.state[page : page + most]
        return len(piece) - len(piece.lstrip(kind))

    def mark(self, page: int, kinds: bytes) -> None:
        self.state[page : page + len(kinds)] = kinds

    def translate(self, table: bytes) -> None:
        self.state[: self.total] = bytes(self.state[: self.total]).translate(table)

    def came(self) -> int:
        """Pages that are here or were."""
        state = bytes(self.state[: self.total])
        return state.count(THERE) + state.count(GONE)

    def release(self, page: int, pages: int) -> None:
        """Give the memory of these back; where the file system cannot, only note it."""
        self.mark(page, GONE * pages)
        _libc.fallocate(self.fd, _PUNCH, page * PAGE, pages * PAGE)

    def released(self, pid: int) -> list[tuple[int, int]]:
        """What `release` was called for: (start, end) in bytes, in order of address."""
        found: list[tuple[int, int]] = []
        for run in self._by_pid.get(pid, ([], []))[1]:
            page, last = run.first, run.first + run.pages
            while (page := self.state.find(GONE, page, last)) >= 0:
                pages = self.count(page, last - page, GONE)
                start = run.start + (page - run.first) * PAGE
                found.append((start, start + pages * PAGE))
                page += pages
        return found

    def read(self, page: int, pages: int) -> bytes:
        return os.pread(self.fd, pages * PAGE, page * PAGE)

    def write(self, data: memoryview, place: int) -> None:
        """At `place` (bytes); MigrationError when this node cannot hold it."""
        try:
            while data:
                count = os.pwrite(self.fd, data, place)
                data, place = data[count:], place + count
        except OSError as error:
            raise MigrationError(
                f"The destination cannot store the lazy pages: {error.strerror}",
                "Free memory there: the process waits, and goes on when the pages fit.",
            ) from error
