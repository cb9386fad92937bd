"""Memory that comes after the restore: CRIU's lazy-pages daemon for the restore itself, then a fill of our own.

Two hold a userfaultfd of the process: this guard, and a holder that does nothing else. Only when both are gone does
the kernel let go of a page that nobody has brought, as zeros; so a killed guard leaves the process waiting, not dead.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import socket
import subprocess
import threading
import time
import traceback
from collections.abc import Iterable, Mapping
from concurrent import futures
from typing import Any

from . import fill, lazy_file, lazy_proxy, proc, uffd
from .cli import Job, PageServer, failed
from .errors import LinkLost, MigrationError
from .guard import Guard
from .lazy_store import RemoteStore
from .lazymap import Range
from .secure import Secure
from .store import ImageStore, Store

JOB = "lazy-pages"
_SMALL, _SOON = 8 << 20, 12 << 20  # bytes
_PATIENCE = 0.05  # seconds that a process waits at most for pages that it has not asked for yet
_SHELF = "shelf"  # in place of a key: the socket that userfaultfds of new processes are put into
_PAGE_MAP = re.compile(r"pagemap-(\d+)\.img")
_RECEIVED = re.compile(r"Received PID: (\d+), uffd: (\d+)")


def wanted_soon(found: Iterable[tuple[int, Range]]) -> list[tuple[int, int, int]]:
    """Ranges (PID, start, end) that a process most likely needs at once: those of its smaller areas (stacks, the
    libraries' data, small heaps), the smallest first, up to so much that it comes while criu restores."""
    chosen: list[tuple[int, int, int]] = []
    size = 0
    for area, pid, item in sorted((item.area[1] - item.area[0], pid, item) for pid, item in found if item.area):
        size += item.end - item.start
        if area > _SMALL or size > _SOON:
            break
        chosen.append((pid, item.start, item.end))
    return chosen


class Filling:
    """Of one restored tree on the destination. `remote`: pages come from the source's guard, else from the images."""

    def __init__(self, guard: Guard, remote: bool) -> None:
        self.guard = guard
        self.remote = remote
        self.store: Store | None = None
        self.links: queue.Queue[Secure] = queue.Queue()
        self.done = threading.Event()
        self.ready = threading.Event()  # for that: what it needs at once is there
        self.running = threading.Event()  # the process is about to be let run
        self.fds: dict[str, int] = {}  # "PID-descriptor of the daemon", as CRIU names it in its log
        self.changed = threading.Lock()
        self.thread: threading.Thread | None = None
        self.shelf: socket.socket | None = None
        self.starting: futures.Future[None] | None = None
        self.local = ImageStore(guard.images)  # also keeps what the page maps say
        self.opening = threading.Lock()
        self.filler: fill.Filler | None = None
        self.total = 0
        if guard.rec.data.get("filled"):
            self.done.set()

    # --- before the process runs -------------------------------------------------------------------------------

    def expect(self) -> None:
        """The images are here: the daemon gets ready while the rest still comes."""
        if self.starting is None and not self.fds:
            pids = [int(item.group(1)) for item in map(_PAGE_MAP.fullmatch, os.listdir(self.guard.images)) if item]
            self.starting = futures.Future()
            threading.Thread(target=self.start_for, args=(self.starting, pids), daemon=True).start()

    def start_for(self, started: futures.Future[None], pids: list[int]) -> None:
        try:
            self.start(pids)
            started.set_result(None)
        except Exception as error:  # raised where it is waited for
            started.set_exception(error)

    def forget(self) -> None:
        """Not for these images, after all."""
        starting, self.starting = self.starting, None
        if starting is not None:
            futures.wait([starting])
        job = self.job()
        if job is not None:
            job.kill()

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
        threading.Thread(target=self.answer_daemon, args=(near, pids), daemon=True).start()

        def argv(status: int) -> list[str]:
            pages = PageServer(fd=far.fileno()) if self.remote else None
            return guard.criu.lazy_pages_argv(guard.images, guard.folder, pages, status_fd=status)

        log = guard.log_path(f"criu-{JOB}.log")
        with far:
            job, heard = guard.start_and_hear(JOB, argv, log, (far.fileno(),), guard.limits["connect"])
        if not heard:
            result = job.wait(1.0)
            job.kill()
            raise failed(JOB, result or job.result(-9))

    def open_store(self, pids: list[int]) -> Store:
        """The one of this run: the daemon's side and the fill ask for it from two threads."""
        with self.opening:
            if self.store is None:
                self.store = self.open_remote(pids) if self.remote else self.local
                if isinstance(self.store, RemoteStore) and self.running.is_set():
                    self.store.go()
            return self.store

    def open_remote(self, pids: list[int]) -> RemoteStore:
        found = [(pid, item) for pid in pids for item in self.local.ranges(pid)]
        ranges: dict[int, list[tuple[int, int]]] = {pid: [] for pid in pids}
        for pid, item in found:
            ranges[pid].append((item.start, item.end))
        path = os.path.join(self.guard.images, lazy_file.NAME)
        soon = {(pid, start) for pid, start, _end in wanted_soon(found)}
        store = RemoteStore(ranges, self.guard.say, path, ahead=False, soon=soon)
        threading.Thread(target=self.fetch, args=(store,), daemon=True).start()
        return store

    def answer_daemon(self, near: socket.socket, pids: list[int]) -> None:
        """Beside the restore: decoding the page maps takes longer than that needs."""
        try:
            with near:
                store = self.open_store(pids)
                if isinstance(store, RemoteStore):
                    lazy_proxy.serve(near, store)
        except (OSError, MigrationError) as error:  # it is gone; who waits for its end goes on from there
            self.guard.say(f"{JOB} hung up: {error}")

    def fetch(self, store: RemoteStore) -> None:
        """Everything that is missing, over one link of the source after another."""
        while not store.complete.is_set():
            link = self.links.get()
            try:
                store.attach(link)
            except (OSError, LinkLost) as error:
                self.guard.say(f"pages: {error}; {store.left()} left, waiting for the source")
            except MigrationError as error:
                self.guard.say(error.text())
                self.guard.rec.note(stalled={**error.as_dict(), "since": time.time()})
                time.sleep(1.0)  # the source dials again at once, and this may last
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
        with self.changed:
            self.take(wanted - self.fds.keys(), job)
        if wanted <= self.fds.keys() or len(proc.tree(job.shell.pid)) > 1:
            return  # a living daemon closes the descriptors of a process that is filled
        result = job.wait(1.0)
        if result is None or result.rc:
            raise MigrationError(
                "criu lazy-pages died before the restored copy could be secured.", "See criu-lazy-pages.log there."
            )

    def take(self, keys: Iterable[str], job: Job) -> None:
        """Duplicates of descriptors of the daemon's; it may have closed one, when that process is filled."""
        found: dict[str, int] = {}
        for daemon in proc.children(job.shell.pid):
            for key in keys:
                try:
                    found[key] = uffd.duplicate(daemon, int(key.split("-")[1]))
                except OSError as error:
                    self.guard.say(f"userfaultfd {key}: {error}")
        self.keep(found)

    def keep(self, fds: Mapping[str, int]) -> None:
        """Keep them here and in a holder, which outlives this guard."""
        if not fds:
            return
        self.fds.update(fds)
        self.shelf, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with far, open(os.devnull, "r+b") as null:
            held = {**fds, _SHELF: far.fileno()}
            child = subprocess.Popen(
                ["sleep", "infinity"], stdin=null, stdout=null, stderr=null, pass_fds=tuple(held.values()), cwd="/",
                start_new_session=True,
            )  # fmt: skip
        seen = proc.stat(child.pid)
        start = seen[2] if seen else -1
        holders = [{"key": key, "fd": fd, "pid": child.pid, "start": start} for key, fd in held.items()]
        self.guard.rec.note(holders=[*self.guard.rec.data.get("holders", []), *holders])

    def shelve(self, key: str, fd: int) -> None:
        """Keep that of a new process at once: to start a holder takes so long that a guard may be killed meanwhile.

        What lies unread in a socket is open as long as somebody, here a holder, has the end that could read it.
        """
        self.fds[key] = fd
        if self.shelf is not None:
            socket.send_fds(self.shelf, [key.encode()], [fd])

    def take_from_shelf(self, far: int) -> dict[str, int]:
        found: dict[str, int] = {}
        with socket.socket(fileno=far) as shelf:
            shelf.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    key, fds, _flags, _address = socket.recv_fds(shelf, 64, 1)
                    if not fds:
                        break
                    found[key.decode()] = fds[0]
        return found

    # --- while it runs -----------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Fill in a thread."""
        self.thread = threading.Thread(target=self.fill, daemon=True)
        self.thread.start()

    def fill(self) -> None:
        try:
            self.take_over()
        except Exception as error:  # the process waits for its pages: whatever it is, it has to be told
            self.guard.say(traceback.format_exc())
            problem = MigrationError(f"Pages are missing: {error!r}", "See guard.log of the destination.")
            self.guard.rec.note(stalled={**problem.as_dict(), "since": time.time()})

    def take_over(self) -> None:
        """Bring every page that is not there yet. CRIU's daemon was needed for the restore only.

        It takes memory that the process gives up out of the userfaultfd; that splits the area, a later mremap(2) of all
        of it fails, and programs that do not expect that die.
        """
        job = self.job()
        if job is not None:
            job.kill()
        replay = fill.Replay(self.log(), self.local.ranges)
        pids = sorted({int(key.split("-")[0]) for key in replay.pieces})
        total = sum(item.end - item.start for pid in pids for item in self.local.ranges(pid)) // uffd.PAGE
        store = self.open_store(pids)
        with open(self.guard.log_path(f"criu-{JOB}.log"), "a", encoding="utf-8", buffering=1) as log:
            # The daemon may have died within a line, or between a line and what that says: nothing after it counts as
            # its own, or a page that it never brought would be taken for there.
            log.write(f"\n{fill.TAKEN_OVER}\n")

            def journal(line: str) -> None:
                log.write(line + "\n")

            self.total = total
            self.filler = fill.Filler(store, replay, self.fds, self.guard.say, self.shelve, journal)
            if not self.running.is_set():
                self.filler.fill_soon(wanted_soon((pid, item) for pid in pids for item in self.local.ranges(pid)))
            self.ready.set()
            # The rest would take processor time from what leads to the commit.
            self.running.wait()
            done = self.filler.run()
        self.finish({"pages_total": total, "pages_transferred": max(0, total - done.pages_gone)})

    def recover(self) -> None:
        """After a restart of this guard: the holders have the userfaultfds, the daemon's end of the link is gone."""
        shelved: dict[str, int] = {}
        for item in self.guard.rec.data.get("holders", []):
            try:
                fd = uffd.duplicate(int(item["pid"]), int(item["fd"]))
                if item["key"] == _SHELF:
                    shelved.update(self.take_from_shelf(fd))
                else:
                    self.fds[item["key"]] = fd
            except OSError as error:
                self.guard.say(f"userfaultfd {item['key']}: {error}")
        self.keep(shelved or dict(self.fds))
        self.watch()
        if self.guard.rec.state == "running":
            self.go()

    def go(self) -> None:
        """The process is about to run: until now everything that takes processor time would have made it wait."""
        if self.thread is not None:
            self.ready.wait(_PATIENCE)
        self.running.set()
        if isinstance(self.store, RemoteStore):
            self.store.go()

    def finish(self, counts: dict[str, Any]) -> None:
        """Every page is there: let go of the process."""
        began = self.guard.rec.data["times"].get("restored", time.time())
        self.guard.rec.data["times"]["filled"] = time.time()
        self.guard.rec.note(filled={**counts, "seconds": time.time() - began})
        self.release()
        self.guard.say(f"filled: {counts}")
        self.done.set()

    def release(self) -> None:
        with self.changed:
            for fd in self.fds.values():
                os.close(fd)
            self.fds.clear()
        proc.kill_tree(self.holders(), 5.0)

    def drop(self) -> None:
        """The copy is gone (undo): so is everything that was there for it."""
        self.forget()
        if isinstance(self.store, RemoteStore):
            self.store.close()
        self.running.set()
        if self.thread is not None:
            self.thread.join(5.0)  # its processes are dead: it ends; a descriptor that it reads must not become another
        self.release()

    def holders(self) -> list[proc.Proc]:
        if self.guard.rebooted():
            return []
        return [proc.Proc(int(item["pid"]), int(item["start"])) for item in self.guard.rec.data.get("holders", [])]

    def progress(self) -> dict[str, Any]:
        """What the source asks for: is everything there, and how much is (null where nobody can know yet)."""
        known = self.guard.rec.data.get("filled") or {}
        if self.filler is not None and not known:
            left = self.filler.left()
            known = {"pages_total": self.total, "pages_transferred": self.total - left}
            since = time.time() - self.guard.rec.data["times"].get("restored", time.time())
            if left < self.total and since > 0:
                known["seconds_left"] = left * since / (self.total - left)
        return {"done": self.done.is_set(), **known}

    def job(self) -> Job | None:
        return self.guard.job(JOB)

    def log(self) -> str:
        try:
            with open(self.guard.log_path(f"criu-{JOB}.log"), encoding="utf-8", errors="replace") as handle:
                return handle.read()
        except FileNotFoundError:
            return ""
