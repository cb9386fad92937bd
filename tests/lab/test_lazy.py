"""Memory that comes after the restore: whatever dies meanwhile, the process gets all of it, or goes on where it was."""

from __future__ import annotations

import json
import secrets
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.conftest import Guard
from tests.lab.harness import power
from tests.lab.harness.aftermath import Aftermath
from tests.lab.harness.guarded import PROGRAMS, Guarded, guard_program
from tests.lab.harness.harm import LISTENER, cut, running
from tests.lab.harness.nodes import Lab, Node, wait_for

LOCAL: dict[str, Any] = {"strategy": "full", "lazy_restore": True}
REMOTE: dict[str, Any] = {"strategy": "postcopy"}
BOTH = pytest.mark.parametrize("how", [LOCAL, REMOTE], ids=["lazy_restore", "postcopy"])
Redis = Callable[..., tuple[Guarded, Aftermath]]
SOON = 3072 + 1024  # pages; so many may come before the process runs

# Memory in two halves, one of which a child inherits, and one that is moved, given up in part, and grown meanwhile.
RESTLESS = """
import ctypes, mmap, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
PAGE, PAGES = 4096, 8192
def area():
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return libc.mmap(None, ctypes.c_size_t(PAGES * PAGE), 3, flags, -1, ctypes.c_long(0))
def stamp(page):
    return page.to_bytes(8, "little") * 2
def fill(base):
    for page in range(PAGES):
        ctypes.memmove(base + page * PAGE, stamp(page), 16)
def wrong(base, gone=range(0)):
    return [p for p in range(PAGES) if ctypes.string_at(base + p * PAGE, 16) != (bytes(16) if p in gone else stamp(p))]
one, two = area(), area()
fill(one)
fill(two)
open("checkpoint_ready", "w").write("ready:1")
while not os.path.exists("moved"):
    time.sleep(0.001)
gone = range(1000, 2000)
libc.madvise(ctypes.c_void_p(two + 1000 * PAGE), ctypes.c_size_t(1000 * PAGE), 4)
child = os.fork()
found = {"forked": wrong(one), "parted": wrong(two, gone)}
two = libc.mremap(ctypes.c_void_p(two), ctypes.c_size_t(PAGES * PAGE), ctypes.c_size_t(2 * PAGES * PAGE), 1)
found["moved"] = wrong(two, gone) if two not in (None, ctypes.c_void_p(-1).value) else "mremap failed"
name = "child" if child == 0 else "parent"
with open(name + ".new", "w") as out:
    out.write(repr({key: value for key, value in found.items() if value}))
os.rename(name + ".new", name)
while True:
    time.sleep(0.01)
"""


@pytest.fixture
def with_client(guarded: Guard, lab: Lab) -> Redis:
    def make(**config: Any) -> tuple[Guarded, Aftermath]:
        return guarded("redis", service_address=lab.service_address(2), **config)

    return make


@pytest.fixture
def big(guarded: Guard, monkeypatch: pytest.MonkeyPatch) -> Iterator[Redis]:
    """A memory workload whose fill takes long enough to do harm to it."""
    options = ["--mb_size=64", "--interval=0.2", "--max_memory=128"]
    monkeypatch.setitem(PROGRAMS, "memory", ("memory_standalone.py", options))
    yield lambda **config: guarded("memory", **config)


def check_moved(run: Guarded, aftermath: Aftermath, client: bool) -> None:
    assert run.finish() == "destination"
    filled = run.record("destination")["filled"]
    assert filled["pages_transferred"] > 0, filled
    assert filled["pages_total"] >= filled["pages_transferred"], filled
    aftermath.check("destination", client=client, resolved=False)


@pytest.mark.parametrize("config", [
    LOCAL, {**LOCAL, "transfer": "rsync"}, REMOTE, {**REMOTE, "transfer": "rsync"},
    {**REMOTE, "transfer_encryption": "none"},
], ids=["lazy_restore", "lazy_restore-rsync", "postcopy", "postcopy-rsync", "postcopy-plain"])  # fmt: skip
def test_a_client_stays_connected(with_client: Redis, config: dict[str, Any]) -> None:
    run, aftermath = with_client(**config)
    run.start()
    check_moved(run, aftermath, client=True)


@BOTH
@pytest.mark.parametrize(
    ("role", "state"),
    [("source", state) for state in ("frozen", "dumped", "detached", "restored", "committed")]
    + [("destination", state) for state in ("receiving", "restoring", "restored", "running")],
)
def test_a_guard_is_killed(with_client: Redis, how: dict[str, Any], role: str, state: str) -> None:
    run, aftermath = with_client(pause={role: [state]}, **how)
    run.start()
    run.await_paused(role, state)
    run.replace_guard(role, state, keeper=False)
    check_moved(run, aftermath, client=True)


@BOTH
@pytest.mark.parametrize("role", ["source", "destination"])
def test_guard_and_keeper_are_killed_while_it_is_filled(big: Redis, how: dict[str, Any], role: str) -> None:
    run, aftermath = big(pause={"destination": ["running"]}, **how)
    run.start()
    run.await_paused("destination", "running")
    run.go("destination", "running")
    run.kill_guard(role, keeper=True)
    run.start_guard(role)
    check_moved(run, aftermath, client=False)


# --- what fills it dies ------------------------------------------------------------------------------------------


def pages_there(run: Guarded) -> tuple[int, int]:
    """How many pages of the source have come, and have not, by the list that the store keeps beside the images."""
    path = run.node("destination").path(f"{run.images['destination']}/{run.run_id}/lazy-pages.map")
    if not path.exists():
        return 0, 0
    states = path.read_bytes()[:-32]  # a digest
    came = sum(states.count(state) for state in (b"\2", b"\4"))  # here; in the process already (lazy_file.py)
    return came, len(states) - came


@pytest.mark.parametrize("moved", [1, 8000, 15000, -40], ids=["hardly any", "half", "nearly all", "all but a few"])
def test_the_guard_is_killed_with_so_many_pages_moved(big: Redis, lab: Lab, moved: int) -> None:
    """It stands still from the moment that so many are here until it is killed, and the source longer: no more come.

    Negative: so many are missing at most. Which they are nobody knows beforehand; harness/daemon_killed.py leaves one.
    """
    run, aftermath = big(pause={"source": ["detached"]}, **REMOTE)
    run.start()
    source = int(run.await_paused("source", "detached")["guard"]["pid"])
    before = run.record("destination")
    power.slow(lab.source, "200mbit")  # so that they can be counted
    try:
        run.go("source", "detached")
        for left, rate in ((3000, "50mbit"), (600, "4mbit")) if moved < 0 else ():
            wait_for(f"all but {left} pages", lambda left=left: 0 < pages_there(run)[1] < left, 30)  # type: ignore[misc]
            power.slow(lab.source, rate)
        wait_for(f"{moved} pages", lambda: reached(*pages_there(run), moved), 30)
        run.node("destination").kill(int(before["guard"]["pid"]), signal.SIGSTOP)
        run.node("source").kill(source, signal.SIGSTOP)
    finally:
        power.slow(lab.source, "")
    try:
        came, missing = pages_there(run)
        assert reached(came, missing, moved) and missing > 0, f"{came} pages were there, {missing} were not"
        run.kill_guard("destination")
        run.await_new_guard("destination", before)
        assert pages_there(run) == (came, missing)
    finally:
        run.node("source").kill(source, signal.SIGCONT)
    if 0 < moved < SOON:
        check_ended(run, aftermath)  # it may not have been restored yet
    else:
        check_moved(run, aftermath, client=False)


def reached(came: int, missing: int, moved: int) -> bool:
    return came >= moved if moved > 0 else came > 0 and missing <= -moved


@pytest.mark.parametrize("moved", ["none", "half", "all but one"])
def test_the_daemon_is_killed_with_so_many_pages_moved(lab: Lab, moved: str) -> None:
    """Exactly so many: it gets no more. A guard kills it sooner, so here it is criu's, the rest is the guard's fill."""
    node, folder = lab.destination, f"/srv/criu-migrate/test-{secrets.token_hex(4)}"
    node.path(folder).mkdir(parents=True)
    node.path(f"{folder}/guard.pyz").write_bytes(guard_program())
    program = Path(__file__).with_name("harness").joinpath("daemon_killed.py").read_text(encoding="utf-8")
    try:
        found = json.loads(node.python(program, f"{folder}/guard.pyz", f"{folder}/work", moved))
    finally:
        node.run("sh", "-c", f"pkill -9 -f -- '-D {folder}'; fuser -k {folder}/work; rm -rf {folder}", check=False)
    total = found["total"]
    needed = found["given"] if moved == "none" else 0  # by the restore itself
    assert needed < 16 and found["brought"] == {"none": needed, "half": total // 2, "all but one": total - 1}[moved], (
        found
    )
    assert found["copied"] >= total - found["brought"] > 0, found
    assert found["wrong"] == "[]", "the program's memory is not what it was"


@BOTH
def test_the_daemon_is_killed(big: Redis, how: dict[str, Any]) -> None:
    """It is needed for the restore: killed before that, the run is undone. (After it, the guard ends it itself.)"""
    run, aftermath = big(pause={"destination": ["restoring"]}, **how)
    run.start()
    run.await_paused("destination", "restoring")
    wait_for("the daemon", lambda: "lazy-pages" in run.record("destination").get("jobs", {}) or None, 30)
    run.kill_job("destination", "lazy-pages")
    run.go("destination", "restoring")
    assert run.finish("undone") == "source"
    run.await_state("destination", "undone")
    aftermath.check("source", resolved=False)


def check_ended(run: Guarded, aftermath: Aftermath) -> None:
    """Before the copy was secured: undone. After it: moved. Never anything else."""
    where = run.finish("done", "undone")
    if where == "source":
        run.await_state("destination", "undone")
    aftermath.check(where, resolved=False)


@BOTH
def test_the_holder_is_killed(big: Redis, how: dict[str, Any]) -> None:
    run, aftermath = big(pause={"destination": ["restored"]}, **how)
    run.start()
    run.await_paused("destination", "restored")
    kill_holders(run)
    run.go("destination", "restored")
    check_moved(run, aftermath, client=False)


def kill_holders(run: Guarded) -> None:
    """All that there are, at least one."""
    node = run.node("destination")
    pids = {int(item["pid"]) for item in run.record("destination")["holders"]}
    assert pids and all(node.path(f"/proc/{pid}/comm").read_text() == "sleep\n" for pid in pids), pids
    for pid in pids:
        node.kill(pid)
    for pid in pids:
        wait_for("the end of a holder", lambda pid=pid: ended(node, pid))  # type: ignore[misc]


def ended(node: Node, pid: int) -> bool:
    try:
        return ") Z " in node.path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def kill_all_that_hold(run: Guarded, state: str) -> None:
    """Start the run; holders and guard die where the destination's waits in `state`, and another guard comes."""
    run.start()
    before = run.await_paused("destination", state)
    kill_holders(run)
    run.kill_guard("destination")
    run.await_new_guard("destination", before)


@BOTH
def test_the_holder_and_the_guard_are_killed_before_it_runs(big: Redis, how: dict[str, Any]) -> None:
    """The kernel has let go of what had not come: that is no copy."""
    run, aftermath = big(pause={"destination": ["restored"]}, **how)
    kill_all_that_hold(run, "restored")
    assert run.finish("undone") == "source"
    run.await_state("destination", "undone")
    assert "has lost" in run.record("destination")["why"]
    aftermath.check("source", resolved=False)


@BOTH
def test_the_holder_and_the_guard_are_killed_after_the_commit(big: Redis, how: dict[str, Any]) -> None:
    """The copy is damaged and has not run: it goes, on the destination's own word, and the source's goes on."""
    run, aftermath = big(pause={"destination": ["running"]}, **how)
    kill_all_that_hold(run, "running")
    assert run.finish("undone") == "source"
    assert "filled" not in run.record("destination")
    assert "it never ran" in run.record("source")["error"]["message"]
    aftermath.check("source", resolved=False)


@BOTH
@pytest.mark.parametrize("killed", ["", "before", "after"], ids=["undisturbed", "guard killed", "guard killed later"])
def test_memory_moves_while_it_is_filled(guarded: Guard, how: dict[str, Any], killed: str) -> None:
    """fork, mremap and MADV_DONTNEED of a process that has not all of its memory yet (CRIU's daemon: mremap fails)."""
    run, aftermath = guarded("command", program=["python3", "-c", RESTLESS], pause={"source": ["detached"]}, **how)
    run.start()
    run.await_paused("source", "detached")
    node = run.node("destination")
    if killed != "before":
        node.path(f"{run.working_dir}/moved").touch()
    run.go("source", "detached")
    if killed:
        run.await_state("destination", "running", "done")
        if killed == "after":
            run.await_log("destination", "has forked")  # in between is docs/faults.md's half a millisecond
        run.node("destination").run("pkill", "-9", "-f", f"guard.pyz {run.run_id}$", check=False)
        node.path(f"{run.working_dir}/moved").touch()
        run.start_guard("destination")
    assert run.finish() == "destination"

    def said(name: str) -> str | None:
        path = node.path(f"{run.working_dir}/{name}")
        return path.read_text() if path.exists() else None

    assert [wait_for(name, lambda name=name: said(name), 30) for name in ("parent", "child")] == ["{}", "{}"]  # type: ignore[misc]
    aftermath.await_end()


# --- the link, and undoing ---------------------------------------------------------------------------------------


def test_a_cut_while_pages_come_is_only_a_stall(big: Redis, lab: Lab) -> None:
    run, aftermath = big(pause={"source": ["committed"]}, limits={"connect": 2}, **REMOTE)
    run.start()
    run.await_paused("source", "committed")
    with cut(lab.destination):
        run.go("source", "committed")
        run.await_log("source", "link to the other guard broke")
    check_moved(run, aftermath, client=False)


@BOTH
def test_a_failed_restore_is_undone(with_client: Redis, lab: Lab, how: dict[str, Any]) -> None:
    run, aftermath = with_client(pause={"source": ["frozen"]}, **how)
    run.start()
    run.await_paused("source", "frozen")
    with running(lab.destination, LISTENER, "7002"):
        run.go("source", "frozen")
        assert run.finish("undone") == "source"
        run.await_state("destination", "undone")
    aftermath.check("source", client=True, resolved=False)


@BOTH
def test_a_copy_that_never_ran_is_undone(with_client: Redis, lab: Lab, how: dict[str, Any]) -> None:
    """Restored, and its memory still coming, when the link has been gone for too long."""
    limits = {"connect": 2, "link": 2, "undo": 2}
    run, aftermath = with_client(pause={"destination": ["restored"]}, limits=limits, **how)
    run.start()
    run.await_paused("destination", "restored")
    with cut(lab.destination):
        run.go("destination", "restored")
        assert run.finish("undone") == "source"
        aftermath.one_copy("source", "destination", mute_copy=True)
    run.await_state("destination", "undone")
    aftermath.check("source", client=True, resolved=False)


def test_the_waiting_dump_is_killed_after_the_commit(big: Redis) -> None:
    """CRIU only waits by then: the memory is read from the stopped tree."""
    run, aftermath = big(pause={"source": ["committed"]}, **REMOTE)
    run.start()
    run.await_paused("source", "committed")
    run.kill_job("source", "dump")
    run.go("source", "committed")
    check_moved(run, aftermath, client=False)
