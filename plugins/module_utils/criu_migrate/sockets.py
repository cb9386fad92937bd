"""TCP sockets of a process tree: which there are, and out of TCP_REPAIR again after an undone dump."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable
from typing import Any

from .proc import Proc

TCP_REPAIR = 19  # linux/tcp.h
_PIDFD_GETFD = 438  # the same number on every architecture (asm-generic/unistd.h)
ESTABLISHED, LISTEN = "01", "0A"  # net/tcp_states.h


def _address(text: str) -> tuple[str, int]:
    host, port = text.split(":")
    if len(host) == 8:
        return socket.inet_ntoa(struct.pack("=I", int(host, 16))), int(port, 16)
    words = struct.pack("=4I", *(int(host[i : i + 8], 16) for i in range(0, 32, 8)))
    name = socket.inet_ntop(socket.AF_INET6, words)
    return (name[7:] if name.startswith("::ffff:") and "." in name else name), int(port, 16)


def table(pid: int) -> dict[int, dict[str, Any]]:
    """TCP sockets of the network namespace of a process by inode: {family, local, peer, state} (proc_pid_net(5))."""
    found: dict[int, dict[str, Any]] = {}
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/{pid}/net/{name}", encoding="ascii") as handle:
                lines = handle.read().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            words = line.split()
            found[int(words[9])] = {
                "family": name,
                "local": _address(words[1]),
                "peer": _address(words[2]),
                "state": words[3],
            }
    return found


def descriptors(procs: Iterable[Proc]) -> list[tuple[int, int, str]]:
    """(pid, fd, what it points to) for every open descriptor of the tree."""
    result: list[tuple[int, int, str]] = []
    for proc in procs:
        folder = f"/proc/{proc.pid}/fd"
        try:
            names = os.listdir(folder)
        except (FileNotFoundError, ProcessLookupError):
            continue
        for name in names:
            try:
                result.append((proc.pid, int(name), os.readlink(f"{folder}/{name}")))
            except OSError:
                continue
    return result


def inode(target: str) -> int:
    """The inode of `socket:[123]`, 0 for anything else."""
    return int(target[8:-1]) if target.startswith("socket:[") else 0


def tcp_sockets(procs: Iterable[Proc]) -> list[dict[str, Any]]:
    """The TCP sockets that the tree holds, each once, with one (pid, fd) that has it."""
    procs = list(procs)
    if not procs:
        return []
    known = table(procs[0].pid)
    result: dict[int, dict[str, Any]] = {}
    for pid, fd, target in descriptors(procs):
        number = inode(target)
        if number and number in known and number not in result:  # connections in TIME_WAIT have inode 0
            result[number] = {**known[number], "pid": pid, "fd": fd, "inode": number}
    return list(result.values())


def duplicate(pid: int, fd: int) -> int:
    """A duplicate of another process's descriptor, by pidfd_getfd(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    try:
        got = int(libc.syscall(_PIDFD_GETFD, pidfd, fd, 0))
    finally:
        os.close(pidfd)
    if got < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return got


def in_repair(procs: Iterable[Proc], off: bool) -> int:
    """How many TCP sockets of the tree are in TCP_REPAIR; with `off` they leave it (with a window probe, so that
    the peer learns at once that this side is back)."""
    count = 0
    for item in tcp_sockets(procs):
        try:
            with socket.socket(fileno=duplicate(item["pid"], item["fd"])) as sock:
                if sock.getsockopt(socket.IPPROTO_TCP, TCP_REPAIR):
                    count += 1
                    if off:
                        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 0)
                        # Leaving TCP_REPAIR clears this (net/ipv4/tcp.c), and the server could not be restarted
                        # on its port while an old connection lingers.
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        except OSError:
            continue  # closed meanwhile, or not a socket that knows the option
    return count


def sockets_of_address(address: str) -> int:
    """TCP sockets of this node, whoever holds them, with that local address."""
    return sum(1 for item in table(os.getpid()).values() if item["local"][0] == address and item["state"] != LISTEN)


def uncork(sock: socket.socket, alive: Callable[[], bool]) -> None:
    """Take TCP_CORK off, which criu puts on its connection to a page server, once and soon after its start.

    With it the last word of a dump, which asks for an answer, stays in the socket for the 200 ms of tcp(7), and the
    process stands still for so long. Waits while `alive`; the kernel tells of no change.
    """
    while sock.family != socket.AF_UNIX and alive():
        if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
            return
        time.sleep(0.0005)
