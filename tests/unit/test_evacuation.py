"""Who goes where, what their guards are told, and how it ended: plain data, and the actions as Ansible runs them."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
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
from tests.conftest import ROOT, Run
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
        (metrics("migrated", False), "not saved", "its proof does not hold"),
        (metrics("migrated", None, error={"message": "did not answer"}), "saved", "did not answer"),
        (metrics("rolled_back", error={"message": "no memory"}), "not saved", "no memory"),
        (metrics("failed"), "not saved", "it was not started"),
        (metrics("failed", open=True, error={"message": "lost"}), "unknown", "lost"),
    ],
)  # fmt: skip
def test_lines(found: dict[str, Any], outcome: str, why: str) -> None:
    line = evacuation.line("web", found, 100.0)
    assert (line.outcome, line.why) == (outcome, why)
    assert line.seconds == (12.5 if found["status"] == "migrated" else None)


@pytest.mark.parametrize(
    ("source", "destination", "expected"),
    [
        ({"state": "committed", "times": {"freezing": 1}}, {}, True),
        ({}, {"state": "running"}, True), ({}, {"state": "restored"}, True), ({}, {"state": "done"}, False),
        ({"state": "undone", "times": {"freezing": 1}}, {"state": "receiving"}, False),
        ({"state": "armed", "times": {}}, {"state": "armed"}, False), ({}, {}, False),
    ],
)  # fmt: skip
def test_nobody_knows_where_it_is(source: dict[str, Any], destination: dict[str, Any], expected: bool) -> None:
    assert evacuation.is_open({"record": source}, {"record": destination}) is expected


def test_the_table() -> None:
    lines = [
        Line("web", "saved", "node-2", 12.5, 0.123, True, ""),
        Line("database", "not saved", "node-1", None, None, None, "no memory\nremedy: more"),
    ]
    text = evacuation.table(lines, 17.25)
    assert text.splitlines()[0] == "Evacuation: 1 of 2 saved, 17.2 s were left"
    assert "  web       saved       12.50 s    0.12 s  whole     node-2" in text.splitlines()
    assert "            no memory" in text.splitlines()


# --- the actions ---------------------------------------------------------------------------------------------------


def play(ansible: Run, tmp_path: Path, *tasks: dict[str, Any]) -> Any:
    """Run tasks on node-1 of an inventory; returns the process."""
    hosts = {"node-1": {"ansible_host": "10.0.0.1"}, "node-2": {"ansible_host": "10.0.0.2"}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
    (tmp_path / "book.yml").write_text(yaml.safe_dump([{"hosts": "node-1", "gather_facts": False, "tasks": tasks}]))
    return ansible("ansible-playbook", "-i", str(tmp_path / "hosts.yml"), str(tmp_path / "book.yml"))


def planned(ansible: Run, tmp_path: Path, processes: list[dict[str, Any]]) -> dict[str, Any]:
    """What migration_evacuation returns."""
    out = tmp_path / "plan.json"
    arguments = {
        "source": inspected(processes), "offers": {"node-2": offer("node-2", processes)}, "results_dir": str(tmp_path),
    }  # fmt: skip
    done = play(
        ansible, tmp_path, {"migration_evacuation": arguments, "register": "planned"},
        {"ansible.builtin.copy": {"content": "{{ planned | to_json }}", "dest": str(out)}, "delegate_to": "localhost"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_guards_are_told_what_the_role_tells_those_of_one(ansible: Run, tmp_path: Path) -> None:
    found = planned(ansible, tmp_path, [process("web", 20, 64 * MIB, tcp_close=True, transfer="rsync")])
    (one,), (other,) = found["configs"]["node-1"], found["configs"]["node-2"]
    run_id = found["runs"][0]["run_id"]
    assert one["run_id"] == other["run_id"] == run_id
    assert (one["role"], one["pid"], one["start"], one["peer"]) == (
        "source", 20, 77, {"host": "10.0.0.2", "port": 27000}
    )  # fmt: skip
    assert (other["role"], other["ports"], other["memory"]) == ("destination", [27000, 27000], 0)
    assert one["images_dir"].endswith(f"/{run_id}") and one["roots"] == ["/srv/web"]
    assert one["options"]["tcp_close"] is True and one["transfer"] == "rsync"
    assert found["by_host"]["node-2"][0]["entry"]["by"] == {"pid": 20, "start": 77, "boot_id": "b"}
    assert found["lines"] == ["web: 64.0 MiB from node-1 to node-2, full + lazy restore"]


def collected(state: str, role: str, **more: Any) -> dict[str, Any]:
    times = {"armed": 99.0, "stopping": 101.0, "freezing": 101.0, "frozen": 101.1, "dumped": 102.0, "done": 103.5}
    if role == "destination":
        times = {"armed": 99.0, "restored": 102.5, "resumed": 103.0}
    return {
        "record": {"state": state, "role": role, "times": times, "procs": [{"pid": 20, "start": 77}], **more},
        "logs": {"guard.log": f"of the {role}"}, "now": 105.0,
    }  # fmt: skip


def evacuated(ansible: Run, tmp_path: Path, found: dict[str, Any], **answers: Any) -> dict[str, Any]:
    out = tmp_path / "told.json"
    arguments = {"plan": found, "results_dir": str(tmp_path / "results"), **answers}
    done = play(
        ansible, tmp_path, {"migration_evacuated": arguments, "register": "told"},
        {"ansible.builtin.copy": {"content": "{{ told | to_json }}", "dest": str(out)}, "delegate_to": "localhost"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Evacuation: " in done.stdout.partition("PLAY RECAP")[2], "the table is shown last"
    told: dict[str, Any] = json.loads(out.read_text())
    return told


def test_each_process_gets_its_folder_and_all_a_table(ansible: Run, tmp_path: Path) -> None:
    found = planned(ansible, tmp_path, [process("good", 20, MIB), process("kept", 21, 2 * MIB)])
    good_run, kept_run = (run["run_id"] for run in found["runs"])
    for run in found["runs"]:
        run["migration"]["results_dir"] = str(tmp_path / "results")
    proof = {"verified": True, "method": "every block", "details": {}}
    error = {"message": "It would not fit.", "remedy": "", "phase": "restored", "details": {}}
    told = evacuated(
        ansible, tmp_path, found,
        started={
            "runs": {}, "began": 98.0, "now": 104.0, "notice": {"seen": 100.0, "ends": 130.0},
            "entries": ["good", "kept", "newcomer"],
        },
        collected={
            "node-1": {"runs": {
                good_run: collected("done", "source"), kept_run: collected("undone", "source", error=error),
            }},
            "node-2": {"runs": {good_run: {**collected("done", "destination"), "verified": proof}, kept_run: {}}},
        },
    )  # fmt: skip
    by_name = {line["name"]: line for line in told["lines"]}
    assert (by_name["good"]["outcome"], by_name["good"]["seconds"], by_name["good"]["verified"]) == ("saved", 3.5, True)
    assert (by_name["kept"]["outcome"], by_name["kept"]["why"]) == ("not saved", "It would not fit.")
    assert "registered after the last look" in by_name["newcomer"]["why"]
    assert told["saved"] is False and "Evacuation: 1 of 3 saved, 26.0 s were left" in told["summary"]
    folders = sorted(path.name[:4] for path in (tmp_path / "results").iterdir() if path.is_dir())
    assert folders == ["good", "kept"]
    # Named after the notice, which came at 100 s, not after the look before it
    (metrics_file,) = (tmp_path / "results").glob("good_19700101_000140/metrics.json")
    written = json.loads(metrics_file.read_text())
    assert (written["status"], written["deadlines"]["gcp"]["used"], written["run_id"]) == ("migrated", 3.5, good_run)
    assert not told.get("warnings"), "they fit the schema"
    (document,) = (tmp_path / "results").glob("evacuation_*.json")
    assert json.loads(document.read_text())["left"] == 26.0


def test_a_source_that_is_gone_by_then(ansible: Run, tmp_path: Path) -> None:
    """It was switched off after the last process had gone: what the destination says counts."""
    found = planned(ansible, tmp_path, [process("good", 20, MIB), process("half", 21, 2 * MIB)])
    good_run, half_run = (run["run_id"] for run in found["runs"])
    gone = {"unreachable": True, "msg": "no route"}
    told = evacuated(
        ansible, tmp_path, found, started=gone,
        collected={
            "node-1": gone,
            "node-2": {"runs": {
                good_run: collected("done", "destination"), half_run: collected("restored", "destination"),
            }},
        },
    )  # fmt: skip
    assert {line["name"]: line["outcome"] for line in told["lines"]} == {"good": "saved", "half": "unknown"}
    assert told["saved"] is False


def test_why_a_destination_did_not_listen_is_told(ansible: Run, tmp_path: Path) -> None:
    found = planned(ansible, tmp_path, [process("one", 20, MIB)])
    run_id = found["runs"][0]["run_id"]
    silence = {"message": "No word from the destination's guard for 15 s.", "remedy": "", "details": {}}
    error = {"message": "No port of 27000-27000 is free.", "remedy": "r", "details": {}}
    told = evacuated(
        ansible, tmp_path, found,
        started={"runs": {run_id: {"record": collected("undone", "source", error=silence)["record"]}}, "began": 98.0},
        listening={"node-2": {"runs": {run_id: {"error": error}}}},
        collected={"node-1": {"runs": {run_id: collected("undone", "source", error=silence)}}, "node-2": {"runs": {}}},
    )  # fmt: skip
    assert [(line["outcome"], line["why"]) for line in told["lines"]] == [("not saved", error["message"])]


# --- the playbooks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["evacuate", "watch"])
@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"evacuate_from": "nowhere"}, "evacuate_from=nowhere names 0 hosts"),
        ({"evacuate_from": "all_nodes"}, "evacuate_from=all_nodes names 2 hosts"),
        ({"evacuate_to": "node-1"}, "evacuate_to=node-1 names no host besides node-1"),
        ({"watch_secondz": 3}, "watch_secondz: there is no such parameter; did you mean watch_seconds?"),
    ],
)
def test_wrong_input_is_refused_before_anything(
    ansible: Run, tmp_path: Path, name: str, extra: dict[str, Any], expected: str
) -> None:
    groups = {"source": ["node-1"], "destination": ["node-2"], "all_nodes": ["node-1", "node-2"]}
    children: dict[str, Any] = {name: {"hosts": {host: {} for host in hosts}} for name, hosts in groups.items()}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": children}}))
    arguments = ("-i", str(tmp_path / "hosts.yml"), f"playbooks/{name}.yml", "-e", json.dumps(extra))
    done = ansible("ansible-playbook", *arguments)
    assert done.returncode != 0 and expected in done.stdout, done.stdout + done.stderr
    assert "PLAY [Prepare" not in done.stdout and "PLAY [See" not in done.stdout


def test_a_look_at_who_would_go_changes_nothing_and_needs_not_every_destination(ansible: Run, tmp_path: Path) -> None:
    """Check mode, on this machine as two of the nodes; the third is not there."""
    local = {"ansible_connection": "local", "ansible_become": False, "ansible_python_interpreter": sys.executable}
    gone = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    groups: dict[str, Any] = {
        "source": {"hosts": {"node-1": {}}}, "destination": {"hosts": {"node-2": {}, "node-3": gone}}
    }  # fmt: skip
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"vars": local, "children": groups}}))
    extra = ("-e", json.dumps({"results_dir": str(tmp_path / "results")}))
    done = ansible("ansible-playbook", "-i", str(tmp_path / "hosts.yml"), "playbooks/evacuate.yml", "--check", *extra)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "node-3 takes none" in done.stdout and "No process is registered that runs here." in done.stdout
    assert not (tmp_path / "results").exists()
