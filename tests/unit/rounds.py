"""A source for rounds of pre-dump: criu is a small script, the clock stands still unless told, the record is real."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import (
    costs,
    dirty,
    iterating,
    proc,
    record,
    stats,
)
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.errors import LinkLost, MigrationError
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.guard import Guard
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.iterating import Iterating

MB = 1_000_000
SPEED = 100.0 * MB  # bytes/s of the link
PAGE = 4096
WHOLE = 25_600  # pages of the process: about a second
FIXED = 0.05  # seconds of downtime that no round shortens
PEER = "10.0.0.2"
# Fails where its number is in the file `failing`; writes what its log would hold.
CRIU = """#!/bin/sh
echo "$@" >>{folder}/calls
number=$(wc -l <{folder}/calls)
case " $(cat {folder}/failing) " in
    *" $number "*) echo '(00.1) Error (criu/x.c:1): no' >{folder}/run/criu-pre-dump-1.log; exit 1 ;;
esac
"""


class Clock:
    """Goes on only where a round or a pause takes its time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def time(self) -> float:
        return self.now

    monotonic = time

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Node:
    """A source's guard as the rounds see it, its channel, and what each round finds."""

    def __init__(self, folder: Path, clock: Clock, pages: Sequence[int]) -> None:
        self.folder, self.clock = folder, clock
        self.pages = list(pages)  # of each round; the last again for those that follow
        self.round = 0
        self.opened: list[tuple[str, str]] = []
        self.pings = 0
        self.page_channel: Any = None
        self.far: list[socket.socket] = []
        self.lost = False
        self.far_error: MigrationError | None = None  # what the destination says of a round that fails
        rec = record.Record.create("run", "source")
        rec.data["times"]["armed"] = clock.now
        self.rec = rec

    def config(self, **pre_copy: Any) -> dict[str, Any]:
        return {
            "run_id": "run", "strategy": "precopy", "criu_path": str(self.folder / "criu"), "peer": {"host": PEER},
            "images_dir": str(self.folder / "images"), "pre_copy": {"memory": WHOLE * PAGE, **pre_copy},
        }  # fmt: skip

    def rounds(self, pid: int = 0, **pre_copy: Any) -> Iterating:
        pid = pid or os.getpid()
        root = proc.Proc(pid, (proc.stat(pid) or ("", 0, 0))[2])
        return Iterating(Guard(self.rec, self.config(**pre_copy)), self, root)

    def open_transfer(self, dump: str = "", parent: str = "") -> None:
        if self.lost:
            raise LinkLost("The destination cannot be reached.", "")
        self.opened.append((dump, parent))
        self.round = self.round + 1 if parent else 1
        self.page_channel, far = socket.socketpair()
        self.far.append(far)

    def drop_page_channel(self) -> None:
        if self.page_channel is not None:
            self.page_channel.close()
            self.page_channel = None

    def cause_of(self, error: MigrationError, request: str) -> MigrationError:
        assert request == "pages_done"
        return self.far_error or error

    def found(self) -> int:
        return self.pages[min(self.round, len(self.pages)) - 1]

    def pages_taken(self) -> dict[str, Any]:
        self.clock.now += self.found() * PAGE / SPEED
        return {"pages": self.found(), "bytes": self.found() * PAGE, "seconds": self.found() * PAGE / SPEED}

    def stats(self, folder: str) -> dict[str, Any]:
        assert folder == str(self.folder / "run")
        taken = self.found() * PAGE / SPEED
        return {"dump": {"pages_written": self.found(), "pages_scanned": WHOLE, "pages_skipped_parent": 7,
                         "frozen": 0.01, "memwrite": taken}}  # fmt: skip

    def ping(self) -> int:
        self.pings += 1
        return 0

    def measure_bandwidth(self) -> float:
        return SPEED

    def fail(self, *calls: int) -> None:
        (self.folder / "failing").write_text(" ".join(map(str, calls)), encoding="utf-8")

    def calls(self) -> list[list[str]]:
        try:
            return [line.split() for line in (self.folder / "calls").read_text(encoding="utf-8").splitlines()]
        except FileNotFoundError:
            return []


class Still:
    """A tree of which no page moves; notes when it is looked at (moved.py has tests of its own)."""

    looks: ClassVar[list[str]] = []
    gone = ""  # the look at which a process has just ended

    def before_round(self, pids: Sequence[int], first: bool) -> None:
        self.note("first" if first else "before", pids)

    def after_round(self, pids: Sequence[int]) -> None:
        self.note("after", pids)

    def note(self, what: str, pids: Sequence[int]) -> None:
        assert os.getpid() in pids
        self.looks.append(what)
        if what == self.gone:
            raise ProcessLookupError("no such process")


def make(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """Three rounds of a program that writes to less in less time; CRIU and the kernel's bits are made up."""
    clock = Clock()
    monkeypatch.setattr(iterating, "time", clock)
    monkeypatch.setattr(record, "RUNS", str(folder))
    (folder / "run").mkdir()
    (folder / "failing").touch()
    criu = folder / "criu"
    criu.write_text(CRIU.format(folder=folder), encoding="utf-8")
    criu.chmod(criu.stat().st_mode | stat.S_IXUSR)
    made = Node(folder, clock, [WHOLE, WHOLE // 2, WHOLE // 16])
    costs.remember(PEER, False, WHOLE * PAGE, FIXED, SPEED)
    monkeypatch.setattr(stats, "read", made.stats)
    monkeypatch.setattr(dirty, "watch", lambda _pid, _windows: [])
    monkeypatch.setattr(iterating, "Moved", Still)
    monkeypatch.setattr(Still, "looks", [])
    return made
