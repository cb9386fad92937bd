"""CRIU's two daemons, page server and lazy-pages: ready when they are said to be started, and outliving the module."""

from __future__ import annotations

import os
import random
import re
import select
import signal
import socket
from collections.abc import Callable
from typing import Any

from . import folders, proc
from .cli import PageServer, failed, tail
from .errors import CriuError, MigrationError
from .job import Job
from .steps import Answer, Request, tls

PORTS = (27000, 27999)
_TAKEN = re.compile(r"Can't bind|Address already in use")
_PAGES = re.compile(r"UFFD transferred pages: \((\d+)/(\d+)\)")


class Daemon:
    """One daemon of a work directory; its marker, NAME.json, says which job it is."""

    def __init__(self, name: str, request: Request) -> None:
        self.name = name
        self.request = request
        self.marker = folders.Marker.load(request.work, name + ".json")

    @property
    def job(self) -> Job | None:
        return self.marker.job() if self.marker else None

    def running(self) -> bool:
        job = self.job
        return job is not None and job.shell.alive()

    def answer(self, changed: bool, **more: Any) -> Answer:
        data = self.marker.data if self.marker else {}
        known: Answer = {key: data[key] for key in ("pid", "port", "cmd", "log") if key in data}
        return {"changed": changed, **known, "bytes": folders.size(self.request.images, "pages-*.img"), **more}

    def start(self, argv: Callable[[int | None], list[str]], **facts: Any) -> None:
        """Start it and wait for CRIU's word that it can be connected to. Raises CriuError when that does not come."""
        self.request.open()
        ready, status = os.pipe()
        try:
            cmd = argv(status)
            log = self.request.log(self.name)
            if os.path.exists(log):
                os.unlink(log)  # an old complaint must not be taken for one of this daemon
            try:
                job = Job.launch(self.name, self.request.work, cmd, log, (status,))
            finally:
                os.close(status)
            self.marker = folders.Marker.begin(self.request.work, self.name, self.name + ".json", job=job.as_dict())
            wait_ready(self.name, job, ready, self.request.limit)
        finally:
            os.close(ready)
        pids = proc.children(job.shell.pid)
        self.marker.note(state="complete", pid=pids[0] if pids else job.shell.pid, cmd=cmd, log=log, **facts)

    def stop(self, kill: bool) -> Answer:
        """Wait for its end, at most the request's limit (s), then kill it if that is allowed.

        Raises CriuError when it has failed, or has not ended and may not be killed. There is an rc only where it has
        ended by itself: Ansible takes any other than 0 for a failure.
        """
        job, marker = self.job, self.marker
        if job is None or marker is None:
            return self.answer(False, killed=False)
        was_running = job.shell.alive()
        result = job.wait(self.request.limit)
        if result is None and not kill:
            raise CriuError(
                f"criu {self.name} has not ended within {self.request.limit:g} s.",
                "Wait longer (timeout). force=true kills it, and with it the process whose memory it still fills.",
                {"cmd": job.cmd, "rc": None, "log": job.log, "log_tail": tail(job.log)},
            )
        if result is None:
            marker.note(killed=True)
            job.kill()
            result = job.result(-signal.SIGKILL)
        known = result.as_dict()
        if marker.data.get("killed"):
            del known["rc"]
        elif result.rc:
            raise failed(self.name, result)
        return self.answer(was_running, **known, killed=bool(marker.data.get("killed")))


def wait_ready(name: str, job: Job, ready: int, limit: float) -> None:
    """Until CRIU has written its byte. Raises CriuError when it ends first or `limit` seconds pass."""
    if select.select([ready], [], [], limit)[0] and os.read(ready, 1):
        return
    # No byte: the end of the pipe, so criu has closed it and is about to end, or the limit has passed.
    result = job.wait(1.0)
    if result is None:
        job.kill()
        result = job.result(-signal.SIGKILL)
    raise failed(name, result)


# --- page server ------------------------------------------------------------------------------------------------


def free_ports(address: str, first: int, last: int) -> list[int]:
    """Ports of the range that can be bound now, from a random one on, so that modules at once seldom meet."""
    turn = random.randrange(last - first + 1)  # noqa: S311 - only to spread
    ports = list(range(first, last + 1))
    found: list[int] = []
    for port in ports[turn:] + ports[:turn]:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as CRIU does
            try:
                trial.bind((address, port))
            except OSError:
                continue
        found.append(port)
        if len(found) == 8:
            break
    return found


def page_server(params: Answer, check: bool) -> Answer:
    """The module criu_page_server. Raises MigrationError or CriuError; then no page server of this call is left."""
    request = Request.of({**params, "page_server": None})
    daemon = Daemon("page-server", request)
    if params["state"] == "stopped":
        return daemon.answer(daemon.running()) if check else daemon.stop(kill=True)
    address, wanted = str(params["address"]), int(params["port"])
    if daemon.running() and daemon.marker:
        if wanted in (0, daemon.marker.data.get("port")):
            return daemon.answer(False)
        raise MigrationError(
            f"{request.work} has a page server already, on port {daemon.marker.data.get('port')}.",
            "Stop it first (state=stopped), or name another work_dir.",
        )
    first, last = params["port_range"] or PORTS
    ports = [wanted] if wanted else free_ports(address, int(first), int(last))
    if not ports:
        raise MigrationError(f"No port of {first} to {last} is free on {address}.", "Name another port_range.")
    secure = tls(params.get("tls"))

    def argv(port: int, status: int | None) -> list[str]:
        pages = PageServer(address=address, port=port, tls=secure)
        return request.criu.page_server_argv(
            request.images, request.work, pages, previous=request.previous, status_fd=status
        )

    if check:
        return {"changed": True, "cmd": argv(ports[0], None), "port": ports[0]}
    bind_first(daemon, argv, ports)
    return daemon.answer(True)


def bind_first(daemon: Daemon, argv: Callable[[int, int | None], list[str]], ports: list[int]) -> None:
    """Start on the first port that CRIU can bind: between the look and the start another may have taken it."""
    for number, port in enumerate(ports):
        try:
            daemon.start(lambda status, port=port: argv(port, status), port=port)  # type: ignore[misc]
            return
        except CriuError as error:
            taken = _TAKEN.search(str(error.details.get("log_tail", "")))
            if not taken or number == len(ports) - 1:
                error.details["measured"] = {"ports_tried": ports[: number + 1]}
                raise


# --- lazy-pages -------------------------------------------------------------------------------------------------


def pages_of(log: str) -> dict[str, int]:
    """Pages that the daemon says it has moved, summed over the processes it filled."""
    try:
        with open(log, encoding="utf-8", errors="replace") as handle:
            counts = [(int(m.group(1)), int(m.group(2))) for m in map(_PAGES.search, handle) if m]
    except FileNotFoundError:
        counts = []
    return {"transferred": sum(a for a, _b in counts), "total": sum(b for _a, b in counts)}


def lazy_pages(params: Answer, check: bool) -> Answer:
    """The module criu_lazy_pages. Raises MigrationError or CriuError."""
    request = Request.of(params)
    daemon = Daemon("lazy-pages", request)
    if params["state"] == "stopped":
        if check:
            return daemon.answer(daemon.running())
        answer = daemon.stop(kill=bool(params["force"]))
        return {**answer, "pages": pages_of(request.log("lazy-pages"))}
    if daemon.running():
        return daemon.answer(False)
    if not os.path.isfile(os.path.join(request.images, "inventory.img")):
        raise MigrationError(f"{request.images} holds no finished dump (no inventory.img).", "Copy the images first.")

    def argv(status: int | None) -> list[str]:
        return request.criu.lazy_pages_argv(request.images, request.work, request.pages, status_fd=status)

    if check:
        return {"changed": True, "cmd": argv(None)}
    daemon.start(argv)
    return daemon.answer(True)
