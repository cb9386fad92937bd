"""Finishing a lazy restore whose `criu lazy-pages` has died: what it had still to do, and doing it."""

from __future__ import annotations

import errno
import os
import re
import select
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Callable

from .layout import Layout, Piece
from .lazymap import Range
from .store import Store
from .uffd import PAGE, Event, Fault, Fork, Remap, Uffd, Unmap

TAKEN_OVER = "uffd: taken over"  # a line of the log: whoever wrote before it is dead
_CHUNK = 64  # pages filled between two looks at the events
_NEAR = 16  # pages filled for a fault: what is behind the wanted one is often wanted next
_CALM = 0.01  # seconds
_READS = 16  # reads of events in a row: a process that sends them without end must not keep its pages from coming
_PAUSE = 1  # milliseconds until what makes the kernel say EAGAIN is tried again, unless an event comes first
_IDLE = 1000  # milliseconds, while pages have yet to come; events and pages end that wait


# criu/uffd.c; lengths of REMAP and uffd_copy are decimal, all else is hexadecimal.
_LINE = re.compile(
    r"uffd: (?:Received PID: (?P<pid>\d+), uffd: (?P<fd>\d+)$"
    r"|(?P<taken>taken over)$"
    r"|(?P<who>\d+-\d+): (?:"
    r"uffd_copy: 0x(?P<copy>[0-9a-f]+)/(?P<length>\d+)$"
    r"|copy: mcopy_rc:(?P<copied>-?\d+)"
    r"|REMAP: (?P<old>[0-9a-f]+) -> (?P<new>[0-9a-f]+) \((?P<moved>\d+)\)$"
    r"|(?P<how>REMOVE|UNMAP): (?P<start>[0-9a-f]+)\((?P<size>[0-9a-f]+)\)$"
    r"|FORK: child with ufd=(?P<child>\d+)$"
    r"|(?P<settled>SETTLED)$"
    r"|(?P<end>EXIT)$))",
    re.MULTILINE,
)


class Replay:
    """Lazy memory of every process as the log of `criu lazy-pages` (-v4) leaves it.

    `pieces` has the key "P-F": P is the PID in the images, F the daemon's number of the userfaultfd; a child has the P
    of its parent. Pages that the daemon has filled are left out, and processes that have ended.
    """

    def __init__(self, text: str, ranges: Callable[[int], Sequence[Range]]) -> None:
        """`ranges` gives the lazy pages of a PID. ValueError for a log that does not start at the beginning."""
        self.pieces: dict[str, Layout] = {}
        self._copy = ("", 0, 0)  # what the daemon was about to fill: done if it has said anything else after that
        seen = 0
        for line in _LINE.finditer(text):
            if line["taken"]:
                self._copy = ("", 0, 0)
            elif line["pid"]:
                self.pieces[f"{line['pid']}-{line['fd']}"] = Layout(ranges(int(line["pid"])))
            elif line["who"] in self.pieces:
                self._apply(line)
            else:
                raise ValueError(f"the log of criu lazy-pages does not say where this comes from: {line[0]}")
            seen = line.end()
        if text.count("\n", seen) > 1:
            self._filled()

    def _filled(self) -> None:
        key, start, size = self._copy
        if key in self.pieces:
            self.pieces[key].pieces.take(start, start + size)
        self._copy = ("", 0, 0)

    def _apply(self, line: re.Match[str]) -> None:
        key = line["who"]
        if line["copied"]:  # less than it was about to fill, or nothing
            self._copy = (key, self._copy[1], max(0, int(line["copied"])))
        self._filled()
        layout = self.pieces[key]
        if line["copy"]:
            self._copy = (key, int(line["copy"], 16), int(line["length"]))
        elif line["old"]:
            layout.remap(int(line["old"], 16), int(line["new"], 16), int(line["moved"]))
        elif line["how"]:
            start = int(line["start"], 16)
            (layout.unmap if line["how"] == "UNMAP" else layout.remove)(start, start + int(line["size"], 16))
        elif line["settled"]:
            layout.settle()
        elif line["child"]:
            self.pieces[f"{key.split('-')[0]}-{line['child']}"] = layout.inherited()
        elif line["end"]:
            del self.pieces[key]


@dataclass
class Task:
    """One process: its key as in Replay, a descriptor of its userfaultfd, its lazy memory."""

    key: str
    uffd: Uffd
    layout: Layout
    waiting: dict[int, bool] = field(default_factory=dict)  # faults, oldest first: has the store been asked?

    @property
    def pid(self) -> int:
        """In the images."""
        return int(self.key.split("-")[0])


@dataclass
class Filled:
    """Counts of pages: filled, found there, zeros given for what is not lazy, in memory that is gone; `forks` met."""

    pages_copied: int = 0
    pages_there: int = 0
    pages_zero: int = 0
    pages_gone: int = 0
    forks: int = 0
    seconds: float = 0.0


class Filler:
    """Does what `criu lazy-pages` would have done; the daemon must be dead, as only one can read the events.

    One thread. `fds` grows with every fork and belongs to the caller, who closes them at the end: until then threads
    that touch other untouched memory wait, and so does mremap(2), munmap(2), madvise(2) or fork(2).
    """

    def __init__(
        self,
        store: Store,
        replay: Replay,
        fds: Mapping[str, int],
        say: Callable[[str], None],
        on_fork: Callable[[str, int], None],
        journal: Callable[[str], None],
    ) -> None:
        """`fds` has the userfaultfds by the keys of Replay; one of a process that has ended is left alone.

        `on_fork` gets key and userfaultfd of each new process at once. `journal` gets a line for each event, which
        has to be appended to the log: whoever takes over from this Filler replays both.
        """
        self.fds = dict(fds)
        self.filled = Filled()
        self._store = store
        self._say = say
        self._on_fork = on_fork
        self._journal = journal
        self._faulted = 0.0  # when a thread has last asked for a page
        self._keys = set(replay.pieces) | set(fds)
        self._poll = select.poll()
        if store.arrivals >= 0:
            self._poll.register(store.arrivals, select.POLLIN)
        self._tasks: dict[int, Task] = {}
        self._processes: Counter[int] = Counter()  # by the PID in the images; with a child, a page is needed twice
        self._queue: deque[Task] = deque()
        for key, fd in fds.items():
            if key in replay.pieces:
                task = Task(key, Uffd(fd), replay.pieces[key])
                for start, end in store.released(task.pid):
                    task.layout.forget(start, end)
                self._add(task)

    def _add(self, task: Task) -> None:
        self._queue.append(task)
        self._tasks[task.uffd.fd] = task
        self._processes[task.pid] += 1
        self._poll.register(task.uffd.fd, select.POLLIN)

    def left(self) -> int:
        """Pages that are still to be looked after."""
        return sum(task.layout.pages() for task in self._tasks.values())

    def fill_soon(self, soon: Iterable[tuple[int, int, int]]) -> None:
        """Fill what of these ranges (PID, start, end) is here, while the processes do not run yet: that saves a hundred
        faults. Raises as `run` does."""
        tasks = {task.pid: task for task in self._tasks.values()}
        for pid, start, end in soon:
            piece = tasks[pid].layout.pieces.find(start) if pid in tasks else None
            while piece is not None and piece.start < end:
                pages = self._store.there(pid, piece.image, min(_CHUNK, (min(piece.end, end) - piece.start) // PAGE))
                if not pages or not self._fill(tasks[pid], piece, pages):
                    break
                piece = tasks[pid].layout.pieces.find(piece.start + pages * PAGE)

    def run(self) -> Filled:
        """Fill everything. After an error it may be called again.

        Raises what the store raises, and OSError where the kernel refuses (ENOMEM: no memory for a page).
        """
        began = time.monotonic()
        self._journal(TAKEN_OVER)
        self._say(f"filling {self.left()} pages of {len(self._tasks)} processes")
        try:
            for task in self._tasks.values():
                task.uffd.wake_all()  # a fault that the daemon had read would never be answered
            wait = 0
            while self._queue:
                self._listen(wait)
                waits = [self._answer(task) for task in self._tasks.values() if task.waiting]
                wait = min([self._background(), *waits])
        finally:
            self.filled.seconds += time.monotonic() - began
        self._say(f"filled: {self.filled}")
        return self.filled

    def _listen(self, wait: int) -> None:
        for fd, _flags in self._poll.poll(wait):
            if fd == self._store.arrivals:
                os.read(fd, 1 << 16)
                continue
            for _turn in range(_READS):
                events = self._tasks[fd].uffd.events()
                for event in events:
                    self._take(self._tasks[fd], event)
                if not events:
                    break

    def _take(self, task: Task, event: Event) -> None:
        if isinstance(event, Fault):
            self._faulted = time.monotonic()
            task.waiting.setdefault(event.address, False)
        elif isinstance(event, Fork):
            self._forked(task, event.fd)
        elif isinstance(event, Remap):
            task.layout.remap(*event)
            self._journal(f"uffd: {task.key}: REMAP: {event.start:x} -> {event.to:x} ({event.length})")
        elif isinstance(event, Unmap):
            task.layout.unmap(*event)
            self._journal(f"uffd: {task.key}: UNMAP: {event.start:x}({event.end - event.start:x})")
        else:
            # criu also takes the memory out of the userfaultfd. That splits the area, and a later mremap(2) of
            # all of it fails; here faults in it get zeros instead.
            task.layout.remove(*event)
            self._journal(f"uffd: {task.key}: REMOVE: {event.start:x}({event.end - event.start:x})")

    def _settled(self, task: Task) -> bool:
        """Whether it is known where everything lies."""
        if task.layout.unsettled:
            if task.uffd.busy():
                return False
            task.layout.settle()
            self._journal(f"uffd: {task.key}: SETTLED")
        return True

    def _forked(self, task: Task, fd: int) -> None:
        number = fd
        while f"{task.pid}-{number}" in self._keys:  # the daemon had numbers of its own
            number += 1000
        key = f"{task.pid}-{number}"
        self._keys.add(key)
        self.fds[key] = fd
        self._journal(f"uffd: {task.key}: FORK: child with ufd={number}")
        self._on_fork(key, fd)
        self._add(Task(key, Uffd(fd), task.layout.inherited()))
        self.filled.forks += 1
        self._say(f"process {task.key} has forked {key}")

    def _answer(self, task: Task) -> int:
        """Fill the pages that threads wait for, as far as they are here; milliseconds until it is worth a new try."""
        wait = _IDLE if self._settled(task) else _PAUSE
        if wait == _PAUSE:
            return wait
        for address, asked in list(task.waiting.items()):
            piece = task.layout.pieces.find(address)
            if piece is None:
                if not self._zero(task, address):
                    return _PAUSE
            else:
                pages = self._store.there(task.pid, piece.image, min(_NEAR, piece.pages), urgent=not asked)
                if not pages:
                    task.waiting[address] = True
                    continue
                if not self._fill(task, piece, pages):
                    return _PAUSE
            # Where nothing could be filled the thread has to try again: its memory has become something else.
            task.uffd.wake(address)
            del task.waiting[address]
            wait = 0
        return wait

    def _zero(self, task: Task, address: int) -> bool:
        """False when events have to be read first, or the process has ended."""
        done = task.uffd.zero(address)
        if done.error == errno.ESRCH:
            self._ended(task)
        elif done.error not in (0, errno.EEXIST, errno.ENOENT, errno.EAGAIN):
            raise OSError(done.error, f"UFFDIO_ZEROPAGE at {address:#x} of process {task.key}")
        self.filled.pages_zero += not done.error
        return done.error not in (errno.EAGAIN, errno.ESRCH)

    def _background(self) -> int:
        """The next chunk of the first process of which it is here; milliseconds until it is worth a new try."""
        for _turn in range(len(self._queue)):
            task = self._queue[0]
            if not self._settled(task):
                return _PAUSE
            if not task.layout.pieces:
                self._queue.popleft()
                return 0
            piece = task.layout.pieces.first()
            pages = self._store.there(task.pid, piece.image, min(self._chunk(), piece.pages))
            if pages and self._fill(task, piece, pages):
                return 0
            self._queue.rotate(-1)
            if pages:
                return _PAUSE
        return _IDLE

    def _chunk(self) -> int:
        """Pages at once: few while threads keep waiting for others."""
        return _NEAR if time.monotonic() - self._faulted < _CALM else _CHUNK

    def _fill(self, task: Task, piece: Piece, pages: int) -> bool:
        """Fill the first pages of a piece; False when events have to be read first, or the process has ended."""
        start, _end, image = piece
        data = self._store.read(task.pid, image, pages)
        size = len(data)
        at, most, doubt = 0, size, False
        try:
            while at < size:
                done = task.uffd.copy(start + at, data, at, min(most, size - at))
                self.filled.pages_copied += done.size // PAGE
                at += done.size
                if done.size or not done.error:
                    doubt = False
                elif done.error == errno.EEXIST:
                    self.filled.pages_there += 1
                    at, doubt = at + PAGE, False
                elif done.error == errno.ENOENT and most > PAGE:
                    most = max(PAGE, min(most, size - at) // 2 & -PAGE)  # a border that mprotect(2) has made, maybe
                elif done.error == errno.ENOENT and not doubt:
                    # An mremap(2) that had just begun looks the same. Its event is unread, so now it would be EAGAIN.
                    doubt = True
                elif done.error == errno.ENOENT:
                    self.filled.pages_gone += 1
                    at, doubt = at + PAGE, False
                elif done.error == errno.EAGAIN:
                    return False
                elif done.error == errno.ESRCH:
                    self._ended(task)
                    return False
                else:
                    raise OSError(done.error, f"UFFDIO_COPY at {start + at:#x} of process {task.key}")
        finally:
            task.layout.pieces.take(start, start + at)
            if at and self._processes[task.pid] == 1:
                self._store.release(task.pid, image, at // PAGE)
        return True

    def _ended(self, task: Task) -> None:
        self._say(f"process {task.key} has ended, {task.layout.pages()} pages of it unfilled")
        self._journal(f"uffd: {task.key}: EXIT")
        self.filled.pages_gone += task.layout.pages()
        task.layout = Layout()
        task.waiting.clear()
