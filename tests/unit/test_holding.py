"""Who holds a process's userfaultfds, and what a killed guard leaves."""

from __future__ import annotations

import errno
import gc
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import fill, polling, proc, replay
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.uffd import PAGE
from tests.unit.holders import KEY, Node, leave, standing
from tests.unit.prey import COUNT, PID, Memory, Prey, whole

MANY = 700  # a socket of the usual size takes less than half of them


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    yield from standing(tmp_path)


def open_files() -> int:
    gc.collect()  # stores of other tests close theirs when they are found to be garbage
    return len(os.listdir("/proc/self/fd"))


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
