"""Userfaultfds of the process, kept open here and by holders: processes that do nothing else.

Only when the last one is closed does the kernel let go of pages that nobody has brought, as zeros; so a killed guard
leaves the process waiting, not dead.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
import subprocess
import threading
from collections.abc import Iterable, Mapping

from . import proc, sockets, uffd
from .errors import MigrationError
from .guard import Guard

_SHELF = "shelf"  # in place of a key: the socket that userfaultfds of new processes are put into
_FULL = (errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS)
_PEEK_OFF = 42  # SO_PEEK_OFF of asm-generic/socket.h, absent from Python
_LETTER = 256  # bytes


class Holding:
    """By the keys of Replay. Of the fill's thread, but for `close`."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.fds: dict[str, int] = {}
        self.parents: dict[str, str] = {}  # of processes that a guard before this one may not have logged
        self.shelf: socket.socket | None = None
        self._changing = threading.RLock()

    def take(self, keys: Iterable[str], pids: Iterable[int]) -> None:
        """Duplicates of descriptors of the daemon's; it closes one when that process is filled.

        MigrationError where one is open there and cannot be had.
        """
        found: dict[str, int] = {}
        for pid in pids:
            for key in keys:
                try:
                    found[key] = uffd.duplicate(pid, int(key.split("-")[1]))
                except OSError as error:
                    if error.errno not in (errno.EBADF, errno.ESRCH):
                        raise MigrationError(f"userfaultfd {key}: {error}", "See guard.log there.") from error
                    self.guard.say(f"userfaultfd {key}: {error}")
        if found:
            self.keep(found)

    def keep(self, fds: Mapping[str, int]) -> None:
        """Keep them here and in a new holder, which outlives this guard and has a shelf for those of new processes."""
        with self._changing:
            self.fds.update(fds)
            near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            near.setblocking(False)
            with far, open(os.devnull, "r+b") as null:
                held = {**fds, _SHELF: far.fileno()}
                child = subprocess.Popen(
                    ["sleep", "infinity"], stdin=null, stdout=null, stderr=null, pass_fds=tuple(held.values()),
                    cwd=self.guard.folder, start_new_session=True,
                )  # fmt: skip
            seen = proc.stat(child.pid)
            start = seen[2] if seen else -1
            holders = [
                {"key": key, "fd": fd, "pid": child.pid, "start": start, "parent": self.parents.get(key, "")}
                for key, fd in held.items()
            ]
            try:
                self.guard.rec.note(holders=[*self.guard.rec.data.get("holders", []), *holders])
            except OSError:
                child.kill()  # nobody would look into it
                child.wait()
                near.close()
                raise
            if self.shelf is not None:
                self.shelf.close()
            self.shelf = near

    def shelve(self, parent: str, key: str, fd: int) -> None:
        """Keep that of a new process at once: to start a holder takes so long that a guard may be killed meanwhile.

        What lies unread in a socket is open as long as somebody, here a holder, has the end that could read it.
        """
        self.fds[key] = fd
        try:
            if self.shelf is None:
                raise OSError(errno.EPIPE, "there is no shelf")
            socket.send_fds(self.shelf, [f"{parent} {key}".encode()], [fd])
        except OSError as error:
            # A socket takes some 280 of them. Any other error: the holder has been killed, with all that it held.
            self.parents[key] = parent
            self.keep({key: fd} if error.errno in _FULL else dict(self.fds))

    def let_go(self, key: str) -> None:
        """Close that of a process that has ended. Where a holder has it, too, it does no harm."""
        with self._changing:
            fd = self.fds.pop(key, -1)
            if fd >= 0:
                os.close(fd)

    def recover(self) -> None:
        """After a restart of this guard: all that the holders have, into a new one, which takes their place.

        At no time has this guard alone what it found: a shelf is looked into, nothing is taken off it.
        """
        before = self.holders()
        for item in self.guard.rec.data.get("holders", []):
            try:
                if not proc.Proc(int(item["pid"]), int(item["start"])).alive():
                    raise ProcessLookupError(errno.ESRCH, "the holder is gone")
                if item["key"] == _SHELF:
                    self._look_into(sockets.duplicate(int(item["pid"]), int(item["fd"])))
                else:
                    self._found(item["key"], item["parent"], uffd.duplicate(int(item["pid"]), int(item["fd"])))
            except OSError as error:
                self.guard.say(f"userfaultfd {item['key']}: {error}")
        if self.fds:
            self.keep(dict(self.fds))
            proc.kill_tree(before, 5.0)
            gone = {(item.pid, item.start) for item in before}
            left = [item for item in self.guard.rec.data["holders"] if (item["pid"], item["start"]) not in gone]
            self.guard.rec.note(holders=left)

    def _found(self, key: str, parent: str, fd: int) -> None:
        """One of them is enough."""
        if parent:
            self.parents[key] = parent
        if self.fds.setdefault(key, fd) != fd:
            os.close(fd)

    def _look_into(self, far: int) -> None:
        with socket.socket(fileno=far) as shelf, contextlib.suppress(BlockingIOError):
            shelf.setblocking(False)
            shelf.setsockopt(socket.SOL_SOCKET, _PEEK_OFF, 0)  # each look begins behind what the last one has seen
            flags = socket.MSG_PEEK | socket.MSG_CMSG_CLOEXEC
            while True:
                letter, extra, _flags, _from = shelf.recvmsg(_LETTER, socket.CMSG_LEN(array.array("i").itemsize), flags)
                if not letter:
                    break
                for _level, _kind, data in extra:
                    parent, key = letter.decode().split()
                    self._found(key, parent, array.array("i", data)[0])

    def close(self) -> None:
        """Nobody needs them any more."""
        with self._changing:
            for fd in self.fds.values():
                os.close(fd)
            self.fds.clear()
        proc.kill_tree(self.holders(), 5.0)

    def holders(self) -> list[proc.Proc]:
        """By the directory that they work in: a guard may have been killed before it could write one down, and then a
        process would wait for ever for somebody to read its events."""
        folder = os.path.realpath(self.guard.folder)
        found: list[proc.Proc] = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):  # gone, or a kernel's thread
                if os.readlink(f"/proc/{entry}/cwd") != folder:
                    continue
                with open(f"/proc/{entry}/comm", encoding="ascii", errors="replace") as name:
                    seen = proc.stat(int(entry)) if name.read() == "sleep\n" else None
                if seen and seen[0] not in "ZX":
                    found.append(proc.Proc(int(entry), seen[2]))
        return found
