"""A criu command that outlives whoever has started it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

from . import polling, proc
from .cli import Result, tail
from .errors import CriuError

# A small shell keeps the exit code on disk: a guard that is started again can still learn how its criu ended.
# One write(2), as who reads an empty file waits for the end of the shell; `mv` would cost its start after every freeze.
_KEEP_RC = '"$@"; rc=$?; echo $rc > "$0"; exit $rc'


class Job:
    """A criu command that outlives whoever started it and can be taken over by a later guard."""

    def __init__(self, name: str, folder: str, cmd: list[str], pid: int, start: int, log: str, began: float) -> None:
        self.name = name
        self.folder = folder
        self.cmd = cmd
        self.log = log
        self.began = began  # CLOCK_REALTIME, as a restarted guard has another idea of monotonic starts
        self.shell = proc.Proc(pid, start)
        self._child: subprocess.Popen[bytes] | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "folder": self.folder,
            "cmd": self.cmd,
            "pid": self.shell.pid,
            "start": self.shell.start,
            "log": self.log,
            "began": self.began,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Job:
        return cls(data["name"], data["folder"], data["cmd"], data["pid"], data["start"], data["log"], data["began"])

    @classmethod
    def launch(cls, name: str, folder: str, cmd: list[str], log: str, pass_fds: Sequence[int] = ()) -> Job:
        """Start a command in a session of its own; its exit code goes to <folder>/<name>.rc."""
        rc_path = os.path.join(folder, name + ".rc")
        if os.path.exists(rc_path):
            os.unlink(rc_path)
        with open(os.path.join(folder, name + ".err"), "wb") as err:
            child = subprocess.Popen(
                ["/bin/sh", "-c", _KEEP_RC, rc_path, *cmd],
                stdin=subprocess.DEVNULL,
                stdout=err,
                stderr=err,
                pass_fds=tuple(pass_fds),
                start_new_session=True,
                cwd="/",
            )
        found = proc.stat(child.pid)
        job = cls(name, folder, cmd, child.pid, found[2] if found else -1, log, time.time())
        job._child = child
        return job

    def _rc(self) -> int | None:
        try:
            with open(os.path.join(self.folder, self.name + ".rc"), encoding="ascii") as handle:
                return int(handle.read())
        except (FileNotFoundError, ValueError):
            return None

    def wait(self, limit: float, tries: Sequence[int] = ()) -> Result | None:
        """Wait until it has ended, at most `limit` seconds; None when it still runs.

        Returns early (None) when one of the descriptors in `tries` becomes readable.
        """
        rc = self._rc()
        if rc is None:
            fd = proc.pidfd(self.shell.pid)
            if fd is not None:
                try:
                    if self.shell.alive() and fd not in polling.readable([fd, *tries], limit):
                        return None
                finally:
                    os.close(fd)
            rc = self._rc()
        if rc is None:  # the shell alone was killed: criu may be at work still
            left = living(self.name, self.folder)
            if left and proc.wait_gone(left, limit):
                return None
        if self._child is not None:
            self._child.wait()
        # No code on disk and no process: both the shell and criu were killed.
        return self.result(-signal.SIGKILL if rc is None else rc)

    def wait_on(self, progress: Callable[[], int], limit: float, look: float) -> Result | None:
        """Wait until it has ended; None where `progress`, looked at every `look` seconds, has not grown for `limit`."""
        came, since = 0, time.monotonic()
        while True:
            left = since + limit - time.monotonic()
            result = self.wait(max(0.0, min(look, left)))
            if result is not None or left <= 0:
                return result
            now = progress()
            if now > came:
                came, since = now, time.monotonic()

    def result(self, rc: int) -> Result:
        try:
            ended = os.path.getmtime(os.path.join(self.folder, self.name + ".rc"))
        except FileNotFoundError:
            ended = time.time()
        return Result(
            self.cmd,
            rc,
            max(0.0, ended - self.began),
            self.log,
            tail(self.log, most=0 if rc else 4096),  # a log of some thousand lines is read for a failure only
            tail(os.path.join(self.folder, self.name + ".err")),
        )

    def kill(self) -> None:
        """SIGKILL criu and its shell, and what of a tree it was restoring; on return they are gone."""
        deadline = time.monotonic() + 10.0
        while True:
            procs = living(self.name, self.folder) + (proc.tree(self.shell.pid) if self.shell.alive() else [])
            if not procs:
                break
            proc.kill_tree(procs, 1.0)
            if time.monotonic() > deadline:
                raise CriuError(
                    f"criu {self.name} does not die: PIDs {[item.pid for item in procs]}.", "Look at /proc/PID/stack."
                )
        if self._child is not None:
            self._child.wait()


def living(name: str, folder: str) -> list[proc.Proc]:
    """Shell and criu of a job, and tasks of criu that have not become anything else yet, by their command lines:
    whoever started them may have died before it could write that down."""
    found: list[proc.Proc] = []
    rc_path = os.path.join(folder, name + ".rc").encode()
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as handle:
                words = handle.read().split(b"\0")
        except OSError:
            continue
        shell = words[:2] == [b"/bin/sh", b"-c"] and words[3:4] == [rc_path]
        criu = words[1:2] == [name.encode()] and b"-W" in words and words[words.index(b"-W") + 1] == folder.encode()
        seen = proc.stat(int(entry)) if shell or criu else None
        if seen and seen[0] not in "ZX":
            found.append(proc.Proc(int(entry), seen[2]))
    return sorted(found, key=lambda item: item.start)
