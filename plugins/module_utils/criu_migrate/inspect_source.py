"""What the preflight has to know about a process tree: everything that CRIU will meet in it. Looks only."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterable
from typing import Any

from . import inspect_files, inspect_sockets, proc, sockets

Facts = dict[str, Any]
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
# Anonymous inodes that CRIU 4.2 dumps (criu/eventfd.c, eventpoll.c, ...); all others stop a dump.
_ANON = ("eventpoll", "eventfd", "signalfd", "timerfd", "inotify", "fanotify", "pidfd", "bpf-map")
# Character devices that are the same everywhere; /dev/pts/N and /dev/tty are terminals.
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/net/tun")


def look(pid: int, roots: list[str]) -> Facts:
    """Facts of the tree below `pid`; `found` is false where there is no such process.

    `roots` are the directories that travel along; what lies below them is marked `travels`.
    """
    procs = proc.tree(pid)
    if not procs:
        seen = proc.stat(pid)
        return {"pid": pid, "found": False, "why": "it is a zombie" if seen else "there is none with that PID"}
    tree = [_task(item) for item in procs]
    fds = sockets.descriptors(procs)
    found: Facts = {
        "pid": pid,
        "found": True,
        "start": procs[0].start,
        "procs": [item.as_dict() for item in procs],
        "tasks": tree,
        "memory": _memory(procs),
        "command": _read(f"/proc/{pid}/cmdline").replace("\0", " ").strip(),
        "contains_us": os.getpid() in {item.pid for item in procs},
        "outside_session": outside_session(tree),
        "files": inspect_files.look(procs, roots),
        "roots_bytes": sum(inspect_files.tree_bytes(root) for root in roots),
        "sockets": inspect_sockets.look(procs, fds),
    }
    found.update(_special(fds))
    found["pipes_outside"] = pipes_outside(procs, fds)
    found["sysv"] = [item.pid for item in procs if _maps_sysv(item.pid)]
    for item in found["sockets"]["unix"]:
        item["travels"] = inspect_files.below(item["path"], roots)
    return found


def _read(path: str) -> str:
    try:
        with open(path, "rb") as handle:
            return handle.read().decode("utf-8", "replace")
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def status(pid: int, tid: int | None = None) -> dict[str, str]:
    """/proc/PID/status as a dict (proc_pid_status(5))."""
    text = _read(f"/proc/{pid}/status" if tid is None else f"/proc/{pid}/task/{tid}/status")
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


def _task(item: proc.Proc) -> Facts:
    """One process of the tree."""
    pid = item.pid
    here = status(pid)
    text = _read(f"/proc/{pid}/stat")
    fields = text[text.rindex(")") + 2 :].split() if ")" in text else ["?"] * 6
    threads = proc.threads(pid)
    return {
        "pid": pid,
        "ppid": int(here.get("PPid", 0)),
        "pgid": int(fields[2]) if fields[2] != "?" else 0,
        "sid": int(fields[3]) if fields[3] != "?" else 0,
        "tids": threads,
        "state": fields[0],
        "name": here.get("Name", ""),
        "uid": int(here.get("Uid", "0").split()[0]),
        "kernel_thread": "VmSize" not in here,
        "tracers": tracers(pid, threads),
        "limits_readable": limits_readable(pid),
        "namespaces": [n for n in NAMESPACES if _link(f"/proc/{pid}/ns/{n}") != _link(f"/proc/1/ns/{n}")],
        "ipc": _link(f"/proc/{pid}/ns/ipc"),
        "cwd": _link(f"/proc/{pid}/cwd"),
        "root": _link(f"/proc/{pid}/root"),
    }


def tracers(pid: int, threads: Iterable[int]) -> list[Facts]:
    """Who traces a thread of the process: {pid, name, command}, each once."""
    found = {int(status(pid, tid).get("TracerPid", 0)) for tid in threads} - {0}
    return [
        {
            "pid": tracer,
            "name": status(tracer).get("Name", ""),
            "command": _read(f"/proc/{tracer}/cmdline").replace("\0", " ").strip(),
        }
        for tracer in sorted(found)
    ]


def limits_readable(pid: int) -> bool:
    """prlimit(2) as CRIU calls it: for another user's process it needs CAP_SYS_RESOURCE, root or not."""
    try:
        resource.prlimit(pid, resource.RLIMIT_NOFILE)
    except PermissionError:
        return False
    except OSError:
        pass  # gone meanwhile
    return True


def _maps_sysv(pid: int) -> bool:
    """Shared memory of System V: CRIU takes it along only together with its whole IPC namespace."""
    return "/SYSV" in _read(f"/proc/{pid}/maps")


def outside_session(tree: list[Facts]) -> dict[str, int]:
    """Session and process group of the root where their leaders are not in the tree: CRIU calls that a shell job."""
    pids = {task["pid"] for task in tree}
    return {key: tree[0][key] for key in ("sid", "pgid") if tree[0][key] not in pids}


def _memory(procs: Iterable[proc.Proc]) -> dict[str, int]:
    """Bytes: rss, pss and swap of the tree, `pages`: what an image of it holds (files' pages stay out), and `lazy`:
    how much of that CRIU can bring after the restore (private and anonymous, not locked, no huge pages; vma.h)."""
    procs = list(procs)
    found = dict(proc.memory(procs))
    found["pages"] = found["lazy"] = 0
    for item in procs:
        for line in _read(f"/proc/{item.pid}/smaps_rollup").splitlines():
            name, _, value = line.partition(":")
            if name in ("Anonymous", "Pss_Shmem", "Swap"):
                found["pages"] += int(value.split()[0]) * 1024
        found["lazy"] += _lazy_bytes(_read(f"/proc/{item.pid}/smaps"))
    return found


def _lazy_bytes(smaps: str) -> int:
    """Of one process (proc_pid_smaps(5)): private mappings without a file, neither locked nor of huge pages."""
    total = anonymous = 0
    private = False
    for line in smaps.splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            private, anonymous = words[1][3] == "p" and not (len(words) > 5 and words[5].startswith("/")), 0
        elif words[0] in ("Anonymous:", "Swap:"):
            anonymous += int(words[1]) * 1024
        elif words[0] == "VmFlags:" and private and not {"lo", "ht"} & set(words):
            total += anonymous
    return total


def _special(fds: Iterable[tuple[int, int, str]]) -> dict[str, list[Facts]]:
    """Descriptors that CRIU cannot dump, and terminals."""
    unsupported: list[Facts] = []
    terminals: list[Facts] = []
    for pid, fd, target in fds:
        where = {"pid": pid, "fd": fd, "what": target}
        if target.startswith("anon_inode:"):
            name = target[len("anon_inode:") :].strip("[]")
            if name not in _ANON:
                unsupported.append({**where, "what": name})
        elif target.startswith("/dev/"):
            try:
                mode = os.stat(f"/proc/{pid}/fd/{fd}").st_mode
            except OSError:
                continue
            if target.startswith(("/dev/pts/", "/dev/tty", "/dev/console", "/dev/ptmx")):
                terminals.append(where)
            elif stat.S_ISBLK(mode) or (stat.S_ISCHR(mode) and target not in _DEVICES):
                unsupported.append({**where, "what": f"the device {target}"})
        elif target.startswith("/secretmem"):
            unsupported.append({**where, "what": "secret memory"})
    return {"unsupported": unsupported, "terminals": terminals}


def pipes_outside(procs: Iterable[proc.Proc], fds: Iterable[tuple[int, int, str]]) -> list[Facts]:
    """Pipes whose other end is with a process that stays: after the move that end is closed."""
    wanted = {target: (pid, fd) for pid, fd, target in fds if target.startswith("pipe:[")}
    ours = {item.pid for item in procs}
    found: dict[str, Facts] = {}
    if not wanted:
        return []
    others = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) not in ours]
    for pid, _fd, target in sockets.descriptors(proc.Proc(other, 0) for other in others):
        if target in wanted and target not in found:
            mine = wanted[target]
            found[target] = {"pid": mine[0], "fd": mine[1], "other": pid, "name": status(pid).get("Name", "")}
    return list(found.values())
