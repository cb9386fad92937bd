"""Pre-copy and hybrid, which need a kernel that tells which pages change: whole, and whole after any fault.

What the state machine does from the freeze on tests/lab holds for all strategies; here are the rounds before it.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.lab.harness import nodes
from tests.lab.harness.aftermath import Aftermath
from tests.lab.harness.guarded import Guarded, program_of
from tests.lab.harness.harm import cut
from tests.lab.harness.machine import MachineLab
from tests.lab.harness.nodes import wait_for
from tests.vm.test_vm_campaign import LIMITS, STRETCH

pytestmark = pytest.mark.vm
KINDS: dict[str, dict[str, Any]] = {
    "precopy": {"strategy": "precopy", "lazy_restore": False},
    "precopy, lazy restore": {"strategy": "precopy", "lazy_restore": True},
    "hybrid": {"strategy": "hybrid"},
}
ROUNDS = {"iterations": 3, "interval": 1.0, "memory": 1 << 26}
Start = Callable[..., tuple[Guarded, Aftermath]]


@pytest.fixture
def start(machines: MachineLab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setattr(nodes, "stretch", STRETCH)
    made: list[Aftermath] = []

    def go(kind: str, workload: str = "memory", **config: Any) -> tuple[Guarded, Aftermath]:
        machines.keep_pids_apart()
        settings = {"limits": LIMITS, "pre_copy": ROUNDS, **KINDS[kind], **config}
        run = Guarded(machines, workload, **settings)
        aftermath = Aftermath(run, run.address)
        made.append(aftermath)
        run.start()
        return run, aftermath

    yield go
    for aftermath in made:
        aftermath.clean()


def rounds(run: Guarded) -> list[dict[str, Any]]:
    return list(run.record("source").get("pre_dumps") or [])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("encryption", ["tls", "none"])
def test_rounds_bring_what_does_not_change(start: Start, kind: str, encryption: str) -> None:
    run, aftermath = start(kind, transfer_encryption=encryption)
    assert run.finish() == "destination"
    record = run.record("source")
    made = rounds(run)
    assert (len(made), record["stop_reason"]) == (3, "rounds"), run.story()
    assert all(one["pages_written"] < made[0]["pages_written"] / 2 for one in made[1:]), made
    assert all(one["pages_skipped"] > 0 for one in made[1:]), made
    if kind == "hybrid":
        fetched = run.record("destination")["filled"]["pages_fetched"]
    else:
        fetched = record["page_server"]["pages"]
    assert 0 < fetched < made[0]["pages_written"] / 2
    aftermath.check("destination", resolved=False)


@pytest.mark.parametrize("kind", ["precopy, lazy restore", "hybrid"])
def test_clients_stay_connected(start: Start, machines: MachineLab, kind: str) -> None:
    run, aftermath = start(kind, "redis", service_address=machines.service_address(2))
    assert run.finish() == "destination"
    assert rounds(run)
    aftermath.check("destination", client=True, resolved=False)


# Two areas without huge pages that begin where a page table does; one is put in the place of the other.
MOVES = """
import ctypes, mmap, os, time
libc = ctypes.CDLL(None)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + 3 * [ctypes.c_int] + [ctypes.c_long]
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
TABLE, SIZE = 2 << 20, 4 << 20
def area(letter):
    start = (libc.mmap(None, SIZE + TABLE, 3, 0x22, -1, 0) + TABLE - 1) & -TABLE
    libc.madvise(start, SIZE, 15)
    ctypes.memset(start, ord(letter), SIZE)
    return start
one, two = area("a"), area("b")
def put(name, text):
    with open(name + ".new", "w") as out:
        out.write(text)
    os.replace(name + ".new", name)
put("checkpoint_ready", f"ready:{os.getpid()}")
moved = False
while os.path.exists("checkpoint_flag"):
    if not moved and os.path.exists("go"):
        libc.munmap(two, SIZE)
        moved = libc.mremap(one, SIZE, SIZE, 3, two) == two
        put("moved", str(moved))
    held = ctypes.string_at(two, SIZE)
    put("content", " ".join(f"{letter}{held.count(letter.encode())}" for letter in "ab"))
    time.sleep(0.05)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_memory_that_moves_with_its_page_tables_is_not_the_older_one(start: Start, kind: str) -> None:
    """The kernel's soft-dirty bits do not tell of it (moved.py)."""
    run, aftermath = start(kind, "command", program=program_of(MOVES), pre_copy={**ROUNDS, "interval": 4.0})
    between(run)
    source = run.node("source").path(run.working_dir)
    (source / "go").touch()
    wait_for("the memory to be moved", lambda: (source / "moved").exists() or None, 20)
    assert (source / "moved").read_text() == "True"
    assert run.finish(limit=120) == "destination"
    there = run.node("destination").path(run.working_dir)
    (there / "content").unlink()
    wait_for("a look at it", lambda: (there / "content").exists() or None, 20)
    assert (there / "content").read_text() == f"a{4 << 20} b0"
    aftermath.check("destination", resolved=False)


# --- faults ----------------------------------------------------------------------------------------------------------


def between(run: Guarded) -> None:
    """A round has been made, and the next is yet to come."""
    wait_for("a round", lambda: rounds(run) or None, 60)


def guard_dies(role: str) -> Callable[[Guarded], None]:
    def strike(run: Guarded) -> None:
        between(run)
        before = run.record(role)
        run.node(role).kill(int(before["guard"]["pid"]), signal.SIGKILL)
        run.await_new_guard(role, before)

    return strike


def criu_dies(run: Guarded) -> None:
    """In the midst of a pre-dump."""

    def at_work() -> int | None:
        found = run.node("source").find(("criu pre-dump",))
        return next((pid for pid, words in found if not words.startswith("/bin/sh")), None)

    run.node("source").slay(wait_for("a pre-dump", at_work, 60))


def link_fails(run: Guarded) -> None:
    between(run)
    with cut(run.node("destination")):
        time.sleep(2.0)  # so long is the cable out: the length is the fault itself


FAULTS: dict[str, Callable[[Guarded], None]] = {
    "the source's guard": guard_dies("source"),
    "the destination's guard": guard_dies("destination"),
    "criu pre-dump": criu_dies,
    "the link": link_fails,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", ["precopy, lazy restore", "hybrid"])
def test_what_dies_in_the_rounds_costs_no_more_than_rounds(start: Start, kind: str, fault: str) -> None:
    run, aftermath = start(kind)
    FAULTS[fault](run)
    assert run.finish(limit=120) == "destination"
    aftermath.check("destination", resolved=False)


@pytest.mark.parametrize("kind", ["precopy, lazy restore", "hybrid"])
def test_a_process_that_ends_in_the_rounds_is_no_riddle(start: Start, kind: str) -> None:
    run, aftermath = start(kind)
    between(run)
    run.node("source").slay(run.pid)
    assert run.finish("undone") == "source"
    assert run.record("source")["error"]["message"]
    aftermath.check_nowhere()
