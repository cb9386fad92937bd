"""The record of one guard: the truth about which copy may run, on disk, written whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import time
from typing import Any

RUNS = "/var/lib/criu-migrate"

# In the order in which they are passed through. Names are part of metrics and of resolve.yml.
SOURCE_STATES = (
    "armed",
    "freezing",
    "frozen",
    "dumped",
    "detached",
    "restored",
    "committed",
    "done",
    "undoing",
    "undone",
)
DESTINATION_STATES = ("armed", "receiving", "restoring", "restored", "running", "done", "undoing", "undone")
FINAL = ("done", "undone")


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as handle:
        return handle.read().strip()


def run_dir(run_id: str) -> str:
    return os.path.join(RUNS, run_id)


def write_file(path: str, data: bytes, mode: int = 0o600, sync: bool = True) -> None:
    """Replace a file in one step; with sync it has reached the disk, name included, when this returns."""
    temporary = path + ".new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        os.write(fd, data)
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(temporary, path)
    if sync:
        folder = os.open(os.path.dirname(path), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class Record:
    """state, when each state was entered (CLOCK_REALTIME seconds), and whatever belongs to the run."""

    def __init__(self, path: str, data: dict[str, Any]) -> None:
        self.path = path
        self.data = data

    @classmethod
    def create(cls, run_id: str, role: str, **more: Any) -> Record:
        data: dict[str, Any] = {"run_id": run_id, "role": role, "state": "armed", "boot_id": boot_id(), "times": {}}
        data.update(more)
        record = cls(os.path.join(run_dir(run_id), "record.json"), data)
        record.enter("armed", sync=True)
        return record

    @classmethod
    def load(cls, run_id: str) -> Record | None:
        path = os.path.join(run_dir(run_id), "record.json")
        try:
            with open(path, encoding="utf-8") as handle:
                return cls(path, json.load(handle))
        except FileNotFoundError:
            return None

    @property
    def state(self) -> str:
        return str(self.data["state"])

    @property
    def final(self) -> bool:
        return self.state in FINAL

    def enter(self, state: str, sync: bool = False, **more: Any) -> None:
        """Go to a state. Synced where it has to survive the death of the node; otherwise the process dies with it."""
        self.data["state"] = state
        self.data["times"].setdefault(state, time.time())
        self.note(sync=sync, **more)

    def note(self, sync: bool = False, **more: Any) -> None:
        """Add facts without a change of state."""
        self.data.update(more)
        write_file(self.path, json.dumps(self.data, sort_keys=True).encode(), sync=sync)


def lock(run_id: str) -> int | None:
    """Take the run's guard lock; None when another guard of this run lives. Held until the process ends."""
    fd = os.open(os.path.join(run_dir(run_id), "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd
