"""The fill of a guard: it goes on after what stands in its way, or never says that it is done."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, cast

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import fill, filling, replay, store
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.guard import Guard
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.lazymap import Range
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.secure import Plain
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.uffd import PAGE
from tests.unit.holders import KEY, Images, Node, begin, leave, standing
from tests.unit.prey import COUNT, PID, Memory, Prey, whole
from tests.unit.waiting import wait_for


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    yield from standing(tmp_path)


def test_nobody_has_the_userfaultfd_any_more(node: Node, prey: Prey) -> None:
    """Guard and holder were killed: the kernel gives zeros. Not before it runs, and never again, is it whole."""
    made = begin(node, Images(prey))
    node.rec.data["holders"] = [{"key": KEY, "fd": 5, "pid": 2**22, "start": 1, "parent": ""}]
    made.recover()
    assert made.lost() == f"has lost {COUNT} pages of {KEY}" and made.damaged()
    made.go()
    assert made.thread is not None
    made.thread.join(10)
    assert not made.thread.is_alive() and not made.done.is_set() and "filled" not in node.rec.data
    assert "has lost" in node.rec.data["stalled"]["message"] and "fence" in node.rec.data["stalled"]["remedy"]
    assert made.progress()["pages_transferred"] == 0 and made.progress()["done"] is False


def test_one_of_two_processes_is_lost(node: Node, prey: Prey) -> None:
    """The other one gets what it waits for, and is let go; but it is no whole copy."""
    made = begin(node, Images(prey), f"(00.2) uffd: {KEY}: FORK: child with ufd=8\n")
    made.holding.keep({KEY: os.dup(prey.fd)})
    os.close(prey.fd)
    made.watch()
    assert made.lost() == f"has lost {COUNT} pages of {PID}-8"
    made.go()
    assert prey("look", prey.start, COUNT) == whole()
    assert made.thread is not None
    made.thread.join(10)
    assert not made.done.is_set() and "stalled" in node.rec.data and not made.holding.fds
    counts = made.progress()
    assert (counts["pages_total"], counts["pages_transferred"], counts["pages_inherited"]) == (2 * COUNT, COUNT, COUNT)
    assert prey("munmap", prey.start, PAGE) == 0, "somebody still holds it, and does not read its events"


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EMFILE])
def test_what_stops_the_fill_may_pass(node: Node, prey: Prey, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(filling, "_AGAIN", 0.2)
    monkeypatch.setattr(filling, "_PASSES", 0.0)
    images = Images(prey)
    images.trouble = [OSError(number, os.strerror(number))] * 2
    made = begin(node, images)
    made.holding.keep({KEY: os.dup(prey.fd)})
    os.close(prey.fd)
    made.running.set()
    made.watch()
    wait_for(lambda: "stalled" in node.rec.data)
    assert os.strerror(number) in made.progress()["stalled"]["message"]
    assert prey("look", prey.at(COUNT - 1), 1) == [COUNT]
    wait_for(made.done.is_set)
    assert "stalled" not in node.rec.data and "stalled" not in made.progress()
    filled = node.rec.data["filled"]
    assert (filled["pages_total"], filled["pages_transferred"], filled["pages_gone"]) == (COUNT, COUNT, 0)


def test_a_full_disk_loses_no_event(node: Node, prey: Prey, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the log nor the record can be written, while the process moves its memory and forks."""
    monkeypatch.setattr(filling, "_AGAIN", 0.05)
    write, lines = replay.Journal._write, Path(node.log_path("criu-lazy-pages.log"))

    def fails(journal: replay.Journal, text: str) -> None:
        if node.rec.full:
            os.write(journal._fd, text.encode()[: len(text) // 2])
            raise OSError(errno.ENOSPC, "full")
        write(journal, text)

    monkeypatch.setattr(replay.Journal, "_write", fails)

    def fill_disk() -> None:
        node.rec.full = True
        prey.begin("move", prey.at(100), 300 * PAGE)

    made = begin(node, Images(prey, n1=fill_disk))
    made.holding.keep({KEY: os.dup(prey.fd)})
    made.running.set()
    made.watch()
    wait_for(lambda: sum("full" in line for line in node.lines) >= 2)
    assert not made.done.is_set()
    node.rec.full = False
    wait_for(made.done.is_set)
    to = prey.answer()
    assert prey("look", to, 300) == whole(100, 400) and prey("look", prey.start, 100) == whole(0, 100)
    moved = replay.Replay(lines.read_text(), lambda _pid: [prey.range]).pieces[KEY].pieces
    assert [tuple(piece) for piece in moved if piece.start != piece.image] == [
        (to, to + 300 * PAGE, prey.at(100))
    ] or not any(piece.start == prey.at(100) for piece in moved)


def test_a_fork_that_was_shelved_and_not_logged_is_known(node: Node, prey: Prey) -> None:
    """A guard was killed between the two."""
    store = Memory(prey, n2=lambda: prey.begin("fork"))
    holding = node.holding()
    holding.keep({KEY: os.dup(prey.fd)})
    lines: list[str] = []

    def journal(line: str) -> None:
        if "FORK" in line:
            raise InterruptedError
        lines.append(line)

    found = replay.Replay(f"(00.1) uffd: Received PID: {PID}, uffd: 5\n", lambda _pid: [prey.range])
    with pytest.raises(InterruptedError):
        fill.Filler(store, found, holding.fds, lambda _text: None, holding, journal).run()
    os.close(prey.fd)
    leave(holding)
    child = prey.forked()
    made = begin(node, Images(prey), "".join(line + "\n" for line in lines))
    node.rec.state = "running"
    made.recover()
    assert made.lost() == "" and not made.damaged()
    wait_for(made.done.is_set)
    assert prey("look", prey.start, COUNT) == whole() == child("look", prey.start, COUNT)
    assert node.rec.data["filled"]["pages_inherited"] == COUNT


def test_a_new_connection_ends_the_one_that_says_nothing(node: Node) -> None:
    """A cut link may stay silent for minutes, and the source has dialled again."""
    made = filling.Filling(cast(Guard, node), remote=True)
    said: list[str] = []
    heard = threading.Event()

    class Store:
        complete = threading.Event()

        def attach(self, link: Plain) -> None:
            said.append("attached")
            buffer = memoryview(bytearray(8))
            heard.set()
            if not link.recv_into(buffer):
                raise OSError("the end")
            self.complete.set()

        def left(self) -> int:
            return 1

    silent, old = socket.socketpair()
    busy, new = socket.socketpair()
    store = made.fetched = cast(Any, Store())
    thread = threading.Thread(target=made.fetch, args=(store,), daemon=True)
    thread.start()
    made.connect(Plain(old))
    assert heard.wait(5)
    busy.sendall(b"pages")
    made.connect(Plain(new))
    thread.join(5)
    assert not thread.is_alive() and said == ["attached", "attached"]
    silent.close()
    busy.close()


def test_areas_are_looked_up_when_the_daemon_is_ready(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the images that it was started for, whatever has come of them; what is wrong with them is met again."""
    made = filling.Filling(cast(Guard, node), remote=False)
    looked: list[int] = []

    def ranges(pid: int) -> list[Range]:
        assert started.done()
        looked.append(pid)
        raise FileNotFoundError(errno.ENOENT, "gone")

    def start(_pids: list[int]) -> None:
        made.local = store.ImageStore("/none")  # as forget() does

    monkeypatch.setattr(made.local, "ranges", ranges)
    monkeypatch.setattr(made, "start", start)
    started: futures.Future[None] = futures.Future()
    made.start_for(started, [5, 6])
    assert started.result(0) is None and looked == [5]


def test_no_areas_are_looked_up_for_a_daemon_that_did_not_start(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    made = filling.Filling(cast(Guard, node), remote=False)

    def start(_pids: list[int]) -> None:
        raise OSError("no memory")

    monkeypatch.setattr(made.local, "ranges", lambda _pid: pytest.fail("looked up"))
    monkeypatch.setattr(made, "start", start)
    started: futures.Future[None] = futures.Future()
    made.start_for(started, [5])
    with pytest.raises(OSError, match="no memory"):
        started.result(0)


def test_small_areas_are_wanted_soon_up_to_a_limit() -> None:
    """The smallest first; what belongs to a large one, or to none that is known, is not among them."""
    sizes = {0x1000: filling._SMALL, 0x2000: PAGE, 0x3000: filling._SMALL + PAGE, 0x4000: filling._SMALL // 2}
    found = [(7, Range(start << 16, (start << 16) + size, area=(0, size))) for start, size in sizes.items()]
    found.append((7, Range(0, PAGE)))
    small = [(7, start << 16, (start << 16) + sizes[start]) for start in (0x2000, 0x4000)]
    assert filling.wanted_soon(found) == small, "the third is too much"
    assert filling.wanted_soon(found[:1]) == [(7, 0x1000 << 16, (0x1000 << 16) + filling._SMALL)]
    assert filling.wanted_soon(found[2:3]) == []
