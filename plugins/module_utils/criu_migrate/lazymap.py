"""Which pages of a dumped process are left to be restored lazily, and where they lie in the images."""

from __future__ import annotations

import bisect
import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from . import stats
from .errors import MigrationError
from .uffd import PAGE

# criu's include/pagemap.h; crit writes flags as names.
_NAMES = {"PE_PARENT": 1, "PE_LAZY": 2, "PE_PRESENT": 4}
_PARENT, _LAZY, _PRESENT = 1, 2, 4
HERE = 1 << 16  # ours, of page_images.py: an earlier dump has it
_LINK = "parent"  # criu/include/image.h: CR_PARENT_LINK, to the directory of the dump before
_WIPEONFORK = 1 << 18  # MADV_WIPEONFORK, as criu keeps advice: one bit for each number


class Range(NamedTuple):
    """Pages from `start` to before `end` (bytes, addresses at dump time), at `offset` of the file `path`.

    `path` is '' where the images do not hold them (post-copy). A `wiped` range is empty in a child after fork(2).
    `area`: start and end of the memory area that they are in.
    """

    start: int
    end: int
    path: str = ""
    offset: int = 0
    wiped: bool = False
    area: tuple[int, int] | None = None


class Entry(NamedTuple):
    """Of a page map."""

    vaddr: int
    pages: int
    flags: int


class _Area(NamedTuple):
    end: int
    wiped: bool
    span: tuple[int, int]


def prepare() -> None:
    """Load CRIU's library, which takes 80 ms: not while the process stands still."""
    with contextlib.suppress(ImportError, TypeError):
        from pycriu.images import mm_pb2, pagemap_pb2  # type: ignore[import-not-found]  # noqa: F401


class Place(Protocol):
    """Pages between two addresses, and where they lie: Range and Held are some."""

    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def path(self) -> str: ...
    @property
    def offset(self) -> int: ...


def ranges(images: str, pid: int, known: Iterable[Place] | None = None) -> list[Range]:
    """Lazy pages of a process in order of address, cut at the borders of its memory areas.

    UFFDIO_COPY fills no two areas at once. known: what the page maps say, for who knows it: reading them takes time in
    which the process stands still. FileNotFoundError when there is no such image, MigrationError when it
    cannot be read.
    """
    areas = _areas(os.path.join(images, f"mm-{pid}.img"))
    found: list[Range] = []
    at = 0  # areas before this one end too early for all that is to come
    for whole in _lazy(images, pid) if known is None else known:
        start = whole.start
        while start < whole.end:
            while at < len(areas) and areas[at].end <= start:
                at += 1
            if at == len(areas):
                break  # criu leaves out what lies in no area, too
            area = areas[at]
            end = min(whole.end, area.end)
            offset = whole.offset + start - whole.start if whole.path else 0
            found.append(Range(start, end, whole.path, offset, area.wiped, area.span))
            start = end
    return found


def _lazy(images: str, pid: int) -> Iterator[Range]:
    """Entries of the page map with PE_LAZY; what has not changed since an earlier dump is found there."""
    parent = _Held(os.path.join(images, _LINK), pid)
    for entry, path, offset in _entries(images, pid):
        if not entry.flags & _LAZY:
            continue
        if entry.flags & (_PARENT | HERE):
            yield from parent.find(entry.vaddr, entry.vaddr + entry.pages * PAGE)
        else:
            yield Range(entry.vaddr, entry.vaddr + entry.pages * PAGE, path, offset)


class _Held:
    """Where an earlier dump has the pages of a process, or the ones before that."""

    def __init__(self, images: str, pid: int) -> None:
        self._images, self._pid = images, pid
        self._found: list[Range] | None = None

    def find(self, start: int, end: int) -> Iterator[Range]:
        """What it has between these addresses. MigrationError where that is not all."""
        if self._found is None:
            self._found = self._read()
        at = bisect.bisect_left(self._found, (start + 1,)) - 1
        while start < end:
            item = self._found[at] if 0 <= at < len(self._found) else Range(0, 0)
            if not item.start <= start < item.end:
                raise MigrationError(
                    f"The images of process {self._pid} lack the page {start:#x}.", "Run the migration again."
                )
            stop = min(end, item.end)
            yield Range(start, stop, item.path, item.offset + start - item.start)
            start, at = stop, at + 1

    def _read(self) -> list[Range]:
        found: list[Range] = []
        parent = _Held(os.path.join(self._images, _LINK), self._pid)
        for entry, path, offset in _entries(self._images, self._pid):
            end = entry.vaddr + entry.pages * PAGE
            if entry.flags & _PARENT:
                found += parent.find(entry.vaddr, end)
            elif path:
                found.append(Range(entry.vaddr, end, path, offset))
        return found


def _entries(images: str, pid: int) -> Iterator[tuple[Entry, str, int]]:
    """Each entry of a page map with the file that has its pages, and where; '' where that is not in these images."""
    pages_id, entries = page_map(os.path.join(images, f"pagemap-{pid}.img"))
    path = os.path.join(images, f"pages-{pages_id}.img")
    offset = 0
    for entry in entries:
        held = bool(entry.flags & _PRESENT)
        yield entry, path if held else "", offset if held else 0
        if held:
            offset += entry.pages * PAGE


def page_map(path: str) -> tuple[int, list[Entry]]:
    """The number of its pages-N.img, and its entries."""
    try:
        from pycriu.images import pagemap_pb2
    except (ImportError, TypeError):  # as in stats
        head, *rest = _decoded(path)
        return _number(head["pages_id"]), [
            Entry(_number(item["vaddr"]), _number(item.get("nr_pages", item.get("compat_nr_pages", 0))), _flags(item))
            for item in rest
        ]
    # A tenth of the time of pycriu's dictionaries: 20 ms for 10,000 entries, in which the process may be waiting.
    first, *parts = _messages(path)
    entries = []
    for part in parts:
        item = pagemap_pb2.pagemap_entry.FromString(part)
        old = _PARENT if item.in_parent else _PRESENT
        entries.append(
            Entry(item.vaddr, item.nr_pages or item.compat_nr_pages, item.flags if item.HasField("flags") else old)
        )
    return pagemap_pb2.pagemap_head.FromString(first).pages_id, entries


def _areas(path: str) -> list[_Area]:
    try:
        from pycriu.images import mm_pb2
    except (ImportError, TypeError):
        return [
            _area(_number(item["start"]), _number(item["end"]), _number(item.get("madv", 0)))
            for item in _decoded(path)[0].get("vmas", [])
        ]
    found = mm_pb2.mm_entry.FromString(_messages(path)[0]).vmas
    return [_area(item.start, item.end, item.madv) for item in found]


def _area(start: int, end: int, advice: int) -> _Area:
    return _Area(end, bool(advice & _WIPEONFORK), (start, end))


def _messages(path: str) -> list[bytes]:
    """The protobuf messages of an image: two magic numbers, then the size of each before it (criu/protobuf.c)."""
    with open(path, "rb") as handle:
        data = handle.read()
    found = []
    at = 8
    while at + 4 <= len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        found.append(data[at + 4 : end])
        at = end
    if not found or at != len(data):
        raise MigrationError(f"{path} is cut off.", "Dump the process again.")
    return found


def _decoded(path: str) -> list[dict[str, Any]]:
    found = stats.decode(path)
    if not found:
        if not os.path.exists(path):
            raise FileNotFoundError(2, "no such image", path)
        raise MigrationError(f"{path} cannot be read.", "Install criu's python3-pycriu or crit on that node.")
    return found


def _flags(entry: dict[str, Any]) -> int:
    if "flags" not in entry:  # written by an older criu
        return _PARENT if entry.get("in_parent") else _PRESENT
    flags = entry["flags"]
    if isinstance(flags, str) and "PE_" in flags:
        words = [word.strip() for word in flags.split("|")]
        return sum(_NAMES[word] if word in _NAMES else _number(word) for word in words)
    return _number(flags)


def _number(value: Any) -> int:
    """CRIU's decoders write some numbers as hexadecimal text."""
    return int(value, 0) if isinstance(value, str) else int(value)
