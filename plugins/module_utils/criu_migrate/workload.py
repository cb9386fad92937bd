"""The starter's side of the workloads' contract: find what was started, ask for a proof, end it.

The program's side is workloads/contract.py; docs/workloads.md describes both.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import proc, record
from .errors import MigrationError
from .inotify import Watch

FLAG = "checkpoint_flag"
READY = "checkpoint_ready"
REQUEST = "verify_request"
RESULT = "verify_result.json"
RECORD = "workload.pid"
OUTPUT = "output.log"
RUN_FOLDER = re.compile(r"/srv/criu-migrate/[a-z_]+-\d{8}-\d{6}-[0-9a-f]{4}")  # where a run starts its workload
TERM_LIMIT = 5.0
KILL_LIMIT = 10.0
TAIL = 4096  # bytes of output shown in an error


@contextlib.contextmanager
def acting_as(uid: int, gid: int) -> Iterator[None]:
    """Do file work and signals with the rights of the workload's own account, never with root's."""
    if os.geteuid() != 0 or uid == 0:
        yield
        return
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def owner_of(folder: Path) -> tuple[int, int]:
    """Return (uid, gid) of a directory."""
    found = folder.stat()
    return found.st_uid, found.st_gid


def last_words(folder: Path) -> str:
    """Return the end of the program's output, at most some 4000 bytes."""
    try:
        with (folder / OUTPUT).open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - TAIL))
            return stream.read().decode("utf-8", "replace").strip()
    except OSError:
        return ""


def recorded(folder: Path) -> dict[str, Any]:
    """Return what was noted at the start of the workload in `folder`, {} where none was started."""
    try:
        data = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def belongs(pid: int, folder: Path) -> bool:
    """Return whether a process works in `folder` or writes its output there."""
    for link in ("cwd", "fd/1", "fd/2"):
        try:
            place = Path(f"/proc/{pid}/{link}").readlink()
        except OSError:
            continue
        if place == folder or folder in place.parents:
            return True
    return False


def find(folder: Path) -> proc.Proc | None:
    """Return the living root of the workload in `folder`, None where it does not run on this node.

    A process that has moved has another start time than was noted, so where it works counts as well.
    """
    note = recorded(folder)
    pid = int(note.get("pid", 0))
    found = proc.stat(pid) if pid > 1 else None
    if found is None or found[0] in "ZX":
        return None
    same_start = found[2] == note.get("start_ticks") and record.boot_id() == note.get("boot_id")
    return proc.Proc(pid, found[2]) if same_start or belongs(pid, folder) else None


def contract_of(pid: int) -> Path | None:
    """Return the working directory of the process `pid` where a workload was started in it and this is its root."""
    try:
        folder = Path(f"/proc/{pid}/cwd").readlink()
    except OSError:
        return None
    root = find(folder)
    return folder if root is not None and root.pid == pid else None


def is_runs(folder: Path) -> bool:
    """Return whether `folder` was made by a run that started a workload, and has nobody else's name."""
    return RUN_FOLDER.fullmatch(str(folder)) is not None and (folder / RECORD).exists()


def members(folder: Path) -> list[proc.Proc]:
    """Return the workload's tree, and what is left of its session where a parent has died."""
    root = find(folder)
    found = {} if root is None else {process.pid: process for process in proc.tree(root.pid)}
    session = int(recorded(folder).get("pid", 0))
    for name in os.listdir("/proc") if session > 1 else ():
        if not name.isdigit() or int(name) in found:
            continue
        pid = int(name)
        with contextlib.suppress(OSError):
            seen = proc.stat(pid)
            if os.getsid(pid) == session and belongs(pid, folder) and seen and seen[0] not in "ZX":
                found[pid] = proc.Proc(pid, seen[2], seen[0] == "T")
    return list(found.values())


def verify(working_dir: str, limit: float, supported: bool = True) -> dict[str, Any]:
    """Ask the running workload to check its own state; return {verified, method, details}.

    Where the program cannot (`supported` is false), verified is None and only its life is reported.
    :raises MigrationError: when it does not run here, or does not answer within `limit` seconds
    """
    folder = Path(working_dir)
    root = find(folder)
    if root is None:
        raise MigrationError(
            f"The workload of {folder} does not run on this node.",
            f"Look at {folder / OUTPUT} and at the records of its guards.",
            {"output": last_words(folder)},
        )
    if not supported:
        state = (proc.stat(root.pid) or ("gone", 0, 0))[0]
        return {"verified": None, "method": "alive", "details": {"pid": root.pid, "state": state}}
    token = secrets.token_hex(8)
    descriptor = os.pidfd_open(root.pid)
    try:
        with Watch(str(folder)) as watch:
            with acting_as(*owner_of(folder)):
                fresh = folder / f"{REQUEST}.new"
                fresh.write_text(token, encoding="utf-8")
                fresh.replace(folder / REQUEST)
            watch.until(lambda: answer(folder, token) is not None, limit, descriptor)
    finally:
        os.close(descriptor)
    proof = answer(folder, token)
    if proof is None:
        with acting_as(*owner_of(folder)):
            (folder / REQUEST).unlink(missing_ok=True)
        end = "ended" if not root.alive() else f"did not answer within {limit:g} s"
        raise MigrationError(
            f"The workload was asked to verify its state and {end}.",
            "Look at its output; a stopped process cannot answer.",
            {"output": last_words(folder)},
        )
    return seen_to_move(folder, {key: proof.get(key) for key in ("verified", "method", "details")})


def seen_to_move(folder: Path, proof: dict[str, Any]) -> dict[str, Any]:
    """Return the proof; where it was to begin at the move and the program has not seen that one, it does not hold."""
    details = proof["details"] if isinstance(proof["details"], dict) else {}
    here = recorded(folder).get("boot_id") in (None, record.boot_id())
    if here or "moved_at" not in details or details["moved_at"] not in (None, []):
        return proof
    return {**proof, "verified": False, "details": {**details, "why": "it did not notice that it was moved"}}


def verify_process(pid: int, limit: float) -> dict[str, Any]:
    """As `verify`, of a process that was not started by this run: by another one perhaps, or by a stranger.

    :raises MigrationError: as `verify`
    """
    known = adopt(pid)
    folder = contract_of(pid)
    if folder is not None and recorded(folder).get("verifies"):
        return verify(str(folder), limit)
    return {"verified": None, "method": "alive", "details": known}


def answer(folder: Path, token: str) -> dict[str, Any] | None:
    """Return the program's answer to `token`, None while there is none."""
    try:
        proof = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return proof if isinstance(proof, dict) and proof.get("token") == token else None


def stop(
    working_dir: str,
    grace: float = 10.0,
    purge: bool = False,
    force: bool = False,
    result_file: str = "",
    check: bool = False,
) -> dict[str, Any]:
    """End the workload: flag away, `grace` seconds to end, SIGTERM, SIGKILL. Returns what had to be signalled.

    :raises MigrationError: when it is stopped (perhaps the only copy of a migration) and not `force`, or will not die
    """
    folder = Path(working_dir)
    processes = members(folder)
    stopped = [process.pid for process in processes if process.stopped_before]
    if stopped and not force:
        raise MigrationError(
            f"Processes of the workload in {folder} are stopped: {stopped}. A stopped tree may be the only copy.",
            "Let the migration be resolved first (playbooks/resolve.yml), or give force.",
        )
    flagged = (folder / FLAG).exists()
    report: dict[str, Any] = {"changed": bool(processes) or flagged or (purge and folder.is_dir()), "signalled": []}
    if check:
        return report
    if folder.is_dir():
        with acting_as(*owner_of(folder)):
            (folder / FLAG).unlink(missing_ok=True)
            report["signalled"] = end_processes(processes, grace)
        report["output"] = last_words(folder)
        if result_file:
            report["result"] = read_result(folder / result_file)
        if purge:
            remove(folder)
    return report


def end_processes(processes: list[proc.Proc], grace: float) -> list[int]:
    """Wait `grace` seconds for an end, then SIGTERM, then SIGKILL; return the PIDs that needed a signal."""
    left = proc.wait_gone(processes, grace)
    signalled = [process.pid for process in left]
    for process in left:
        process.kill(signal.SIGTERM)
    left = proc.kill_tree(proc.wait_gone(left, TERM_LIMIT), KILL_LIMIT)
    if left:
        raise MigrationError(
            f"Processes {[process.pid for process in left]} did not end, not even by SIGKILL.",
            "They wait for the kernel (state D): look at /proc/PID/stack.",
        )
    return signalled


def read_result(path: Path) -> Any | None:
    """Return the JSON that a program left, None where it left none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def remove(folder: Path) -> None:
    """Remove a working directory that was made for a workload. Of one that was there before only the contract goes.

    :raises MigrationError: when no workload was started in `folder`
    """
    if not (folder / RECORD).exists():
        raise MigrationError(f"{folder} is not a workload's directory, it holds no {RECORD}.", "Remove it by hand.")
    if recorded(folder).get("made"):
        shutil.rmtree(folder)
        return
    for name in (FLAG, READY, REQUEST, RESULT, RECORD):
        (folder / name).unlink(missing_ok=True)


def last_thaw(pid: int) -> float | None:
    """Return when the last migration of a process that runs here let it go on, None where there was none."""
    moments = []
    for run_id in record.runs():
        with contextlib.suppress(MigrationError):
            known = record.Record.load(run_id)
            data = known.data if known else {}
            roots = [proc.Proc.from_dict(item) for item in data.get("procs", [])[:1]]
            if "resumed" in data.get("times", {}) and any(root.pid == pid and root.alive() for root in roots):
                moments.append(float(data["times"]["resumed"]))
    return max(moments, default=None)


def adopt(pid: int) -> dict[str, Any]:
    """Return what is known of a process that already runs here and was not started by this project.

    :raises MigrationError: when there is no such process, or it is none that can be moved
    """
    found = proc.stat(pid)
    if found is None or found[0] in "ZX":
        raise MigrationError(f"There is no process {pid} on the source.", "Give the PID of a running one (ps -e).")
    command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    if pid == 1 or not command:
        raise MigrationError(f"Process {pid} is part of the system and cannot be moved.", "Give the PID of a program.")
    uid = Path(f"/proc/{pid}").stat().st_uid
    return {
        "changed": False,
        "pid": pid,
        "start_ticks": found[2],
        "argv": [word.decode("utf-8", "replace") for word in command],
        "user": uid,
        "working_dir": None,
        "ready_seconds": None,
        "since": last_thaw(pid),
        "processes": [process.pid for process in proc.tree(pid)],
    }
