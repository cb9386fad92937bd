"""Who holds a process's userfaultfds, what a killed guard leaves, and a fill that goes on, or never says it is done."""

from __future__ import annotations

import errno
import gc
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import (
    fill,
    filling,
    polling,
    proc,
    replay,
)
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.guard import Guard
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.holding import Holding
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.lazymap import Range
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.secure import Plain
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.store import ImageStore
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.uffd import PAGE
from tests.unit.prey import COUNT, PID, Memory, Prey, whole

MANY = 700  # a socket of the usual size takes less than half of them
KEY = f"{PID}-5"


class Record:
    def __init__(self) -> None:
        self.data: dict[str, Any] = {"times": {}}
        self.state = "restored"
        self.full = False

    def note(self, **more: Any) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "full")
        self.data.update(more)


class Node:
    """What of a guard is needed here; its record outlives it."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.images = str(folder)
        self.rec = Record()
        self.limits = {"connect": 5.0}
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def rebooted(self) -> bool:
        return False

    def job(self, name: str) -> None:
        """Dead and forgotten."""

    def log_path(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def holding(self) -> Holding:
        return Holding(cast(Guard, self))

    def holders(self) -> list[proc.Proc]:
        return self.holding().holders()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.rec.full = False
    proc.kill_tree(made.holders(), 5.0)


@pytest.fixture
def prey() -> Iterator[Prey]:
    made = Prey()
    yield made
    made.close()


def open_files() -> int:
    gc.collect()  # stores of other tests close theirs when they are found to be garbage
    return len(os.listdir("/proc/self/fd"))


def leave(holding: Holding) -> None:
    """What the kernel does with the descriptors of a guard that is killed."""
    for fd in holding.fds.values():
        os.close(fd)
    holding.fds.clear()
    if holding.shelf is not None:
        holding.shelf.close()


def still_guarded(prey: Prey) -> bool:
    """Whether somebody has the userfaultfd open: then a thread waits for its page."""
    prey.ask("look", prey.at(7), 1)
    return prey.answer_within(0.1) is None


def test_what_is_shelved_is_found_again_and_never_only_with_one_guard(node: Node, prey: Prey) -> None:
    first = node.holding()
    first.keep({KEY: os.dup(prey.fd)})
    for number in range(MANY):
        first.shelve(KEY, f"{PID}-{1000 + number}", os.dup(prey.fd))
    assert len(node.holders()) > 1, "one socket took them all: the test needs more"
    leave(first)
    killed = node.holding()
    before = open_files()
    killed.keep = lambda _fds: (_ for _ in ()).throw(InterruptedError)  # type: ignore[method-assign,assignment]
    with pytest.raises(InterruptedError):
        killed.recover()
    leave(killed)
    os.close(prey.fd)
    prey.fd = -1
    for _guard in range(3):
        last = node.holding()
        last.recover()
        assert len(last.fds) == MANY + 1 and last.parents.keys() | {KEY} == last.fds.keys()
        assert len(node.holders()) == 1 and open_files() == before - 1 + MANY + 1 + 1  # and the shelf
        leave(last)
    assert still_guarded(prey)
    proc.kill_tree(node.holders(), 5.0)
    assert prey.answer() == [0], "nobody has it any more"


def test_a_holder_that_was_killed_is_replaced(node: Node, prey: Prey) -> None:
    holding = node.holding()
    holding.keep({KEY: os.dup(prey.fd)})
    old = node.holders()
    proc.kill_tree(old, 5.0)
    holding.shelve(KEY, f"{PID}-9", os.dup(prey.fd))
    leave(holding)
    again = node.holding()
    again.recover()
    assert set(again.fds) == {KEY, f"{PID}-9"}
    leave(again)


class Killed(BaseException):
    """The guard, at this place."""


def test_a_holder_that_was_never_written_down_does_not_stay(node: Node, prey: Prey) -> None:
    """The process would wait for ever at its next munmap(2): nobody reads what that says."""
    holding = node.holding()

    def note(**_more: Any) -> None:
        raise Killed

    node.rec.note, kept = note, node.rec.note  # type: ignore[method-assign]
    with pytest.raises(Killed):
        holding.keep({KEY: os.dup(prey.fd)})
    node.rec.note = kept  # type: ignore[method-assign]
    os.close(prey.fd)
    leave(holding)
    prey.ask("munmap", prey.start, PAGE)
    assert prey.answer_within(0.1) is None and len(node.holders()) == 1
    node.holding().close()
    assert prey.answer() == 0 and not node.holders()


def test_what_has_become_another_file_is_not_taken_for_a_userfaultfd(node: Node) -> None:
    with open(os.devnull) as null:
        node.holding().take([f"{PID}-{null.fileno()}"], [os.getpid()])
    assert "something else" in node.lines[0] and not node.holders()


@pytest.mark.parametrize("looks", [4, 0], ids=["in time", "only when there are too many"])
def test_more_forks_than_a_socket_takes_and_than_may_be_open_at_once(
    node: Node, prey: Prey, monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    """Each waits until its event has been read, and ends soon: its descriptor is not needed any longer."""
    monkeypatch.setattr(fill, "_LOOKS", looks)
    holding = node.holding()
    holding.keep({KEY: os.dup(prey.fd)})

    class Slow(Memory):
        """Nothing of it comes before the last child is there."""

        def there(self, pid: int, vaddr: int, pages: int, urgent: bool = False) -> int:
            polling.readable([prey.fd, prey.sock.fileno()], 5.0)
            return pages if polling.readable([prey.sock], 0) else 0

    store = Slow(prey)
    found = replay.Replay(f"(00.1) uffd: Received PID: {PID}, uffd: 5\n", lambda _pid: [prey.range])
    lines: list[str] = []
    filler = fill.Filler(store, found, holding.fds, lambda _text: None, holding, lines.append)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files() + 100, hard))
    try:
        prey.ask("brood", MANY)
        filled = go_on(filler)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert filled.forks == MANY and len(holding.fds) < 100
    assert filler.complete(), filler.counts()
    counts = filler.counts()
    assert counts["pages_total"] - counts["pages_inherited"] == COUNT
    assert prey.answer() == MANY
    again = replay.Replay(
        f"(00.1) uffd: Received PID: {PID}, uffd: 5\n" + "".join(line + "\n" for line in lines),
        lambda _pid: [prey.range],
    )
    assert len(again.known) == MANY + 1 and set(again.pieces) == set(holding.fds)
    leave(holding)
    assert prey("look", prey.start, COUNT) == whole()


def go_on(filler: fill.Filler) -> fill.Filled:
    """As a guard does it: too many open files may be in the way of a holder, too."""
    for _turn in range(50):
        try:
            return filler.run()
        except OSError as error:
            assert error.errno == errno.EMFILE
    raise AssertionError("it does not get on")


def test_descriptors_past_1023() -> None:
    near, far = socket.socketpair()
    high = 1500
    os.dup2(far.fileno(), high)
    try:
        assert polling.readable([high], 0) == []
        near.sendall(b"x")
        assert polling.readable([high, near.fileno()], 5.0) == [high]
    finally:
        os.close(high)
        near.close()
        far.close()


# --- the fill of a guard ------------------------------------------------------------------------------------------


class Images(Memory):
    """The pages of a child as the images' store gives them, and what has to go wrong."""

    def __init__(self, prey: Prey, **happen: Callable[[], None]) -> None:
        super().__init__(prey, **happen)
        self.trouble: list[OSError] = []

    def ranges(self, _pid: int) -> list[Range]:
        return [self.prey.range]

    def read(self, pid: int, vaddr: int, pages: int) -> bytes:
        if self.trouble:
            raise self.trouble.pop()
        return super().read(pid, vaddr, pages)


def begin(node: Node, images: Images, log: str | None = "", remote: bool = False) -> filling.Filling:
    """A guard's fill after the restore, the daemon being dead; without `log` it is as it was left."""
    if log is not None:
        text = f"(00.1) uffd: Received PID: {PID}, uffd: 5\n{log}"
        Path(node.log_path("criu-lazy-pages.log")).write_text(text)
    made = filling.Filling(cast(Guard, node), remote=remote)
    made.local = cast(ImageStore, images)
    return made


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


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
