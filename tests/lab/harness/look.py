"""Runs inside a node: everything that a migration could leave there, as JSON on stdout. Standard library only."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess

TCP_REPAIR, PIDFD_GETFD = 19, 438
RUNS = "/var/lib/criu-migrate"
# What comes and goes on a node without a migration's doing.
QUIET = ("sshd", "sftp-server", "tini", "sudo", "ps")


def processes() -> list[dict[str, object]]:
    """Every process but this one, those of sshd, and kernel threads."""
    found: list[dict[str, object]] = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            with open(f"/proc/{name}/stat", encoding="latin-1") as stream:
                text = stream.read()
            with open(f"/proc/{name}/cmdline", "rb") as raw:
                words = raw.read().decode("utf-8", "replace").split("\0")[:-1]
            states = [one_state(f"/proc/{name}/task/{tid}/stat") for tid in os.listdir(f"/proc/{name}/task")]
            place = os.readlink(f"/proc/{name}/cwd")
        except OSError:
            continue
        comm = text[text.index("(") + 1 : text.rindex(")")]
        fields = text[text.rindex(")") + 2 :].split()
        if comm.startswith(QUIET) or fields[0] in "ZX":
            continue
        found.append({
            "pid": int(name), "ppid": int(fields[1]), "start": int(fields[19]), "state": fields[0],
            "stopped": bool(states) and all(state in "TZX" for state in states),
            "comm": comm, "words": words, "cwd": place,
        })  # fmt: skip
    return found


def one_state(path: str) -> str:
    """The state letter of one thread."""
    try:
        with open(path, encoding="latin-1") as stream:
            text = stream.read()
    except OSError:
        return "X"
    return text[text.rindex(")") + 2 :].split()[0]


def in_repair() -> list[list[int]]:
    """[pid, descriptor] of every socket of any process that is in TCP_REPAIR."""
    libc = ctypes.CDLL(None, use_errno=True)
    found: list[list[int]] = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            pidfd = os.pidfd_open(int(name))
            descriptors = [fd for fd in os.listdir(f"/proc/{name}/fd")
                           if os.readlink(f"/proc/{name}/fd/{fd}").startswith("socket:")]  # fmt: skip
        except OSError:
            continue
        for fd in descriptors:
            copy = int(libc.syscall(PIDFD_GETFD, pidfd, int(fd), 0))
            if copy < 0:
                continue
            with socket.socket(fileno=copy) as sock:
                try:
                    if sock.getsockopt(socket.IPPROTO_TCP, TCP_REPAIR):
                        found.append([int(name), int(fd)])
                except OSError:
                    pass  # not TCP
        os.close(pidfd)
    return found


def lines(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return sorted(done.stdout.splitlines())


def files_below(folder: str) -> list[str]:
    found: list[str] = []
    for base, folders, names in os.walk(folder):
        found += [os.path.relpath(os.path.join(base, name), folder) for name in [*folders, *names]]
    return sorted(found)


def addresses() -> list[str]:
    shown = json.loads(subprocess.run(["ip", "-j", "addr"], capture_output=True, text=True, check=True).stdout)
    return sorted(f"{link['ifname']} {info['local']}" for link in shown for info in link["addr_info"])


def main() -> None:
    runs = {name: files_below(os.path.join(RUNS, name)) for name in (os.listdir(RUNS) if os.path.isdir(RUNS) else ())}
    with open("/proc/self/mounts", encoding="utf-8") as stream:
        mounts = sorted(line.split()[1] for line in stream)
    print(json.dumps({
        "processes": processes(), "in_repair": in_repair(), "tables": lines("nft", "list", "tables"),
        "addresses": addresses(), "mounts": mounts, "runs": runs, "shm": files_below("/dev/shm"),
        "work": sorted(os.listdir("/srv/criu-migrate")) if os.path.isdir("/srv/criu-migrate") else [],
    }))  # fmt: skip


if __name__ == "__main__":
    main()
