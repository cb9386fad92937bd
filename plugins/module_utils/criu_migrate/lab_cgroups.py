"""One cgroup of its own for each node, in every hierarchy that the host has mounted."""

from __future__ import annotations

import os
import signal
import time
from typing import NamedTuple

from .errors import MigrationError

PARENT = "criu-migrate-lab"


class Hierarchy(NamedTuple):
    """One mounted cgroup hierarchy; options is what mount(8) needs to show it again ("" for version 2)."""

    path: str
    version: int
    options: str


def hierarchies(mountinfo: str) -> list[Hierarchy]:
    """The hierarchies in the text of /proc/self/mountinfo, those mounted twice only once."""
    found: dict[str, Hierarchy] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, tail = left.split(), right.split()
        if len(fields) < 5 or len(tail) < 3 or tail[0] not in ("cgroup", "cgroup2"):
            continue
        device, path = fields[2], fields[4]
        if tail[0] == "cgroup2":
            found.setdefault(device, Hierarchy(path, 2, ""))
        else:
            options = [word for word in tail[2].split(",") if word not in ("rw", "ro")]
            found.setdefault(device, Hierarchy(path, 1, ",".join(options)))
    return list(found.values())


def host_hierarchies() -> list[Hierarchy]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as handle:
        return hierarchies(handle.read())


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as handle:
        handle.write(text)


def _prepare_cpuset(parent: str) -> None:
    """Give a new v1 cpuset its CPUs and memory nodes, and its children theirs (CRIU's restore relies on it)."""
    above = os.path.dirname(parent)
    for name in ("cpuset.cpus", "cpuset.mems"):
        with open(os.path.join(above, name), encoding="ascii") as handle:
            _write(os.path.join(parent, name), handle.read())
    _write(os.path.join(parent, "cgroup.clone_children"), "1")


def create(name: str) -> list[str]:
    """Make the cgroup criu-migrate-lab/<name> in every hierarchy; returns their directories."""
    made = []
    for hierarchy in host_hierarchies():
        parent = os.path.join(hierarchy.path, PARENT)
        if not os.path.isdir(parent):
            os.mkdir(parent)
            if hierarchy.version == 1 and "cpuset" in hierarchy.options.split(","):
                _prepare_cpuset(parent)
        path = os.path.join(parent, name)
        os.makedirs(path, exist_ok=True)
        made.append(path)
    return made


def join(paths: list[str]) -> None:
    """Move the calling process into these cgroups."""
    for path in paths:
        _write(os.path.join(path, "cgroup.procs"), "0")


def mount_plan(found: list[Hierarchy]) -> list[tuple[str, Hierarchy]]:
    """Where a node mounts each hierarchy below /sys/fs/cgroup: as the host does, "" for /sys/fs/cgroup itself."""
    if len(found) == 1 and found[0].version == 2:
        return [("", found[0])]
    return [(os.path.basename(item.path), item) for item in found]


def members(path: str) -> list[int]:
    """PIDs in a cgroup and below it."""
    pids = []
    for folder, _, _ in os.walk(path):
        try:
            with open(os.path.join(folder, "cgroup.procs"), encoding="ascii") as handle:
                pids += [int(word) for word in handle.read().split()]
        except FileNotFoundError:
            continue
    return pids


def remove(name: str, limit: float = 10.0) -> bool:
    """Kill what is left in the node's cgroups and remove them; False when there were none.

    Raises MigrationError when a process outlives SIGKILL for `limit` seconds.
    """
    paths = [os.path.join(item.path, PARENT, name) for item in host_hierarchies()]
    paths = [path for path in paths if os.path.isdir(path)]
    deadline = time.monotonic() + limit
    for path in paths:
        while True:
            left = members(path)
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            if not left and _remove_tree(path):
                break
            if time.monotonic() > deadline:
                raise MigrationError(
                    f"The cgroup {path} cannot be removed, processes in it: {left}.",
                    "See what they wait for in /proc/PID/stack, then repeat.",
                )
            time.sleep(0.005)  # v1 hierarchies have no event for "the last member has gone"
    for item in host_hierarchies():
        try:
            os.rmdir(os.path.join(item.path, PARENT))
        except OSError:
            continue  # not there, or another lab's nodes are in it
    return bool(paths)


def _remove_tree(path: str) -> bool:
    try:
        for folder, _, _ in os.walk(path, topdown=False):
            os.rmdir(folder)
    except OSError:
        return False
    return True
