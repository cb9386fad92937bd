"""Which processes are to be saved: written, found again, listed; with real processes, as they are cheap."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import proc, record, registry, workload
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.errors import MigrationError
from tests.conftest import Run

Program = subprocess.Popen[bytes]


@pytest.fixture(autouse=True)
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(registry, "FOLDER", str(tmp_path / "etc" / "processes.d"))
    monkeypatch.setattr(record, "RUNS", str(tmp_path / "runs"))
    return tmp_path


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    with subprocess.Popen(["sleep", "600"], cwd=tmp_path) as one:
        yield one
        one.kill()


def register(name: str, priority: int = 0, check: bool = False, **named: Any) -> bool:
    entry = {"name": name, "priority": priority, "by": registry.find(**named)["by"], "params": {"tcp_close": False}}
    return registry.put(entry, check)


def test_one_process_and_no_later_one(program: Program) -> None:
    assert register("web", pid=program.pid)
    assert not register("web", pid=program.pid), "a second time nothing changes"
    (entry,), problems = registry.entries()
    assert registry.locate(entry).pid == program.pid and not problems
    with pytest.raises(MigrationError, match="The process of web does not run here any more"):
        registry.locate({**entry, "by": {**entry["by"], "start": 1}})
    with pytest.raises(MigrationError, match="does not run here"):
        registry.locate({**entry, "by": {**entry["by"], "boot_id": "of another boot"}})
    program.kill()
    program.wait()
    (gone,), problems = registry.listed()
    assert gone["pid"] == 0 and "web: does not run" in gone["text"] and "Register it again" in problems[0]


def test_a_pidfile_leads_to_the_next_process_too(program: Program, node: Path) -> None:
    pidfile = node / "web.pid"
    pidfile.write_text(f"{program.pid}\n")
    register("web", pidfile=str(pidfile))
    with subprocess.Popen(["sleep", "600"]) as later:
        pidfile.write_text(str(later.pid))
        (entry,), _problems = registry.listed()
        assert entry["pid"] == later.pid
        later.kill()


@pytest.mark.parametrize("text", [None, "", "many", "1", "-5"])
def test_a_pidfile_that_names_nothing(node: Path, text: str | None) -> None:
    if text is not None:
        (node / "web.pid").write_text(text)
    with pytest.raises(MigrationError, match=r"web\.pid names"):
        registry.find(pidfile=str(node / "web.pid"))


def test_a_workload_is_found_by_its_folder(program: Program, node: Path) -> None:
    """As after a move, where it has another start time."""
    seen = proc.stat(program.pid)
    assert seen is not None
    (node / workload.RECORD).write_text(json.dumps({"pid": program.pid, "start_ticks": 1, "boot_id": "another"}))
    register("web", pid=program.pid)
    (entry,), _problems = registry.entries()
    assert entry["by"] == {"folder": str(node)} and registry.locate(entry).pid == program.pid


def test_the_process_of_a_run(program: Program) -> None:
    seen = proc.stat(program.pid)
    assert seen is not None
    os.makedirs(record.run_dir("web-1"))
    rec = record.Record.create("web-1", "destination", procs=[proc.Proc(program.pid, seen[2]).as_dict()])
    with pytest.raises(MigrationError, match="its process is on its way"):
        registry.find(run_id="web-1")
    rec.enter("done")
    assert registry.find(run_id="web-1")["pid"] == program.pid
    for run_id in ("web-2", "../runs/web-1"):
        with pytest.raises(MigrationError, match="is not on this node"):
            registry.find(run_id=run_id)


def test_what_is_no_process_is_refused() -> None:
    for pid in (1, 2, 4194303):
        with pytest.raises(MigrationError):
            registry.find(pid=pid)


def test_one_process_has_one_entry(program: Program) -> None:
    register("web", pid=program.pid)
    with pytest.raises(MigrationError, match="registered as web already"):
        register("other", pid=program.pid)


@pytest.mark.parametrize("name", ["", "Web", "-web", "../web", "a" * 41, "we b"])
def test_names(program: Program, name: str) -> None:
    with pytest.raises(MigrationError, match="it must be 1 to 40 small letters"):
        register(name, pid=program.pid)
    assert registry.entries() == ([], [])


def test_private_and_taken_away(program: Program) -> None:
    assert register("web", pid=program.pid, check=True) and registry.entries()[0] == []
    register("web", pid=program.pid)
    assert stat.S_IMODE(os.stat(registry.FOLDER).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(registry.path_of("web")).st_mode) == 0o600
    assert registry.drop("web", check=True) and registry.drop("web") and not registry.drop("web")
    assert program.poll() is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": "x", "priority": "much", "by": {}, "params": {}}'])
def test_a_broken_entry_is_told_and_hides_no_other(program: Program, text: str) -> None:
    register("web", pid=program.pid)
    Path(registry.path_of("broken")).write_text(text)
    entries, problems = registry.listed()
    assert [entry["name"] for entry in entries] == ["web"] and "broken.json is no entry" in problems[0]


def test_an_entry_moves_along(program: Program) -> None:
    """Under its name, unless that is another process's here."""
    entry = {"name": "web", "priority": 3, "params": {}, "by": {"pid": 1, "start": 2, "boot_id": "of the source"}}
    registry.arrive(entry, 77, 99, "4f2a")
    registry.arrive({**entry, "by": {"pidfile": "/run/x"}}, 78, 99, "0a0b")
    registry.arrive({**entry, "name": "w" * 40}, 79, 99, "1111")
    registry.arrive({**entry, "name": "w" * 40}, 80, 99, "2222")
    found = {item["name"]: item for item in registry.entries()[0]}
    assert sorted(found) == ["web", "web-0a0b", "w" * 35 + "-2222", "w" * 40]
    assert found["web"]["by"] == {"pid": 77, "start": 99, "boot_id": record.boot_id()}
    assert found["web"]["priority"] == 3 and found["web-0a0b"]["by"] == {"pidfile": "/run/x"}


# --- the playbook, on this machine as its own node -----------------------------------------------------------------


@pytest.fixture
def play(ansible: Run, tmp_path: Path) -> Any:
    """Return a function that runs the tasks of the role, with the registry in the test's directory."""
    book = tmp_path / "book.yml"
    roles = [{"role": "register"}]
    book.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "roles": roles}]))
    hosts = tmp_path / "hosts.yml"
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    hosts.write_text(json.dumps({"all": {"hosts": {"localhost": local}}}))

    def run(**extra: Any) -> subprocess.CompletedProcess[str]:
        return ansible("ansible-playbook", "-i", str(hosts), str(book), "--check", "-e", json.dumps(extra))

    return run


def test_the_role_finds_the_process_and_checks_the_parameters(play: Any, program: Program) -> None:
    done = play(register_name="web", pid=program.pid, service_address="10.0.0.9")
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = play(register_name="web", pid=program.pid, service_address="nowhere", mb_size=3)
    assert wrong.returncode != 0
    assert "service_address=nowhere" in wrong.stdout and "2 problems" in wrong.stdout, wrong.stdout


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, "register_name=: it must be"),
        ({"register_name": "web"}, "None of pid, pidfile and run_id"),
        ({"register_name": "web", "pid": 5, "run_id": "x"}, "2 of pid, pidfile and run_id were given"),
        ({"register_name": "web", "run_id": "memory-1"}, "is not on this node"),
        ({"register_state": "there"}, "register_state"),
    ],
)
def test_the_role_refuses(play: Any, extra: dict[str, Any], expected: str) -> None:
    done = play(**extra)
    assert done.returncode != 0 and expected in done.stdout, done.stdout + done.stderr


def test_workload_redis_is_refused(play: Any, program: Program) -> None:
    done = play(register_name="web", pid=program.pid, workload="redis")
    assert done.returncode != 0 and "pid: this is a parameter of process, not of redis" in done.stdout, done.stdout
