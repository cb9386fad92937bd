"""Planning and reporting an evacuation as Ansible runs them: the actions, and the playbooks' checks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Run
from tests.unit.test_evacuation import MIB, inspected, offer, process


def play(ansible: Run, tmp_path: Path, *tasks: dict[str, Any]) -> Any:
    """Run tasks on node-1 of an inventory; returns the process."""
    hosts = {"node-1": {"ansible_host": "10.0.0.1"}, "node-2": {"ansible_host": "10.0.0.2"}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
    (tmp_path / "book.yml").write_text(yaml.safe_dump([{"hosts": "node-1", "gather_facts": False, "tasks": tasks}]))
    return ansible("ansible-playbook", "-i", str(tmp_path / "hosts.yml"), str(tmp_path / "book.yml"))


def planned(ansible: Run, tmp_path: Path, processes: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """What migration_evacuation returns."""
    out = tmp_path / "plan.json"
    arguments = {
        "source": {**inspected(processes), **more},
        "offers": {"node-2": offer("node-2", processes)},
        "results_dir": str(tmp_path),
    }
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
    assert one["nodes"] == other["nodes"] == {"source": "node-1", "destination": "node-2"}
    assert one["planned"] == other["planned"] == found["runs"][0], "for who takes it over"


def collected(state: str, role: str, **more: Any) -> dict[str, Any]:
    times = {"armed": 99.0, "stopping": 101.0, "freezing": 101.0, "frozen": 101.1, "dumped": 102.0, "done": 103.5}
    if role == "destination":
        times = {"armed": 99.0, "restored": 102.5, "resumed": 103.0}
    return {
        "record": {"state": state, "role": role, "times": times, "procs": [{"pid": 20, "start": 77}], **more},
        "logs": {"guard.log": f"of the {role}"}, "now": 105.0, "alive": [20],
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
            "node-2": {"runs": {
                good_run: {**collected("done", "destination"), "verified": proof}, kept_run: {"record": None},
            }},
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
        collected={
            "node-1": {"runs": {run_id: collected("undone", "source", error=silence)}},
            "node-2": {"runs": {run_id: {"record": None}}},
        },
    )  # fmt: skip
    assert [(line["outcome"], line["why"]) for line in told["lines"]] == [("not saved", error["message"])]


def begun_earlier(ansible: Run, tmp_path: Path, *states: str) -> dict[str, Any]:
    """What is inspected where an evacuation of moved, gone, ... was begun and nobody has collected it."""
    names = [f"of-{state}" for state in states]
    runs = planned(ansible, tmp_path, [process(name, 20 + place, MIB) for place, name in enumerate(names)])["runs"]
    earlier = [{**run, "state": state} for run, state in zip(runs, states)]
    return {**inspected([process("of-undone", 21, MIB), process("new", 30, MIB)]), "earlier": earlier}


def test_what_an_earlier_evacuation_has_begun_is_taken_over(ansible: Run, tmp_path: Path) -> None:
    """Watched and collected with the rest, named once."""
    source = begun_earlier(ansible, tmp_path, "done", "undone")
    found = planned(ansible, tmp_path, source["processes"], earlier=source["earlier"])
    assert [run["name"] for run in found["runs"]] == ["of-done", "of-undone", "new", "of-undone"]
    assert [item["name"] for item in found["by_host"]["node-2"]] == [run["name"] for run in found["runs"]]
    assert len(found["configs"]["node-1"]) == 2, "their guards are laid out already"
    assert "of-done: is on its way to node-2 since earlier, done" in found["lines"]
    done, undone, new, again = (run["run_id"] for run in found["runs"])
    one = {name: collected("done", "source") for name in (done, again, new)}
    two = {name: collected("done", "destination") for name in (done, again, new)}
    told = evacuated(
        ansible, tmp_path, found, started={"runs": {}, "began": 102.0, "now": 104.0},
        collected={"node-1": {"runs": {**one, undone: collected("undone", "source")}},
                   "node-2": {"runs": {**two, undone: {"record": None}}}},
    )  # fmt: skip
    assert [(line["name"], line["outcome"]) for line in told["lines"]] == [
        ("of-done", "saved"), ("new", "saved"), ("of-undone", "saved")
    ]  # fmt: skip
    assert told["lines"][0]["seconds"] is None, "it had gone before this evacuation began"
    assert len(list(tmp_path.glob("*/metrics.json"))) == 4, "with the logs of all"


def test_an_earlier_run_to_a_node_that_is_not_asked_now(ansible: Run, tmp_path: Path) -> None:
    source = begun_earlier(ansible, tmp_path, "done")
    source["earlier"][0]["host"] = "node-9"
    found = planned(ansible, tmp_path, [], earlier=source["earlier"])
    assert list(found["by_host"]) == ["node-1"] and found["lines"] == [
        "of-done: is on its way to node-9 since earlier, done"
    ]  # fmt: skip
    run_id = found["runs"][0]["run_id"]
    told = evacuated(
        ansible, tmp_path, found, started={"runs": {}, "began": 102.0, "now": 104.0},
        collected={"node-1": {"runs": {run_id: collected("done", "source")}}},
    )  # fmt: skip
    (line,) = told["lines"]
    assert (line["outcome"], line["why"]) == ("unknown", "It moved to node-9.\nnode-9 was not asked.")


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
