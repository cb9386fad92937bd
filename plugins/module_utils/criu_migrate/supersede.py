"""Ending what an earlier, finished run of the same test workload left running, so that a run can be repeated.

Only workloads that this project starts and that hold made-up data are ever ended: never `command` or `process`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from typing import Any

from . import control, inspect_node, net, proc, record
from .errors import MigrationError

KEEP = ("command", "process")
SCARCE = 0.25  # of a node's memory
ABANDONED = 3600.0  # seconds after its end in which a play may still collect a run


def holds_process(data: dict[str, Any]) -> bool:
    """By its record the process of that run is on this node: moved here, or rolled back to here."""
    # "running": the source still counts on an answer and holds its copy; that run is unfinished, not an earlier one
    return bool(data["state"] == ("done" if data["role"] == "destination" else "undone"))


def same(data: dict[str, Any], name: str, key: dict[str, Any]) -> bool:
    workload = data.get("workload") or {}
    params = workload.get("params") or {}
    return workload.get("name") == name and all(params.get(item) == value for item, value in key.items())


def collected(run_id: str) -> bool:
    """Its play has taken everything and removed the rest: nobody verifies its process or looks at its logs any more."""
    return not os.path.exists(os.path.join(record.run_dir(run_id), "config.json"))


def in_the_way(key: dict[str, Any]) -> bool:
    """An earlier process of the same workload would hinder a new one: by what `key` names, like a port, or as it takes
    memory on a node that has little left."""
    memory = inspect_node.memory()
    return bool(key) or memory["available"] < SCARCE * memory["total"]


def find(name: str, key: dict[str, Any], own: str) -> list[dict[str, Any]]:
    """Records of collected runs of that workload whose process still lives on this node and is in the way."""
    found: list[dict[str, Any]] = []
    if name in KEEP or not in_the_way(key):
        return found
    for run_id in record.runs():
        try:
            rec = record.Record.load(run_id)
        except MigrationError:
            continue  # tidy() names it
        if rec is None or run_id == own or not holds_process(rec.data) or not same(rec.data, name, key):
            continue
        if not collected(run_id):
            continue  # a play may still be verifying it; where none is, tidy() names it
        procs = [proc.Proc.from_dict(item) for item in rec.data.get("procs", [])]
        if any(item.alive() for item in procs):
            found.append(rec.data)
    return found


def tidy(own: str) -> list[dict[str, str]]:
    """Take keys, images and logs of runs away that ended long ago and that nobody collected. Returns {run_id, state}
    of runs whose record is not final, as each may hold the only copy of a process, and of those nobody collected."""
    open_runs: list[dict[str, str]] = []
    for run_id in record.runs():
        try:
            rec = record.Record.load(run_id)
        except MigrationError:
            open_runs.append({"run_id": run_id, "state": "unreadable"})
            continue
        if rec is None or run_id == own:
            continue
        if control.never_began(rec):
            continue
        if not rec.final:
            open_runs.append({"run_id": run_id, "state": rec.state})
        elif not collected(run_id):
            open_runs.append({"run_id": run_id, "state": f"{rec.state}, but was not collected"})
            if time.time() - max(rec.data["times"].values()) > ABANDONED:
                control.remove(run_id)
    return open_runs


def end(data: dict[str, Any], grace: float = 5.0) -> None:
    """SIGTERM, then SIGKILL after `grace` seconds; service address and working directory of that run go too."""
    procs = [proc.Proc.from_dict(item) for item in data.get("procs", [])]
    everything = proc.tree(procs[0].pid) if procs[0].alive() else [item for item in procs if item.alive()]
    for item in everything:
        item.kill(signal.SIGCONT)
        item.kill(signal.SIGTERM)
    proc.kill_tree(proc.wait_gone(everything, grace), 10.0)
    if data.get("service_address"):
        net.remove_address(str(data["service_address"]))
    folder = str(data.get("working_dir") or "")
    if folder and os.path.basename(folder) == data["run_id"]:
        shutil.rmtree(folder, ignore_errors=True)
    path = os.path.join(record.run_dir(data["run_id"]), "record.json")
    data["superseded"] = True
    record.write_file(path, json.dumps(data, sort_keys=True).encode())
