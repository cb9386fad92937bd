"""Memory that comes after the restore: CRIU's lazy-pages daemon for the restore itself, then a fill of our own."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent import futures
from typing import Any

from . import lazy_file, lazy_proxy, proc
from .cli import PageServer, failed
from .errors import LinkLost, MigrationError
from .fill import Filler
from .guard import Guard
from .held import Held
from .holding import Holding
from .job import Job
from .lazy_store import RemoteStore
from .lazymap import Range
from .mixed_store import MixedStore
from .replay import Journal, Replay, fork_line
from .secure import Secure
from .store import ImageStore

JOB = "lazy-pages"
_SMALL, _SOON = 8 << 20, 12 << 20  # bytes
_PATIENCE = 0.05  # seconds that a process waits at most for pages that it has not asked for yet
_AGAIN = 1.0  # seconds until a fill that has failed is tried again
_PASSES = 5.0  # seconds of a stall that are not worth a word
OLDER = (
    "Switch the destination off, then playbooks/resolve.yml -e fence=destination-is-dead: the source lets its older "
    "copy run."
)
_UNKNOWN = "cannot be filled yet"
_PAGE_MAP = re.compile(r"pagemap-(\d+)\.img")
_RECEIVED = re.compile(r"Received PID: (\d+), uffd: (\d+)")


def wanted_soon(found: Iterable[tuple[int, Range]]) -> list[tuple[int, int, int]]:
    """Ranges (PID, start, end) that a process most likely needs at once: those of its smaller areas (stacks, the
    libraries' data, small heaps), the smallest first, up to so much that it comes while criu restores."""
    chosen: list[tuple[int, int, int]] = []
    size = 0
    small = ((item.area[1] - item.area[0], pid, item) for pid, item in found if item.area)
    for _area, pid, item in sorted(one for one in small if one[0] <= _SMALL):
        size += item.end - item.start
        if size > _SOON:
            break
        chosen.append((pid, item.start, item.end))
    return chosen


class Filling:
    """Of one restored tree on the destination. `remote`: pages come from the source's guard, else from the images.
    `held`: lazy pages of a process in the images, where the guard knows them without reading."""

    def __init__(
        self, guard: Guard, remote: bool, held: Callable[[int], list[Held] | None] = lambda _pid: None
    ) -> None:
        self.guard = guard
        self.remote = remote
        self.held = held
        self.store: ImageStore | RemoteStore | MixedStore | None = None
        self.fetched: RemoteStore | None = None  # that or the part of it that comes from the source
        self.links: queue.Queue[Secure | None] = queue.Queue()
        self.link: Secure | None = None  # the newest
        self.done = threading.Event()
        self.ready = threading.Event()  # for that: what it needs at once is there
        self.running = threading.Event()  # the process is about to be let run
        self.known = threading.Event()  # whether all of it can be filled
        self.dropped = threading.Event()
        self.holding = Holding(guard)
        self.thread: threading.Thread | None = None
        self.answering: threading.Thread | None = None
        self.pids: list[int] = []
        self.stalled: dict[str, Any] | None = None
        self.stalled_at = 0  # pages that had come by then
        self.starting: futures.Future[None] | None = None
        self.local = ImageStore(guard.images, held)  # also keeps what the page maps say
        self.opening = threading.Lock()
        self.filler: Filler | None = None
        if guard.rec.data.get("filled"):
            self.done.set()
            self.holding.close()  # the guard before may have been killed just then

    # --- before the process runs -------------------------------------------------------------------------------

    def expect(self) -> None:
        """The images are here: the daemon gets ready while the rest still comes."""
        if self.starting is None and not self.holding.fds:
            pids = [int(item.group(1)) for item in map(_PAGE_MAP.fullmatch, os.listdir(self.guard.images)) if item]
            self.starting = futures.Future()
            threading.Thread(target=self.start_for, args=(self.starting, pids), daemon=True).start()

    def start_for(self, started: futures.Future[None], pids: list[int]) -> None:
        local = self.local
        try:
            self.start(pids)
            started.set_result(None)
        except Exception as error:  # raised where it is waited for
            started.set_exception(error)
            return
        with contextlib.suppress(OSError, MigrationError):  # met again where it is needed
            for pid in pids:
                local.ranges(pid)  # while criu restores

    def forget(self) -> None:
        """Not for these images, after all."""
        starting, self.starting = self.starting, None
        if starting is not None:
            futures.wait([starting])
        job = self.job()
        if job is not None:
            job.kill()
        if self.fetched is not None:
            self.fetched.close()  # who answers the daemon may wait for a page
        if self.answering is not None:
            self.answering.join()
        # What was read of the page maps was that of other images, or of some that were still coming.
        store, self.store, self.fetched = self.fetched, None, None
        if store is not None:
            store.close()
            self.links.put(None)
        self.local = ImageStore(self.guard.images, self.held)

    def begin(self, pids: list[int]) -> None:
        """Start the daemon unless `expect` has; on return it can be connected to. Raises CriuError."""
        starting, self.starting = self.starting, None
        if starting is None:
            self.forget()  # that of a guard which was killed
            self.start(pids)
        else:
            starting.result()

    def start(self, pids: list[int]) -> None:
        guard = self.guard
        near, far = socket.socketpair()
        # Of what lies in a parent of the images the daemon knows only that it may come late.
        asked = self.remote or os.path.islink(os.path.join(guard.images, "parent"))
        self.answering = threading.Thread(target=self.answer_daemon, args=(near, pids, asked), daemon=True)
        self.answering.start()

        def argv(status: int) -> list[str]:
            pages = PageServer(fd=far.fileno()) if asked else None
            return guard.criu.lazy_pages_argv(guard.images, guard.folder, pages, status_fd=status)

        log = guard.log_path(f"criu-{JOB}.log")
        with far:
            job, heard = guard.start_and_hear(JOB, argv, log, (far.fileno(),), guard.limits["connect"])
        if not heard:
            result = job.wait(1.0)
            job.kill()
            raise failed(JOB, result or job.result(-9))

    def open_store(self, pids: list[int]) -> ImageStore | RemoteStore | MixedStore:
        """The one of this run: the daemon's side and the fill ask for it from two threads."""
        with self.opening:
            if self.store is None:
                self.store = self.open_remote(pids) if self.remote else self.local  # a Store, and Pages
                if self.fetched is not None and self.running.is_set():
                    self.fetched.go()
            return self.store

    def open_remote(self, pids: list[int]) -> RemoteStore | MixedStore:
        every = [(pid, item) for pid in pids for item in self.local.ranges(pid)]
        found = [(pid, item) for pid, item in every if not item.path]
        ranges: dict[int, list[tuple[int, int]]] = {pid: [] for pid in pids}
        for pid, item in found:
            ranges[pid].append((item.start, item.end))
        path = os.path.join(self.guard.images, lazy_file.NAME)
        soon = {(pid, start) for pid, start, _end in wanted_soon(found)}
        store = self.fetched = RemoteStore(ranges, self.guard.say, path, ahead=False, soon=soon)
        threading.Thread(target=self.fetch, args=(store,), daemon=True).start()
        return store if len(found) == len(every) else MixedStore(self.local, store)

    def answer_daemon(self, near: socket.socket, pids: list[int], asked: bool) -> None:
        """Beside the restore: decoding the page maps takes longer than that needs."""
        try:
            with near:
                store = self.open_store(pids)
                if asked:
                    lazy_proxy.serve(near, store)
        except (OSError, MigrationError) as error:  # it is gone; who waits for its end goes on from there
            self.guard.say(f"{JOB} hung up: {error}")

    def connect(self, link: Secure) -> None:
        """The source dials again only where the last connection is dead, though this end may not have heard of it."""
        old, self.link = self.link, link
        if old is not None:
            old.hang_up()
        self.links.put(link)

    def fetch(self, store: RemoteStore) -> None:
        """Everything that is missing, over one link of the source after another."""
        while not store.complete.is_set():
            link = self.links.get()
            if store is not self.fetched:  # another has taken its place
                if link is not None:
                    self.links.put(link)
                return
            if link is None:
                continue
            try:
                store.attach(link)
            except (OSError, LinkLost) as error:
                self.guard.say(f"pages: {error}; {store.left()} left, waiting for the source")
            except MigrationError as error:
                self.guard.say(error.text())
                self.stall(error)
                time.sleep(_AGAIN)  # the source dials again at once, and this may last
            finally:
                link.close()

    def secure(self) -> None:
        """After the restore: duplicates of the daemon's userfaultfds for this guard and for the holders.

        Where the daemon died before that, the kernel has let go of the missing pages: MigrationError, it is no copy.
        """
        job = self.job()
        wanted = {f"{pid}-{number}" for pid, number in _RECEIVED.findall(self.log())}
        if job is None:
            raise MigrationError("criu lazy-pages was never started.", "Run the migration again.")
        self.holding.take(wanted - self.holding.fds.keys(), proc.children(job.shell.pid))
        if wanted <= self.holding.fds.keys() or len(proc.tree(job.shell.pid)) > 1:
            return  # a living daemon closes the descriptors of a process that is filled; `lost` looks whether it had
        result = job.wait(1.0)
        if result is None or result.rc:
            raise MigrationError(
                "criu lazy-pages died before the restored copy could be secured.", "See criu-lazy-pages.log there."
            )

    # --- while it runs -----------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Fill in a thread."""
        self.thread = threading.Thread(target=self.fill, daemon=True)
        self.thread.start()

    def fill(self) -> None:
        """Until it is done. What stops it may pass: no memory, no room for the log, too many open files."""
        while not self.dropped.is_set():
            try:
                self.take_over()
                return
            except Exception as error:  # the process waits for its pages: whatever it is, it has to be told
                if self.dropped.is_set():
                    return
                self.guard.say(traceback.format_exc())
                self.stall(MigrationError(f"Pages are missing: {error!r}", "See guard.log of the destination."))
            self.dropped.wait(_AGAIN)

    def take_over(self) -> None:
        """Bring every page that is not there yet. CRIU's daemon was needed for the restore only.

        It takes memory that the process gives up out of the userfaultfd; that splits the area, a later mremap(2) of all
        of it fails, and programs that do not expect that die.
        """
        filler = self.filler or self.open_filler()
        if not self.running.is_set():
            filler.fill_soon(wanted_soon((pid, item) for pid in self.pids for item in self.local.ranges(pid)))
        self.ready.set()
        # The rest would take processor time from what leads to the commit.
        self.running.wait()
        filler.run()
        if self.dropped.is_set():
            return
        if filler.complete():
            self.finish(filler.counts())
        else:
            self.holding.close()  # what could be filled is whole, and needs nobody any more
            self.stall(MigrationError(f"The copy on the destination {self.lost() or 'lacks pages'}.", OLDER))

    def open_filler(self) -> Filler:
        job = self.job()
        if job is not None:
            job.kill()
        replay = Replay(self.log(), self.local.ranges)
        self.pids = sorted({int(key.split("-")[0]) for key in replay.known})  # the same for each guard: so is its store
        store = self.open_store(self.pids)
        journal = Journal(self.guard.log_path(f"criu-{JOB}.log"))
        try:
            for key, parent in self.holding.parents.items():
                if replay.adopt(parent, key):
                    journal(fork_line(parent, key))
            self.filler = Filler(store, replay, self.holding.fds, self.guard.say, self.holding, journal)
        except BaseException:
            journal.close()
            raise
        self.known.set()
        return self.filler

    def lost(self) -> str:
        """Why the copy cannot become whole; '' where it can. Soon known, and always before it may run."""
        if self.thread is None or self.done.is_set():
            return ""
        if not self.known.wait(self.guard.limits["connect"]) or self.filler is None:
            return _UNKNOWN
        lost = self.filler.lost
        return f"has lost {sum(lost.values())} pages of {', '.join(sorted(lost))}" if lost else ""

    def damaged(self) -> bool:
        """It certainly cannot."""
        return self.lost() not in ("", _UNKNOWN)

    def stall(self, error: MigrationError) -> None:
        """Say so in the record, and since when nothing has come any more."""
        came = self.filler.counts()["pages_transferred"] if self.filler else 0
        if self.stalled is None or came != self.stalled_at:
            self.stalled, self.stalled_at = {"since": time.time()}, came
        self.stalled.update(error.as_dict())
        with contextlib.suppress(OSError):  # a full disk may be what is the matter
            self.guard.rec.note(stalled=self.stalled)

    def recover(self) -> None:
        """After a restart of this guard: the holders have the userfaultfds, the daemon's end of the link is gone."""
        self.holding.recover()
        self.watch()
        if self.guard.rec.state == "running":
            self.go()

    def go(self) -> None:
        """The process is about to run: until now everything that takes processor time would have made it wait."""
        if self.thread is not None:
            self.ready.wait(_PATIENCE)
        self.running.set()
        if self.fetched is not None:
            self.fetched.go()

    def finish(self, counts: dict[str, Any]) -> None:
        """Every page is there: let go of the process."""
        began = self.guard.rec.data["times"].get("restored", time.time())
        self.guard.rec.data["times"]["filled"] = time.time()
        self.guard.rec.data.pop("stalled", None)
        fetched = self.fetched.pages_total if self.fetched is not None else 0
        self.guard.rec.note(filled={**counts, "pages_fetched": fetched, "seconds": time.time() - began})
        self.holding.close()
        self.guard.say(f"filled: {counts}")
        self.done.set()

    def drop(self) -> None:
        """The copy is gone (undo): so is everything that was there for it."""
        self.dropped.set()
        self.forget()
        self.running.set()
        if self.thread is not None:
            self.thread.join(5.0)  # its processes are dead: it ends; a descriptor that it reads must not become another
        self.holding.close()

    def progress(self) -> dict[str, Any]:
        """What the source asks for: is everything there, how much is (null where nobody can know), what is wrong."""
        found = dict(self.guard.rec.data.get("filled") or {})
        if self.filler is not None and not found:
            found = {**self.filler.counts()}
            left, came = self.filler.left(), found["pages_transferred"]
            since = time.time() - self.guard.rec.data["times"].get("restored", time.time())
            if came and since > 0:
                found["seconds_left"] = left * since / came
            if self.stalled and came == self.stalled_at and time.time() - self.stalled["since"] > _PASSES:
                found["stalled"] = self.stalled
        return {"done": self.done.is_set(), **found}

    def job(self) -> Job | None:
        return self.guard.job(JOB)

    def log(self) -> str:
        try:
            with open(self.guard.log_path(f"criu-{JOB}.log"), encoding="utf-8", errors="replace") as handle:
                return handle.read()
        except FileNotFoundError:
            return ""
