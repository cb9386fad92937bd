"""What breaks and what follows: after every fault one running copy, whole, and nothing left behind.

Every fault is set off by a state that a guard has reached or a line that it has logged, never by a time.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.lab.conftest import Guard
from tests.lab.harness import power
from tests.lab.harness.aftermath import Aftermath
from tests.lab.harness.chance import KINDS
from tests.lab.harness.guarded import Guarded
from tests.lab.harness.harm import LISTENER, PID_TAKER, TRACER, await_gone, cut, fill, running, small_tmpfs
from tests.lab.harness.nodes import Lab, wait_for

Redis = Callable[..., tuple[Guarded, Aftermath]]

SOURCE_STATES = ("freezing", "frozen", "dumped", "detached", "restored", "committed")
DESTINATION_STATES = ("receiving", "restoring", "restored", "running")


@pytest.fixture
def with_client(guarded: Guard, lab: Lab) -> Redis:
    """A redis with its outside client; `pause` and `limits` as in Guarded."""

    def make(**config: Any) -> tuple[Guarded, Aftermath]:
        return guarded("redis", service_address=lab.service_address(2), **config)

    return make


def test_no_fault(guarded: Guard, lab: Lab) -> None:
    run, aftermath = guarded("redis", service_address=lab.service_address(2))
    run.start()
    assert run.finish() == "destination"
    aftermath.check("destination", client=True, resolved=False)


@pytest.mark.parametrize("keeper", [False, True], ids=["guard", "guard+keeper"])
@pytest.mark.parametrize(
    ("role", "state"),
    [("source", state) for state in SOURCE_STATES] + [("destination", state) for state in DESTINATION_STATES],
)
def test_a_guard_is_killed(with_client: Redis, role: str, state: str, keeper: bool) -> None:
    """Its keeper starts it again; where that is killed as well, the play, resolve.yml or a person does."""
    run, aftermath = with_client(pause={role: [state]})
    run.start()
    run.await_paused(role, state)
    run.replace_guard(role, state, keeper)
    assert run.finish() == "destination"
    aftermath.check("destination", client=True, resolved=False)


@pytest.mark.parametrize("role", ["source", "destination"])
def test_a_guard_is_killed_when_it_is_armed(with_client: Redis, lab: Lab, role: str) -> None:
    """With the cable out the source's cannot get on."""
    run, aftermath = with_client(limits={"connect": 2})
    run.arm_both()
    with cut(lab.destination):
        run.start_guard("source")
        run.await_log("source", "armed: ping: ")
        before = run.record(role)
        assert before["state"] == "armed", run.story()
        run.kill_guard(role)
        run.await_new_guard(role, before)
    assert run.finish() == "destination"
    aftermath.check("destination", client=True, resolved=False)


def soak(*values: Any, name: str) -> Any:
    return pytest.param(*values, marks=pytest.mark.soak, id=name)


MOVES = [  # of each way to move a process all faults, with a service address and without; two in every run of the tests
    pytest.param("lazy_restore", False, "source", "committed", id="lazy_restore-source-committed"),
    pytest.param("postcopy", False, "destination", "restored", id="postcopy-destination-restored"),
    *(
        soak(kind, address, role, state, name=f"{kind}-{'' if address else 'no-'}address-{role}-{state}")
        for kind in KINDS
        for address in (True, False)
        for role, state in [("source", state) for state in SOURCE_STATES[1:]]
        + [("destination", state) for state in DESTINATION_STATES]
    ),
]


@pytest.mark.parametrize(("kind", "address", "role", "state"), MOVES)
def test_a_guard_is_killed_whatever_is_moved(
    guarded: Guard, lab: Lab, kind: str, address: bool, role: str, state: str
) -> None:
    how = {**KINDS[kind], **({"service_address": lab.service_address(2)} if address else {})}
    run, aftermath = guarded("redis" if address else "memory", pause={role: [state]}, **how)
    run.start()
    run.await_paused(role, state)
    run.replace_guard(role, state, keeper=True)
    assert run.finish() == "destination"
    aftermath.check("destination", client=address, resolved=False)


def who_has_the_pages_is_killed(guarded: Guard, state: str, keeper: bool) -> tuple[Guarded, Aftermath]:
    """The destination's guard, before it was asked whether all had come; a run that goes on with another."""
    run, aftermath = guarded("memory", pause={"source": [state]})
    run.start()
    run.await_paused("source", state)
    before = run.record("destination")
    assert before["state"] == "receiving"
    run.kill_guard("destination", keeper=keeper)
    if keeper:
        run.start_guard("destination")
    else:
        run.await_new_guard("destination", before)
    run.go("source", state)
    return run, aftermath


@pytest.mark.parametrize("keeper", [False, True], ids=["guard", "guard+keeper"])
@pytest.mark.parametrize("state", ["dumped", "detached"])
def test_who_has_the_pages_is_killed_before_they_are_asked_for(guarded: Guard, state: str, keeper: bool) -> None:
    """Whether all had come only that guard knew: undone."""
    run, aftermath = who_has_the_pages_is_killed(guarded, state, keeper)
    assert run.finish("undone") == "source"
    aftermath.check("source", resolved=False)


def test_both_guards_are_killed(with_client: Redis) -> None:
    run, aftermath = with_client(pause={"source": ["restored"]})
    run.start()
    run.await_paused("source", "restored")
    run.kill_guard("destination", keeper=True)
    run.kill_guard("source", keeper=True)
    run.go("source", "restored")
    run.start_guard("source")
    run.await_log("source", "commit: ")
    run.start_guard("destination")
    assert run.finish() == "destination"
    aftermath.check("destination", client=True, resolved=False)


# --- criu fails: undone, and the connected client goes on ------------------------------------------------------------


def check_undone(run: Guarded, aftermath: Aftermath, client: bool = True) -> None:
    """The source goes on, and the destination has been told."""
    assert run.finish("undone") == "source"
    run.await_state("destination", "undone")
    aftermath.check("source", client=client, resolved=False)


@pytest.mark.parametrize("encryption", ["tls", "none"])
@pytest.mark.parametrize("victim", ["receiving guard", "dump"])
def test_the_dump_loses_an_end(with_client: Redis, lab: Lab, victim: str, encryption: str) -> None:
    run, aftermath = with_client(pause={"source": ["frozen"]}, transfer_encryption=encryption)
    run.start()
    run.await_paused("source", "frozen")
    receiving = int(run.record("destination")["guard"]["pid"])
    lab.destination.kill(receiving, signal.SIGSTOP)  # the dump has to wait for it
    run.go("source", "frozen")
    run.await_log("source", "Dumping pages", name="criu-dump.log")
    if victim == "dump":
        run.kill_job("source", "dump")
        lab.destination.kill(receiving, signal.SIGCONT)
    else:
        lab.destination.kill(receiving)
    check_undone(run, aftermath)


@pytest.mark.parametrize("transfer", ["page_server", "rsync"])
def test_the_destination_has_no_space_left(with_client: Redis, lab: Lab, transfer: str) -> None:
    run, aftermath = with_client(pause={"source": ["frozen"]}, transfer=transfer)
    run.images["destination"] = "/srv/small"
    with small_tmpfs(lab.destination, "/srv/small", 256):
        run.start()
        run.await_paused("source", "frozen")
        fill(lab.destination, "/srv/small", leave=1 << 20)
        run.go("source", "frozen")
        if run.config.get("strategy") == "hybrid":  # what rounds have brought makes way for what is newer
            assert run.finish() == "destination"
            aftermath.check("destination", client=True, resolved=False)
            return
        assert run.finish("undone") == "source"
        run.await_state("destination", "undone")
        assert lab.destination.run("ls", "/srv/small").split() == ["fill"]
    error = run.record("source")["error"]
    assert "space" in error["message"] + error["remedy"], error
    aftermath.check("source", client=True, resolved=False)


def test_a_tracer_comes_while_it_is_frozen(with_client: Redis, lab: Lab) -> None:
    run, aftermath = with_client(pause={"source": ["frozen"]})
    run.start()
    run.await_paused("source", "frozen")
    with running(lab.source, TRACER, str(run.record("source")["procs"][-1]["pid"])):
        run.go("source", "frozen")
        assert run.finish("undone") == "source"
    assert "tracer" in run.record("source")["error"]["remedy"], run.record("source")["error"]
    check_undone(run, aftermath)


def test_an_open_file_is_missing_on_the_destination(guarded: Guard, lab: Lab) -> None:
    text = (
        "import os, time; kept = open('/srv/elsewhere', 'w'); open('checkpoint_ready', 'w').write('ready:1')\n"
        "while True: time.sleep(0.01)"
    )
    run, aftermath = guarded("command", program=["python3", "-c", text])
    run.start()
    check_undone(run, aftermath, client=False)
    lab.source.run("rm", "/srv/elsewhere")


def test_a_pid_is_taken_on_the_destination(with_client: Redis, lab: Lab) -> None:
    run, aftermath = with_client(pause={"source": ["frozen"]})
    run.start()
    procs = run.await_paused("source", "frozen")["procs"]
    with running(lab.destination, PID_TAKER, str(procs[-1]["pid"])):
        run.go("source", "frozen")
        assert run.finish("undone") == "source"
        run.await_state("destination", "undone")
        assert lab.destination.path(f"/proc/{procs[-1]['pid']}").exists(), "the stranger was killed"
        lab.destination.kill(procs[-1]["pid"])
    check_undone(run, aftermath)


def test_the_port_is_taken_on_the_destination(with_client: Redis, lab: Lab) -> None:
    run, aftermath = with_client(pause={"source": ["frozen"]})
    run.start()
    run.await_paused("source", "frozen")
    with running(lab.destination, LISTENER, "7002"):
        run.go("source", "frozen")
        assert run.finish("undone") == "source"
    check_undone(run, aftermath)


def test_the_address_is_on_the_destination_already(with_client: Redis, lab: Lab) -> None:
    run, aftermath = with_client(pause={"source": ["detached"]})
    run.start()
    run.await_paused("source", "detached")
    lab.destination.run("ip", "addr", "add", f"{run.address}/32", "dev", "lo")
    run.go("source", "detached")
    assert run.finish("undone") == "source"
    run.await_state("destination", "undone")
    assert run.address in lab.destination.run("ip", "-4", "addr", "show", "lo"), "a stranger's address was removed"
    lab.destination.run("ip", "addr", "del", f"{run.address}/32", "dev", "lo")
    check_undone(run, aftermath)


def test_the_stopped_copy_dies_before_the_commit(with_client: Redis, lab: Lab) -> None:
    run, aftermath = with_client(pause={"source": ["restored"]})
    run.start()
    run.await_paused("source", "restored")
    for item in run.record("destination")["procs"]:
        lab.destination.kill(item["pid"])
        await_gone(lab.destination, item["pid"])
    run.go("source", "restored")
    check_undone(run, aftermath)


@pytest.mark.parametrize("role", ["source", "destination"])
def test_a_guard_is_killed_while_it_undoes(with_client: Redis, lab: Lab, role: str) -> None:
    run, aftermath = with_client(pause={"source": ["frozen"], role: ["frozen", "undoing"]})
    run.start()
    run.await_paused("source", "frozen")
    with running(lab.destination, LISTENER, "7002"):
        run.go("source", "frozen")
        run.await_paused(role, "undoing")
        run.replace_guard(role, "undoing", keeper=False)
        assert run.finish("undone") == "source"
    check_undone(run, aftermath)


# --- the link is cut -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["frozen", "detached", "committed"])
def test_a_cut_is_only_a_stall(with_client: Redis, lab: Lab, state: str) -> None:
    run, aftermath = with_client(pause={"source": [state]}, limits={"connect": 2})
    run.start()
    run.await_paused("source", state)
    with cut(lab.destination):
        run.go("source", state)
        if state == "frozen":  # the dump waits for the page server, nobody has noticed anything
            run.await_log("source", "Dumping pages", name="criu-dump.log")
        else:
            run.await_log("source", "link to the other guard broke")
    assert run.finish() == "destination"
    aftermath.check("destination", client=True, resolved=False)


LONG = 11.5  # seconds: past those after which a connection for requests counts as dead


def test_a_long_cut_while_pages_come_is_only_a_stall(with_client: Redis, lab: Lab) -> None:
    """Nobody can dial again within a dump: both ends wait as long as limits.link says."""
    run, aftermath = with_client(pause={"source": ["frozen"]}, limits={"connect": 2})
    run.start()
    run.await_paused("source", "frozen")
    with cut(lab.destination):
        run.go("source", "frozen")
        run.await_log("source", "Dumping pages", name="criu-dump.log")
        time.sleep(LONG)  # so long is the cable out: the length is the fault itself
    assert run.finish() == "destination"
    aftermath.check("destination", client=True, resolved=False)


@pytest.mark.soak
def test_a_long_cut_while_rsync_runs_is_only_a_stall(with_client: Redis, lab: Lab) -> None:
    run, aftermath = with_client(pause={"source": ["detached"]}, limits={"connect": 2}, transfer="rsync")
    run.start()
    run.await_paused("source", "detached")
    power.slow(lab.source, "20mbit")
    try:
        run.go("source", "detached")
        images = lab.destination.path(f"{run.images['destination']}/{run.run_id}")
        wait_for("files of rsync", lambda: any(path.stat().st_size for path in images.iterdir()), 30)
        with cut(lab.destination):
            time.sleep(LONG)
        assert run.finish() == "destination"
    finally:
        power.slow(lab.source, "")
    aftermath.check("destination", client=True, resolved=False)


@pytest.mark.parametrize("state", ["restored", "running"])
def test_the_answer_of_the_destination_is_lost(with_client: Redis, lab: Lab, state: str) -> None:
    run, aftermath = with_client(pause={"destination": [state]}, limits={"connect": 2})
    run.start()
    run.await_paused("destination", state)
    with cut(lab.destination):
        run.go("destination", state)
        run.await_log("source", "link to the other guard broke")
    assert run.finish() == "destination"
    aftermath.check("destination", client=True, resolved=False)


@pytest.mark.parametrize("role, state", [("source", "detached"), ("destination", "restored")])
def test_a_cut_past_the_limit_is_undone(with_client: Redis, lab: Lab, role: str, state: str) -> None:
    run, aftermath = with_client(pause={role: [state]}, limits={"connect": 2, "link": 2, "undo": 2})
    run.start()
    run.await_paused(role, state)
    with cut(lab.destination):
        run.go(role, state)
        assert run.finish("undone") == "source"
        aftermath.one_copy("source", "destination", mute_copy=True)
    check_undone(run, aftermath)


# --- a guard stays dead ----------------------------------------------------------------------------------------------


def test_the_destination_guard_stays_dead_before_the_commit(with_client: Redis) -> None:
    run, aftermath = with_client(pause={"source": ["detached"]}, limits={"connect": 2, "link": 2, "undo": 2})
    run.start()
    run.await_paused("source", "detached")
    run.kill_guard("destination", keeper=True)
    run.go("source", "detached")
    assert run.finish("undone") == "source"
    aftermath.one_copy("source", "destination")
    run.start_guard("destination")
    check_undone(run, aftermath)


def test_the_destination_guard_stays_dead_after_the_commit(with_client: Redis) -> None:
    run, aftermath = with_client(pause={"source": ["committed"]}, limits={"connect": 2, "link": 2})
    run.start()
    run.await_paused("source", "committed")
    run.kill_guard("destination", keeper=True)
    run.go("source", "committed")
    run.await_log("source", "cannot be reached", times=8)  # past the limit "link"
    assert run.state("source") == "committed", "only the destination may say how this ends"
    run.start_guard("destination")
    assert run.finish() == "destination"
    aftermath.check("destination", client=True, resolved=False)
