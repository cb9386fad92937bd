"""Finishing a lazy restore whose `criu lazy-pages` has died: what it had still to do, and doing it."""

from __future__ import annotations

import errno
import os
import select
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Callable, Protocol

from .layout import Layout, Piece
from .replay import TAKEN_OVER, Replay, fork_line
from .store import Store
from .uffd import PAGE, Event, Fault, Fork, Remap, Uffd, Unmap

_CHUNK = 64  # pages filled between two looks at the events
_NEAR = 16  # pages filled for a fault: what is behind the wanted one is often wanted next
_CALM = 0.01  # seconds
_READS = 16  # reads of events in a row: a process that sends them without end must not keep its pages from coming
_PAUSE = 1  # milliseconds until what makes the kernel say EAGAIN is tried again, unless an event comes first
_IDLE = 1000  # milliseconds, while pages have yet to come; events and pages end that wait
_LOOKS = 4  # processes that are looked at after a fork, whether they have ended


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
    """Counts of pages: filled by others before, filled, found there, zeros given for what is not lazy, in memory that
    is gone, in memory that its process has given up (of processes that have ended); `forks` met."""

    pages_before: int = 0
    pages_copied: int = 0
    pages_there: int = 0
    pages_zero: int = 0
    pages_gone: int = 0
    pages_given_up: int = 0
    forks: int = 0
    seconds: float = 0.0


class Keeper(Protocol):
    """Who keeps the userfaultfds open, in this process and elsewhere."""

    def shelve(self, parent: str, key: str, fd: int) -> None:
        """A new process's, by the keys of Replay. OSError: it is to be given again."""

    def let_go(self, key: str) -> None:
        """Its process has ended: close it."""


class Filler:
    """Does what `criu lazy-pages` would have done; the daemon must be dead, as only one can read the events.

    One thread. `fds` grows with every fork and belongs to the keeper, who closes them at the end: until then threads
    that touch other untouched memory wait, and so does mremap(2), munmap(2), madvise(2) or fork(2).
    """

    def __init__(
        self,
        store: Store,
        replay: Replay,
        fds: Mapping[str, int],
        say: Callable[[str], None],
        keeper: Keeper,
        journal: Callable[[str], None],
    ) -> None:
        """`fds` has the userfaultfds by the keys of Replay; one of a process that has ended is left alone.

        `journal` gets a line for each event, which has to be appended to the log: whoever takes over from this Filler
        replays both.
        """
        self.fds = dict(fds)
        self.filled = Filled(pages_before=replay.pages_brought, pages_given_up=replay.pages_gone)
        self.pages_total, self.pages_inherited = replay.pages_total, replay.pages_inherited
        self.lost: dict[str, int] = {}  # pages of processes whose userfaultfd nobody has: the kernel gave zeros
        self._store = store
        self._say = say
        self._keeper = keeper
        self._journal = journal
        self._faulted = 0.0  # when a thread has last asked for a page
        self._keys = replay.known | set(fds)
        self._unread: deque[tuple[Task, Event]] = deque()  # events that are not taken in yet
        self._owed: deque[Callable[[], None]] = deque()  # what those that are taken in still ask for, in order
        self._looked_at: deque[Task] = deque()
        self._poll = select.poll()
        if store.arrivals >= 0:
            self._poll.register(store.arrivals, select.POLLIN)
        self._tasks: dict[int, Task] = {}
        self._processes: Counter[int] = Counter()  # by the PID in the images; with a child, a page is needed twice
        self._queue: deque[Task] = deque()
        for key, layout in replay.pieces.items():
            for start, end in store.released(int(key.split("-")[0])):
                self.filled.pages_before += layout.forget(start, end)
            if key in fds:
                self._add(Task(key, Uffd(fds[key]), layout))
            elif layout.pages():
                self.lost[key] = layout.pages()
            else:
                self.filled.pages_given_up += layout.given_up

    def _add(self, task: Task) -> None:
        self._queue.append(task)
        self._looked_at.append(task)
        self._tasks[task.uffd.fd] = task
        self._processes[task.pid] += 1
        self._poll.register(task.uffd.fd, select.POLLIN)

    def left(self) -> int:
        """Pages that are still to be looked after."""
        return sum(task.layout.pages() for task in list(self._tasks.values())) + sum(self.lost.values())

    def counts(self) -> dict[str, int]:
        """Pages to bring in all, those that came, and those that nobody needs any more."""
        done = self.filled
        given_up = sum(task.layout.given_up for task in list(self._tasks.values()))
        return {
            "pages_total": self.pages_total,
            "pages_inherited": self.pages_inherited,
            "pages_transferred": done.pages_before + done.pages_copied + done.pages_there,
            "pages_gone": done.pages_gone + done.pages_given_up + given_up,
        }

    def complete(self) -> bool:
        """Whether every page has come, or is gone, one by one."""
        found = self.counts()
        return not self.left() and found["pages_total"] == found["pages_transferred"] + found["pages_gone"]

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
        self._say(f"filling {self.left()} pages of {len(self._tasks)} processes")
        try:
            self._bury(len(self._looked_at))
            self._catch_up()
            self._note(TAKEN_OVER)
            for task in self._tasks.values():
                task.uffd.wake_all()  # a fault that the daemon had read would never be answered
            wait = 0
            while self._queue:
                self._listen(wait)
                waits = [self._answer(task) for task in list(self._tasks.values()) if task.waiting]
                wait = min([self._background(), *waits])
                self._pay()
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
                events = self._events(self._tasks[fd]) if fd in self._tasks else []
                self._unread.extend((self._tasks[fd], event) for event in events)
                self._catch_up()
                if not events:
                    break

    def _catch_up(self) -> None:
        """Take in what has been read. After an error the rest of it is still there, and comes first the next time."""
        self._pay()
        forks = self.filled.forks
        while self._unread:
            self._take(*self._unread.popleft())
        if self.filled.forks > forks:
            self._bury(_LOOKS)

    def _events(self, task: Task) -> list[Event]:
        try:
            return task.uffd.events()
        except OSError as error:  # a fork that finds no room for its userfaultfd is told of again
            if error.errno != errno.EMFILE or not self._bury(len(self._looked_at)):
                raise
        return []

    def _bury(self, looks: int) -> int:
        """Nothing tells of a process that has ended: some are looked at whenever there are more; how many had."""
        before = len(self._tasks)
        asking = {task.uffd.fd for task, _event in self._unread}
        for _turn in range(min(looks, len(self._looked_at))):
            task = self._looked_at.popleft()
            if self._tasks.get(task.uffd.fd) is task:
                self._looked_at.append(task)
                if task.uffd.fd not in asking and task.uffd.ended():
                    self._ended(task)
        return before - len(self._tasks)

    def _note(self, line: str) -> None:
        self._owed.append(partial(self._journal, line))
        self._pay()

    def _pay(self) -> None:
        while self._owed:
            self._owed[0]()
            self._owed.popleft()

    def _take(self, task: Task, event: Event) -> None:
        if isinstance(event, Fault):
            self._faulted = time.monotonic()
            task.waiting.setdefault(event.address, False)
        elif isinstance(event, Fork):
            self._forked(task, event.fd)
        elif isinstance(event, Remap):
            task.layout.remap(*event)
            self._note(f"uffd: {task.key}: REMAP: {event.start:x} -> {event.to:x} ({event.length})")
        elif isinstance(event, Unmap):
            task.layout.unmap(*event)
            self._note(f"uffd: {task.key}: UNMAP: {event.start:x}({event.end - event.start:x})")
        else:
            # criu also takes the memory out of the userfaultfd. That splits the area, and a later mremap(2) of
            # all of it fails; here faults in it get zeros instead.
            task.layout.remove(*event)
            self._note(f"uffd: {task.key}: REMOVE: {event.start:x}({event.end - event.start:x})")

    def _settled(self, task: Task) -> bool:
        """Whether it is known where everything lies."""
        if task.layout.unsettled:
            if task.uffd.busy():
                return False
            task.layout.settle()
            self._note(f"uffd: {task.key}: SETTLED")
        return True

    def _forked(self, task: Task, fd: int) -> None:
        number = fd
        while f"{task.pid}-{number}" in self._keys:  # the daemon had numbers of its own
            number += 1000
        key = f"{task.pid}-{number}"
        self._keys.add(key)
        self.fds[key] = fd
        child = Task(key, Uffd(fd), task.layout.inherited())
        self.pages_total += child.layout.pages()
        self.pages_inherited += child.layout.pages()
        self._add(child)
        self.filled.forks += 1
        self._say(f"process {task.key} has forked {key}")
        self._owed.append(partial(self._keeper.shelve, task.key, key, fd))
        self._note(fork_line(task.key, key))

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
        alone = self._processes[task.pid] == 1
        size = len(data)
        at, most, doubt, why = 0, size, False, 0
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
                elif done.error in (errno.EAGAIN, errno.ESRCH):
                    why = done.error
                    break
                else:
                    raise OSError(done.error, f"UFFDIO_COPY at {start + at:#x} of process {task.key}")
        finally:
            task.layout.pieces.take(start, start + at)
            if at and alone:
                self._store.release(task.pid, image, at // PAGE)
        if why == errno.ESRCH:
            self._ended(task)
        return not why

    def _ended(self, task: Task) -> None:
        self._say(f"process {task.key} has ended, {task.layout.pages()} pages of it unfilled")
        self.filled.pages_gone += task.layout.pages()
        self.filled.pages_given_up += task.layout.given_up
        task.layout = Layout()
        task.waiting.clear()
        self._processes[task.pid] -= 1
        self._poll.unregister(task.uffd.fd)
        del self._tasks[task.uffd.fd], self.fds[task.key]
        task.uffd.fd = -1
        self._keeper.let_go(task.key)
        self._owed.append(partial(self._journal, f"uffd: {task.key}: EXIT"))
