"""Process trees, seen through /proc: who belongs to it, is it stopped, is it gone."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any

from . import polling
from .errors import MigrationError

CAP_SYS_RESOURCE = 24  # linux/capability.h


def has_capability(number: int) -> bool:
    """Whether this process, and so what it starts, has a capability in effect (proc_pid_status(5))."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as handle:
        for line in handle:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> number & 1)
    return False


class Proc:
    """One process, told apart from a later one with the same PID by its start time (clock ticks)."""

    def __init__(self, pid: int, start: int, stopped_before: bool = False) -> None:
        self.pid = pid
        self.start = start
        self.stopped_before = stopped_before

    def as_dict(self) -> dict[str, Any]:
        return {"pid": self.pid, "start": self.start, "stopped_before": self.stopped_before}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Proc:
        return cls(int(data["pid"]), int(data["start"]), bool(data.get("stopped_before")))

    def alive(self) -> bool:
        """Running, stopped or waiting, but not dead or a zombie."""
        found = stat(self.pid)
        return found is not None and found[2] == self.start and found[0] not in "ZX"

    def kill(self, sig: int) -> None:
        """Send a signal through a pidfd, so that a recycled PID is never hit."""
        fd = pidfd(self.pid)
        if fd is None:
            return
        try:
            if self.alive():
                signal.pidfd_send_signal(fd, sig)
        except ProcessLookupError:
            pass
        finally:
            os.close(fd)


def pidfd(pid: int) -> int | None:
    """A descriptor of a process, to wait for its end; None where there is none.

    Before Linux 6.16 a dead process whose number is that of a living session or group yet, as a shell's is that was
    killed before its command, is EINVAL (pidfd_prepare in kernel/fork.c). Other errors are raised (OSError).
    """
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EINVAL):
            return None
        raise


def stat(pid: int, tid: int | None = None) -> tuple[str, int, int] | None:
    """(state letter, parent PID, start time in clock ticks) or None when there is no such process.

    Fields as in proc_pid_stat(5); the command name may hold blanks and parentheses.
    """
    path = f"/proc/{pid}/stat" if tid is None else f"/proc/{pid}/task/{tid}/stat"
    try:
        with open(path, "rb") as handle:
            text = handle.read().decode("latin-1")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return fields[0], int(fields[1]), int(fields[19])


def threads(pid: int) -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))
    except (FileNotFoundError, ProcessLookupError):
        return []


def children(pid: int) -> list[int]:
    found: list[int] = []
    for tid in threads(pid):
        try:
            with open(f"/proc/{pid}/task/{tid}/children", "rb") as handle:
                found += [int(word) for word in handle.read().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def tree(root: int) -> list[Proc]:
    """The root and everything below it, zombies left out, parents before children."""
    result: list[Proc] = []
    queue = [root]
    while queue:
        pid = queue.pop(0)
        found = stat(pid)
        if found is None or found[0] in "ZX":
            continue
        result.append(Proc(pid, found[2], found[0] == "T"))
        queue += children(pid)
    return result


def fully_stopped(pid: int) -> bool:
    """Every thread is in group stop; a thread that ended meanwhile does not count."""
    states = [found[0] for found in (stat(pid, tid) for tid in threads(pid)) if found is not None]
    return all(state in "TZX" for state in states)


def wait_stopped(procs: Iterable[Proc], limit: float) -> list[Proc]:
    """Wait until every thread is in group stop; returns the processes of which one is not after `limit` seconds."""
    deadline = time.monotonic() + limit
    left = list(procs)
    while True:
        left = [item for item in left if not fully_stopped(item.pid)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.0005)  # the kernel offers no event for it


def stop_tree(
    root: Proc, limit: float, known: Iterable[Proc] = (), note: Callable[[list[Proc]], None] | None = None
) -> list[Proc]:
    """SIGSTOP a whole tree and wait until every thread of it stands still.

    Repeats until no new child has appeared, as a fork may be under way. `note` gets every process that was not in
    `known` before it is stopped: whoever undoes this has to know of it. Returns the processes, each with
    whether it was stopped before (from `known` where the caller had already looked).
    Raises MigrationError when the root is gone or the tree does not stop within `limit` seconds.
    """
    seen = list(known)
    before = {(p.pid, p.start): p.stopped_before for p in seen}
    deadline = time.monotonic() + limit
    while True:
        if not root.alive():
            raise MigrationError(f"The process {root.pid} ended before it was frozen.", "Start it again, then migrate.")
        procs = tree(root.pid)
        fresh = [proc for proc in procs if (proc.pid, proc.start) not in before]
        if fresh and note:
            seen += fresh
            note(seen)
        for proc in procs:
            key = (proc.pid, proc.start)
            proc.stopped_before = before.setdefault(key, proc.stopped_before)
            if not fully_stopped(proc.pid):
                proc.kill(signal.SIGSTOP)
        waiting = [p for p in procs if p.alive() and not fully_stopped(p.pid)]
        if not waiting and {(p.pid, p.start) for p in tree(root.pid)} == {(p.pid, p.start) for p in procs if p.alive()}:
            return [p for p in procs if p.alive()]
        if time.monotonic() > deadline:
            stuck = ", ".join(str(p.pid) for p in waiting) or "new children"
            raise MigrationError(
                f"The process tree did not stop within {limit:g} s (still running: {stuck}).",
                "A thread in uninterruptible sleep (state D) waits for I/O: look at /proc/PID/stack, then try again.",
            )
        time.sleep(0.0005)  # the kernel offers no event for "every thread is in group stop"


def stack_ends_on_page(procs: Iterable[Proc]) -> bool:
    """A stopped thread's stack pointer is a multiple of the page size: CRIU 4.2 then takes all pages for a stack's
    (is_stack in criu/mem.c) and brings none later. The pointer is the last but one word (proc_pid_syscall(5))."""
    for item in procs:
        for tid in threads(item.pid):
            try:
                with open(f"/proc/{item.pid}/task/{tid}/syscall", encoding="ascii") as handle:
                    words = handle.read().split()
            except OSError:
                continue
            if len(words) > 2 and int(words[-2], 16) % os.sysconf("SC_PAGE_SIZE") == 0:
                return True
    return False


def continue_procs(procs: Iterable[Proc]) -> None:
    """SIGCONT to all that ran before the freeze, children first, so that a parent finds its children running."""
    for proc in reversed(list(procs)):
        if not proc.stopped_before:
            proc.kill(signal.SIGCONT)


def wait_gone(procs: Iterable[Proc], limit: float) -> list[Proc]:
    """Wait by pidfd until all have ended; returns those that are still there after `limit` seconds."""
    deadline = time.monotonic() + limit
    left: list[Proc] = []
    for proc in procs:
        fd = pidfd(proc.pid)
        if fd is None:
            continue
        try:
            if proc.alive() and not polling.readable([fd], max(0.0, deadline - time.monotonic())):
                left.append(proc)
        finally:
            os.close(fd)
    return left


def kill_tree(procs: Iterable[Proc], limit: float) -> list[Proc]:
    """SIGKILL all and wait; returns those that would not die within `limit` seconds."""
    procs = list(procs)
    for proc in procs:
        proc.kill(signal.SIGKILL)
    return wait_gone(procs, limit)


def memory(procs: Iterable[Proc]) -> dict[str, int]:
    """Bytes of resident and proportional memory, summed over the tree (smaps_rollup, proc_pid_smaps(5))."""
    total = {"rss": 0, "pss": 0, "swap": 0}
    for proc in procs:
        try:
            with open(f"/proc/{proc.pid}/smaps_rollup", encoding="ascii", errors="replace") as handle:
                for line in handle:
                    name = line.split(":")[0].lower()
                    if name in total:
                        total[name] += int(line.split()[1]) * 1024
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


def status_text(procs: Iterable[Proc]) -> str:
    """A person's view of the tree: what `ps` would show, from /proc."""
    lines = [f"{'PID':>7} {'PPID':>7} {'STATE':5} {'THREADS':>7} {'RSS_BYTES':>12} COMMAND"]
    for proc in procs:
        found = stat(proc.pid)
        if found is None:
            lines.append(f"{proc.pid:>7} gone")
            continue
        try:
            with open(f"/proc/{proc.pid}/cmdline", "rb") as handle:
                command = handle.read().replace(b"\0", b" ").decode("utf-8", "replace").strip()
            with open(f"/proc/{proc.pid}/statm", "rb") as handle:
                rss = int(handle.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (FileNotFoundError, ProcessLookupError):
            continue
        lines.append(f"{proc.pid:>7} {found[1]:>7} {found[0]:5} {len(threads(proc.pid)):>7} {rss:>12} {command}")
    return "\n".join(lines) + "\n"


def open_files(procs: Iterable[Proc]) -> int:
    """Number of open file descriptors over the tree."""
    count = 0
    for proc in procs:
        try:
            count += len(os.listdir(f"/proc/{proc.pid}/fd"))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return count
