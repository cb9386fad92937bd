"""The module criu_restore: a process out of its images, once."""

from __future__ import annotations

import os

from . import folders, proc
from .errors import CriuError, MigrationError
from .job import Job
from .steps import Answer, Request, answer, finish, measured, target

MARKER = "criu-restore.json"


def restore(params: Answer, check: bool) -> Answer:
    """The module criu_restore. Raises MigrationError or CriuError; CRIU then has ended what it had begun."""
    request = Request.of(params)
    leave = str(params["leave"])
    marker = folders.Marker.load(request.work, MARKER)
    if marker and marker.complete and marker.here() and marker.root.alive():
        if marker.data["images_dir"] != request.images:
            raise MigrationError(f"{request.work} belongs to another restored process.", "Name another work_dir.")
        return {**answer(marker, wake(marker, leave, check)), "leave": leave}
    source = folders.Marker.load(request.images)
    need_images(request)
    pidfile = params.get("pidfile") or os.path.join(request.work, "restore.pid")
    cmd = request.criu.restore_argv(
        request.images, request.work, pidfile, stopped=leave == "stopped", lazy=bool(params["lazy_pages"])
    )
    job = marker.job() if marker and not marker.complete else None
    begun = job is not None and _goes_on(job, pidfile)
    if not begun:
        need_free_pids(source)
    if check:
        return {"changed": True, "cmd": cmd}
    folders.private(request.work, images=False)
    if marker is None or job is None or not begun:
        if os.path.exists(pidfile):
            os.unlink(pidfile)  # CRIU refuses to write over one
        marker = folders.Marker.begin(request.work, "restore", MARKER, images_dir=request.images)
        job = Job.launch("restore", request.work, cmd, request.log("restore"))
        marker.note(job=job.as_dict())
    return restored(request, marker, job, pidfile, source)


def restored(request: Request, marker: folders.Marker, job: Job, pidfile: str, source: folders.Marker | None) -> Answer:
    try:
        result = finish(job, "restore", request.limit)
    except CriuError as error:
        error.details["measured"] = {**measured(request, []), "seconds": error.details.get("seconds")}
        raise
    with open(pidfile, encoding="ascii") as handle:
        root = _alive(int(handle.read()))
    leave = str(request.params["leave"])
    # How the process was before it was frozen for the dump is known only to the marker of that dump.
    before = {item.pid: item.stopped_before for item in source.procs} if source else {}
    procs = proc.tree(root.pid)
    for item in procs:
        item.stopped_before = before.get(item.pid, item.stopped_before and leave == "running")
    figures = measured(request, [item.pid for item in procs], result)
    seen = [item.as_dict() for item in procs]
    marker.note(
        state="complete", pid=root.pid, start=root.start, procs=seen, leave="stopped",
        result={**result.as_dict(), **figures, "pidfile": pidfile},
    )  # fmt: skip
    wake(marker, leave, check=False)
    return answer(marker, True)


def wake(marker: folders.Marker, leave: str, check: bool) -> bool:
    """SIGCONT a copy that a restore left stopped, once it may run; True when that was, or would be, a change."""
    if leave == "stopped" or marker.data["leave"] == "running":
        return False
    if not check:
        proc.continue_procs(marker.procs)
        marker.note(leave="running")
    return True


def _goes_on(job: Job, pidfile: str) -> bool:
    """A restore of an interrupted module: still under way, or done with its process alive."""
    result = job.wait(0)
    if result is None:
        return True
    try:
        with open(pidfile, encoding="ascii") as handle:
            return result.rc == 0 and target(int(handle.read())) is not None
    except (FileNotFoundError, ValueError):
        return False


def _alive(pid: int) -> proc.Proc:
    root = target(pid)
    if root is None:
        raise MigrationError(f"The restored process {pid} ended at once.", "Its own output says why.")
    return root


def need_images(request: Request) -> None:
    if not os.path.isfile(os.path.join(request.images, "inventory.img")):
        raise MigrationError(
            f"{request.images} holds no finished dump (no inventory.img).",
            "With a page server, copy the small images from the source beside the pages.",
        )


def need_free_pids(source: folders.Marker | None) -> None:
    taken = [item.pid for item in source.procs if proc.stat(item.pid)] if source else []
    if taken:
        raise MigrationError(
            f"PIDs {taken} of the dumped process are in use on this node.",
            "Where it is the process itself: end it first (criu_dump with leave=killed). Else restore on another node.",
        )
