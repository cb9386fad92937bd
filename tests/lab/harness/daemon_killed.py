"""Runs on a node: criu lazy-pages is killed with SIGKILL when it has brought exactly so many pages of a program.

argv: a guard.pyz, a new directory, how many pages: "none", "half" or "all but one"; none are those few that the restore
itself waits for. Afterwards our own fill brings the rest, and the program, which runs meanwhile, looks at every page of
its memory. Prints what there was, as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, sys.argv[1])
from criu_migrate import fill, lazy_proxy, proc, replay, uffd  # type: ignore[import-not-found]
from criu_migrate.cli import Criu, Options, PageServer  # type: ignore[import-not-found]
from criu_migrate.job import Job  # type: ignore[import-not-found]
from criu_migrate.store import ImageStore  # type: ignore[import-not-found]

WORK = Path(sys.argv[2])
PAGES = 4096
LIMIT = 20.0  # seconds
PROGRAM = f"""
import ctypes, mmap, os, time
memory = mmap.mmap(-1, {PAGES} * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range({PAGES}):
    memory[page * 4096:(page + 1) * 4096] = (page + 1).to_bytes(8, "little") * 512
open("ready", "w").close()
while not os.path.exists("look"):
    time.sleep(0.01)
wrong = [p for p in range({PAGES}) if memory[p * 4096:(p + 1) * 4096] != (p + 1).to_bytes(8, "little") * 512]
with open("seen.new", "w") as out:
    out.write(repr(wrong))
os.rename("seen.new", "seen")
"""


class Limited:
    """What the daemon takes for its page server. While a program is restored a request for one page is of the kernel's,
    on which the restore waits; others, and all of them later, get so many pages as are allowed, and then no more."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.given = 0
        self.most = 0
        self.restoring = True
        self.fd = os.memfd_create("pages")
        self.changed = threading.Condition()

    def allow(self, most: int) -> None:
        """The program is restored."""
        with self.changed:
            self.restoring, self.most = False, max(most, self.given)
            self.changed.notify_all()

    def want(self, pid: int, vaddr: int, pages: int) -> None:
        """Asked for again when its turn comes."""

    def locate(self, pid: int, vaddr: int, pages: int) -> tuple[int, int, int]:
        with self.changed:
            self.changed.wait_for(lambda: (self.restoring and pages == 1) or self.given < self.most)
            count = 1 if self.restoring else min(pages, self.most - self.given)
            data = self.store.read(pid, vaddr, count)
            os.pwrite(self.fd, data, 0)
            self.given += len(data) // uffd.PAGE
            return self.fd, 0, len(data) // uffd.PAGE


def wait_for(what: str, probe: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + LIMIT
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > deadline:
            sys.exit(f"{what}: not within {LIMIT:g} s")
        time.sleep(0.01)


def dumped(criu: Any, images: Path) -> int:
    """The PID that a program has had until it was dumped."""
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=WORK, start_new_session=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for("the program", (WORK / "ready").exists)
    done = subprocess.run(criu.dump_argv(child.pid, str(images), str(WORK)), capture_output=True, text=True)
    if done.returncode:
        sys.exit((WORK / "criu-dump.log").read_text()[-2000:])
    child.kill()
    child.wait()
    return child.pid


def restored(criu: Any, images: Path, near: socket.socket, far: socket.socket, pages: Limited) -> Any:
    """The daemon, with its program restored and stopped."""
    threading.Thread(target=serve, args=(near, pages), daemon=True).start()
    ready, said = os.pipe()
    argv = criu.lazy_pages_argv(str(images), str(WORK), PageServer(fd=far.fileno()), status_fd=said)
    log = str(WORK / "criu-lazy-pages.log")
    job = Job.launch("lazy-pages", str(WORK), argv, log, (far.fileno(), said))
    os.close(said)
    os.read(ready, 1)
    words = criu.restore_argv(str(images), str(WORK), str(WORK / "pidfile"), lazy=True)
    done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT)
    if done.returncode:
        sys.exit((WORK / "criu-restore.log").read_text()[-2000:])
    return job


def serve(near: socket.socket, pages: Limited) -> None:
    try:
        lazy_proxy.serve(near, pages)
    except OSError:
        pass  # it is killed


def main() -> None:
    images = WORK / "images"
    images.mkdir(parents=True)
    criu = Criu("", Options())
    pid = dumped(criu, images)
    store = ImageStore(str(images))
    total = sum(item.end - item.start for item in store.ranges(pid)) // uffd.PAGE
    most = {"none": 0, "half": total // 2, "all but one": total - 1}[sys.argv[3]]
    near, far = socket.socketpair()
    pages = Limited(store)
    job = restored(criu, images, near, far, pages)
    pages.allow(most)
    (daemon,) = proc.children(job.shell.pid)
    ((key, number),) = [(f"{pid}-{n}", n) for n in uffd.listed(daemon)]
    copy = uffd.duplicate(daemon, number)
    log = WORK / "criu-lazy-pages.log"
    wait_for("the pages", lambda: left(log, store) <= total - pages.most)
    os.kill(daemon, signal.SIGKILL)
    proc.wait_gone([job.shell], LIMIT)
    brought = total - left(log, store)
    os.kill(pid, signal.SIGCONT)
    (WORK / "look").touch()
    found = replay.Replay(log.read_text(), store.ranges)
    with log.open("a") as out:
        filler = fill.Filler(store, found, {key: copy}, lambda _text: None, None, out.write)  # it does not fork
        done = filler.run()
    os.close(copy)  # until then the kernel asks about memory that was never lazy, too
    seen = WORK / "seen"
    wrong = wait_for("the program's look at its memory", lambda: seen.exists() and seen.read_text())
    counts = {"total": total, "given": pages.given, "brought": brought, "copied": done.pages_copied}
    print(json.dumps({**counts, "wrong": wrong}))


def left(log: Path, store: Any) -> int:
    """Pages that the daemon has not brought, by its log."""
    found = replay.Replay(log.read_text() + "\n\n", store.ranges)
    return sum(layout.pages() for layout in found.pieces.values())


if __name__ == "__main__":
    main()
