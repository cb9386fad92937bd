"""Many guards of one node: laid out without a start, started in turn, watched; without a guard that does anything."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import (
    batch,
    batch_collect,
    control,
    evacuation_look,
    guard,
    inspect_destination,
    net,
    proc,
    record,
    registry,
    uncollected,
    workload,
)
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.batch import Batch, Run
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.errors import MigrationError

TLS = {"ca": "", "cert": "", "key": ""}
LIMIT = 20.0


@pytest.fixture(autouse=True)
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node of its own, on which a guard that is started ends at once."""
    monkeypatch.setattr(record, "RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(registry, "FOLDER", str(tmp_path / "registry"))
    monkeypatch.setattr(control, "ARMING", str(tmp_path / "arming.lock"))
    monkeypatch.setattr(net, "unmute", lambda _run_id: None)
    monkeypatch.setattr(guard, "start", lambda *_words: ["true"])
    monkeypatch.setattr(batch, "LOOK", 0.05)
    return tmp_path


def config(run_id: str, pid: int = 4242, role: str = "source", **more: Any) -> dict[str, Any]:
    return {"run_id": run_id, "role": role, "pid": pid, "start": 99, "images_dir": f"/none/{run_id}", **more}


def arm(*configs: dict[str, Any]) -> bool:
    return batch.arm(configs, {item["run_id"]: TLS for item in configs})


def states(*names: str) -> list[str]:
    return [control.load(name).state for name in names]


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# --- standing by ---------------------------------------------------------------------------------------------------


def test_standing_by_is_a_directory_and_nothing_else() -> None:
    assert arm(config("a-1"), config("b-1", 4243))
    assert batch.stands_by("a-1") and not control.alive("a-1")
    folder = record.run_dir("a-1")
    assert os.stat(folder).st_mode & 0o777 == 0o700 and os.stat(folder + "/tls/key.pem").st_mode & 0o777 == 0o600


def test_a_new_look_replaces_what_stood_by() -> None:
    arm(config("a-1"), config("b-1", 4243))
    assert arm(config("a-2"), config("b-1", 4243))
    assert record.runs() == ["a-2", "b-1"]
    assert not arm(config("a-2"), config("b-1", 4243)), "the same again changes nothing"
    assert arm() and record.runs() == []


def test_what_has_begun_is_never_forgotten() -> None:
    arm(config("a-1"))
    control.start("a-1", "python3")
    assert not batch.stands_by("a-1") and not batch.forget("a-1")
    arm()
    assert record.runs() == ["a-1"]


def test_a_migration_that_is_just_being_armed_is_left_alone() -> None:
    control.arm(config("other-1"), TLS)
    arm(config("a-1", 4243))
    assert record.runs() == ["a-1", "other-1"]


def test_a_destination_that_was_rebooted_meanwhile_has_lost_nothing() -> None:
    arm(config("a-1", role="destination"))
    control.load("a-1").note(boot_id="of the boot before")
    batch.begin("a-1", "python3")
    assert control.load("a-1").data["boot_id"] == record.boot_id()
    control.load("a-1").note(boot_id="of the boot before")
    batch.begin("a-1", "python3")
    assert control.load("a-1").data["boot_id"] == "of the boot before", "it has begun: its copy died with that boot"


# --- in turn -------------------------------------------------------------------------------------------------------


def runs(*names: str, strategy: str = "full") -> list[Run]:
    arm(*(config(name, 5000 + number, strategy=strategy) for number, name in enumerate(names)))
    return [Run(name, name) for name in names]


def begun(names: list[str]) -> list[str]:
    return [name for name in names if control.load(name).data.get("begun")]


def test_so_many_send_at_a_time_in_this_order() -> None:
    names = ["c", "a", "b", "d"]
    turns = Batch(runs(*names), 2, "python3")
    assert not turns.step() and begun(names) == ["c", "a"]
    control.load("a").enter("frozen")
    turns.step()
    assert begun(names) == ["c", "a"], "its pages are on their way"
    control.load("a").enter("dumped")
    turns.step()
    assert begun(names) == ["c", "a", "b"], "its copy is being restored, which needs no link"
    for name in ("a", "b", "c"):
        control.load(name).enter("done")
    assert not turns.step() and begun(names) == names
    control.load("d").enter("undone")
    assert turns.step()


def test_memory_that_follows_needs_the_link_to_the_end() -> None:
    turns = Batch(runs("a", "b", strategy="postcopy"), 1, "python3")
    turns.step()
    control.load("a").enter("committed")
    turns.step()
    assert begun(["a", "b"]) == ["a"]
    control.load("a").enter("done")
    turns.step()
    assert begun(["a", "b"]) == ["a", "b"]


def test_one_that_cannot_begin_does_not_keep_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "PATIENCE", 0.0)
    turns = Batch(runs("a", "b"), 1, "python3")
    turns.step()
    turns.step()
    assert begun(["a", "b"]) == ["a", "b"]


def test_all_are_carried_out_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever plays the guards ends each run as soon as it has begun."""
    names = ["a", "b", "c"]
    listed = runs(*names)

    def play() -> None:
        for place, name in enumerate(names):
            until(lambda place=place: len(begun(names)) > place)  # type: ignore[misc]
            control.load(name).enter("undone" if name == "b" else "done")

    thread = threading.Thread(target=play)
    thread.start()
    found = batch.carry_out(listed, 1, LIMIT, "python3")
    thread.join()
    assert {name: item["record"]["state"] for name, item in found.items()} == {"a": "done", "b": "undone", "c": "done"}


def test_a_guard_that_ends_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "RESTARTS", 2)
    found = batch.carry_out(runs("a"), 1, LIMIT, "python3")
    assert found["a"]["restarts"] == 3 and "ends again and again" in found["a"]["error"]["message"]


def test_the_wait_has_an_end_and_what_was_not_begun_is_told() -> None:
    found = batch.carry_out(runs("a", "c"), 1, 0.2, "python3")
    assert found["a"]["record"]["state"] == "armed" and found["c"] == {}


def test_a_process_that_another_run_moves() -> None:
    arm(config("a", 5000), config("b", 5001))
    control.arm(config("other", 5000), TLS)
    control.start("other", "python3")
    turns = Batch([Run("a", "a"), Run("b", "b")], 1, "python3")
    turns.step()
    assert "The run other moves this process already" in turns.errors["a"]["message"] and begun(["b"]) == ["b"]


def test_a_stalled_run_is_not_waited_for_without_end() -> None:
    turns = Batch(runs("a"), 1, "python3")
    turns.step()
    rec = control.load("a")
    rec.enter("committed")
    rec.note(stalled={"message": "m", "remedy": "r", "since": time.time() - batch.STALL - 1})
    assert turns.step()


def test_rounds_learn_how_much_time_is_left() -> None:
    """Who was armed long ago counts from then on."""
    arm(config("a", 5000, pre_copy={"iterations": 8, "left": None}), config("b", 5001))
    rec = control.load("a")
    rec.note(times={"armed": time.time() - 1000})
    Batch([Run("a", "a"), Run("b", "b")], 2, "python3", left=30.0).step()
    assert guard.read_config("a")["pre_copy"]["left"] == pytest.approx(1030, abs=5)
    assert "pre_copy" not in guard.read_config("b") and begun(["a", "b"]) == ["a", "b"]


def test_listening_is_awaited_and_errors_are_told() -> None:
    arm(*(config(name, role="destination", ports=[1, 1]) for name in ("a", "b")))
    control.load("b").note(guard_error={"message": "no port", "remedy": "r", "details": {}})
    found = batch.listen(["a", "b", "unknown"], "python3", 0.05)
    assert "did not begin to listen" in found["a"]["error"]["message"]
    assert found["b"]["error"]["message"] == "no port" and "no record" in found["unknown"]["error"]["message"]


def test_one_that_has_ended_before_it_was_looked_at_had_listened() -> None:
    """With ten on a busy node the first has moved when the last is started."""
    arm(config("a", role="destination", ports=[1, 1]))
    control.start("a", "python3")
    control.load("a").enter("done", port=27000)
    assert batch.listen(["a"], "python3", 20.0) == {"a": {"port": 27000}}


# --- looks ---------------------------------------------------------------------------------------------------------


def test_ports_that_stand_by_are_not_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    arm(config("a", role="destination", ports=[27000, 27000]), config("b", 1, ports=[1, 2]))
    assert evacuation_look.armed_ports() == {27000}
    monkeypatch.setattr(inspect_destination, "free_port", lambda first, _last: first)
    assert evacuation_look.next_port(27000, 27999, {27000, 27001}) == 27002
    assert evacuation_look.next_port(27000, 27001, {27000, 27001}) == 0


# --- afterwards ----------------------------------------------------------------------------------------------------


def me() -> proc.Proc:
    found = proc.stat(os.getpid())
    assert found is not None
    return proc.Proc(os.getpid(), found[2])


def entry(name: str) -> dict[str, Any]:
    by = {"pid": 1, "start": 2, "boot_id": "of the source"}
    return {"name": name, "priority": 3, "by": by, "params": {}}


def test_the_entry_follows_the_process() -> None:
    """On the destination it is written, for the process as it is there; on the source it goes."""
    arm(config("a", role="destination"))
    control.load("a").enter("done", procs=[me().as_dict()])
    registry.put(entry("gone"))
    arm(config("b"))
    control.load("b").enter("done")
    told = [{"run_id": run_id, "name": name, "entry": entry(name)} for run_id, name in (("a", "here"), ("b", "gone"))]
    assert batch_collect.remove(told) == {"changed": True, "kept": [], "problems": []}
    (left,), _problems = registry.entries()
    assert left["name"] == "here" and registry.locate(left).pid == os.getpid() and left["priority"] == 3
    assert sorted(os.listdir(record.run_dir("a"))) == ["record.json"]


def test_an_entry_that_leads_to_another_process_by_now_stays() -> None:
    """Registered anew under that name, or started anew under that PID file, while nobody collected the run."""
    alive = {"pid": me().pid, "start": me().start, "boot_id": record.boot_id()}
    registry.put({**entry("again"), "by": alive})
    registry.put({**entry("other"), "by": {"pid": 1, "start": 3, "boot_id": "of the source"}})
    for name, by in (("again", alive), ("other", entry("other")["by"])):
        batch_collect.drop(name, {"by": by})
    assert sorted(item["name"] for item in registry.entries()[0]) == ["again", "other"]


def test_an_entry_that_cannot_follow_is_told() -> None:
    """Its process is registered on the destination already, under another name."""
    arm(config("a", role="destination"))
    control.load("a").enter("done", procs=[me().as_dict()])
    registry.put({**entry("first"), "by": {"pidfile": "/run/x"}})
    told = {"run_id": "a", "name": "second", "entry": {**entry("second"), "by": {"pidfile": "/run/x"}}}
    (problem,) = batch_collect.remove([told])["problems"]
    assert problem.startswith("second is not registered here: This process is registered as first already")


def test_what_has_not_ended_is_kept_and_told() -> None:
    arm(config("a"), config("b", 1))
    control.load("a").enter("committed")
    told = [{"run_id": name, "name": name, "entry": entry(name)} for name in ("a", "b", "c")]
    assert batch_collect.remove(told) == {"changed": True, "kept": ["a"], "problems": []}
    assert record.runs() == ["a"] and registry.entries()[0] == []


def test_collected_with_its_proof_where_the_process_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "verify_process", lambda pid, _limit: {"verified": True, "pid": pid})
    arm(config("a", role="destination"), config("b", 1, role="destination"), config("c", 2, role="destination"))
    control.load("a").enter("done", procs=[me().as_dict()])
    control.load("b").enter("undone", procs=[me().as_dict()])
    found = batch_collect.collect([{"run_id": name, "pid": 0, "since": None} for name in "abc"], {}, "python3")
    assert found["a"]["verified"] == {"verified": True, "pid": os.getpid()}
    assert "verified" not in found["b"] and found["b"]["record"]["state"] == "undone"
    assert found["c"]["never_began"] is True


def test_one_that_was_undone_before_it_was_stopped_is_seen_where_it_runs() -> None:
    for name, pid in (("a", os.getpid()), ("b", 1 << 22)):
        arm(config(name, pid))
        control.load(name).enter("undone")
        found = batch_collect.collect([{"run_id": name, "pid": pid, "since": None}], {}, "python3")[name]
        assert (os.getpid() in found["alive"]) == (name == "a") and bool(found["alive"]) == (name == "a")


def test_a_proof_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_pid: int, _limit: float) -> dict[str, Any]:
        raise MigrationError("it did not answer")

    monkeypatch.setattr(workload, "verify_process", fails)
    arm(config("a", role="destination"))
    control.load("a").enter("done", procs=[me().as_dict()])
    found = batch_collect.collect([{"run_id": "a"}], {}, "python3")["a"]
    assert found["proof_error"]["message"] == "it did not answer" and "verified" not in found


def test_the_heartbeat_around_the_freeze(node: Path) -> None:
    import struct

    stamps = [100.0, 100.5, 101.0, 104.0, 104.5]
    (node / "heartbeat.bin").write_bytes(struct.pack("<5d", *stamps))
    arm(config("a", role="destination", working_dir=str(node)))
    rec = control.load("a")
    rec.note(times={**rec.data["times"], "resumed": 103.9})
    source = {"times": {"stopping": 101.0, "frozen": 101.1}, "clock": {"offset": 0.0}}
    assert batch_collect.heartbeat(rec, source, None)["service"]["seconds"] == 3.0
    assert batch_collect.heartbeat(rec, {"times": {}}, None) == {}


# --- whose control node has died -----------------------------------------------------------------------------------


def planned(name: str, pid: int) -> dict[str, Any]:
    return {uncollected.PLANNED: {"run_id": name, "name": name, "pid": pid, "entry": entry(name)}}


def test_who_has_begun_and_was_not_collected() -> None:
    arm(config("a", 1, **planned("a", 1)), config("b", 2, **planned("b", 2)), config("c", 3, **planned("c", 3)),
        config("d", 4))  # fmt: skip
    for name, state in (("a", "done"), ("b", "frozen"), ("d", "done")):
        control.start(name, "python3")
        control.load(name).enter(state)
    assert [(run["name"], run["state"]) for run in uncollected.runs()] == [("a", "done"), ("b", "frozen")]
    assert batch_collect.remove([uncollected.runs()[0]])["changed"]
    assert [run["name"] for run in uncollected.runs()] == ["b"]


def test_whose_process_is_on_its_way_is_not_planned_again() -> None:
    gone = {"pid": 1, "state": "done", "entry": entry("a")}
    assert uncollected.taken(entry("a"), [gone])
    assert not uncollected.taken(entry("a"), [{**gone, "state": "undone"}])
    assert not uncollected.taken({**entry("a"), "by": {"pidfile": "/run/a"}}, [gone])


def test_one_that_was_started_anew_since_is_another(node: Path) -> None:
    (node / "pid").write_text(f"{os.getpid()}\n")
    kept = {**entry("a"), "by": {"pidfile": str(node / "pid")}}
    assert not uncollected.taken(kept, [{"pid": 4242, "state": "done", "entry": kept}])
    assert uncollected.taken(kept, [{"pid": os.getpid(), "state": "frozen", "entry": kept}]), "it stands still there"


def test_what_has_ended_is_not_started_again() -> None:
    arm(config("a", 1), config("b", 2, role="destination", ports=[1, 1]))
    control.load("a").enter("done")
    control.load("b").enter("undone")
    found = batch.carry_out([Run("a", "a")], 1, LIMIT, "python3")
    assert found["a"]["record"]["state"] == "done" and found["a"]["restarts"] == 0
    assert batch.listen(["b"], "python3", LIMIT) == {"b": {"port": 0}}
    assert not any(control.load(name).data.get("begun") for name in "ab")


def test_whoever_ends_such_a_run_moves_the_entry_too() -> None:
    """As playbooks/resolve.yml does, which knows the run alone."""
    arm(config("a", role="destination", **planned("here", 1)), config("b", 2, **planned("gone", 1)), config("c", 3))
    registry.put(entry("gone"))
    control.load("a").enter("done", procs=[me().as_dict()])
    control.load("b").enter("done")
    control.load("c").enter("undone")
    assert [batch_collect.remove_one(name) for name in "abc"] == [(True, [])] * 3
    (left,) = registry.entries()[0]
    assert left["name"] == "here" and registry.locate(left).pid == os.getpid()
    assert batch_collect.remove_one("a") == (False, []), "twice changes nothing"
