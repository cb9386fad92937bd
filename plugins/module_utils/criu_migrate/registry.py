"""The processes of a node that are to be saved when it goes: one file each in /etc/criu-migrate/processes.d."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from . import proc, record, workload
from .errors import MigrationError

FOLDER = "/etc/criu-migrate/processes.d"
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")  # becomes part of run ids, folders and file names
Entry = dict[str, Any]


def check_name(name: str) -> None:
    """MigrationError where it cannot be the name of an entry."""
    if not NAME.fullmatch(name):
        raise MigrationError(
            f"register_name={name[:60]}: it must be 1 to 40 small letters, digits, - and _, and not begin with - or _.",
            "Give another name.",
        )


def find(pid: int = 0, pidfile: str = "", run_id: str = "") -> dict[str, Any]:
    """The process that one of the three names, and `by`: how it is found again later.

    by: {pidfile} where a file was named, {folder} where it is the root of a workload that a run has started (it is
    found there after a move or a restart too), else {pid, start, boot_id}: this one process and no later one.
    MigrationError where there is none.
    """
    if pidfile:
        pid = read_pidfile(pidfile)
    elif run_id:
        pid = of_run(run_id)
    known = workload.adopt(pid)
    folder = workload.contract_of(pid)
    by: dict[str, Any] = {"pid": pid, "start": known["start_ticks"], "boot_id": record.boot_id()}
    if pidfile:
        by = {"pidfile": pidfile}
    elif folder is not None:
        by = {"folder": str(folder)}
    return {"pid": pid, "start": known["start_ticks"], "command": " ".join(known["argv"]), "by": by}


def read_pidfile(path: str) -> int:
    """The PID that a file holds. MigrationError where it holds none."""
    try:
        pid = int(Path(path).read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError) as error:
        raise MigrationError(f"{path} names no process: {error}", "Give the file that the program keeps.") from error
    if pid < 2:
        raise MigrationError(f"{path} names the process {pid}.", "Give the file that the program keeps.")
    return pid


def of_run(run_id: str) -> int:
    """The root of the process that a run has brought to, or left on, this node. MigrationError where it is not here."""
    rec = record.Record.load(run_id) if re.fullmatch(r"[\w.-]+", run_id) else None
    procs = [proc.Proc.from_dict(item) for item in (rec.data.get("procs") or [])] if rec else []
    if rec is None or not procs or not procs[0].alive():
        raise MigrationError(
            f"The process of the run {run_id} is not on this node.", "Name the node where it is: -e register_on=NODE."
        )
    if not rec.final:
        raise MigrationError(f"The run {run_id} is {rec.state}: its process is on its way.", "Wait for its end.")
    return procs[0].pid


def path_of(name: str) -> str:
    return os.path.join(FOLDER, name + ".json")


def text_of(entry: Entry) -> bytes:
    return (json.dumps(entry, indent=1, sort_keys=True) + "\n").encode()


def put(entry: Entry, check: bool = False) -> bool:
    """Write an entry, {name, priority, by, params}; False where it was there like that. One process has one entry."""
    check_name(str(entry["name"]))
    for other in entries()[0]:
        if other["name"] != entry["name"] and other["by"] == entry["by"]:
            raise MigrationError(
                f"This process is registered as {other['name']} already.",
                f"Remove that first: -e register_state=absent -e register_name={other['name']}",
            )
    path, data = path_of(str(entry["name"])), text_of(entry)
    try:
        with open(path, "rb") as handle:
            if handle.read() == data:
                return False
    except FileNotFoundError:
        pass
    if not check:
        os.makedirs(FOLDER, mode=0o700, exist_ok=True)
        os.chmod(FOLDER, 0o700)
        record.write_file(path, data)
    return True


def drop(name: str, check: bool = False) -> bool:
    """Take an entry away; False where there was none. The process is left alone."""
    check_name(name)
    there = os.path.exists(path_of(name))
    if there and not check:
        os.unlink(path_of(name))
    return there


def entries() -> tuple[list[Entry], list[str]]:
    """All entries by name, and what is wrong with files that are none."""
    found: list[Entry] = []
    problems: list[str] = []
    for name in sorted(os.listdir(FOLDER)) if os.path.isdir(FOLDER) else []:
        if not name.endswith(".json"):
            continue
        path = os.path.join(FOLDER, name)
        try:
            with open(path, encoding="utf-8") as handle:
                entry = json.load(handle)
            found.append({**entry, "name": str(entry["name"]), "priority": int(entry["priority"]),
                          "by": dict(entry["by"]), "params": dict(entry["params"])})  # fmt: skip
        except (OSError, ValueError, TypeError, KeyError) as error:
            problems.append(f"{path} is no entry: {error!r}. Remove it, or register its process again.")
    return found, problems


def locate(entry: Entry) -> proc.Proc:
    """The root of the process as it is now. MigrationError where it is not here any more."""
    by = entry["by"]
    if "pidfile" in by:
        pid = read_pidfile(str(by["pidfile"]))
        seen = proc.stat(pid)
        found = proc.Proc(pid, seen[2]) if seen and seen[0] not in "ZX" else None
    elif "folder" in by:
        found = workload.find(Path(str(by["folder"])))
    else:
        one = proc.Proc(int(by["pid"]), int(by["start"]))
        found = one if by["boot_id"] == record.boot_id() and one.alive() else None
    if found is None:
        raise MigrationError(
            f"The process of {entry['name']} does not run here any more.",
            f"Register it again, or remove it: -e register_state=absent -e register_name={entry['name']}",
        )
    return found


def listed() -> tuple[list[dict[str, Any]], list[str]]:
    """Every entry with the PID that it has now (0: it does not run) and a line for a person, and problems in words."""
    found = []
    known, problems = entries()
    for entry in known:
        try:
            pid = locate(entry).pid
        except MigrationError as error:
            pid = 0
            problems.append(error.text())
        where = f"PID {pid}" if pid else "does not run"
        found.append({**entry, "pid": pid, "text": f"{entry['name']}: {where}, priority {entry['priority']}"})
    return found, problems


def digest() -> str:
    """Changes whenever an entry does, or the process that it leads to."""
    found, problems = listed()
    text = json.dumps([[(item["name"], item["pid"], item["priority"], item["params"]) for item in found], problems])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def arrive(entry: Entry, pid: int, start: int, mark: str) -> None:
    """Register a process that has been moved to this node: with another start time, in another boot.

    Where its name belongs to another process here, `mark` is added to it. MigrationError where it cannot be.
    """
    by = entry["by"]
    if "pid" in by:
        by = {"pid": pid, "start": start, "boot_id": record.boot_id()}
    taken = {other["name"] for other in entries()[0] if other["by"] != by}
    name = str(entry["name"])
    put({**entry, "by": by, "name": f"{name[: 39 - len(mark)]}-{mark}" if name in taken else name})
