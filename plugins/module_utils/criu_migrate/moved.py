"""Memory that mremap(2) has moved without the kernel's soft-dirty bits telling of it.

Where whole page tables move (2 MB of memory without huge pages, both addresses aligned), move_normal_pmd in mm/mremap.c
takes them along as they are: their pages look unchanged at a place where an earlier round of pre-dump may have had
others. Seen on Linux 6.12; stock CRIU then restores the older contents, and nothing tells of it.

So this remembers in which frame each page lay. A page that looks unchanged and has not been in one frame since the
last time that it was sent is doubtful: once the tree stands still, it is written to with what it holds, and the dump
takes it for changed. A page that a frame has got anew is always soft-dirty, and its bit moves along.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator

from . import dirty
from .uffd import PAGE

TABLE = 512  # pages of one page table, on x86_64 and aarch64
_BLOCK = TABLE * dirty.ENTRY  # bytes of /proc/PID/pagemap for it


def _each(mask: int) -> int:
    """The same bits of all entries of a table."""
    return int.from_bytes(mask.to_bytes(dirty.ENTRY, "little") * TABLE, "little")


_WHERE = _each((1 << 55) - 1 | 3 << 62)  # frame or swap slot, and which of both
_Key = tuple[int, int]  # PID, number of the table


class Moved:
    """Of one tree, from the first round to the freeze. All methods raise OSError where a process is gone."""

    def __init__(self) -> None:
        self._pids: set[int] = set()  # that the last round took
        self._seen: dict[_Key, int] = {}  # entries of a table, as one number
        self._doubtful: dict[_Key, set[int]] = {}  # pages of a table

    def before_round(self, pids: Iterable[int], first: bool) -> None:
        """Look, right before a round: the `first` sends everything, a later one what was written to."""
        if first and not _visible():
            raise PermissionError(errno.EPERM, "the kernel does not tell in which frames pages lie (CAP_SYS_ADMIN)")
        self._pids = set(pids)
        for key, entries in self._look(self._pids, trusting=first):
            if key in self._doubtful:
                self._doubtful[key] -= {page for page in self._doubtful[key] if _is_dirty(entries, page)}

    def after_round(self, pids: Iterable[int]) -> None:
        """Look, once the tree runs again."""
        for _looked_at in self._look(pids):
            pass  # to have looked is all

    def at_freeze(self, pids: Iterable[int]) -> int:
        """Write to what is doubtful, with the tree standing still; the number of pages. A process that is new since the
        last round is sent whole anyway."""
        count = 0
        for pid in self._pids.intersection(pids):
            addresses = [
                (table * TABLE + page) * PAGE
                for (_pid, table), entries in self._look([pid])
                for page in sorted(self._doubtful.get((pid, table), ()))
                if _is_there(entries, page) and not _is_dirty(entries, page)
            ]
            if addresses:
                _touch(pid, addresses)
            count += len(addresses)
        return count

    def _look(self, pids: Iterable[int], trusting: bool = False) -> Iterator[tuple[_Key, bytes]]:
        for pid in pids:
            for table, entries in _tables(pid):
                key = (pid, table)
                now = int.from_bytes(entries, "little")
                if not trusting and (self._seen.get(key, 0) ^ now) & _WHERE:
                    self._doubtful.setdefault(key, set()).update(_changed(self._seen.get(key, 0), entries))
                self._seen[key] = now
                yield key, entries


def _tables(pid: int) -> Iterator[tuple[int, bytes]]:
    """The page tables that memory of a process lies in: number, and entries of all 512 pages."""
    last = -1
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        for start, end in dirty.areas(pid, written_only=False):
            for table in range(max(last + 1, start // PAGE // TABLE), (end // PAGE - 1) // TABLE + 1):
                entries = os.pread(pagemap.fileno(), _BLOCK, table * _BLOCK)
                if len(entries) == _BLOCK:
                    yield table, entries
                last = table


def _visible() -> bool:
    """Whether this process is told frames: of one's own memory, some page is there."""
    return any(
        _is_there(entries, page) and _entry(entries, page) & (1 << 55) - 1
        for _table, entries in _tables(os.getpid()) for page in range(TABLE)
    )  # fmt: skip


def _entry(entries: bytes, page: int) -> int:
    return int.from_bytes(entries[page * dirty.ENTRY : (page + 1) * dirty.ENTRY], "little")


def _is_there(entries: bytes, page: int) -> bool:
    return bool(_entry(entries, page) >> 62)


def _is_dirty(entries: bytes, page: int) -> bool:
    return bool(_entry(entries, page) >> 55 & 1)


def _changed(before: int, entries: bytes) -> Iterator[int]:
    """Pages that are there and were elsewhere."""
    old = before.to_bytes(_BLOCK, "little")
    where = (1 << 55) - 1 | 3 << 62
    for page in range(TABLE):
        if _is_there(entries, page) and (_entry(old, page) ^ _entry(entries, page)) & where:
            yield page


def _touch(pid: int, addresses: Iterable[int]) -> None:
    """Write what is there, a byte at each address. Memory that its process may only read gets a copy of its own with
    the same contents."""
    fd = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
    try:
        for address in addresses:
            os.pwrite(fd, os.pread(fd, 1, address), address)
    finally:
        os.close(fd)
