"""The destination's end of the lazy channel: the tree's lazy pages, fetched from the source's guard at link speed.

With a path, the pages and the list of what has come outlive the guard: the next one goes on where it was.
"""

from __future__ import annotations

import collections
import json
import os
import threading
import time
import weakref
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Callable, NamedTuple

from . import polling
from .errors import LinkLost, MigrationError
from .lazy_file import BAD, FLYING, GONE, MISSING, NOT_FLYING, ONLY_CAME, THERE, PageFile
from .lazy_source import COMPLETE, FAILED, FRAME, GET, PAGE, PAGES, PIECE
from .lazy_window import GAP, Window
from .secure import PIECE as _BUFFER
from .secure import Secure

_REQUESTS = 64  # in flight at most, where memory is scattered
_AT_ONCE = 16  # pages that a demand asks for


class _Flight(NamedTuple):
    """A request that is not answered yet."""

    page: int
    pages: int
    sent: float


class RemoteStore:
    """Store (store.py) of what is still on the source. One thread calls `attach`, any number the other methods.

    complete: set when every page is here. arrivals: a descriptor to poll, readable when something has come since it was
    read, or when nothing more will; for one reader that does not want to wait in `find`.
    """

    def __init__(
        self,
        ranges_by_pid: Mapping[int, Iterable[tuple[int, int]]],
        say: Callable[[str], None],
        path: str | None = None,
        ahead: bool = True,
        soon: Collection[tuple[int, int]] = (),
    ) -> None:
        """`path`: a file to keep the pages in (with `path`.map beside it); none: memory of this process.

        `ahead`: fetch what nobody has asked for, too, and not only from go() on; before that only the ranges
        that `soon` names, by (PID, start).
        """
        self._file = PageFile(ranges_by_pid, path, soon)
        self.fd = self._file.fd
        self.pages_total = self._file.total
        self.pages_transferred = self._file.came()
        self._say = say
        self._changed = threading.Condition()
        self._error: Exception | None = None
        self._urgent: dict[int, int] = {}  # page -> pages, demanded and not here yet
        self._fresh: collections.deque[int] = collections.deque()  # those of them not asked for yet
        self._flying: collections.deque[_Flight] = collections.deque()  # in order of the answers
        self._in_flight = 0  # bytes
        self._next = 0  # no missing page before this one
        self._bad: dict[int, int] = {}  # page -> errno at the source
        self._began = self._ended = 0.0
        self._window = Window()
        self._ahead = ahead
        self._wake, self._waker = os.pipe()
        self.arrivals, self._bell = os.pipe()
        for end in (self._wake, self._waker, self.arrivals, self._bell):
            os.set_blocking(end, False)
            weakref.finalize(self, os.close, end)
        self.complete = threading.Event()
        if not self.left():
            self.complete.set()

    # ---- for readers

    def find(self, pid: int, vaddr: int, pages: int, urgent: bool = False) -> tuple[int, int]:
        """Where in `fd` (bytes) the page at `vaddr` lies, and how many of the asked pages are there from it on (>= 1).

        Waits for the first; an urgent one overtakes the prefetch. KeyError: not a lazy page of that process, or it was
        released; OSError: the source cannot read it, or the store was closed.
        """
        page, most = self._file.place(pid, vaddr, pages)
        there = self._file.count(page, most, THERE)
        if not there:
            if urgent:
                self._demand(page, most)
            with self._changed:
                there = self._file.count(page, most, THERE)  # it may have come since: nobody would tell again
                while not there:
                    self._check(page, pid, vaddr)
                    self._changed.wait()
                    there = self._file.count(page, most, THERE)
        return page * PAGE, there

    def locate(self, pid: int, vaddr: int, pages: int) -> tuple[int, int, int]:
        """Descriptor, place in it (bytes) and number of pages from `vaddr` on; waits and raises as `find` does."""
        return (self.fd, *self.find(pid, vaddr, pages, urgent=True))

    def read(self, pid: int, vaddr: int, pages: int, urgent: bool = False) -> bytes:
        """As in the Protocol Store."""
        place, count = self.find(pid, vaddr, pages, urgent)
        return self._file.read(place // PAGE, count)

    def there(self, pid: int, vaddr: int, pages: int, urgent: bool = False) -> int:
        """As in the Protocol Store: how many of the pages `find` would give at once. Raises as it does."""
        page, most = self._file.place(pid, vaddr, pages)
        count = self._file.count(page, most, THERE)
        if not count:
            self._check(page, pid, vaddr)
            if urgent:
                self._demand(page, most)
        return count

    def extent(self, pid: int, vaddr: int) -> int:
        """Pages from `vaddr` on that are lazy pages without a gap. KeyError: not even the first."""
        return self._file.place(pid, vaddr, 1 << 40)[1]

    def want(self, pid: int, vaddr: int, pages: int) -> None:
        """A demand without waiting for it. KeyError as of `find`."""
        page, most = self._file.place(pid, vaddr, pages)
        if self._file.state[page] == MISSING[0]:
            self._demand(page, most)

    def release(self, pid: int, vaddr: int, pages: int) -> None:
        """These are in every process that needs them: give back what of their memory is here.

        Otherwise there is twice the process's memory until it is filled; and pages just freed are quick to get again.
        """
        while pages > 0:
            page, most = self._file.place(pid, vaddr, pages)
            with self._changed:
                there = self._file.count(page, most, THERE)
                if there:
                    self._file.release(page, there)
            step = max(there, 1)
            vaddr, pages = vaddr + step * PAGE, pages - step

    def released(self, pid: int) -> list[tuple[int, int]]:
        """What is in the process already, and so needs no filling by whoever goes on: (start, end), bytes."""
        return self._file.released(pid)

    def go(self) -> None:
        """Fetch what nobody has asked for, too. Before the process runs that would only make it wait longer."""
        self._window.open()
        self._ahead = True
        self._ring(self._waker)

    def left(self) -> int:
        """Pages that are not here yet."""
        return self.pages_total - self.pages_transferred

    def counts(self) -> dict[str, Any]:
        """pages_total, pages_transferred, seconds since the first link, bytes_per_second."""
        end = self._ended or time.monotonic()
        seconds = end - self._began if self._began else 0.0
        return {
            "pages_total": self.pages_total,
            "pages_transferred": self.pages_transferred,
            "seconds": seconds,
            "bytes_per_second": self.pages_transferred * PAGE / seconds if seconds else 0.0,
        }

    def refuse(self, error: Exception) -> None:
        """Nothing more will come, because of `error`: readers of what is missing, and `attach`, raise it."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()
        self._ring(self._waker)
        self._ring(self._bell)

    def close(self) -> None:
        """Waiting readers and `attach` raise OSError. What lies at `path` stays."""
        self.refuse(OSError("The store of lazy pages was closed."))

    def _check(self, page: int, pid: int, vaddr: int) -> None:
        """Raise what keeps this page from ever coming."""
        number = self._bad.get(page)
        if number is not None:
            raise OSError(number, f"page {vaddr:#x} of process {pid} on the source")
        if self._file.state[page] == GONE[0]:
            raise KeyError(f"{vaddr:#x} of process {pid} was released")
        if self._error is not None:
            raise self._error

    def _demand(self, page: int, pages: int) -> None:
        with self._changed:
            if self._file.state[page] in THERE + GONE:
                return
            self._urgent[page] = pages
            self._window.demanded()
            if self._file.state[page] == MISSING[0]:
                self._fresh.append(page)
        self._ring(self._waker)

    @staticmethod
    def _ring(pipe: int) -> None:
        try:
            os.write(pipe, b"\1")
        except BlockingIOError:
            pass  # readable it is

    # ---- for the thread of the link

    def attach(self, link: Secure) -> dict[str, Any]:
        """Fetch over this link until everything is here and the source knows; the counts.

        LinkLost when it breaks: what has come stays, call again with the next link. MigrationError when the source
        could not read a page (all others have come then), or this node cannot store it.
        """
        self._began = self._began or time.monotonic()
        self._keep(ONLY_CAME)
        self._bad.clear()
        try:
            self._fetch(link)
            return self._finish(link)
        except (OSError, ValueError) as error:
            if error is self._error:
                raise
            raise LinkLost(f"The link for lazy pages broke: {error}") from error
        finally:
            self._keep(NOT_FLYING)

    def _fetch(self, link: Secure) -> None:
        buffer = memoryview(bytearray(_BUFFER))
        answers = _Answers(self)
        while True:
            if self._error is not None:
                raise self._error
            self._ask(link)
            if not self._flying and self._file.state.find(MISSING, self._next, self.pages_total) < 0:
                return
            count = link.read_into(buffer)
            if count == 0:
                raise LinkLost("The source closed the link for lazy pages.")
            if count > 0:
                answers.take(buffer[:count])
                continue
            watched: list[Any] = [link, self._wake]
            ready = polling.readable(watched, None if self._flying or not self._ahead else GAP)
            if self._wake in ready:
                os.read(self._wake, 1 << 16)
            if link in ready:
                link.take()

    def _ask(self, link: Secure) -> None:
        """Demands at once, then the next pieces in order while little is in flight."""
        frames = bytearray()
        while self._fresh:
            page = self._fresh.popleft()
            pages = min(self._urgent.get(page, 0), _AT_ONCE)
            if pages:
                self._ask_for(page, pages, frames)
                self._ask_for(page + pages, _AT_ONCE - pages, frames)  # what is beside it is often wanted next
        window = self._window.now()
        if self._in_flight <= window - window // 4 and len(self._flying) <= _REQUESTS // 2:
            last = self.pages_total if self._ahead else self._file.soon
            while self._in_flight < window and len(self._flying) < _REQUESTS:
                page = self._file.state.find(MISSING, self._next, last)
                if page < 0:
                    self._next = max(self._next, last)
                    break
                self._next = page
                self._ask_for(page, max(1, min(PIECE, window // 4) // PAGE), frames)
        if frames:
            link.sendall(bytes(frames))

    def _ask_for(self, page: int, most: int, frames: bytearray) -> None:
        """Up to `most` pages from `page` on, as far as they are missing, without a gap, and not in flight."""
        if page >= self.pages_total:
            return
        pid, vaddr, pages = self._file.address(page)
        pages = self._file.count(page, min(most, pages), MISSING)
        if not pages:
            return
        self._file.mark(page, FLYING * pages)
        self._flying.append(_Flight(page, pages, time.monotonic()))
        self._in_flight += pages * PAGE
        frames += FRAME.pack(GET, pid, vaddr, pages)

    def expected(self, pid: int, vaddr: int) -> _Flight:
        """The request that the next answer belongs to. MigrationError when it is not for this address."""
        if self._flying:
            flight = self._flying[0]
            if self._file.address(flight.page)[:2] == (pid, vaddr):
                return flight
        raise MigrationError(
            f"The source sent pages of process {pid} at {vaddr:#x} that were not asked for.", "Update both nodes."
        )

    def write(self, data: memoryview, place: int) -> None:
        self._file.write(data, place)

    def arrived(self, count: int, kind: bytes = THERE) -> None:
        """The first `count` pages of the request at the head are here; what it lacks will be asked for again."""
        page, pages, sent = self._flying.popleft()
        self._in_flight -= pages * PAGE
        self._window.answered(time.monotonic() - sent)
        with self._changed:
            self._file.mark(page, kind * count + MISSING * (pages - count))
            if kind == THERE:
                self.pages_transferred += count
            if count < pages:
                self._next = min(self._next, page + count)
            for wanted in [at for at in self._urgent if page <= at < page + pages]:
                if wanted < page + count:
                    del self._urgent[wanted]
                else:
                    self._fresh.append(wanted)
            self._changed.notify_all()
        self._ring(self._bell)

    def unreadable(self, number: int) -> None:
        """The source has errno `number` for the first page of the request at the head."""
        self._bad[self._flying[0].page] = number
        self.arrived(1, BAD)

    def _finish(self, link: Secure) -> dict[str, Any]:
        if self._bad:
            page, number = next(iter(self._bad.items()))
            pid, vaddr, _pages = self._file.address(page)
            raise MigrationError(
                f"{len(self._bad)} lazy pages could not be read on the source, the first at {vaddr:#x} "
                f"of process {pid}: {os.strerror(number)}",
                "Is the process there, stopped? See the source's kernel log for memory errors.",
            )
        if not self._ended:
            self._ended = time.monotonic()
            seconds = self._ended - self._began
            self._say(f"all {self.pages_total} lazy pages have come, {seconds:.2f} s after the first link")
        self.complete.set()
        text = json.dumps(self.counts()).encode()
        link.sendall(FRAME.pack(COMPLETE, 0, 0, len(text)) + text)
        echo, held = memoryview(bytearray(FRAME.size)), 0
        while held < FRAME.size:
            count = link.recv_into(echo[held:])
            if not count:
                raise LinkLost("The source closed the link before it knew that all lazy pages have come.")
            held += count
        if FRAME.unpack(echo)[0] != COMPLETE:
            raise MigrationError("The source sent something else than the end of the lazy pages.", "Update both nodes.")
        return self.counts()

    def _keep(self, kinds: bytes) -> None:
        """Nothing is in flight any more: the link is gone, or a new one begins. `kinds` translates the list."""
        with self._changed:
            self._file.translate(kinds)
            self._flying.clear()
            self._in_flight = self._next = 0
            self._fresh = collections.deque(self._urgent)


class _Answers:
    """The stream of answers, cut into frames wherever it comes in pieces."""

    def __init__(self, store: RemoteStore) -> None:
        self._store = store
        self._head = b""
        self._pages = 0  # of the frame that is coming in
        self._left = 0  # bytes of it still to come
        self._place = 0  # in the store's file

    def take(self, data: memoryview) -> None:
        while data:
            if not self._left:
                missing = FRAME.size - len(self._head)
                self._head += bytes(data[:missing])
                data = data[missing:]
                if len(self._head) == FRAME.size:
                    self._begin(*FRAME.unpack(self._head))
                    self._head = b""
                continue
            piece = data[: self._left]
            self._store.write(piece, self._place)
            self._place += len(piece)
            self._left -= len(piece)
            data = data[len(piece) :]
            if not self._left:
                self._store.arrived(self._pages)

    def _begin(self, kind: int, pid: int, vaddr: int, count: int) -> None:
        flight = self._store.expected(pid, vaddr)
        if kind == FAILED:
            self._store.unreadable(count)
        elif kind == PAGES and 0 < count <= flight.pages:
            self._pages, self._left, self._place = count, count * PAGE, flight.page * PAGE
        else:
            raise MigrationError(
                f"The source sent no answer to a request for pages: {kind}, {count}.", "Update both nodes."
            )
