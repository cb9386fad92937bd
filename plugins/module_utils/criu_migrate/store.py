"""Where the contents of lazy pages come from."""

from __future__ import annotations

import bisect
import errno
import os
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from . import lazymap
from .uffd import PAGE


class Store(Protocol):
    """Gives out pages by the process and the address that they had at dump time.

    KeyError for what is not a lazy page of that process, LinkLost or OSError when it can never come.
    """

    @property
    def arrivals(self) -> int:
        """A descriptor, non-blocking, readable when something has come or has gone wrong; -1: all of it is here."""

    def there(self, pid: int, vaddr: int, pages: int, urgent: bool = False) -> int:
        """How many of `pages` pages from `vaddr` on read() gives without waiting; 0: not even the first.

        `urgent`: a thread waits for them, they are asked for at once.
        """

    def read(self, pid: int, vaddr: int, pages: int) -> bytes:
        """Contents of 1 to `pages` pages from `vaddr` on; blocks until the first is there."""

    def release(self, pid: int, vaddr: int, pages: int) -> None:
        """Every process that needs these has them: nobody will ask again."""

    def released(self, pid: int) -> list[tuple[int, int]]:
        """What was released, maybe by an earlier guard: (start, end) in bytes."""


class ImageStore:
    """From the destination's own images (pagemap-PID.img, pages-N.img). Any number of threads may read."""

    arrivals = -1

    def __init__(
        self, images: str, known: Callable[[int], Sequence[lazymap.Place] | None] = lambda _pid: None
    ) -> None:
        """`known`: lazy pages of a process, where that is known without its images."""
        self._images, self._known = images, known
        self._ranges: dict[int, list[lazymap.Range]] = {}
        self._reading = threading.Lock()
        self._places: dict[int, tuple[list[int], Sequence[lazymap.Place]]] = {}  # where each begins, and itself
        self._files: dict[str, int] = {}

    def ranges(self, pid: int) -> list[lazymap.Range]:
        """Lazy pages of a process, read from its images once. Errors as of lazymap.ranges."""
        with self._reading:
            if pid not in self._ranges:
                self._ranges[pid] = lazymap.ranges(self._images, pid, self._known(pid))
            return self._ranges[pid]

    def _at(self, pid: int, vaddr: int) -> lazymap.Place | None:
        """What holds this page. While a process is restored it waits for the first answer: what is known is taken as it
        is, without a look at its memory areas."""
        if pid not in self._places:
            known = self._known(pid)
            pieces: Sequence[lazymap.Place] = self.ranges(pid) if known is None else known
            self._places[pid] = [item.start for item in pieces], pieces
        starts, pieces = self._places[pid]
        index = bisect.bisect_right(starts, vaddr) - 1
        return pieces[index] if index >= 0 and vaddr < pieces[index].end else None

    def there(self, pid: int, vaddr: int, pages: int, urgent: bool = False) -> int:  # noqa: ARG002 (Store)
        """All of it: read() says what is wrong."""
        return pages

    def release(self, pid: int, vaddr: int, pages: int) -> None:
        """Nothing: the images stay whole."""

    def released(self, pid: int) -> list[tuple[int, int]]:  # noqa: ARG002 (Store)
        return []

    def read(self, pid: int, vaddr: int, pages: int) -> bytes:
        """As Store says; OSError too where the images do not hold the page (post-copy)."""
        here = self._insist(pid, vaddr)
        size = min(pages * PAGE, here.end - vaddr)
        data = os.pread(self._file(here.path), size, here.offset + vaddr - here.start)
        whole = len(data) - len(data) % PAGE
        if not whole:
            raise OSError(errno.EIO, f"{here.path} is cut off before the page {vaddr:#x}")
        return data if whole == len(data) else data[:whole]

    def _file(self, path: str) -> int:
        if path not in self._files:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if self._files.setdefault(path, fd) != fd:  # another thread was quicker
                os.close(fd)
        return self._files[path]

    def want(self, pid: int, vaddr: int, pages: int) -> None:
        """Nothing: all of it is here (lazy_proxy.Pages)."""

    def locate(self, pid: int, vaddr: int, pages: int) -> tuple[int, int, int]:
        """Descriptor, place in it (bytes) and number of pages from `vaddr` on. Raises as `read` does."""
        here = self._insist(pid, vaddr)
        return self._file(here.path), here.offset + vaddr - here.start, min(pages, (here.end - vaddr) // PAGE)

    def _insist(self, pid: int, vaddr: int) -> lazymap.Place:
        here = self._at(pid, vaddr)
        if here is None:
            raise KeyError(f"{vaddr:#x} is no lazy page of process {pid}")
        if not here.path:
            raise OSError(errno.ENODATA, f"the images of process {pid} do not hold the page {vaddr:#x}")
        return here

    def holds(self, pid: int, vaddr: int) -> bool:
        """Whether the images have this page. KeyError for what is not a lazy page of that process."""
        here = self._at(pid, vaddr)
        if here is None:
            raise KeyError(f"{vaddr:#x} is no lazy page of process {pid}")
        return bool(here.path)

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])
