"""A guard in a process of its own is killed with exactly so many pages in the process; the next one brings the rest.

The pages come from a source's end that gives no more than it may, over the guards' own protocol.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import lazy_source, proc
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.errors import LinkLost
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.lazy_file import GONE, NAME, THERE
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.secure import Plain
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.uffd import PAGE
from tests.unit.holders import KEY, Images, Node, Record, begin
from tests.unit.prey import COUNT, PID, Prey, page, whole
from tests.unit.waiting import wait_for


class Source(lazy_source.Memory):
    """The stopped tree's memory, which so many pages of may be read."""

    def __init__(self, prey: Prey) -> None:
        super().__init__(lambda: {PID})
        self.first = prey.start
        self.may = threading.Semaphore(0)

    def allow(self, pages: int) -> None:
        if pages:
            self.may.release(pages)

    def read_into(self, pid: int, vaddr: int, room: memoryview) -> int:
        assert pid == PID
        self.may.acquire()
        pages = 1
        while pages < len(room) // PAGE and self.may.acquire(blocking=False):
            pages += 1
        first = (vaddr - self.first) // PAGE
        room[: pages * PAGE] = b"".join(page(first + index + 1) for index in range(pages))
        return pages * PAGE

    def dialled(self) -> Plain:
        """The destination's end of a new connection."""
        near, far = socket.socketpair()

        def serve() -> None:
            with near:
                try:
                    lazy_source._serve(Plain(near), self)
                except (OSError, LinkLost):
                    pass  # the guard is killed

        threading.Thread(target=serve, daemon=True).start()
        return Plain(far)


class Kept(Record):
    """On disk, as it has to outlive its guard."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        if path.exists():
            self.data = json.loads(path.read_text())

    def note(self, **more: Any) -> None:
        super().note(**more)
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(self.data))
        new.replace(self.path)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    made.rec = Kept(tmp_path / "record.json")
    yield made
    made.rec = Kept(tmp_path / "record.json")
    proc.kill_tree(made.holders(), 5.0)


def guard(node: Node, prey: Prey, link: Plain) -> int:
    """The PID of one that has its process secured, and has begun to fill it."""
    pid = os.fork()
    if pid:
        return pid
    try:
        made = begin(node, Images(prey), remote=True)
        made.connect(link)
        made.holding.keep({KEY: os.dup(prey.fd)})
        os.close(prey.fd)
        made.watch()
        made.go()
        signal.pause()
    finally:
        os._exit(1)


def listed(node: Node, kinds: bytes) -> int:
    """Pages that are here, or in the process already."""
    path = Path(node.images, f"{NAME}.map")
    return sum(path.read_bytes()[:COUNT].count(kind) for kind in kinds) if path.exists() else 0


@pytest.mark.parametrize("moved", [0, COUNT // 2, COUNT - 1], ids=["none", "half", "all but one"])
def test_killed_with_exactly_so_many_pages_moved(node: Node, prey: Prey, moved: int) -> None:
    source = Source(prey)
    source.allow(moved)
    killed = guard(node, prey, source.dialled())
    os.close(prey.fd)  # only the guard and its holder have it
    wait_for(lambda: Path(node.images, f"{NAME}.map").exists())
    wait_for(lambda: listed(node, GONE) == moved)
    missing = next(index for index in range(COUNT) if index >= moved)
    prey.ask("look", prey.at(missing), 1)
    os.kill(killed, signal.SIGKILL)
    os.waitpid(killed, 0)
    assert listed(node, THERE + GONE) == moved
    assert prey.answer_within(0.1) is None, "it reads what nobody has brought"
    node.rec = Kept(Path(node.folder, "record.json"))
    node.rec.state = "running"
    made = begin(node, Images(prey), log=None, remote=True)
    source.allow(2 * COUNT)
    made.recover()
    assert made.lost() == ""
    made.connect(source.dialled())
    assert prey.answer() == [missing + 1]
    wait_for(made.done.is_set)
    assert prey("look", prey.start, COUNT) == whole()
    filled = node.rec.data["filled"]
    assert (filled["pages_total"], filled["pages_transferred"], filled["pages_gone"]) == (COUNT, COUNT, 0)
