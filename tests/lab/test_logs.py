"""The results folder: every file for both nodes, whatever came of the migration, and nothing secret in it."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.lab.conftest import Prepare
from tests.lab.harness.harm import PID_TAKER, TRACER, cut, running
from tests.lab.harness.migration import Migration
from tests.lab.harness.nodes import RUNS, Lab, Node, wait_for

SMALL = {"mb_size": 16, "interval": 0.5, "max_memory": 32}
ALWAYS = {
    "metrics.json", "summary.txt", "report.html",
    "source/workload_status_pre_dump.txt", "source/workload_stdout_pre_dump.log",
    "source/workload_stdout_pre_dump.log.info", "dest/workload_status_post_restore.txt",
    "dest/workload_stdout_post_restore.log", "dest/workload_stdout_post_restore.log.info",
}  # fmt: skip
ARMED = ALWAYS | {f"{side}/{name}" for side in ("source", "dest") for name in ("guard.log", "record.json")}
DUMPED = ARMED | {"source/criu-dump.log", "source/1/images.txt"}
ROLLED_BACK = {f"source/workload_{name}" for name in
               ("status_post_rollback.txt", "stdout_post_rollback.log", "stdout_post_rollback.log.info")}  # fmt: skip
MOVED = DUMPED | {"dest/criu-restore.log", "dest/1/images.txt"}
# Says who it is, so that what is collected can be told from other output; its key is in its memory only.
TALKER = """
import os, time
key = "se" + "cret-" + str(os.getpid())
number = 0
while True:
    print(f"line {number}", flush=True)
    number += 1
    time.sleep(0.05)
"""


def folder_of(migration: Migration) -> Path:
    folders = list(migration.results.iterdir())
    assert len(folders) == 1, folders
    return folders[0]


def check_files(migration: Migration, wanted: set[str]) -> Path:
    """Exactly these files; nothing of the run's keys or of the process's memory in them. Returns the folder."""
    folder = folder_of(migration)
    names = {os.path.relpath(path, folder) for path in folder.rglob("*") if path.is_file()}
    assert names == wanted, f"missing {sorted(wanted - names)}, not expected {sorted(names - wanted)}"
    texts = {path: path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()}
    for path, text in texts.items():
        assert "PRIVATE KEY" not in text, path
        assert "CERTIFICATE" not in text, path
        assert not text.startswith("\x7f") and "secret-" not in text, path
        assert path.stat().st_mode & 0o077 == 0, path
    return folder


def status(folder: Path, name: str) -> str:
    text = (folder / name).read_text()
    assert "memory (bytes): rss " in text and "PID " in text, text
    return text


def lines(path: Path) -> list[int]:
    return [int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith("line ")]


def talker(lab: Lab) -> str:
    lab.source.path("/srv/talker.py").write_text(TALKER, encoding="utf-8")
    return "python3 /srv/talker.py"


@pytest.mark.parametrize(("strategy", "logs"), [
    ("full", {"criu-page-server.log"}), ("postcopy", {"criu-lazy-pages.log"}),
])  # fmt: skip
def test_a_success(prepare: Prepare, lab: Lab, strategy: str, logs: set[str]) -> None:
    """Output before the freeze and after it, each in its own file and each line once."""
    migration, _aftermath = prepare("command", command=talker(lab), migration_strategy=strategy)
    migration.run()
    folder = check_files(migration, MOVED | {f"dest/{name}" for name in logs})
    before = lines(folder / "source/workload_stdout_pre_dump.log")
    after = lines(folder / "dest/workload_stdout_post_restore.log")
    assert before and after and before + after == list(range(len(before) + len(after)))
    for name in ("source/workload_status_pre_dump.txt", "dest/workload_status_post_restore.txt"):
        assert "talker.py" in status(folder, name)
    for name in logs | {"criu-restore.log"}:
        assert (folder / "dest" / name).stat().st_size > 0
    assert "core-" in (folder / "source/1/images.txt").read_text()


def test_a_dump_that_fails(prepare: Prepare, lab: Lab) -> None:
    """Rolled back: how the process looked before, how it goes on, and what it says then."""
    migration, _aftermath = prepare("command", command=talker(lab), migration_pause_at={"source": ["frozen"]})
    migration.start()
    record = migration.await_paused("source", "frozen")
    with running(lab.source, TRACER, str(record["procs"][-1]["pid"])):
        migration.go("source", "frozen")
        migration.finish(None)
    folder = check_files(migration, (DUMPED | ROLLED_BACK | {"dest/criu-page-server.log"}) - {"source/1/images.txt"})
    assert folder.name.endswith("_failed")
    assert "talker.py" in status(folder, "source/workload_status_pre_dump.txt")
    assert "talker.py" in status(folder, "source/workload_status_post_rollback.txt")
    assert "undone" in (folder / "dest/workload_status_post_restore.txt").read_text()
    before = lines(folder / "source/workload_stdout_pre_dump.log")
    after = lines(folder / "source/workload_stdout_post_rollback.log")  # none while the tracer holds it
    assert before and before + after == list(range(len(before) + len(after)))


def test_a_restore_that_fails(prepare: Prepare, lab: Lab) -> None:
    migration, _aftermath = prepare(
        "memory", **SMALL, migration_strategy="full", migration_pause_at={"source": ["frozen"]}
    )
    migration.start()
    record = migration.await_paused("source", "frozen")
    with running(lab.destination, PID_TAKER, str(record["procs"][-1]["pid"])):
        migration.go("source", "frozen")
        migration.finish(None)
    folder = check_files(migration, MOVED | ROLLED_BACK | {"dest/criu-page-server.log"})
    assert "Error" in (folder / "dest/criu-restore.log").read_text()


def test_a_destination_that_cannot_be_reached(prepare: Prepare, lab: Lab) -> None:
    """What the source has is there all the same; the destination keeps its own."""
    migration, _aftermath = prepare(
        "memory", **SMALL, migration_pause_at={"source": ["frozen"]}, limits={"connect": 2, "link": 2, "undo": 2}
    )
    migration.start()
    migration.await_paused("source", "frozen")
    with cut(lab.destination):
        migration.go("source", "frozen")
        migration.finish(None)
    there = {name for name in ARMED if name.startswith("dest/")} - {name for name in ALWAYS if name.startswith("dest/")}
    wanted = ((ARMED | ROLLED_BACK) - there) | {"dest/not_reached.txt"}
    names = {os.path.relpath(path, folder_of(migration)) for path in folder_of(migration).rglob("*") if path.is_file()}
    folder = check_files(migration, wanted | (names & {"source/criu-dump.log", "source/1/images.txt"}))
    assert lab.destination.name in (folder / "dest/not_reached.txt").read_text()
    assert json.loads((folder / "metrics.json").read_text())["status"] == "rolled_back"
    assert lab.destination.path(f"{RUNS}/{migration.run_id}/guard.log").exists()


def test_a_refusal_before_anything_was_started(prepare: Prepare) -> None:
    migration, aftermath = prepare("process", pid=4000000)
    migration.run(rc=None)
    check_files(migration, ALWAYS)
    aftermath.check_untouched()


def test_a_refusal_of_what_was_started(prepare: Prepare, lab: Lab) -> None:
    """The process is ended again; how it looked and what it said is kept."""
    text = f"import socket, time\ns = socket.create_connection(('{lab.client.address}', 22))\n"
    text += "print('line 0', flush=True)\ntime.sleep(600)"
    lab.source.path("/srv/outward.py").write_text(text, encoding="utf-8")
    migration, aftermath = prepare("command", command="python3 /srv/outward.py")
    migration.run(rc=None)
    folder = check_files(migration, ALWAYS)
    assert lines(folder / "source/workload_stdout_pre_dump.log") == [0]
    assert "outward.py" in status(folder, "source/workload_status_pre_dump.txt")
    aftermath.check_untouched()


def test_a_start_that_fails(prepare: Prepare, lab: Lab) -> None:
    """It never says that it is ready: its directory goes, what it said is kept."""
    text = "import time\nprint('line 0', flush=True)\ntime.sleep(600)"
    lab.source.path("/srv/unready.py").write_text(text, encoding="utf-8")
    migration, aftermath = prepare("command", command="python3 /srv/unready.py", wait_ready=True, ready_timeout=2)
    migration.run(rc=None)
    assert "no ready signal" in migration.output(), migration.output()
    folder = check_files(migration, ALWAYS)
    assert folder.name.endswith("_failed")
    assert lines(folder / "source/workload_stdout_pre_dump.log") == [0]
    aftermath.check_untouched()


def test_what_nobody_had_foreseen(prepare: Prepare, lab: Lab) -> None:
    """A file lies where the workload's directory is to be made."""
    lab.source.path("/srv/file").touch()
    try:
        migration, aftermath = prepare("command", command="sleep 600", working_dir="/srv/file/run")
        migration.run(rc=None)
        assert check_files(migration, ALWAYS).name.endswith("_exception"), migration.output()
        aftermath.check_untouched()
    finally:
        lab.source.path("/srv/file").unlink()


# --- output_capture=strace -------------------------------------------------------------------------------------------


def strace_in(node: Node) -> list[tuple[int, str]]:
    return node.find(["strace-pre_dump", "strace-post_restore"])


def need_strace(lab: Lab) -> None:
    if not shutil.which("strace", path=str(lab.source.path("/usr/bin"))):
        pytest.skip("the lab was made without lab_packages=strace")


def test_strace(prepare: Prepare, lab: Lab) -> None:
    """Attached, gone before the freeze, attached again for the seconds asked for; of stdout and stderr only."""
    need_strace(lab)
    text = TALKER.replace("    number += 1", "    os.write(other, b'secret-of-a-file')\n    number += 1")
    text = text.replace("number = 0\n", "number = 0\nother = os.open('other', os.O_CREAT | os.O_WRONLY)\n")
    lab.source.path("/srv/talker.py").write_text(text, encoding="utf-8")
    migration, _aftermath = prepare(
        "command", command="python3 /srv/talker.py", output_capture="strace", output_seconds=2
    )
    migration.run()
    more = {f"{side}/{name}" for side, phase in (("source", "pre_dump"), ("dest", "post_restore"))
            for name in (f"workload_stdout_{phase}.log.raw", f"output_{phase}.log")}  # fmt: skip
    folder = check_files(migration, MOVED | more | {"dest/criu-lazy-pages.log", "dest/criu-page-server.log"})
    for side, phase in (("source", "pre_dump"), ("dest", "post_restore")):
        caught = lines(folder / side / f"workload_stdout_{phase}.log")
        assert len(caught) > 10 and caught == list(range(caught[0], caught[0] + len(caught)))
        assert set(caught) <= set(lines(folder / side / f"output_{phase}.log"))
        info: dict[str, Any] = json.loads((folder / side / f"workload_stdout_{phase}.log.info").read_text())
        assert info["capture"] == "strace" and "-p" in info["strace"]["command"]
    record = json.loads((folder / "source/record.json").read_text())
    ended = json.loads((folder / "source/workload_stdout_pre_dump.log.info").read_text())["strace"]["ended"]
    assert ended <= record["times"]["stopping"]
    assert not strace_in(lab.source) and not strace_in(lab.destination)


def test_strace_leaves_although_the_play_was_interrupted(prepare: Prepare, lab: Lab) -> None:
    """Ctrl-C while it is attached and the guards go on: the process can be dumped, and strace is gone."""
    need_strace(lab)
    migration, aftermath = prepare(
        "command", command=talker(lab), output_capture="strace", migration_pause_at={"source": ["freezing"]}
    )
    migration.start()
    migration.await_paused("source", "freezing")
    assert strace_in(lab.source)
    assert migration.play is not None
    os.killpg(migration.play.pid, signal.SIGINT)
    migration.go("source", "freezing")
    wait_for("strace to leave", lambda: not strace_in(lab.source), 20)
    aftermath.check("destination", resolved=False, verify=False)
