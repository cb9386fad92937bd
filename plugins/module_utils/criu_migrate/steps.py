"""One step at a time, for the modules: dump, pre-dump and restore, each with its directories and its safety."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from . import folders, net, proc, sockets, stats
from .cli import Criu, Options, PageServer, Result, Tls, failed
from .errors import CriuError, MigrationError
from .job import Job

Answer = dict[str, Any]
FREEZE_LIMIT = 10.0  # seconds for a whole tree to come to a stop
END_LIMIT = 10.0  # seconds for killed processes to be gone

TLS_SPEC: dict[str, Any] = {name: {"type": "path", "required": True} for name in ("ca", "cert", "key")}
PAGES_SPEC: dict[str, Any] = {
    "address": {"type": "str", "required": True},
    "port": {"type": "int", "required": True},
    "tls": {"type": "dict", "options": TLS_SPEC},
}
OPTIONS_SPEC: dict[str, Any] = {
    "tcp_established": {"type": "bool", "default": True},
    "tcp_close": {"type": "bool", "default": False},
    "file_locks": {"type": "bool", "default": True},
    "ext_unix_sk": {"type": "bool", "default": True},
    "link_remap": {"type": "bool", "default": True},
    "shell_job": {"type": "bool", "default": False},
    "ghost_limit": {"type": "int", "default": Options.ghost_limit},
    "network_lock": {"type": "str", "default": "nftables", "choices": ["nftables", "iptables", "skip"]},
    "extra": {"type": "list", "elements": "str", "default": []},
}


def common_spec(**more: Any) -> dict[str, Any]:
    """The argument spec that every command shares, and what one has beside it."""
    return {
        "images_dir": {"type": "path", "required": True},
        "work_dir": {"type": "path"},
        "criu_path": {"type": "path"},
        "timeout": {"type": "float", "default": 600.0},
        **more,
    }


@dataclass
class Request:
    """A module's parameters, typed."""

    images: str
    work: str
    criu: Criu
    limit: float
    pages: PageServer | None = None
    previous: str = ""
    params: Answer = field(default_factory=dict)

    @classmethod
    def of(cls, params: Answer) -> Request:
        images = os.path.abspath(params["images_dir"])
        previous = os.path.abspath(params["prev_images_dir"]) if params.get("prev_images_dir") else ""
        if previous and not os.path.isfile(os.path.join(previous, "inventory.img")):
            raise MigrationError(f"prev_images_dir: {previous} holds no finished dump.", "Name the one before this.")
        return cls(
            images=images,
            work=os.path.abspath(params["work_dir"]) if params.get("work_dir") else images,
            criu=Criu(params.get("criu_path") or "", Options.from_dict(params.get("options") or {})),
            limit=float(params["timeout"]),
            pages=page_server(params.get("page_server")),
            previous=os.path.relpath(previous, images) if previous else "",
            params=params,
        )

    def log(self, action: str) -> str:
        return os.path.join(self.work, f"criu-{action}.log")

    def open(self) -> None:
        folders.private(self.images, images=True)
        folders.private(self.work, images=False)


def page_server(params: Answer | None) -> PageServer | None:
    if not params:
        return None
    return PageServer(address=params.get("address") or "", port=int(params["port"]), tls=tls(params.get("tls")))


def tls(params: Answer | None) -> Tls | None:
    if not params:
        return None
    for name in ("ca", "cert", "key"):
        if not os.path.isfile(params[name]):
            raise MigrationError(f"tls.{name}: there is no file {params[name]} on this node.", "Copy it there first.")
    return Tls(params["ca"], params["cert"], params["key"])


def target(pid: int) -> proc.Proc | None:
    found = proc.stat(pid)
    return None if found is None or found[0] in "ZX" else proc.Proc(pid, found[2], found[0] == "T")


def need_dirty_track(criu: Criu) -> None:
    """Raises MigrationError where the kernel does not track changed pages."""
    if not criu.has_feature("mem_dirty_track"):
        raise MigrationError(
            "This kernel does not track changed pages (criu check --feature mem_dirty_track says no): a pre-dump would "
            "crash CRIU and leave foreign memory maps in the process.",
            "Use a kernel with CONFIG_MEM_SOFT_DIRTY (Debian's own have it), or a single full dump.",
        )


def measured(request: Request, pids: Sequence[int], result: Result | None = None) -> Answer:
    """Figures of a step, also of one that failed: CRIU's statistics, wall time (s), images (bytes), PIDs."""
    return {
        "stats": stats.read(request.work),
        "seconds": result.seconds if result else None,
        "bytes": folders.size(request.images),
        "pids": list(pids),
    }


def finish(job: Job, what: str, limit: float) -> Result:
    """Wait for a job. Raises CriuError when it fails or does not end within `limit` seconds; then it is killed."""
    result = job.wait(limit)
    if result is not None and result.rc == 0:
        return result
    if result is not None:
        raise failed(what, result)
    job.kill()
    raise CriuError(
        f"criu {what} did not end within {limit:g} s and was killed.",
        "Raise timeout, or see in the log what it waited for.",
        job.result(-signal.SIGKILL).as_dict(),
    )


# --- what happens to the process after a dump ------------------------------------------------------------------


def lift_lock(request: Request) -> list[str]:
    """Delete the nft tables of this dump; names of those that were there."""
    if request.criu.options.network_lock != "nftables":
        return []
    return net.delete_tables(stats.lock_tables(request.images, request.log("dump")))


def resume(request: Request, procs: Sequence[proc.Proc]) -> None:
    """Undo a dump: sockets out of TCP_REPAIR, network unlocked, SIGCONT to all that ran before."""
    sockets.in_repair(procs, off=True)
    try:
        lift_lock(request)
    finally:
        proc.continue_procs(procs)


def end(procs: Sequence[proc.Proc]) -> bool:
    """SIGKILL the frozen tree; True when it had connections."""
    connected = any(item["state"] != sockets.LISTEN for item in sockets.tcp_sockets(procs))
    left = proc.kill_tree(procs, END_LIMIT)
    if left:
        raise MigrationError(f"PIDs {[p.pid for p in left]} do not die.", "They stay stopped; is a device stuck?")
    return connected


def settle(request: Request, marker: folders.Marker, leave: str, check: bool) -> bool:
    """Bring the process from how the dump left it to `leave`; True when that was, or would be, a change.

    Raises MigrationError when the process has run on since, so that the images are no longer its state.
    """
    was, procs = str(marker.data["leave"]), marker.procs
    alive = [item for item in procs if item.alive()]
    if was == leave and (was != "stopped" or (alive and all(proc.fully_stopped(p.pid) for p in alive))):
        return False
    if was == "killed" or not alive:
        raise MigrationError(
            f"The process {marker.data['pid']} has ended since this dump.", "Bring it back with criu_restore."
        )
    if was == "running" or not all(proc.fully_stopped(p.pid) for p in alive):
        raise MigrationError(
            f"{request.images} holds an older dump of the process {marker.data['pid']}, which has run on since.",
            "Dump it into another directory.",
        )
    if check:
        return True
    connected = False
    if leave == "running":
        resume(request, procs)
    else:
        connected = end(procs)
    marker.note(leave=leave)
    if (
        leave == "killed" and not connected
    ):  # with connections CRIU's lock stays: without it the kernel would reset them
        lift_lock(request)
    return True


# --- dump and pre-dump ------------------------------------------------------------------------------------------


def refuse_foreign(request: Request, marker: folders.Marker | None, root: proc.Proc, action: str) -> None:
    if marker is None:
        foreign = folders.has_images(request.images)
    else:
        foreign = marker.complete or not marker.is_of(root, action)
    if foreign:
        raise MigrationError(
            f"{request.images} already holds images of something else.", "Name another directory, or remove it."
        )


def take(request: Request, root: proc.Proc, action: str, cmd: list[str], freeze: bool) -> folders.Marker:
    """Run one dump or pre-dump to its end, or to the end of one that an interrupted module began.

    Whatever fails, the process runs on as before. The marker is complete when this returns.
    """
    request.open()
    marker = folders.Marker.load(request.images)
    refuse_foreign(request, marker, root, action)
    before = marker.procs if marker else proc.tree(root.pid)
    try:
        job = marker.job() if marker else None
        result = job.wait(0) if job else None
        if job and result is None:
            result = finish(job, action, request.limit)
        if marker is None or result is None or result.rc:
            folders.clear(request.images)
            marker = begin(request, root, action, before, freeze)
            before = marker.procs
            job = Job.launch(action, request.work, cmd, request.log(action))
            marker.note(job=job.as_dict())
            result = finish(job, action, request.limit)
    except MigrationError as error:
        known = measured(request, [item.pid for item in before])
        error.details["measured"] = {**known, "seconds": error.details.get("seconds")}
        undo(request, root, before, error)
        raise
    figures = measured(request, [item.pid for item in before], result)
    marker.note(state="complete", result={**result.as_dict(), **figures})
    return marker


def begin(request: Request, root: proc.Proc, action: str, before: Sequence[proc.Proc], freeze: bool) -> folders.Marker:
    """Note the tree before anything is done to it, then freeze it where the dump is to leave it stopped."""
    marker = folders.Marker.begin(
        request.images,
        action,
        pid=root.pid,
        start=root.start,
        procs=[item.as_dict() for item in before],
        leave="stopped" if freeze else "running",
    )
    if freeze:
        stopped = proc.stop_tree(root, FREEZE_LIMIT, before)
        marker.note(procs=[item.as_dict() for item in stopped])
    return marker


def undo(request: Request, root: proc.Proc, before: Sequence[proc.Proc], error: MigrationError) -> None:
    """After a failed dump; a second failure is added to the first, not shown in its place."""
    known = {(item.pid, item.start): item.stopped_before for item in before}
    procs = proc.tree(root.pid) if root.alive() else []
    for item in procs:  # also children that appeared while the tree was being frozen
        item.stopped_before = known.get((item.pid, item.start), False)
    try:
        resume(request, procs)
        folders.clear(request.images)
        os.unlink(os.path.join(request.images, folders.MARKER))
    except FileNotFoundError:
        pass
    except (MigrationError, OSError) as second:
        error.details["undo_error"] = str(second)


def dump(params: Answer, check: bool) -> Answer:
    """The module criu_dump. Raises MigrationError or CriuError; the process then runs on as before."""
    request = Request.of(params)
    pid, leave = int(params["pid"]), str(params["leave"])
    root, marker = target(pid), folders.Marker.load(request.images)
    if marker and marker.complete and marker.is_of(root or proc.Proc(pid, int(marker.data["start"])), "dump"):
        return answer(marker, settle(request, marker, leave, check))
    root = existing(root, pid)
    tracked = bool(params["track_mem"] or request.previous)
    if tracked:
        need_dirty_track(request.criu)
    cmd = request.criu.dump_argv(
        pid,
        request.images,
        request.work,
        request.pages,
        leave="running" if leave == "running" else "stopped",
        track_mem=tracked,
        previous=request.previous,
    )
    if check:
        refuse_foreign(request, marker, root, "dump")
        return {"changed": True, "cmd": cmd, "pids": [item.pid for item in proc.tree(pid)]}
    marker = take(request, root, "dump", cmd, freeze=leave != "running")
    settle(request, marker, leave, check=False)
    return answer(marker, True)


def existing(root: proc.Proc | None, pid: int) -> proc.Proc:
    if root is None:
        raise MigrationError(f"There is no process {pid} on this node.", "Look it up again: pgrep -a NAME")
    if pid == 1 or any(item.pid == os.getpid() for item in proc.tree(pid)):
        raise MigrationError(f"The process {pid} carries this module itself.", "Name the process to be dumped.")
    return root


def answer(marker: folders.Marker, changed: bool) -> Answer:
    return {"changed": changed, "leave": marker.data["leave"], "pid": marker.data["pid"], **marker.data["result"]}


def pre_dump(params: Answer, check: bool) -> Answer:
    """The module criu_pre_dump: the memory of a running process, as the parent of a later dump."""
    request = Request.of(params)
    pid = int(params["pid"])
    need_dirty_track(request.criu)
    root, marker = existing(target(pid), pid), folders.Marker.load(request.images)
    if marker and marker.complete and marker.is_of(root, "pre-dump"):
        return answer(marker, False)
    cmd = request.criu.pre_dump_argv(pid, request.images, request.work, request.pages, request.previous)
    if check:
        refuse_foreign(request, marker, root, "pre-dump")
        return {"changed": True, "cmd": cmd, "pids": [item.pid for item in proc.tree(pid)]}
    return answer(take(request, root, "pre-dump", cmd, freeze=False), True)
