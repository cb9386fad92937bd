"""A node loses its power: what its record and the other node's allow, row by row as in docs/guards.md."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import lazy_file
from tests.lab.conftest import Guard
from tests.lab.harness import power
from tests.lab.harness.aftermath import Aftermath
from tests.lab.harness.chance import KINDS, kept_whole
from tests.lab.harness.guarded import Guarded, program_of
from tests.lab.harness.nodes import RUNS, Lab, wait_for
from tests.lab.harness.power import resolve

SMALL = """
import os, time
kept = [bytes([number % 256]) * 4096 for number in range(500)]
open("checkpoint_ready", "w").write("ready:1")
count = 0
while all(page == bytes([number % 256]) * 4096 for number, page in enumerate(kept)):
    count += 1
    with open("counted.new", "w") as out:
        out.write(str(count))
    os.replace("counted.new", "counted")
    time.sleep(0.02)
"""
Redis = Callable[..., tuple[Guarded, Aftermath]]
QUICK = {"connect": 2, "link": 2, "undo": 2}


@pytest.fixture
def redis(guarded: Guard, lab: Lab) -> Iterator[Redis]:
    """A redis with its outside client, standing still in a state of one role; nodes that are off go on again."""

    def make(role: str, state: str, **config: Any) -> tuple[Guarded, Aftermath]:
        config = {"service_address": lab.service_address(4), "limits": QUICK, **config}
        run, aftermath = guarded("redis", pause={role: [state]}, **config)
        run.start()
        run.await_paused(role, state)
        return run, aftermath

    yield make
    power.on(lab.source)
    power.on(lab.destination)


# --- the source ------------------------------------------------------------------------------------------------------


def test_the_source_dies_before_there_is_a_copy(redis: Redis, lab: Lab, tmp_path: Path) -> None:
    run, aftermath = redis("source", "frozen")
    power.off(lab.source)
    power.on(lab.source)
    assert "the process died with the source" in resolve(run, tmp_path)
    aftermath.check_nowhere()


@pytest.mark.parametrize("state", ["restored", "committed"])
def test_the_source_dies_and_comes_back(redis: Redis, lab: Lab, state: str) -> None:
    """Its guard is started by hand, as resolve.yml does it."""
    run, aftermath = redis("source", state)
    power.off(lab.source)
    aftermath.mute_copy("destination")
    power.on(lab.source)
    run.start_guard("source")
    aftermath.check("destination", client=True, resolved=False)


@pytest.mark.parametrize("back", [True, False], ids=["comes-back", "stays-dead"])
def test_the_source_dies_while_its_copy_is_restored(redis: Redis, lab: Lab, tmp_path: Path, back: bool) -> None:
    """All of it is there, and the guard that was to restore it is gone too: whoever decides has it restored."""
    run, aftermath = redis("destination", "restoring")
    power.off(lab.source)
    if back:
        run.replace_guard("destination", "restoring", keeper=True)
        power.on(lab.source)
        assert "runs on the destination" in resolve(run, tmp_path)
    else:
        run.kill_guard("destination", keeper=True)
        run.go("destination", "restoring")  # a guard that has none is not to stand still there again
        assert "-e fence=source-is-dead" in resolve(run, tmp_path, decided=False)
        resolve(run, tmp_path, "-e", "fence=source-is-dead")
        power.on(lab.source)
        resolve(run, tmp_path)
    aftermath.check("destination", client=True, resolved=False)


@pytest.mark.parametrize(
    ("state", "config"), [("restored", {}), ("committed", {"lazy_restore": True})], ids=["restored", "committed-lazy"]
)
def test_the_source_never_comes_back(
    redis: Redis, lab: Lab, tmp_path: Path, state: str, config: dict[str, Any]
) -> None:
    """A person says so. Where the person was wrong, the record on the other node keeps the source quiet."""
    run, aftermath = redis("source", state, **config)
    power.off(lab.source)
    if state == "restored":
        assert "-e fence=source-is-dead" in resolve(run, tmp_path, decided=False)
        aftermath.mute_copy("destination")
    resolve(run, tmp_path, "-e", "fence=source-is-dead")
    power.on(lab.source)
    resolve(run, tmp_path)
    aftermath.check("destination", client=True, resolved=False)


def test_the_source_dies_while_the_copy_begins_to_run(redis: Redis, lab: Lab) -> None:
    run, aftermath = redis("destination", "running")
    power.off(lab.source)
    run.go("destination", "running")
    run.await_resumed("destination")
    power.on(lab.source)
    run.start_guard("source")
    aftermath.check("destination", client=True, resolved=False)


@pytest.fixture
def postcopy(guarded: Guard, lab: Lab) -> Iterator[Redis]:
    """Memory that comes so slowly that the source has nearly all of it when the destination stands still in a state."""

    def make(state: str) -> tuple[Guarded, Aftermath]:
        run, aftermath = guarded("memory", strategy="postcopy", pause={"destination": [state]}, limits=QUICK)
        power.slow(lab.source, "20mbit")
        run.start()
        run.await_paused("destination", state)
        power.off(lab.source)
        run.go("destination", state)
        return run, aftermath

    yield make
    power.on(lab.source)


@pytest.mark.parametrize("state", ["restoring", "restored"])
def test_the_source_dies_with_memory_before_the_commit(
    postcopy: Redis, lab: Lab, tmp_path: Path, state: str
) -> None:
    """Restoring: CRIU waits for pages that will never come, and is not waited for."""
    run, aftermath = postcopy(state)
    power.on(lab.source)
    resolve(run, tmp_path)
    assert run.state("source") == run.state("destination") == "undone", run.story()
    aftermath.check_nowhere()


def test_the_source_dies_with_memory_after_the_commit(postcopy: Redis, lab: Lab, tmp_path: Path) -> None:
    """The process waits for what will never come. A person has it removed."""
    run, aftermath = postcopy("running")
    run.await_resumed("destination")
    power.on(lab.source)
    assert "is lost" in resolve(run, tmp_path, decided=False)
    assert aftermath.copies(lab.destination.look()), run.story()
    resolve(run, tmp_path, "-e", "fence=source-is-dead")
    assert run.state("source") == run.state("destination") == "undone", run.story()
    aftermath.check_nowhere()


@pytest.mark.parametrize("back", [True, False], ids=["comes-back", "stays-dead"])
def test_the_source_dies_when_all_of_its_memory_has_left_it(
    guarded: Guard, lab: Lab, tmp_path: Path, back: bool
) -> None:
    """So little memory that it came before the process was to run: nothing is needed of the source any more."""
    run, aftermath = guarded(
        "command", program=program_of(SMALL), strategy="postcopy", pause={"source": ["restored"]}, limits=QUICK
    )
    run.start()
    run.await_paused("source", "restored")
    images = lab.destination.path(f"{run.images['destination']}/{run.run_id}")
    wait_for("all memory", lambda: lazy_file.all_came(str(images)), 20)
    power.off(lab.source)
    try:
        if not back:
            assert "holds a stopped copy" in resolve(run, tmp_path, decided=False)
            resolve(run, tmp_path, "-e", "fence=source-is-dead")
    finally:
        power.on(lab.source)
    said = resolve(run, tmp_path)
    assert "the process runs on the destination" in said.lower(), said
    counted = lab.destination.path(f"{run.working_dir}/counted")
    before = int(counted.read_text())
    wait_for("the process to count", lambda: int(counted.read_text() or 0) > before, 20)
    aftermath.check("destination", resolved=False)


# --- the destination -------------------------------------------------------------------------------------------------


def test_the_destination_dies_before_there_is_a_copy(redis: Redis, lab: Lab, tmp_path: Path) -> None:
    run, aftermath = redis("source", "frozen")
    power.off(lab.destination)
    power.on(lab.destination)
    run.go("source", "frozen")
    assert run.finish("undone") == "source"
    resolve(run, tmp_path)
    aftermath.check("source", client=True, resolved=False)


def test_the_destination_dies_before_the_commit_and_stays_dead(redis: Redis, lab: Lab, tmp_path: Path) -> None:
    """The source finds out by itself, and needs nobody to go on."""
    run, aftermath = redis("destination", "restored")
    power.off(lab.destination)
    assert run.finish("undone") == "source"
    power.on(lab.destination)
    resolve(run, tmp_path)
    aftermath.check("source", client=True, resolved=False)


@pytest.mark.parametrize("address", [True, False], ids=["address", "no-address"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("role", ["source", "destination"])
@pytest.mark.soak
def test_a_node_dies_whatever_is_moved(
    guarded: Guard, lab: Lab, tmp_path: Path, role: str, kind: str, address: bool
) -> None:
    """Before the commit, with a stopped copy on the destination; post-copy's may be the only one that is not whole."""
    how = {**KINDS[kind], **({"service_address": lab.service_address(4)} if address else {})}
    run, aftermath = guarded("redis" if address else "memory", pause={"source": ["restored"]}, limits=QUICK, **how)
    run.start()
    run.await_paused("source", "restored")
    node = lab.nodes[role]
    power.off(node)
    lost = role == "source" and not kept_whole(run, role)
    assert run.postcopy or not lost, run.story()
    if role == "destination":
        run.go("source", "restored")
    power.on(node)
    resolve(run, tmp_path)
    if lost:
        aftermath.check_nowhere()
    else:
        moved = role == "source"
        aftermath.check("destination" if moved else "source", client=address, resolved=False)


def test_the_destination_dies_after_the_commit(redis: Redis, lab: Lab) -> None:
    """It never wrote down that its copy runs: its guard's word is enough, no person's is needed."""
    run, aftermath = redis("source", "committed")
    power.off(lab.destination)
    power.on(lab.destination)
    run.go("source", "committed")
    run.start_guard("destination")
    aftermath.check("source", client=True, resolved=False)


def test_the_destination_dies_when_the_source_has_begun_to_end(redis: Redis, lab: Lab, tmp_path: Path) -> None:
    """The source was told that all is well, and killed before it wrote down that its own copy is gone."""
    run, aftermath = redis("destination", "running")
    run.node("source").kill(int(run.record("source")["guard"]["pid"]), signal.SIGSTOP)
    run.go("destination", "running")
    run.await_resumed("destination")
    run.kill_guard("source", keeper=True)
    for item in aftermath.copies(lab.source.look()):
        lab.source.kill(item["pid"])
    path = lab.source.path(f"{RUNS}/{run.run_id}/record.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "ending": True}))
    power.off(lab.destination)
    power.on(lab.destination)
    said = resolve(run, tmp_path, "-e", "fence=destination-is-dead")  # would let it run, if there were anything
    assert "died with it" in said and "process runs" not in said, said
    aftermath.check_nowhere()


@pytest.mark.parametrize("back", [True, False], ids=["comes-back", "stays-dead"])
def test_the_destination_dies_after_its_copy_ran(redis: Redis, lab: Lab, tmp_path: Path, back: bool) -> None:
    """The source's copy is older: only a person may let it run. Here nobody had heard from the newer one."""
    run, aftermath = redis("destination", "running")
    lab.destination.link("down")
    run.go("destination", "running")
    run.await_resumed("destination")
    power.off(lab.destination)
    if back:
        power.on(lab.destination)
    said = resolve(run, tmp_path, "-e", "resolve_seconds=1", decided=False)
    assert "-e fence=destination-is-dead" in said
    aftermath.mute_copy("source")
    resolve(run, tmp_path, "-e", "fence=destination-is-dead")
    if not back:
        power.on(lab.destination)
        resolve(run, tmp_path)
    aftermath.check("source", client=True, resolved=False)
