"""The record of one guard: the truth about which copy may run, on disk, written whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from typing import Any

from .errors import MigrationError

RUNS = "/var/lib/criu-migrate"

# In the order in which they are passed through. Names are part of metrics and of resolve.yml.
SOURCE_STATES = (
    "armed",
    "iterating",
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
SYNCED = ("committed", "running", "undoing", *FINAL)


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
        view = memoryview(data)
        while view:  # a disk that is nearly full takes a part and says so only to who asks
            view = view[os.write(fd, view) :]
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


def runs() -> list[str]:
    """Names of all runs that this node knows of."""
    try:
        return sorted(entry.name for entry in os.scandir(RUNS) if entry.is_dir())
    except FileNotFoundError:
        return []


class Record:
    """state, when each state was entered (CLOCK_REALTIME seconds), and whatever belongs to the run."""

    def __init__(self, path: str, data: dict[str, Any]) -> None:
        self.path = path
        self.data = data
        self._writing = threading.RLock()

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
        except ValueError as error:
            raise MigrationError(
                f"{path} cannot be read: {error}", "It may stand for the only copy: look at the processes first."
            ) from error

    @property
    def state(self) -> str:
        return str(self.data["state"])

    @property
    def final(self) -> bool:
        return self.state in FINAL

    def enter(self, state: str, sync: bool = False, **more: Any) -> None:
        """Go to a state. Synced where it has to survive the death of the node; otherwise the process dies with it."""
        with self._writing:
            times = {state: time.time(), **self.data["times"]}
            self.note(sync=sync, state=state, times=times, **more)

    def note(self, sync: bool = False, **more: Any) -> None:
        """Add facts. What could not be written has not happened: the state in memory is never ahead of the disk's."""
        with self._writing:  # two threads of a guard must not write into one temporary file
            data = {**self.data, **more}
            # Replacing a synced file by an unsynced one can lose both in a power cut.
            sync = sync or data["state"] in SYNCED
            write_file(self.path, json.dumps(data, sort_keys=True).encode(), sync=sync)
            self.data.update(more)


def lock(run_id: str, name: str = "lock", patience: float = 0.0) -> int | None:
    """Take the run's guard lock; None when another guard of this run lives. Held until the process ends.

    `patience` (seconds) outlasts those who only look (`locked`) and hold it for a moment.
    """
    return lock_file(os.path.join(run_dir(run_id), name), patience)


def locked(run_id: str, name: str = "lock") -> bool:
    """Whether somebody holds that lock. Two who look do not take each other for one who does."""
    return file_locked(os.path.join(run_dir(run_id), name))


def lock_file(path: str, patience: float = 0.0) -> int | None:
    """Lock a file that is made where it is not there; None when it stays locked for `patience` seconds."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(fd)
                return None
            time.sleep(0.01)


def file_locked(path: str) -> bool:
    """Whether somebody holds the lock on a file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
