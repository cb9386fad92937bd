"""The service address: on, off, mute, announced. By iproute2 and nft, as an administrator would."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

from .errors import MigrationError
from .limits import TOOL

_PATH = "/usr/local/sbin:/usr/sbin:/usr/local/bin:/usr/bin:/sbin:/bin"
_ETH_BROADCAST = b"\xff" * 6
_MUTED = "muted"  # the set that holds the address
_NFT_FAMILIES = (1, 3)  # NFPROTO_INET, NFPROTO_ARP


_standby: dict[tuple[str, ...], subprocess.Popen[str]] = {}
IP, NFT = ("ip", "-batch", "-"), ("nft", "-f", "-")  # read what to do from stdin


def stand_by(*commands: tuple[str, ...]) -> None:
    """Start tools that will be needed while the process stands still: each takes 5 ms to get ready to read its stdin.

    Where this process dies they read nothing, do nothing and end.
    """
    for command in commands:
        if command not in _standby:
            _standby[command] = _start(*command)


def _start(tool: str, *words: str) -> subprocess.Popen[str]:
    found = shutil.which(tool, path=_PATH)
    if found is None:
        raise MigrationError(f"{tool} is not installed on this node.", "Run playbooks/prepare.yml, which installs it.")
    pipe = subprocess.PIPE
    return subprocess.Popen([found, *words], stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def _run(tool: str, *words: str, text: str = "") -> str:
    child = _standby.pop((tool, *words), None)
    if child is None or child.poll() is not None:
        child = _start(tool, *words)
    try:
        out, err = child.communicate(text, TOOL)
    except subprocess.TimeoutExpired as error:
        child.kill()
        child.communicate()
        raise MigrationError(f"{tool} did not end within {TOOL:g} s.", "Look at the node's kernel log.") from error
    if child.returncode:
        raise MigrationError(
            f"`{tool} {' '.join(words)}` ended with {child.returncode}: {err.strip()}",
            "Look at the node's interfaces and nftables rules.",
            {"cmd": [tool, *words], "rc": child.returncode, "stderr": err, "input": text},
        )
    return out


def _interfaces() -> list[dict[str, Any]]:
    parsed: list[dict[str, Any]] = json.loads(_run("ip", "-j", "-4", "addr", "show"))
    return parsed


def find_address(address: str) -> dict[str, Any] | None:
    """{interface, prefix} of an IPv4 address of this node, or None."""
    for link in _interfaces():
        for info in link.get("addr_info", []):
            if info.get("local") == address:
                found: dict[str, Any] = {"interface": link["ifname"], "prefix": int(info["prefixlen"])}
                found["route"] = not info.get("noprefixroute")  # the kernel's route to its subnet goes with it
                return found
    return None


def interface_for(address: str) -> dict[str, Any]:
    """{interface, prefix} where the address belongs on this node: the interface whose subnet holds it, else
    the one a packet to it would leave by (then as a /32). Raises MigrationError when there is none."""
    wanted = int.from_bytes(socket.inet_aton(address), "big")
    for link in _interfaces():
        for info in link.get("addr_info", []):
            bits = 32 - int(info["prefixlen"])
            if 0 < bits < 32 and int.from_bytes(socket.inet_aton(info["local"]), "big") >> bits == wanted >> bits:
                return {"interface": link["ifname"], "prefix": int(info["prefixlen"])}
    match = re.search(r" dev (\S+)", _run("ip", "-4", "route", "get", address))
    if not match or match.group(1) == "lo":
        raise MigrationError(f"No interface of this node can carry {address}.", "Name one with service_interface=....")
    return {"interface": match.group(1), "prefix": 32}


def add_address(address: str, interface: str, prefix: int, route: bool = False) -> bool:
    """Put the address on; False when it was there already."""
    if is_local(address):
        return False
    # noprefixroute: on its own the secondary address must not bring a second route to the subnet
    _run(*IP, text=f"addr add {address}/{prefix} dev {interface}{'' if route else ' noprefixroute'}\n")
    return True


@contextlib.contextmanager
def _promoting(interface: str) -> Iterator[None]:
    """The first address of a subnet would take the others off with it (ip-sysctl.rst: promote_secondaries)."""
    path = f"/proc/sys/net/ipv4/conf/{interface}/promote_secondaries"
    with open(path, encoding="ascii") as handle:
        before = handle.read()
    with open(path, "w", encoding="ascii") as handle:
        handle.write("1")
    try:
        yield
    finally:
        with open(path, "w", encoding="ascii") as handle:
            handle.write(before)


def is_local(address: str) -> bool:
    """Whether this node answers for the address. bind(2) knows without another program, unless it may bind anything."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                return False
    with open("/proc/sys/net/ipv4/ip_nonlocal_bind", encoding="ascii") as handle:
        if not int(handle.read()):
            return True
    return find_address(address) is not None


def remove_address(address: str, known: dict[str, Any] | None = None) -> bool:
    """Take the address off and confirm that it is gone; False when it was not there.

    `known` is {interface, prefix} where the caller has just seen it.
    """
    found = known if known and is_local(address) else find_address(address)
    if not found:
        return False
    with _promoting(found["interface"]):
        _run(*IP, text=f"addr del {address}/{found['prefix']} dev {found['interface']}\n")
    if is_local(address):
        raise MigrationError(
            f"{address} is still on {found['interface']} after it was removed.", "Is it configured twice?"
        )
    return True


def destroy_sockets(address: str) -> None:
    """Make the kernel forget the TCP sockets of a muted address: those of a killed process would go on sending FINs.

    By SOCK_DESTROY (ss -K); the resets that it sends are dropped with all else. Kernels without it time out instead.
    """
    with contextlib.suppress(MigrationError):
        _run("ss", "--kill", "--all", "--tcp", "--numeric", "src", address)


def announce(address: str, interface: str, times: int = 2) -> None:
    """Gratuitous ARP, request and reply form, as RFC 5227 section 3 and arping -A do; nothing where there is no ARP."""
    with open(f"/sys/class/net/{interface}/address", encoding="ascii") as handle:
        mac = bytes.fromhex(handle.read().strip().replace(":", ""))
    if len(mac) != 6 or not any(mac):
        return
    ip = socket.inet_aton(address)
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # protocol 0: to send only, bind need not wait for RCU
    raw.bind((interface, 0))
    for _ in range(times):
        for operation in (1, 2):
            target = _ETH_BROADCAST if operation == 2 else bytes(6)
            body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + mac + ip + target + ip
            raw.send(_ETH_BROADCAST + mac + b"\x08\x06" + body)
    _close_later(raw)


def _close_later(sock: socket.socket) -> None:
    """Closing such a socket takes the kernel 10 to 20 ms, for which no client shall wait."""
    threading.Thread(target=sock.close, daemon=True).start()


def _mute_table(run_id: str) -> str:
    return "criu_migrate_" + re.sub(r"\W", "_", run_id)


def _without(name: str) -> str:
    """nft's commands to delete both tables, there or not."""
    return "".join(f"table {family} {name}\ndelete table {family} {name}\n" for family in ("inet", "arp"))


def mute(address: str, run_id: str) -> None:
    """No packet from or to the address, no ARP for it: the kernel would answer clients for the stopped copy."""
    name = _mute_table(run_id)
    # One transaction: there is no moment at which only a part of it holds.
    _run(
        *NFT,
        text=f"""{_without(name)}
table inet {name} {{
  set {_MUTED} {{ type ipv4_addr; elements = {{ {address} }} }}
  chain in {{ type filter hook input priority -400; ip daddr @{_MUTED} drop; }}
  chain out {{ type filter hook output priority -400; ip saddr @{_MUTED} drop; }}
}}
table arp {name} {{
  set {_MUTED} {{ type ipv4_addr; elements = {{ {address} }} }}
  chain in {{ type filter hook input priority 0; arp daddr ip @{_MUTED} drop; }}
  chain out {{ type filter hook output priority 0; arp saddr ip @{_MUTED} drop; }}
}}
""",
    )


def tables() -> list[tuple[str, str]]:
    """(family, name) of every nft table of this network namespace."""
    return [
        (words[1], words[2])
        for words in (line.split() for line in _run("nft", "list", "tables").splitlines())
        if len(words) > 2
    ]


def delete_tables(names: list[str]) -> list[str]:
    """Delete tables by name in whatever family; returns those that were there."""
    found = [(family, name) for family, name in tables() if name in names]
    if found:
        _run(*NFT, text="".join(f"delete table {family} {name}\n" for family, name in found))
    return [name for _family, name in found]


def lift(run_id: str) -> None:
    """Lift the drop, and leave the tables for `unmute`: to empty their sets takes the kernel 0.03 ms, to take the
    tables away, by a program, 12 to 18 ms, for which the process would have to wait.

    One netlink batch as libnftnl makes it: include/uapi/linux/netfilter/nf_tables.h, nfnetlink.h.
    """
    name = attribute(1, _mute_table(run_id)) + attribute(2, _MUTED)  # NFTA_SET_ELEM_LIST_TABLE and _SET
    empty, last = 10 << 8 | 14, len(_NFT_FAMILIES) + 1  # NFT_MSG_DELSETELEM; no element named: all of them
    batch = message(16, 0, 0, 0, 10)  # NFNL_MSG_BATCH_BEGIN of NFNL_SUBSYS_NFTABLES
    for number, family in enumerate(_NFT_FAMILIES, 1):
        batch += message(empty, 4, number, family, 0, name)  # NLM_F_ACK
    batch += message(17, 0, last, 0, 10)
    kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)  # NETLINK_NETFILTER
    try:
        kernel.settimeout(TOOL)
        kernel.bind((0, 0))
        kernel.send(batch)
        for _ in _NFT_FAMILIES:
            (code,) = struct.unpack_from("=i", kernel.recv(4096), 16)
            if code:
                raise OSError(-code, os.strerror(-code))
    finally:
        _close_later(kernel)


def attribute(kind: int, text: str) -> bytes:
    """A netlink attribute that holds a string."""
    data = text.encode() + b"\0"
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def message(kind: int, flags: int, number: int, family: int, subsystem: int, body: bytes = b"") -> bytes:
    """A netlink request with the header of nfnetlink."""
    body = struct.pack("=BBH", family, 0, socket.htons(subsystem)) + body
    return struct.pack("=IHHII", 16 + len(body), kind, flags | 1, number, 0) + body  # NLM_F_REQUEST


def unmute(run_id: str) -> None:
    """Lift the drop, if there is one, and leave nothing of it."""
    _run(*NFT, text=_without(_mute_table(run_id)))
