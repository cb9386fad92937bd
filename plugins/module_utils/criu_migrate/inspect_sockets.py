"""Sockets of a process tree beyond TCP's table: UDP, unix with their peers, and kinds that CRIU cannot dump."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable
from typing import Any

from . import proc, sockets

Facts = dict[str, Any]
# The kernel's names of protocols whose sockets CRIU 4.2 dumps (criu/sockets.c); MPTCP, SCTP, VSOCK, ... it does not.
_KNOWN = (
    "TCP", "TCPv6", "UDP", "UDPv6", "UDP-Lite", "UDPLITEv6", "UNIX", "UNIX-STREAM", "NETLINK", "PACKET", "RAW", "RAWv6",
)  # fmt: skip
_SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, _NLMSG_DONE, _NLMSG_ERROR = 20, 0x301, 3, 2  # linux/netlink.h
_UDIAG_SHOW_PEER, _UNIX_DIAG_PEER, _NETLINK_SOCK_DIAG = 4, 2, 4  # linux/unix_diag.h


def look(procs: Iterable[proc.Proc], fds: Iterable[tuple[int, int, str]]) -> Facts:
    """Sockets of the tree: tcp_listening, tcp_connected, udp, unix, unsupported. Addresses are [host, port]."""
    procs, fds = list(procs), list(fds)
    # Sockets in TIME_WAIT have inode 0 and belong to nobody.
    tcp = [_short(item) for item in sockets.tcp_sockets(procs) if item["inode"]]
    holders = {sockets.inode(target): (pid, fd) for pid, fd, target in fds if sockets.inode(target)}
    return {
        "tcp_listening": [item for item in tcp if item["state"] == sockets.LISTEN],
        "tcp_connected": [item for item in tcp if item["state"] != sockets.LISTEN and item["peer"][1]],
        "udp": [item for number, item in udp_table(procs[0].pid).items() if number in holders],
        "unix": unix_sockets(procs[0].pid, holders),
        "unsupported": _unsupported(holders),
    }


def _short(item: Facts) -> Facts:
    kept = ("family", "state", "pid", "fd")
    return {**{name: item[name] for name in kept}, "local": list(item["local"]), "peer": list(item["peer"])}


def udp_table(pid: int) -> dict[int, Facts]:
    """UDP sockets of the network namespace of a process by inode."""
    found: dict[int, Facts] = {}
    for name in ("udp", "udp6"):
        try:
            with open(f"/proc/{pid}/net/{name}", encoding="ascii") as handle:
                lines = handle.read().splitlines()[1:]
        except OSError:
            continue
        for words in (line.split() for line in lines):
            local, peer = (list(sockets._address(word)) for word in words[1:3])
            found[int(words[9])] = {"family": name, "local": local, "peer": peer}
    return found


def unix_sockets(pid: int, holders: dict[int, tuple[int, int]]) -> list[Facts]:
    """The tree's unix sockets: path, type (1 stream, 2 datagram, 5 seqpacket), listening, and `outside`: the process
    and name at the other end where that does not belong to the tree."""
    names: dict[int, Facts] = {}
    try:
        with open(f"/proc/{pid}/net/unix", encoding="utf-8", errors="replace") as handle:
            lines = handle.read().splitlines()[1:]
    except OSError:
        return []
    for words in (line.split(None, 7) for line in lines):
        path = words[7] if len(words) > 7 else ""
        names[int(words[6])] = {"path": path, "type": int(words[4], 16), "listening": words[3] == "00010000"}
    peers = unix_peers()
    found = []
    for number, (holder, fd) in holders.items():
        if number in names:
            peer = peers.get(number, 0)
            outside = names.get(peer, {}).get("path") or f"socket {peer}" if peer and peer not in holders else ""
            found.append({**names[number], "pid": holder, "fd": fd, "outside": outside})
    return found


def unix_peers() -> dict[int, int]:
    """Inode of each connected unix socket of this network namespace to that of its peer, by sock_diag(7); {} where the
    kernel does not offer it."""
    request = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, _UDIAG_SHOW_PEER, 0, 0)
    header = struct.pack("=IHHII", 16 + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 1, 0)
    found: dict[int, int] = {}
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as link:
            link.settimeout(5.0)
            link.send(header + request)
            while _parse(link.recv(1 << 18), found):
                pass
    except OSError:
        return {}
    return found


def _parse(data: bytes, found: dict[int, int]) -> bool:
    """One netlink datagram of unix_diag_msg with attributes; False at the end of the answer."""
    place = 0
    while place + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, place)
        if kind in (_NLMSG_DONE, _NLMSG_ERROR) or length < 16:
            return False
        (number,) = struct.unpack_from("=I", data, place + 20)
        attribute = place + 32
        while attribute + 4 <= place + length:
            size, name = struct.unpack_from("=HH", data, attribute)
            if name == _UNIX_DIAG_PEER:
                found[number] = int(struct.unpack_from("=I", data, attribute + 4)[0])
            attribute += max(4, (size + 3) & ~3)
        place += (length + 3) & ~3
    return True


def _unsupported(holders: dict[int, tuple[int, int]]) -> list[Facts]:
    found = []
    for pid, fd in holders.values():
        try:
            name = os.getxattr(f"/proc/{pid}/fd/{fd}", "system.sockprotoname").rstrip(b"\0").decode("ascii", "replace")
        except OSError:
            continue
        if name not in _KNOWN:
            found.append({"pid": pid, "fd": fd, "what": name})
    return found
