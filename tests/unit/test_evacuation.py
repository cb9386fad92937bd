"""Who goes where, what their guards are told, and how it ended: plain data."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import (
    costs,
    evacuation,
    evacuation_look,
    limits,
)
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.evacuation import Line, Planner
from tests.conftest import ROOT
from tests.unit.test_preflight import GIB, good

MIB = 1 << 20
OPTIONS: dict[str, Any] = yaml.safe_load((ROOT / "roles/migration/meta/argument_specs.yml").read_text())
DEFAULTS = {
    name: option.get("default") for name, option in OPTIONS["argument_specs"]["main"]["options"].items()
} | {"limits": dict(limits.DEFAULTS), "ghost_limit": 1 << 20}


def process(name: str, pid: int, size: int, priority: int = 0, **params: Any) -> dict[str, Any]:
    """As criu_evacuate state=inspected returns one."""
    tree = copy.deepcopy(good()["tree"])
    memory = {"pages": size, "rss": size, "lazy": size}
    tree.update(pid=pid, procs=[{"pid": pid, "start": 77, "stopped_before": False}], memory=memory)
    tree["tasks"][0].update(pid=pid, tids=[pid], pgid=pid, sid=pid)
    kept = {name: value for name, value in DEFAULTS.items() if name not in ("workload", "results_dir")}
    return {
        "name": name, "priority": priority, "by": {"pid": pid, "start": 77, "boot_id": "b"}, "pid": pid, "start": 77,
        "working_dir": f"/srv/{name}", "since": None, "tree": tree, "params": {**kept, **params},
    }  # fmt: skip


def offer(host: str, processes: list[dict[str, Any]], available: int = 6 * GIB) -> dict[str, Any]:
    """As criu_evacuate state=offered returns it."""
    facts = good()
    node = {**facts["destination"], "hostname": host, "identity": {**facts["source"]["identity"], "boot_id": host}}
    node["memory"] = {"total": 8 * GIB, "available": available}
    names = [item["name"] for item in processes]
    there = {name: {**facts["there"], "free_port": 27000 + place} for place, name in enumerate(names)}
    return {"node": node, "there": there, "ports": {name: 27000 + place for place, name in enumerate(names)}}


def inspected(processes: list[dict[str, Any]]) -> dict[str, Any]:
    return {"node": good()["source"], "processes": processes, "problems": [], "registered": "0123"}


def plan(processes: list[dict[str, Any]], seconds: float = 0.0, **available: int) -> evacuation.Plan:
    """For destinations with so much memory, over a link of which nothing is known."""
    offers = {host.replace("_", "-"): offer(host, processes, size) for host, size in available.items()}
    reached = {"node-1": "10.0.0.1", **dict.fromkeys(offers, "10.0.0.2")}
    tokens = [f"{number:04x}" for number in range(len(processes))]
    return Planner(inspected(processes), offers, "node-1", reached, 1.8e9, tokens, seconds).plan()


def test_priority_then_the_smallest() -> None:
    found = plan(
        [process("big", 11, 90 * MIB), process("late", 12, MIB, -1), process("small", 13, 9 * MIB),
         process("first", 14, 500 * MIB, 5)], node_2=6 * GIB,
    )  # fmt: skip
    assert [run.process["name"] for run in found.runs] == ["first", "small", "big", "late"]
    assert found.refused == [] and found.at_once == evacuation.AT_ONCE
    assert evacuation.told(found, "node-1")[1] == "small: 9.0 MiB from node-1 to node-2, full + lazy restore"


def test_the_planner_says_who_is_late_and_they_go_last() -> None:
    """2 GB and 1.5 GB need 20 s and 15 s at 110 MB/s: in 30 s the smaller one and the small one can be saved."""
    sizes = {"large": 2000, "middle": 1500, "small": 100}
    processes = [process(name, pid, size * 10**6) for pid, (name, size) in enumerate(sizes.items(), 20)]
    found = plan(processes, 30.0, node_2=64 * GIB)
    assert [run.process["name"] for run in found.runs] == ["small", "middle", "large"]
    assert len(found.warnings) == 1 and found.warnings[0].startswith("large: would end at ")
    assert " s of 30 s" in evacuation.told(found, "node-1")[0]
    assert plan(processes, 120.0, node_2=64 * GIB).warnings == []


def test_the_links_speed_is_that_of_earlier_moves() -> None:
    processes = [process("a", 20, MIB)]
    source = inspected(processes)
    source["node"]["links"] = {"10.0.0.2": 5e6, "10.0.0.3": 1e6}
    planner = Planner(source, {"node-2": offer("node-2", processes)}, "node-1", {"node-2": "10.0.0.2"}, 1.8e9, ["0"])
    assert planner.bandwidth() == 5e6
    source["node"]["links"] = {}
    assert planner.bandwidth() == costs.UNKNOWN


@pytest.mark.parametrize(
    ("asked", "strategy", "expected"),
    [("auto", "precopy", "full"), ("precopy", "precopy", "precopy"), ("auto", "full", "full")],
)
def test_no_rounds_but_where_they_were_asked_for(asked: str, strategy: str, expected: str) -> None:
    result = {"plan": {"strategy": strategy, "lazy_restore": True, "reason": "r"}}
    found = evacuation.without_rounds(result, {"migration_strategy": asked})["plan"]
    assert (found["strategy"], found["lazy_restore"]) == (expected, True)


def test_every_run_has_names_and_a_port_of_its_own() -> None:
    found = plan([process(name, number, MIB) for number, name in enumerate("abc", 20)], node_2=6 * GIB)
    assert [run.migration["run_id"] for run in found.runs] == [
        f"{name}-20270115-080000-{number:04x}" for number, name in enumerate("abc")
    ]
    assert [run.port for run in found.runs] == [27000, 27001, 27002]
    assert found.runs[0].migration["workload"] == {"name": "process", "params": {"pid": 20}}
    assert found.runs[0].migration["working_dir"] == "/srv/a"
    assert found.runs[0].migration["deadline"] is None, "it begins with the notice"


def test_two_nodes_share_the_load() -> None:
    found = plan([process(name, number, 100 * MIB) for number, name in enumerate("abcd", 20)], node_2=GIB, node_3=GIB)
    assert [run.host for run in found.runs] == ["node-2", "node-3", "node-2", "node-3"]


def test_what_was_placed_before_takes_its_memory() -> None:
    """Each of these needs 256 MiB and its images; a node of 1.5 GiB takes three and says why no more."""
    processes = [process(name, number, 256 * MIB) for number, name in enumerate("abcdef", 20)]
    found = plan(processes, node_2=int(1.5 * GIB))
    assert [run.process["name"] for run in found.runs] == ["a", "b", "c"]
    assert [item.name for item in found.refused] == ["d", "e", "f"]
    assert "of memory are available" in found.refused[0].message
    assert len(plan(processes, node_2=int(1.5 * GIB), node_3=int(1.5 * GIB)).runs) == 6


def test_one_that_cannot_be_moved_hinders_no_other() -> None:
    bad = process("bad", 21, MIB)
    bad["tree"]["tasks"][0]["tracers"] = [{"pid": 9, "name": "gdb", "command": "gdb"}]
    found = plan([bad, process("fine", 22, MIB)], node_2=GIB)
    assert [run.process["name"] for run in found.runs] == ["fine"]
    assert "traced by 9 (gdb)" in found.refused[0].message


def test_no_destination_at_all() -> None:
    found = plan([process("a", 20, MIB)])
    assert not found.runs and "No destination was reached" in found.refused[0].message


def test_what_a_process_asks_of_a_destination() -> None:
    asked = evacuation_look.wanted(process("a", 20, MIB, service_address="10.0.0.9/24", guard_port_range="27000-27100"))
    assert asked["wanted"] == {
        "service_address": "10.0.0.9", "service_interface": "", "working_dir": "/srv/a", "ports": [27000, 27100]
    }  # fmt: skip


def test_guards_that_wait_for_a_notice() -> None:
    one = evacuation.armed_for_notice({"role": "source"}, {"link": 60.0, "dump": 300.0, "peer": 600.0})
    assert one == {"role": "source", "limits": {"link": evacuation.LINK, "dump": 300.0, "peer": evacuation.PEER}}
    asked = {"link": 3.0, "peer": 9999.0}
    other = evacuation.armed_for_notice({"role": "destination", "memory": 9, "ports": [1, 9]}, asked, 27004)
    assert other["limits"]["peer"] == 9999.0
    assert (other["ports"], other["memory"], other["limits"]["link"]) == ([27004, 27004], 0, 3.0)


# --- how it ended --------------------------------------------------------------------------------------------------


def metrics(status: str, verified: bool | None = True, **more: Any) -> dict[str, Any]:
    return {
        "status": status, "integrity": {"verified": verified}, "marks": {"done": 112.5},
        "downtime": {"frozen": 1.5}, "process": {"node": "node-2" if status == "migrated" else "node-1"}, **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("found", "outcome", "why"),
    [
        (metrics("migrated"), "saved", ""), (metrics("migrated", None), "saved", ""),
        (metrics("migrated", False), "not saved", "Its proof does not hold."),
        (metrics("migrated", None, error={"message": "did not answer"}), "saved", "did not answer"),
        (metrics("rolled_back", error={"message": "no memory"}), "not saved", "no memory"),
        (metrics("failed"), "not saved", "It was not started."),
    ],
)  # fmt: skip
def test_lines(found: dict[str, Any], outcome: str, why: str) -> None:
    moved = found["status"] == "migrated"
    end = evacuation.Ending("saved" if moved else "not saved", "node-2" if moved else "node-1", [])
    line = evacuation.line("web", found, 100.0, end)
    assert (line.outcome, line.why) == (outcome, why)
    assert line.seconds == (12.5 if moved else None)


NOBODY: dict[str, Any] = {"msg": "no route\nmore"}
HERE, THERE = {"alive": [20]}, {"alive": [21]}


def told(state: str, frozen: bool = True, **more: Any) -> dict[str, Any]:
    return {"record": {"state": state, "times": {"freezing": 1} if frozen else {}}, **more}


@pytest.mark.parametrize(
    ("source", "destination", "expected"),
    [
        (told("committed"), {"record": None}, True), (told("committed"), NOBODY, True),
        (NOBODY, told("running"), True), (NOBODY, told("restored"), True), (NOBODY, told("done"), False),
        (told("undone"), told("receiving"), False), (told("armed", False), told("armed"), False),
        (NOBODY, told("armed"), False), (NOBODY, NOBODY, True), ({"record": None}, {"record": None}, False),
    ],
)  # fmt: skip
def test_nobody_knows_where_it_is(source: dict[str, Any], destination: dict[str, Any], expected: bool) -> None:
    assert evacuation.is_open(source, destination) is expected


@pytest.mark.parametrize(
    ("status", "source", "destination", "outcome", "node", "note"),
    [
        ("migrated", told("done"), {**told("done"), **THERE}, "saved", "node-2", None),
        ("migrated", NOBODY, {**told("done"), **THERE}, "saved", "node-2", None),
        # It went there, and there went its node
        ("migrated", told("done"), NOBODY, "unknown", "", "node-2 cannot be asked: no route"),
        ("migrated", told("done"), told("done", rebooted=True, alive=[]), "not saved", "", "it died there"),
        ("migrated", told("done"), told("done", alive=[]), "unknown", "", "has ended there since"),
        ("rolled_back", {**told("undone"), **HERE}, NOBODY, "not saved", "node-1",
         "removed by ansible-playbook playbooks/resolve.yml -e run_id=r-1"),
        ("rolled_back", {**told("undone"), **HERE}, told("undone"), "not saved", "node-1", None),
        ("rolled_back", {**told("undone"), **HERE}, told("restored"), "not saved", "node-1", "What node-2 still holds"),
        ("rolled_back", told("undone", alive=[]), told("undone"), "not saved", "", "has ended on node-1 since"),
        ("failed", {**told("undone", False), **HERE}, told("undone"), "not saved", "node-1", None),
        ("failed", told("undone", False, alive=[]), told("undone"), "not saved", "", None),
        ("failed", {**told("armed", False), **HERE}, told("armed"), "not saved", "node-1", None),
        ("failed", NOBODY, told("armed"), "not saved", "", "node-1 cannot be asked: no route"),
        ("failed", NOBODY, told("running"), "unknown", "", "The record on node-2 says running."),
        ("failed", told("committed"), NOBODY, "unknown", "", "resolve.yml -e run_id=r-1"),
        ("failed", NOBODY, {}, "unknown", "", "node-2 was not asked."),
    ],
)  # fmt: skip
def test_what_both_nodes_tell_together(
    status: str, source: dict[str, Any], destination: dict[str, Any], outcome: str, node: str, note: str | None
) -> None:
    hosts = {"source": "node-1", "destination": "node-2"}
    found = evacuation.ending(status, source, destination, hosts, "r-1")
    assert (found.outcome, found.node) == (outcome, node), found
    assert note in "\n".join(found.notes) if note else not found.notes


def test_the_destination_has_told_the_source_that_it_is_clean() -> None:
    source = {**told("undone"), **HERE}
    source["record"]["destination_undone"] = True
    assert not evacuation.ending("rolled_back", source, NOBODY, {"source": "a", "destination": "b"}, "r-1").notes


def test_the_table() -> None:
    lines = [
        Line("web", "saved", "node-2", 12.5, 0.123, True, ""),
        Line("database", "not saved", "node-1", None, None, None, "no memory\nremedy: more"),
    ]
    text = evacuation.table(lines, 17.25)
    assert text.splitlines()[0] == "Evacuation: 1 of 2 saved, 17.2 s were left"
    assert "  web       saved       12.50 s    0.12 s  whole     node-2" in text.splitlines()
    assert "            no memory" in text.splitlines()
