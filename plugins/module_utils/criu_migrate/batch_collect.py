"""After an evacuation, on one node: what became of every run, proofs, logs; then their traces are taken away."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import batch, collecting, control, proc, record, registry, supersede, uncollected, workload
from .errors import MigrationError
from .heartbeat import gap_report, ring_order

SETTLE = 10.0  # seconds in which the guards of a run that has ended on the source end here too
PROOF = 60.0  # seconds for one workload to look at all of its content
Found = dict[str, Any]


def collect(
    runs: Sequence[Found], records: Mapping[str, Found], python: str, look_only: bool = False
) -> dict[str, Found]:
    """By run what criu_guard state=collected tells, with `verified` and `heartbeat` where the process is on this node.

    A run is {run_id, pid, since}. `records`: by run what was seen on the source at the end, its `record` above all.
    """
    deadline = 0.0 if look_only else time.monotonic() + SETTLE
    found = {}
    for run in runs:
        run_id = str(run["run_id"])
        source = (records.get(run_id) or {}).get("record") or {}
        found[run_id] = _collect({**run, "source": source}, python, deadline)
    return found


def _collect(run: Found, python: str, deadline: float) -> Found:
    """`deadline` (monotonic seconds): until when guards may take to end; 0: only look."""
    look_only = not deadline
    run_id = str(run["run_id"])
    rec = record.Record.load(run_id)
    if rec is None or control.never_began(rec):
        return {"never_began": True, **collecting.collect(run_id, "", int(run.get("pid") or 0), look_only=look_only)}
    more: Found = {"rebooted": rec.data["boot_id"] != record.boot_id()}
    if not look_only:
        try:
            rec = control.watch(run_id, python, max(0.0, deadline - time.monotonic()))[0]
            if undone_there(rec, run):
                control.undo_destination(run_id)
                rec = control.load(run_id)
        except MigrationError as error:
            more["error"] = error.as_dict()
    known = {**(run.get("source") or {}), **(rec.data if rec.data["role"] == "source" else {})}
    if holds(rec):
        more.update(prove(rec, look_only), heartbeat=heartbeat(rec, known, run.get("since")))
    frozen = (known.get("output") or {}).get("size") if rec.data["role"] == "destination" else None
    # One that was never stopped has no list of processes in its record
    root = int(run.get("pid") or 0) if rec.data["role"] == "source" else 0
    return {**collecting.collect(run_id, "", root, frozen, look_only=look_only), **more}


def undone_there(rec: record.Record, run: Found) -> bool:
    """The source goes on, by its record, and the guard here has not heard of it."""
    ended = (run.get("source") or {}).get("state") == "undone"
    return ended and rec.data["role"] == "destination" and not rec.final


def holds(rec: record.Record) -> bool:
    """The process of that run is here, running or about to be let run."""
    return supersede.holds_process(rec.data) or (rec.data["role"] == "destination" and rec.state == "running")


def prove(rec: record.Record, look_only: bool) -> Found:
    """What the process finds out about its own content, as `verified`; or why it could not, as `proof_error`."""
    procs = [proc.Proc.from_dict(item) for item in rec.data.get("procs") or []]
    if look_only or not procs:
        return {}
    try:
        return {"verified": workload.verify_process(procs[0].pid, PROOF)}
    except MigrationError as error:
        return {"proof_error": error.as_dict()}


def heartbeat(rec: record.Record, source: Mapping[str, Any], since: float | None) -> Found:
    """The gap around the freeze, as the module workload_heartbeat reports it; {} where there is no heartbeat or no
    freeze. `source` is the source's record."""
    times, moved = source.get("times") or {}, rec.data["role"] == "destination"
    thawed = rec.data["times"].get("resumed")
    if "stopping" not in times or thawed is None:
        return {}
    offset = float((source.get("clock") or {}).get("offset", 0.0)) if moved else 0.0
    try:
        stamps = ring_order((Path(str(rec.data.get("working_dir") or "/")) / "heartbeat.bin").read_bytes())
    except OSError:
        return {}
    window = (float(times["stopping"]), float(thawed))
    return {"present": bool(stamps), **gap_report(stamps, window, offset, times.get("frozen"), since)}


def remove(runs: Sequence[Found]) -> Found:
    """Take away what runs that have ended left, and guards that never began; the registry's entries follow.

    A run is {run_id, name, entry}. Where its process has come to this node the entry is written here, where it has left
    it is dropped. Returns changed, kept: runs that have not ended and may hold the only copy of a process, and problems
    with entries, in words.
    """
    changed = False
    kept: list[str] = []
    problems: list[str] = []
    for run in runs:
        run_id = str(run["run_id"])
        rec = record.Record.load(run_id)
        if rec is None:
            continue
        if control.never_began(rec):
            changed = batch.forget(run_id) or changed
        elif rec.final:
            problems += follow(rec, run)
            changed = control.remove(run_id) or changed
        else:
            kept.append(run_id)
    return {"changed": changed, "kept": kept, "problems": problems}


def remove_one(run_id: str) -> tuple[bool, list[str]]:
    """Take away what one run left, by itself: control.remove(). An entry of the registry follows here too."""
    rec, run = record.Record.load(run_id), uncollected.planned(run_id)
    problems = follow(rec, run) if rec is not None and run else []
    return control.remove(run_id), problems


def follow(rec: record.Record, run: Found) -> list[str]:
    """The entry goes where the process went; why it could not, in words."""
    try:
        register(rec, run)
    except MigrationError as error:
        return [f"{run['name']} is not registered here: {error.text()}"]
    return []


def register(rec: record.Record, run: Found) -> None:
    """MigrationError where the entry cannot be written."""
    procs = [proc.Proc.from_dict(item) for item in rec.data.get("procs") or []]
    if rec.state != "done":
        return
    if rec.data["role"] == "source":
        drop(str(run["name"]), run["entry"])
    elif procs and procs[0].alive():
        mark = str(run["run_id"]).rpartition("-")[2]
        registry.arrive(dict(run["entry"]), procs[0].pid, procs[0].start, mark)


def drop(name: str, entry: Found) -> None:
    """Forget an entry whose process has left; not one that leads to another process, or to one started anew, by now."""
    for known in registry.entries()[0]:
        if known["name"] != name or known["by"] != entry["by"]:
            continue
        try:
            registry.locate(known)
        except MigrationError:
            registry.drop(name)
