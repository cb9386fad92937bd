"""Whether this node can take a process tree: the source's facts held against what is here. Looks only."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from typing import Any

from . import inspect_files, inspect_node, inspect_sockets, net, proc, sockets
from .errors import MigrationError

Facts = dict[str, Any]
Address = tuple[str, int]
_WILD = ("0.0.0.0", "::")  # noqa: S104  (compared with, not bound to)


def look(cpu: Facts, tree: Facts, wanted: Facts, criu: str) -> Facts:
    """What hinders `tree` here. `wanted`: service_address, service_interface, working_dir, ports [first, last];
    `cpu` is the source's, `criu` the path of this node's."""
    found: Facts = {
        "cpu_complaint": inspect_node.cpu_check(criu, cpu.get("image", "")),
        "free_port": free_port(*wanted["ports"]) if wanted.get("ports") else 0,
        "working_dir": inspect_node.space(wanted["working_dir"]) if wanted.get("working_dir") else {},
        "service": service(wanted.get("service_address") or "", wanted.get("service_interface") or ""),
    }
    if tree.get("found"):
        found["pids_taken"] = pids_taken(tree)
        found["files"] = inspect_files.differences(
            entry for entry in tree["files"] if not entry["travels"] and not entry["deleted"]
        )
        found["ports_taken"] = ports_taken(tree["sockets"])
        found["unix_missing"] = unix_missing(tree)
    return found


def free_port(first: int, last: int) -> int:
    """A TCP port of the range that can be listened on, 0 when there is none."""
    for port in range(first, last + 1):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            try:
                sock.bind(("", port))
                return port
            except OSError:
                continue
    return 0


def service(address: str, interface: str) -> Facts:
    """Where the service address is here already, and the interface that would carry it."""
    if not address:
        return {}
    found: Facts = {"present": None, "interface": interface, "problem": ""}
    try:
        found["present"] = net.find_address(address)
        if interface:
            if not os.path.isdir(f"/sys/class/net/{interface}"):
                found["problem"] = f"there is no interface {interface}"
        else:
            found["interface"] = net.interface_for(address)["interface"]
    except MigrationError as error:
        found["problem"] = error.message.rstrip(".")
    return found


def pids_taken(tree: Facts) -> list[Facts]:
    """{pid, name} for every PID, TID, session and group of the tree that means something on this node already."""
    wanted = {number for task in tree["tasks"] for number in (task["pid"], *task["tids"])}
    found = {number for number in wanted if os.path.exists(f"/proc/{number}")}
    groups: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            for number in _groups(int(name)):
                groups.setdefault(number, int(name))
    owners = {number: number for number in found}
    owners.update({number: groups[number] for number in wanted & set(groups) - found})
    return [{"pid": number, "name": process_name(owner)} for number, owner in sorted(owners.items())]


def _groups(pid: int) -> tuple[int, int]:
    """Process group and session of a process; (0, 0) when it is gone."""
    try:
        return os.getpgid(pid), os.getsid(pid)
    except OSError:
        return 0, 0


def process_name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as handle:
            return handle.read().strip()
    except OSError:
        return ""


def ports_taken(wanted: Facts) -> list[Facts]:
    """{kind, address, port, pid, name} for every port of the tree that somebody here listens on or is bound to."""
    tcp = sockets.table(os.getpid()).items()
    here = [("tcp", inode, item) for inode, item in tcp if item["state"] == sockets.LISTEN]
    here += [("udp", inode, item) for inode, item in inspect_sockets.udp_table(os.getpid()).items()]
    mine = [("tcp", item) for item in wanted["tcp_listening"]] + [("udp", item) for item in wanted["udp"]]
    found: dict[tuple[str, str, int], Facts] = {}
    inodes: dict[int, list[Facts]] = {}
    for kind, item in mine:
        for other_kind, number, other in here:
            if kind == other_kind and clash(item["local"], other["local"]):
                entry = {"kind": kind, "address": item["local"][0], "port": item["local"][1], "pid": 0, "name": ""}
                found[kind, item["local"][0], item["local"][1]] = entry
                inodes.setdefault(number, []).append(entry)
    if inodes:
        everyone = (proc.Proc(int(name), 0) for name in os.listdir("/proc") if name.isdigit())
        for pid, _fd, target in sockets.descriptors(everyone):
            for entry in inodes.get(sockets.inode(target), []):
                entry.update(pid=pid, name=process_name(pid))
    return list(found.values())


def clash(one: Iterable[Any], other: Iterable[Any]) -> bool:
    """Two local addresses that cannot be bound at once: the same port, and the same host or one of them any host."""
    (host, port), (other_host, other_port) = one, other
    if port != other_port or not port:
        return False
    return host == other_host or host in _WILD or other_host in _WILD


def unix_missing(tree: Facts) -> list[str]:
    """Folders of the tree's unix sockets that are not here and do not travel."""
    named = [item["path"] for item in tree["sockets"]["unix"] if item["path"].startswith("/") and not item["travels"]]
    return sorted({folder for folder in map(os.path.dirname, named) if not os.path.isdir(folder)})
