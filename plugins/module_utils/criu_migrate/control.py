"""What the module criu_guard does on a node: arm, start, watch, collect and remove a guard; read its record."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import guard, net, payload, proc, record, workload
from .errors import MigrationError

ARMING = "/run/criu-migrate-arming.lock"
WATCHED = "watched"  # the lock of whoever watches a run
ROOM = 5.0  # seconds that a round, or what a play tells of, has to last for its next task to start meanwhile
STALL = 120.0  # seconds after which a watcher stops waiting for a guard that cannot get on; the guard goes on trying


def arm(config: dict[str, Any], tls: dict[str, str]) -> bool:
    """Lay out the run's directory and its first record; False when the run is armed already."""
    run_id = str(config["run_id"])
    folder = record.run_dir(run_id)
    if record.Record.load(run_id) is not None:
        return False
    os.makedirs(os.path.join(folder, "tls"), mode=0o700, exist_ok=True)
    os.chmod(folder, 0o700)
    for name in ("ca", "cert", "key"):
        record.write_file(os.path.join(folder, "tls", name + ".pem"), tls[name].encode())
    record.write_file(os.path.join(folder, "guard.pyz"), payload.build())
    record.write_file(os.path.join(folder, "config.json"), json.dumps(config, indent=1, sort_keys=True).encode())
    with arming():
        _refuse_a_second(config)
        _first_record(config)
    return True


def _refuse_a_second(config: dict[str, Any]) -> None:
    """Raises MigrationError where another run has this process in its hands."""
    other = moved_by(config) if config["role"] == "source" else ""
    if other:
        raise taken_by(other)


def taken_by(other: str, whose: str = "") -> MigrationError:
    """What to say of a process that the run `other` has in its hands."""
    return MigrationError(
        f"{whose}The run {other} moves this process already.",
        f"Wait for its end, or ansible-playbook playbooks/resolve.yml -e run_id={other}",
    )


def _begin(run_id: str) -> None:
    """Two runs may have been armed for one process, as neither had begun: the first whose guard is started has it."""
    with arming():
        rec = load(run_id)
        if rec.state == "armed" and not rec.data.get("begun"):
            _refuse_a_second(guard.read_config(run_id))
            rec.note(sync=True, begun=True)


def _first_record(config: dict[str, Any]) -> None:
    kept = {name: config.get(name) or "" for name in ("workload", "working_dir", "service_address")}
    nodes = config.get("nodes") or {}  # by role; who has only this record finds the other one
    record.Record.create(str(config["run_id"]), str(config["role"]), nodes=nodes, **kept)


@contextlib.contextmanager
def arming() -> Iterator[None]:
    """One arming at a time on this node: two runs must not both find a process free."""
    fd = os.open(ARMING, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def moved_by(config: dict[str, Any]) -> str:
    """The run that has this process in its hands: two would SIGCONT and kill what the other counts on."""
    wanted = (int(config["pid"]), int(config["start"]))
    for run_id in record.runs():
        rec = record.Record.load(run_id)
        if rec is None or run_id == config["run_id"] or rec.final or rec.data["role"] != "source":
            continue
        if never_began(rec):
            continue
        theirs = guard.read_config(run_id)
        held = {(int(item["pid"]), int(item["start"])) for item in rec.data.get("procs", [])}
        if wanted in held | {(int(theirs["pid"]), int(theirs["start"]))}:
            return run_id
    return ""


def never_began(rec: record.Record) -> bool:
    """Armed, and no guard was started that could touch a process."""
    return rec.state == "armed" and not rec.data.get("begun") and not alive(str(rec.data["run_id"]))


def alive(run_id: str) -> bool:
    """A guard of this run holds the run's lock."""
    return record.locked(run_id)


def start(run_id: str, python: str) -> bool:
    """Start the guard (again); False when one was there. MigrationError where another run has the process."""
    if alive(run_id):
        return False
    _begin(run_id)
    program = os.path.join(record.run_dir(run_id), "guard.pyz")
    done = subprocess.run(guard.start(python, program, run_id), capture_output=True, text=True, check=False)
    if done.returncode:
        raise MigrationError(f"The guard did not start: {done.stderr.strip()[-500:]}", "Is Python >= 3.9 there?")
    return True


def load(run_id: str) -> record.Record:
    found = record.Record.load(run_id)
    if found is None:
        raise MigrationError(f"This node has no record of the run {run_id}.", "Runs lie in " + record.RUNS)
    return found


def health(rec: record.Record) -> dict[str, bool]:
    """rebooted: what this node held of the process died with an earlier boot. died: so did a copy that was to run and
    never did. incomplete: its copy lacks memory that only the source has (post-copy)."""
    rebooted = rec.data["boot_id"] != record.boot_id()
    incomplete = guard.may_lack(rec) and guard.incomplete(rec, guard.read_config(rec.data["run_id"]))
    copy = [proc.Proc.from_dict(item) for item in rec.data.get("procs", [])]
    return {"rebooted": rebooted, "died": not rebooted and guard.died_unseen(rec, copy), "incomplete": incomplete}


def wait_for_port(run_id: str, limit: float) -> int:
    """The port that the destination's guard listens on, once it does."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        rec = load(run_id)
        if rec.data.get("port") and alive(run_id):
            return int(rec.data["port"])
        if rec.data.get("guard_error"):
            problem = rec.data["guard_error"]
            raise MigrationError(problem["message"], problem["remedy"], problem["details"])
        time.sleep(0.01)
    raise MigrationError("The guard did not begin to listen.", f"See {record.run_dir(run_id)}/guard.log.")


def wait_change(run_id: str, state: str, limit: float) -> record.Record:
    """Until the record leaves `state`, the guard dies, or `limit` seconds have passed."""
    deadline = time.monotonic() + limit
    rec = load(run_id)
    while rec.state == state and not rec.final and time.monotonic() < deadline:
        pidfd = _guard_fd(rec)
        if pidfd is None:
            return rec
        try:
            # The record is a file that is replaced: looked at often, as inotify would have to follow every rename.
            if select.select([pidfd], [], [], 0.02)[0]:
                return load(run_id)
        finally:
            os.close(pidfd)
        rec = load(run_id)
    return rec


def _guard_fd(rec: record.Record) -> int | None:
    data = rec.data.get("guard") or {}
    if not data or not proc.Proc(data["pid"], data["start"]).alive():
        return None
    return proc.pidfd(int(data["pid"]))


def watch(
    run_id: str,
    python: str,
    limit: float,
    until_filling: bool = False,
    until_round: bool = False,
    until_late: bool = False,
) -> tuple[record.Record, int]:
    """Wait for the end of the migration on this node; a guard that was killed is started again from its record.

    Returns the record and how often the guard had to be started again. Returns a record that is not final when `limit`
    seconds have passed, or, with `until_filling`, once only memory is still to come, or, with `until_round`, once a
    further round was made and there is time to show it, or, with `until_late`, once `will_be_late`.
    """
    held = None if load(run_id).final else record.lock(run_id, WATCHED, guard.LOOKS)
    try:
        return _watch(run_id, python, limit, until_filling, until_round, until_late)
    finally:
        if held is not None:
            os.close(held)


def watched(run_id: str) -> bool:
    """A play that still has to collect this run is watching it here."""
    return record.locked(run_id, WATCHED)


def may_show(rec: record.Record, seen: int) -> bool:
    """More rounds of pre-dump than `seen` were made, and the next one is under way and lasts for a while: a task that
    began in the freeze would take processor time from the dump.
    """
    made = rec.data.get("pre_dumps") or []
    if rec.state != "iterating" or len(made) <= seen:
        return False
    log = str((rec.data.get("jobs", {}).get("pre-dump") or {}).get("log") or "")
    return log.endswith(f"-{len(made) + 1}.log") and float(made[-1].get("predicted_downtime") or 0.0) >= ROOM


def will_be_late(rec: record.Record) -> bool:
    """The guard foresees that its deadline will be missed, by a move that lasts for a while: a task that tells of a
    short one would make it longer.
    """
    found = rec.data.get("deadline") or {}
    return bool(found.get("late")) and float(found.get("needs") or 0.0) >= ROOM


def _watch(
    run_id: str, python: str, limit: float, until_filling: bool, until_round: bool, until_late: bool
) -> tuple[record.Record, int]:
    deadline = time.monotonic() + limit
    began = time.time()
    restarts = 0
    seen = len(load(run_id).data.get("pre_dumps") or [])
    while True:
        rec = load(run_id)
        seen = min(seen, len(rec.data.get("pre_dumps") or []))  # rounds may begin anew
        stalled = max(began, float((rec.data.get("stalled") or {}).get("since", time.time())))
        if rec.final or time.monotonic() >= deadline or time.time() - stalled > STALL:
            return rec, restarts
        if until_filling and rec.state == "committed" and rec.data.get("lazy"):
            return rec, restarts
        if until_round and may_show(rec, seen):
            return rec, restarts
        if until_late and will_be_late(rec):
            return rec, restarts
        if not alive(run_id):
            if load(run_id).final:
                continue
            if restarts >= 20:
                raise MigrationError("The guard ends again and again.", f"See {record.run_dir(run_id)}/guard.log.")
            time.sleep(min(restarts, 10))  # what ends it may pass
            restarts += start(run_id, python)
        states = {"committed": until_filling, "iterating": until_round, "armed": until_late}
        soon = states.get(rec.state, False)
        most = 0.1 if soon else 5.0
        wait_change(run_id, rec.state, max(0.0, min(most, deadline - time.monotonic())))


def remove(run_id: str) -> bool:
    """Take away what the run left, once its record is final or when it has not begun."""
    folder = record.run_dir(run_id)
    rec = record.Record.load(run_id)
    if rec is None:
        existed = os.path.isdir(folder)
        shutil.rmtree(folder, ignore_errors=True)
        return existed
    if rec.state == "armed":
        held = _take_over(run_id)  # a guard that lives could begin at any moment
        try:
            rec = load(run_id)
            if rec.state == "armed":
                rec.enter("undone")
        finally:
            os.close(held)
    if not rec.final:
        raise MigrationError(
            f"The run {run_id} is {rec.state} on this node: it may hold the only copy of the process.",
            f"ansible-playbook playbooks/resolve.yml -e run_id={run_id}",
        )
    if not os.path.exists(os.path.join(folder, "config.json")):
        return False  # was removed before
    data = rec.data.get("guard") or {}
    if data:
        running = proc.Proc(int(data["pid"]), int(data["start"]))
        running.kill(signal.SIGTERM)
        proc.wait_gone([running], 5.0)
    config = guard.read_config(run_id)
    if not config.get("keep_images"):
        shutil.rmtree(str(config["images_dir"]), ignore_errors=True)
    net.unmute(run_id)
    _drop_working_dir(rec)
    kept = {"record.json"}
    changed = False
    for name in os.listdir(folder):
        if name not in kept:
            path = os.path.join(folder, name)
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
            changed = True
    return changed


def _drop_working_dir(rec: record.Record) -> None:
    """The copy of the working directory on the node that the process is not on, where a run has made it.

    Not only this run: files that the process removes on the other node would be there again when it comes back.
    """
    folder = str(rec.data.get("working_dir") or "")
    left = rec.state == ("done" if rec.data["role"] == "source" else "undone")
    if left and (os.path.basename(folder) == rec.data["run_id"] or workload.is_runs(Path(folder))):
        shutil.rmtree(folder, ignore_errors=True)


def fence(run_id: str, python: str, limit: float) -> bool:
    """A person says that the copy on the other node is dead."""
    if load(run_id).data["role"] == "source":
        return fence_source(run_id, python)
    return fence_destination(run_id, python, limit)


def fence_source(run_id: str, python: str) -> bool:
    """A person says that the destination's copy is dead: the source's guard takes its commit back and undoes."""
    rec = load(run_id)
    if rec.final:
        return False
    held = _take_over(run_id)
    try:
        rec = load(run_id)
        if rec.final:  # it was answered meanwhile
            return False
        if rec.data.get("ending"):
            raise MigrationError(
                "The source has begun to end its copy: the destination had said that its own runs.",
                "Start the program anew.",
            )
        rec.enter("undoing", sync=True, fenced=True)
    finally:
        os.close(held)
    return start(run_id, python)


def _take_over(run_id: str) -> int:
    """End this run's guard and hold its lock."""
    data = load(run_id).data.get("guard") or {}
    if data and alive(run_id):
        running = proc.Proc(int(data["pid"]), int(data["start"]))
        running.kill(signal.SIGTERM)
        proc.wait_gone([running], 5.0)
    # a killed guard looks dead before the last of its threads has let go of the lock
    held = record.lock(run_id, patience=5.0)
    if held is None:
        raise MigrationError("The guard on this node does not end.", "Kill it, then try again.")
    return held


def fence_destination(run_id: str, python: str, limit: float) -> bool:
    """A person says that the source is dead. That is written down, and the guard does what follows from it: this
    module may be cut off at any moment. Returns when the copy runs, is gone, or `limit` seconds have passed."""
    rec = load(run_id)
    if rec.final:
        return False
    held = _take_over(run_id)
    try:
        rec = load(run_id)
        if rec.final:
            return False
        rec.note(sync=True, fencing=True)
    finally:
        os.close(held)
    start(run_id, python)
    deadline = time.monotonic() + limit
    while not (rec.final or rec.state == "running") and time.monotonic() < deadline:
        rec = wait_change(run_id, rec.state, 1.0)
        time.sleep(0 if alive(run_id) else 0.1)  # its keeper starts it again
    return True


def undo_destination(run_id: str) -> bool:
    """The destination's copy goes without a word of the source's guard; one that is to run is let run."""
    from .destination import DestinationGuard

    if load(run_id).final:
        return False
    held = _take_over(run_id)
    try:
        side = DestinationGuard(load(run_id), guard.read_config(run_id))
        if side.rec.state == "running" and not side.died_unseen():
            side.let_run(wait=True)
            side.on_done({})
        else:
            side.undo("The records say that the source goes on.")
    finally:
        os.close(held)
    return True
