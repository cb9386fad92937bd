"""Starting, proving and ending: with real processes, as they are cheap."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import (
    proc,
    record,
    workload,
    workload_start,
)
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.errors import MigrationError
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.inotify import Watch

WORKLOADS = Path(__file__).resolve().parents[2] / "workloads"
PROGRAMS = {name: (WORKLOADS / name).read_text(encoding="utf-8") for name in ("contract.py", "memory_standalone.py")}

# The shape of a script that was written for the older framework.
FOREIGN = """
import os, sys, time
working_dir = sys.argv[sys.argv.index('--working_dir') + 1]
with open(f'{working_dir}/checkpoint_ready', 'w') as f:
    f.write(f'ready:{os.getpid()}\\n')
while os.path.exists(f'{working_dir}/checkpoint_flag'):
    time.sleep(0.01)
print('complete')
sys.exit(0)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(workload_start, "spread_pids", lambda: False)  # the PIDs of this machine stay as they are
    place = tmp_path / "run"
    yield place
    for process in workload.members(place):
        process.kill(signal.SIGKILL)
    reap()


def reap() -> None:
    """Take the exit status of children, as init does for those of a module that has ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def memory(folder: Path, **more: str) -> list[str]:
    options = {"mb_size": "2", "interval": "0.05", "max_memory": "6", **more}
    program = [sys.executable, str(folder / "memory_standalone.py"), f"--working_dir={folder}"]
    return program + [f"--{name}={value}" for name, value in options.items()]


def foreign(folder: Path) -> list[str]:
    return [sys.executable, "foreign.py", "--working_dir", str(folder)]


def test_start_is_detached_and_idempotent(folder: Path) -> None:
    first = workload_start.start(str(folder), memory(folder), PROGRAMS)
    assert first["changed"] and first["ready_seconds"] > 0
    pid = first["pid"]
    assert os.getsid(pid) == pid
    assert Path(f"/proc/{pid}/cwd").readlink() == folder
    assert Path(f"/proc/{pid}/fd/1").readlink() == folder / "output.log"
    assert Path(f"/proc/{pid}/fd/0").readlink() == Path("/dev/null")
    assert (folder / "checkpoint_ready").read_text(encoding="utf-8") == f"ready:{pid}\n"
    second = workload_start.start(str(folder), memory(folder), PROGRAMS)
    assert (second["changed"], second["pid"], second["start_ticks"]) == (False, pid, first["start_ticks"])


def test_check_mode_touches_nothing(folder: Path) -> None:
    assert workload_start.start(str(folder), ["true"], {}, check=True)["changed"]
    assert not folder.exists()


def test_a_program_that_dies_is_reported_with_its_last_words(folder: Path) -> None:
    began = time.monotonic()
    with pytest.raises(MigrationError, match=r"status 3: no luck") as caught:
        workload_start.start(str(folder), ["sh", "-c", "echo no luck; exit 3"], {}, ready_timeout=30)
    assert time.monotonic() - began < 5
    assert caught.value.details["output"] == "no luck"
    with pytest.raises(MigrationError, match="status 3"):
        workload_start.start(str(folder), ["sh", "-c", "exit 3"], {}, wait_ready=False)


def test_a_program_that_does_not_exist_leaves_nothing(folder: Path) -> None:
    with pytest.raises(MigrationError, match="no-such-program cannot be started"):
        workload_start.start(str(folder), ["no-such-program"], {})
    assert not folder.exists()


def test_without_a_ready_signal_it_is_killed(folder: Path) -> None:
    with pytest.raises(MigrationError, match="no ready signal"):
        workload_start.start(str(folder), ["sleep", "60"], {}, ready_timeout=0.2)
    assert workload.find(folder) is None


def test_a_foreign_script_runs_unmodified(folder: Path) -> None:
    started = workload_start.start(str(folder), foreign(folder), {"foreign.py": FOREIGN}, ready_timeout=10)
    found = workload.verify(str(folder), 5, supported=False)
    assert found["details"].pop("state") in "RS"  # a moment's
    assert found == {"verified": None, "method": "alive", "details": {"pid": started["pid"]}}
    ended = workload.stop(str(folder), purge=True)
    assert ended["changed"] and ended["signalled"] == [] and ended["output"] == "complete"
    assert not folder.exists()
    assert not workload.stop(str(folder), purge=True)["changed"]


def test_a_proof_comes_from_the_program(folder: Path) -> None:
    workload_start.start(str(folder), memory(folder), PROGRAMS)
    proof = workload.verify(str(folder), 20)
    assert proof["verified"] is True
    assert proof["details"]["checksums"] >= 2
    assert not (folder / "verify_request").exists()


def test_a_process_of_the_contract_is_asked_for_its_proof(folder: Path) -> None:
    pid = workload_start.start(str(folder), memory(folder), PROGRAMS, verifies=True)["pid"]
    assert workload.contract_of(pid) == folder
    proof = workload.verify_process(pid, 20)
    assert proof["verified"] is True and proof["details"]["checksums"] >= 2
    note = workload.recorded(folder)
    (folder / "workload.pid").write_text(json.dumps({**note, "pid": os.getpid()}), encoding="utf-8")
    assert workload.contract_of(pid) is None  # the directory's workload is another process
    assert workload.verify_process(pid, 20)["verified"] is None
    (folder / "workload.pid").write_text(json.dumps(note), encoding="utf-8")


def test_other_processes_are_only_seen_to_live(folder: Path) -> None:
    pid = workload_start.start(str(folder), foreign(folder), {"foreign.py": FOREIGN})["pid"]
    assert workload.contract_of(pid) == folder
    found = workload.verify_process(pid, 5)
    assert (found["verified"], found["method"], found["details"]["pid"]) == (None, "alive", pid)
    assert workload.contract_of(os.getpid()) is None
    assert workload.verify_process(os.getpid(), 5)["verified"] is None
    with pytest.raises(MigrationError, match="There is no process"):
        workload.verify_process(4194304, 5)


def test_only_a_directory_of_a_run_counts_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tmp_path / "memory-20261127-101112-ab12"
    made.mkdir()
    (made / "workload.pid").touch()
    assert not workload.is_runs(made)
    place = workload.RUN_FOLDER.pattern.replace("/srv/criu-migrate", re.escape(str(tmp_path)))
    monkeypatch.setattr(workload, "RUN_FOLDER", re.compile(place))
    assert workload.is_runs(made)
    (made / "workload.pid").unlink()
    assert not workload.is_runs(made)
    assert not workload.is_runs(tmp_path / "app")


@pytest.mark.parametrize(
    ("boot", "details", "verified"),
    [("other", {"moved_at": None}, False), ("other", {"moved_at": []}, False), ("other", {"moved_at": [0]}, True),
     ("other", {"moved_at": 0}, True), ("other", {}, True), ("this", {"moved_at": None}, True)],
)  # fmt: skip
def test_a_move_that_was_not_noticed_is_no_proof(
    tmp_path: Path, boot: str, details: dict[str, object], verified: bool
) -> None:
    note = {"pid": 1, "boot_id": record.boot_id() if boot == "this" else boot}
    (tmp_path / "workload.pid").write_text(json.dumps(note), encoding="utf-8")
    found = workload.seen_to_move(tmp_path, {"verified": True, "method": "m", "details": details})
    assert found["verified"] is verified
    assert ("why" in found["details"]) != verified


def test_a_stopped_tree_is_left_alone(folder: Path) -> None:
    pid = workload_start.start(str(folder), memory(folder), PROGRAMS)["pid"]
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)
    with pytest.raises(MigrationError, match="may be the only copy"):
        workload.stop(str(folder))
    with pytest.raises(MigrationError, match="did not answer within"):
        workload.verify(str(folder), 0.1)
    assert (folder / "checkpoint_flag").exists()
    assert workload.stop(str(folder), grace=0.1, force=True)["signalled"] == [pid]


def test_a_moved_process_is_found_by_where_it_works(folder: Path) -> None:
    started = workload_start.start(str(folder), foreign(folder), {"foreign.py": FOREIGN})
    note = {**workload.recorded(folder), "start_ticks": 1, "boot_id": "another node's"}
    (folder / "workload.pid").write_text(json.dumps(note), encoding="utf-8")
    found = workload.find(folder)
    assert found is not None and found.pid == started["pid"]
    (folder / "workload.pid").write_text(json.dumps({**note, "pid": os.getpid()}), encoding="utf-8")
    assert workload.find(folder) is None
    (folder / "workload.pid").write_text(json.dumps(note), encoding="utf-8")


def test_only_a_workloads_directory_is_removed(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(MigrationError, match="not a workload's directory"):
        workload.stop(str(tmp_path), purge=True)
    assert (tmp_path / "precious").exists()


def test_the_end_of_the_last_move_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "RUNS", str(tmp_path))
    assert workload.adopt(os.getpid())["since"] is None
    own = proc.stat(os.getpid())
    assert own is not None
    mine = {"pid": os.getpid(), "start": own[2]}
    runs = [(mine, 5.0), (mine, 7.0), ({**mine, "start": 1}, 8.0), (mine, None)]
    for number, (root, resumed) in enumerate(runs):
        (tmp_path / f"run-{number}").mkdir()
        text = json.dumps({"procs": [root], "times": {"armed": 9.0} if resumed is None else {"resumed": resumed}})
        (tmp_path / f"run-{number}/record.json").write_text(text, encoding="utf-8")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/record.json").write_text("{", encoding="utf-8")
    assert workload.adopt(os.getpid())["since"] == 7.0


def test_a_directory_that_was_there_before_is_kept(folder: Path) -> None:
    folder.mkdir()
    (folder / "precious").touch()
    for _again in range(2):
        with pytest.raises(MigrationError, match="no ready signal"):
            workload_start.start(str(folder), ["sleep", "60"], {}, ready_timeout=0.1)
        reap()
        workload.stop(str(folder), purge=True)
        assert sorted(path.name for path in folder.iterdir()) == ["output.log", "precious"]


def test_a_start_that_failed_is_taken_back(folder: Path) -> None:
    with pytest.raises(MigrationError, match="no ready signal"):
        workload_start.start(str(folder), ["sleep", "60"], {}, ready_timeout=0.1)
    reap()
    workload.stop(str(folder), purge=True)
    assert not folder.exists()


def test_adopt_names_what_cannot_be_moved() -> None:
    assert workload.adopt(os.getpid())["start_ticks"] > 0
    with pytest.raises(MigrationError, match="There is no process 4194304"):
        workload.adopt(4194304)
    with pytest.raises(MigrationError, match="part of the system"):
        workload.adopt(1)


def test_a_command_line_is_split_without_a_shell() -> None:
    assert workload_start.words("python3 -c 'print(1)' $HOME") == ["python3", "-c", "print(1)", "$HOME"]
    with pytest.raises(MigrationError, match="cannot be split"):
        workload_start.words("echo 'open")
    with pytest.raises(MigrationError, match="empty"):
        workload_start.words("  ")


def test_a_watch_wakes_for_a_file_and_not_for_time(tmp_path: Path) -> None:
    wanted = tmp_path / "wanted"
    with Watch(str(tmp_path)) as watch:
        timer = threading.Timer(0.05, lambda: wanted.write_text("x", encoding="utf-8"))
        timer.start()
        began = time.monotonic()
        assert watch.until(wanted.exists, 10)
        assert time.monotonic() - began < 5
        timer.join()
        assert not watch.until(lambda: False, 0.05)
