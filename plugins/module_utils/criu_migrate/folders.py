"""Directories of one CRIU command: private, marked with what they hold, so that a second run knows."""

from __future__ import annotations

import glob
import json
import os
import stat as st
from typing import Any

from . import proc, record
from .errors import MigrationError
from .job import Job

MARKER = "criu-migrate.json"  # lies beside the images and travels with them; CRIU itself does not look at it


def private(path: str, images: bool) -> None:
    """Make a directory with mode 0700; an empty one is closed to others, one in use by others is refused.

    Raises MigrationError when a directory for images is open to other users: images are a process's memory.
    """
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        os.makedirs(path, exist_ok=True)
        mode = st.S_IMODE(os.stat(path).st_mode)
        if not images or not mode & 0o077:
            return
        if os.listdir(path):
            raise MigrationError(
                f"{path} is open to other users (mode {mode:04o}), and images hold the process's whole memory.",
                f"Name a directory that does not exist yet, or: chmod 0700 {path}",
            )
        os.chmod(path, 0o700)
    except OSError as error:
        raise MigrationError(f"{path} cannot be used as a directory: {error}", "Name another directory.") from error


def size(path: str, pattern: str = "*.img") -> int:
    """Bytes of the images in a directory."""
    total = 0
    for name in glob.glob(os.path.join(glob.escape(path), pattern)):
        try:
            total += os.stat(name).st_size
        except FileNotFoundError:
            continue
    return total


def has_images(path: str) -> bool:
    return bool(glob.glob(os.path.join(glob.escape(path), "*.img")))


def clear(path: str) -> None:
    """Take away the images of a dump that did not get finished."""
    for name in glob.glob(os.path.join(glob.escape(path), "*.img")):
        os.unlink(name)
    if os.path.islink(os.path.join(path, "parent")):
        os.unlink(os.path.join(path, "parent"))


class Marker:
    """What a command has done in a directory: state (begun, complete), process, and how the command ended."""

    def __init__(self, path: str, data: dict[str, Any]) -> None:
        self.path = path
        self.data = data

    @classmethod
    def load(cls, folder: str, name: str = MARKER) -> Marker | None:
        path = os.path.join(folder, name)
        try:
            with open(path, encoding="utf-8") as handle:
                return cls(path, json.load(handle))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise MigrationError(f"{path} cannot be read: {error}", "Remove the directory and start again.") from error

    @classmethod
    def begin(cls, folder: str, action: str, name: str = MARKER, **more: Any) -> Marker:
        marker = cls(os.path.join(folder, name), {"action": action, "boot_id": record.boot_id()})
        marker.note(state="begun", **more)
        return marker

    def note(self, **more: Any) -> None:
        self.data.update(more)
        record.write_file(self.path, json.dumps(self.data, indent=1, sort_keys=True).encode())

    @property
    def complete(self) -> bool:
        return bool(self.data["state"] == "complete")

    @property
    def root(self) -> proc.Proc:
        return proc.Proc(int(self.data["pid"]), int(self.data["start"]))

    @property
    def procs(self) -> list[proc.Proc]:
        return [proc.Proc.from_dict(item) for item in self.data.get("procs", [])]

    def here(self) -> bool:
        """Written on this node since it was started: only then do its PIDs mean anything."""
        return bool(self.data.get("boot_id") == record.boot_id())

    def is_of(self, root: proc.Proc | None, action: str) -> bool:
        same = root is not None and (root.pid, root.start) == (self.data.get("pid"), self.data.get("start"))
        return same and self.here() and self.data.get("action") == action

    def job(self) -> Job | None:
        data = self.data.get("job")
        return Job.from_dict(data) if data and self.here() else None


def info(images: str) -> dict[str, Any]:
    """What the module criu_images_info returns; sizes in bytes."""
    marker = Marker.load(images)
    complete = os.path.isfile(os.path.join(images, "inventory.img")) and (marker is None or marker.complete)
    alive = marker is not None and marker.here() and "pid" in marker.data and marker.root.alive()
    data = marker.data if marker else {}
    known = {name: data.get(name, "") for name in ("boot_id", "pid", "start", "action")}
    return {
        "complete": complete,
        "id": "-".join(str(value) for value in [*known.values(), (data.get("job") or {}).get("began", "")])
        if data
        else "",
        "pid": int(data.get("pid", 0)),
        "leave": str(data.get("leave", "")),
        "alive": alive,
        "running": bool(alive and marker and not proc.fully_stopped(marker.root.pid)),
        "bytes": size(images),
    }
