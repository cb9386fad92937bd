"""criu-migrate run: what is typed, what the runner's events become, how it ends."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.criu.migrate.plugins.callback.criu_migrate import progress as words
from ansible_collections.criu.migrate.plugins.callback.criu_migrate import rounds
from criu_migrate_cli import parameters, running, timing
from criu_migrate_cli.places import CommandError
from criu_migrate_cli.progress import Progress
from tests.conftest import ROOT

SEED = """
experiment: {name: baseline, workload_type: memory, save_metrics: true}
nodes:
  ssh_user: ubuntu
  source: {ip: "${SOURCE_NODE_IP}"}
  destination: {ip: "${DEST_NODE_IP}"}
checkpoint:
  strategy: {mode: predump, predump_iterations: 4, lazy_pages: false}
transfer: {method: rsync}
mb_size: "${SIZE}"
"""


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["redis", "num_keys=1000"], {"workload": "redis", "num_keys": "1000"}),
        (["memory", "--mb-size", "5", "--lazy-pages"], {"workload": "memory", "mb_size": "5", "lazy_pages": "true"}),
        (["--lazy-pages", "mb_size=1"], {"lazy_pages": "true", "mb_size": "1"}),
        (["command", "command=python3 -c 'a=1'"], {"workload": "command", "command": "python3 -c 'a=1'"}),
        (["--mb-size=3", "workload=memory"], {"mb_size": "3", "workload": "memory"}),
        ([], {}),
    ],
)
def test_words(words: list[str], found: dict[str, str]) -> None:
    assert parameters.from_words(words) == found


@pytest.mark.parametrize("word", ["512", "-x", "=3", "a b=3"])
def test_words_that_are_no_parameters(word: str) -> None:
    with pytest.raises(CommandError, match="name=value"):
        parameters.from_words(["memory", word])


def test_a_file_in_the_seed_documents_form(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(SEED, encoding="utf-8")
    found, nodes = parameters.from_file(path, {"SIZE": "64", "SOURCE_NODE_IP": "192.0.2.1"})
    assert found == {
        "experiment_name": "baseline", "workload": "memory", "save_metrics": True, "migration_strategy": "predump",
        "predump_iterations": 4, "lazy_pages": False, "transfer": "rsync", "mb_size": "64",
    }  # fmt: skip
    assert nodes == {"SSH_USER": "ubuntu", "SOURCE_NODE_IP": "192.0.2.1"}
    assert parameters.node_environment(nodes, {}, tmp_path) == nodes
    assert parameters.node_environment(nodes, {"SOURCE_NODE_IP": "192.0.2.9"}, tmp_path) == {}
    (tmp_path / "servers.yaml").touch()
    assert parameters.node_environment(nodes, {}, tmp_path) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [("mb_size: ${NOT_SET}", "NOT_SET"), ("- a", "names and values"), ("checkpoint: {stratgy: x}", "stratgy"),
     ("a: [", "cannot be read")],
)  # fmt: skip
def test_files_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CommandError, match=message):
        parameters.from_file(path, {})


def event(seconds: float, kind: str, **data: Any) -> dict[str, Any]:
    created = datetime.fromtimestamp(1000 + seconds, timezone.utc).isoformat()
    return {"event": kind, "created": created, "event_data": data}


def task(seconds: float, name: str, action: str) -> dict[str, Any]:
    return event(seconds, "playbook_on_task_start", task=name, task_action=action)


GUARD = "hand_over | Start"
EVENTS = [
    event(1.5, "playbook_on_play_start", play="Migrate"),
    task(2, "Keep", "ansible.builtin.set_fact"),
    event(2.1, "runner_on_ok", host="localhost", duration=0.1, res={}),
    task(2.2, "Look", "criu_check"),
    event(3.0, "runner_on_ok", host="node-1", duration=0.8, res={}, task="Look", task_action="criu_check"),
    event(3.2, "runner_on_ok", host="node-2", duration=1.0, res={"changed": True}, task="Look"),
    task(3.3, "Not now", "criu_check"),
    event(3.4, "runner_on_skipped", host="node-1", duration=0.1),
    task(3.5, "More", "ansible.builtin.include_tasks"),
    task(3.6, GUARD, "criu_guard"),
    event(8.6, "runner_on_ok", host="node-1", duration=5.0, res={"changed": True, "key": "secret"}, task=GUARD),
    task(8.7, "Judge", "migration_preflight"),
    event(8.9, "runner_on_failed", host="node-1", duration=0.2, res={"msg": "no\nRemedy: yes"}, task="Judge"),
    event(9.0, "playbook_on_stats"),
]


def test_what_ansible_cost() -> None:
    clock = timing.Timing(1000.0, ["migration_preflight"])
    for one in EVENTS:
        clock.feed(one)
    section = clock.section(1009.5, 2, 4.2)
    assert section["total"] == 9.5 and section["startup"] == 2.0 and section["rc"] == 2 and section["handover"] == 4.2
    assert section["per_task"] == 0.8  # the quickest task on a node
    assert section["skipped"] == {"tasks": 1, "seconds": pytest.approx(0.1)}
    rows = {row["task"]: row for row in section["tasks"]}
    assert list(rows) == ["Keep", "Look", "More", "hand_over | Start", "Judge"]
    assert rows["Look"]["status"] == "changed" and rows["Look"]["hosts"] == {"node-1": 0.8, "node-2": 1.0}
    assert rows["Keep"]["overhead"] == pytest.approx(0.1) and rows["More"]["overhead"] == pytest.approx(0.1)
    assert rows["hand_over | Start"]["overhead"] == 0.8 and rows["Judge"]["overhead"] == 0.0
    assert rows["Judge"]["status"] == "failed" and rows["Judge"]["began"] == pytest.approx(8.7)
    seconds = sum(row["seconds"] for row in section["tasks"])
    assert section["startup"] + section["between"] + section["skipped"]["seconds"] + seconds == pytest.approx(9.5)
    assert "secret" not in str(section)


def test_a_run_without_tasks_is_all_overhead() -> None:
    section = timing.Timing(1000.0).section(1003.0, 4, None)
    assert section["overhead"] == section["total"] == 3.0
    assert section["per_task"] is None and section["tasks"] == []


def test_lines_for_the_user() -> None:
    out = io.StringIO()
    progress = Progress(out, lambda lazy: f"{lazy['pages_transferred']} pages", colour=False, live=False, rounds=rounds)
    for one in EVENTS:
        progress.feed(one)
    progress.feed(event(9, "runner_retry", res={"record": {"lazy": {"pages_transferred": 7}}}))
    lines = out.getvalue().splitlines()
    assert len([line for line in lines if "Look" in line]) == 2
    assert any("5.00s changed" in line and "hand_over | Start (node-1)" in line for line in lines)
    assert "    Remedy: yes" in lines and lines[-1] == "... 7 pages"
    assert not any("Keep" in line or "secret" in line for line in lines)
    assert progress.shown_failure


def test_the_bar_shows_phase_and_deadline() -> None:
    progress = Progress(io.StringIO(), str, colour=False, live=False, rounds=rounds)
    migration = {"run_id": "memory-1", "deadline": {"name": "aws", "limit": 120.0}}
    progress.feed(event(1, "runner_on_ok", host="localhost", res={"migration": migration}))
    progress.feed(task(2, "hand_over | Start the guard", "criu_guard"))
    assert "hand_over: Start the guard" in progress.bar()
    assert "120 s of 120 left" in progress.bar() or "119 s of 120 left" in progress.bar()
    assert progress.run_id == "memory-1"


def test_the_bar_shows_bytes() -> None:
    """What there is to move before the freeze, what has come during the fill, what was moved at the end."""
    out = io.StringIO()
    progress = Progress(out, words, colour=False, live=False, rounds=rounds)
    facts = {"process": {"memory": {"pages": 512 << 20, "lazy": 500 << 20}}}
    progress.feed(task(1, "preflight | Judge", "migration_preflight"))
    progress.feed(event(2, "runner_on_ok", host="node-1", res={"preflight": facts}))
    progress.feed(task(3, "hand_over | Start the guard", "criu_guard"))
    assert "hand_over: 512.0 MB to move, Start the guard" in progress.bar()
    progress.feed(task(4, "fill | Wait", "criu_guard"))
    bars = []
    for pages in (0, 64000, 128000):
        lazy = {"pages_transferred": pages, "pages_total": 128000}
        progress.feed(event(5, "runner_retry", res={"record": {"lazy": lazy}}))
        bars.append(progress.bar())
    assert "250.0 of 500.0 MB of its memory have come" in bars[1]
    steps = [one.count("#") for one in bars]
    assert steps[0] < steps[1] < steps[2]
    progress.feed(task(6, "verify | Ask", "workload_verify"))
    assert progress.bar().count("#") == steps[2]
    metrics = {"transfer": {"bytes": 3 << 20, "seconds": 0.5}}
    progress.feed(event(7, "runner_on_ok", host="node-1", res={"metrics": metrics}))
    assert out.getvalue().splitlines()[-1] == "... 3.0 MB moved in 0.50 s"


def watched(pages: list[int], reason: str | None = None, **record: Any) -> dict[str, Any]:
    made = [{"seconds": 2.0, "pages_written": number, "bytes": number * 4096, "frozen": 0.01,
             "predicted_downtime": 6.5} for number in pages]  # fmt: skip
    return {"restarts": 0, "record": {"run_id": "redis-1", "role": "source", "state": "iterating", "pre_dumps": made,
                                      "stop_reason": reason, **record}}  # fmt: skip


def test_rounds_are_shown_once_as_they_are_made() -> None:
    out = io.StringIO()
    progress = Progress(out, str, colour=False, live=False, rounds=rounds)
    progress.feed(event(1, "runner_retry", res=watched([2560])))
    first = "... round 1 of pre-dump: 2.00s, 2560 pages, 10.00 MB, frozen 0.010s, downtime predicted 6.500s"
    assert out.getvalue().splitlines() == [first]
    progress.feed(event(2, "runner_retry", res=watched([2560])))
    progress.feed(event(3, "runner_retry", res=watched([2560, 512, 256])))
    done = watched([2560, 512, 256, 1], "target", state="done")
    progress.feed(event(4, "runner_on_ok", host="node-1", res=done))
    progress.feed(event(5, "runner_on_ok", host="node-1", res=done))
    lines = [line for line in out.getvalue().splitlines() if line.startswith("... ")]
    assert [line.split(":")[0] for line in lines] == [
        "... round 1 of pre-dump", "... round 2 of pre-dump", "... round 3 of pre-dump", "... round 4 of pre-dump",
        "... no further pre-dump",
    ]  # fmt: skip
    assert lines[-1].endswith("the predicted downtime meets the target")


def test_rounds_that_begin_anew_are_shown_anew_and_other_nodes_have_none() -> None:
    assert rounds({"pre_dumps": [{"seconds": 1.0}]}, 3) == (["round 1 of pre-dump: 1.00s"], 1)
    lines, shown = rounds({"pre_dumps": [], "stop_reason": "failed: no"}, 2)
    assert len(lines) == 1 and shown == -1
    assert rounds({}, 0) == ([], 0)
    out = io.StringIO()
    progress = Progress(out, str, colour=False, live=False, rounds=rounds)
    progress.feed(event(1, "runner_retry", res=watched([1], role="destination")))
    assert out.getvalue() == ""


def test_values_are_on_no_command_line(tmp_path: Path) -> None:
    request = running.Request({"password": "hush"}, ["a=1"], ["inv"], check=True, verbose=3)
    words = running.arguments(request, tmp_path / "extra.json")
    assert words == ["-i", "inv", "-e", f"@{tmp_path}/extra.json", "-e", "a=1", "--check", "-vv"]


def test_host_keys_are_checked_unless_the_user_says_so(tmp_path: Path) -> None:
    assert running.environment(ROOT, {}, tmp_path, {})["ANSIBLE_HOST_KEY_CHECKING"] == "True"
    found = running.environment(ROOT, {}, tmp_path, {"ANSIBLE_HOST_KEY_CHECKING": "False"})
    assert found["ANSIBLE_HOST_KEY_CHECKING"] == "False"
    assert found["ANSIBLE_CONFIG"] == str(ROOT / "ansible.cfg")
    (tmp_path / "ansible.cfg").touch()
    assert "ANSIBLE_CONFIG" not in running.environment(ROOT, {}, tmp_path, {})


def test_the_playbooks_own_message_and_nothing_left_behind(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "SSH_"))}
    kept.update(TMPDIR=str(temporary), SOURCE_NODE_IP="192.0.2.1", DEST_NODE_IP="192.0.2.2", PYTHONPATH=str(ROOT))
    command = [sys.executable, "-m", "criu_migrate_cli", "run", "memory", "mb_sise=3", "interval=soon"]
    done = subprocess.run(command, cwd=tmp_path, env=kept, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "mb_sise: there is no such parameter; did you mean mb_size?" in done.stdout
    assert "interval=soon: it must be a number." in done.stdout
    assert list(temporary.iterdir()) == []
    assert not (tmp_path / "results").exists()
