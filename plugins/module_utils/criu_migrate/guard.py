"""What both guards share: configuration, the run's files, log, and being a process of their own."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import shutil
import stat
import sys
import time
from collections.abc import Callable
from typing import Any

from . import lazy_file, limits, net, polling, proc, record
from .cli import LESS, MOST, Criu, Options
from .detaching import detach, keep
from .errors import MigrationError
from .files import image_sizes
from .job import Job, living

LACKING = ("postcopy", "hybrid")  # strategies whose copy runs before all of its memory has come
LOOKS = 0.5  # seconds for which others may look whether a guard lives


class Guard:
    """State that survives in the record; everything else can be derived again after a restart."""

    def __init__(self, rec: record.Record, config: dict[str, Any]) -> None:
        self.rec = rec
        self.config = config
        self.run_id = str(config["run_id"])
        self.folder = record.run_dir(self.run_id)
        self.limits = limits.merged(config.get("limits") or {})
        # What is left after rounds lies in ten thousands of pieces; CRIU writes its log while the process stands still
        level = LESS if config.get("strategy") in ("precopy", "hybrid") else MOST
        self.criu = Criu(config.get("criu_path") or "", Options.from_dict(config.get("options") or {}), level)
        self.images = str(config["images_dir"])
        self.roots: list[str] = [str(path) for path in config.get("roots") or []]
        self.address = str(config.get("service_address") or "")
        self.encrypted = config.get("transfer_encryption", "tls") != "none"
        self.transfer = str(config.get("transfer") or "page_server")
        self.postcopy = config.get("strategy") in LACKING
        self.precopy = config.get("strategy") in ("precopy", "hybrid")
        self.lazy = self.postcopy or bool(config.get("lazy_restore"))
        if rec.state not in ("armed", *record.FINAL) and not self.rebooted():
            self.adopt()

    def say(self, text: str) -> None:
        """One line in guard.log with the time (UTC)."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
        line = f"{stamp}.{int(time.time() * 1000) % 1000:03d}Z {self.rec.state}: {text}\n"
        with contextlib.suppress(OSError):  # a full disk must not stop the guard
            os.write(1, line.encode(errors="replace"))  # one write: threads must not share a buffer's lock at the end

    def enter(self, state: str, sync: bool = False, **more: Any) -> None:
        """Go to a state. Where a fault test asks for it, wait there until the test has done its harm."""
        self.rec.enter(state, sync=sync, **more)
        if state in (self.config.get("pause_at") or []):
            self.say("paused for a test")
            self.rec.note(paused=state)
            while not os.path.exists(self.log_path(f"go-{state}")):
                time.sleep(0.01)  # only tests come here
            self.rec.note(paused="")

    def tls_path(self, name: str) -> str:
        return os.path.join(self.folder, "tls", name + ".pem")

    def make_images_dir(self) -> None:
        """A fresh private directory: images hold the memory of the process.

        Its parent may lie in /dev/shm, where anybody can make directories: it has to be root's own.
        """
        parent = os.path.dirname(self.images)
        os.makedirs(parent, mode=0o700, exist_ok=True)
        owner = os.lstat(parent)
        if not stat.S_ISDIR(owner.st_mode) or owner.st_uid != os.geteuid():
            raise MigrationError(f"{parent} is not a directory of root's.", "Remove it, or choose image_dir.")
        if owner.st_mode & 0o022:
            raise MigrationError(f"{parent} can be written by others than root.", "chmod 700 it, or choose image_dir.")
        shutil.rmtree(self.images, ignore_errors=True)
        os.makedirs(self.images, mode=0o700)

    def drop_images(self) -> None:
        listed = image_sizes(self.images)
        if listed:
            self.rec.data["images"] = listed  # what there was, for the results; the next state writes it down
        if not self.config.get("keep_images"):
            shutil.rmtree(self.images, ignore_errors=True)

    def job(self, name: str) -> Job | None:
        data = self.rec.data.get("jobs", {}).get(name)
        return Job.from_dict(data) if data and not self.rebooted() else None

    def adopt(self) -> None:
        """criu that a guard had started and could not write down before it was killed."""
        name = str(self.rec.data.get("launching") or "")
        limit = time.monotonic() + 1.0  # the keeper is quick: its child may not have become the shell yet
        found = living(name, self.folder) if name else []
        while name and not found and time.monotonic() < limit:
            time.sleep(0.01)
            found = living(name, self.folder)
        if found:
            log = self.log_path(f"criu-{name}.log")
            job = Job(name, self.folder, [], found[0].pid, found[0].start, log, time.time())
            self.rec.note(jobs={**self.rec.data.get("jobs", {}), name: job.as_dict()}, launching="")

    def start_job(self, name: str, cmd: list[str], log: str, fds: tuple[int, ...] = ()) -> Job:
        self.rec.note(launching=name)
        job = Job.launch(name, self.folder, cmd, log, fds)
        self.rec.note(jobs={**self.rec.data.get("jobs", {}), name: job.as_dict()}, launching="")
        return job

    def start_and_hear(
        self, name: str, argv: Callable[[int], list[str]], log: str, fds: tuple[int, ...], limit: float
    ) -> tuple[Job, bool | None]:
        """Start criu with a --status-fd, which `argv` gets, and wait for its word there that it is ready.

        False: it ended without; None: not within `limit` seconds.
        """
        ready, said = os.pipe()
        try:
            try:
                job = self.start_job(name, argv(said), log, (*fds, said))
            finally:
                os.close(said)
            if not polling.readable([ready], limit):
                return job, None
            return job, bool(os.read(ready, 1))
        finally:
            os.close(ready)

    def rebooted(self) -> bool:
        """The node was started anew since the run began: every process of the record is dead, PIDs mean nothing."""
        return bool(self.rec.data["boot_id"] != record.boot_id())

    def procs(self) -> list[proc.Proc]:
        if self.rebooted():
            return []
        return [proc.Proc.from_dict(item) for item in self.rec.data.get("procs", [])]

    def log_path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def put_address_on(self) -> None:
        """The service address where the record says that it was."""
        where = self.rec.data.get("address_on") or net.interface_for(self.address)
        net.add_address(self.address, where["interface"], int(where["prefix"]), bool(where.get("route")))

    def observe(self, key: str, procs: list[proc.Proc]) -> None:
        """Memory (bytes), open files and a readable status of the tree, into the record."""
        self.rec.data[key] = {
            "at": time.time(),
            "memory": proc.memory(procs),
            "open_files": proc.open_files(procs),
            "status": proc.status_text(procs),
        }
        self.rec.note()

    def heartbeat_mtime(self) -> float | None:
        """When the kernel last saw the workload write its heartbeat (seconds, this node's clock)."""
        path = str(self.config.get("heartbeat") or "")
        try:
            return os.stat(path).st_mtime if path else None
        except FileNotFoundError:
            return None


def read_config(run_id: str) -> dict[str, Any]:
    with open(os.path.join(record.run_dir(run_id), "config.json"), encoding="utf-8") as handle:
        config: dict[str, Any] = json.load(handle)
    return config


def may_lack(rec: record.Record) -> bool:
    """This node holds a copy of which it is not known yet that all of its memory has come."""
    held = rec.data["role"] == "destination" and rec.state in ("restoring", "restored", "running")
    return held and not rec.data.get("filled")


def incomplete(rec: record.Record, config: dict[str, Any]) -> bool:
    """The copy on this node lacks memory that only the source has (post-copy)."""
    if config.get("strategy") not in LACKING or not may_lack(rec):
        return False
    return rec.state == "restoring" or not lazy_file.all_came(str(config["images_dir"]))


def died_unseen(rec: record.Record, copy: list[proc.Proc]) -> bool:
    """Within one boot: the copy on this node was to run, nobody let it, and it is dead. Only the destination is ever
    "running"."""
    unseen = rec.state == "running" and "resumed" not in rec.data["times"]
    return unseen and not any(item.alive() for item in copy)


def main(argv: list[str]) -> int:
    """`guard RUN_ID`: run the guard of this run on this node, from its record. Used by the module criu_guard."""
    if len(argv) >= 3 and argv[1] == "rsh":
        from .relay import rsh

        return rsh(argv[2], argv[3:])
    run_id = argv[1]
    log = os.path.join(record.run_dir(run_id), "guard.log")
    if not detach(log):
        return 0
    keep()
    # Threads may still wait on connections: the interpreter's own shutdown could trip over them.
    os._exit(work(run_id))


def work(run_id: str) -> int:
    """Be the guard of this run until it has ended; returns the exit code."""
    from .destination import DestinationGuard
    from .source import SourceGuard

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # one for each process that a workload forks meanwhile
    sys.setswitchinterval(0.0005)  # a thread that answers a page fault is not to wait 5 ms for one that moves bytes
    # The pages of a heap full of gaps are a hundred thousand tuples; to look again and again for cycles among them took
    # half of the time that making them takes, while the process stands still.
    gc.set_threshold(200_000, 50, 100)
    if record.lock(run_id, patience=LOOKS) is None:
        return 3
    rec = record.Record.load(run_id)
    if rec is None or not os.path.exists(os.path.join(record.run_dir(run_id), "config.json")):
        return 2
    config = read_config(run_id)
    rec.note(guard={"pid": os.getpid(), "start": (proc.stat(os.getpid()) or ("", 0, 0))[2]})
    guard: Any = SourceGuard(rec, config) if config["role"] == "source" else DestinationGuard(rec, config)
    try:
        guard.run()
    except MigrationError as error:
        guard.say(f"guard ends: {error.text()}")
        rec.note(guard_error=error.as_dict())
        return 1
    return 0


def start(python: str, program: str, run_id: str) -> list[str]:
    """The command line that starts a guard."""
    return [python or sys.executable, "-I", program, run_id]
