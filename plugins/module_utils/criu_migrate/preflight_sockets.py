"""Checks of the tree's sockets: which connections can go along, which addresses and ports the destination must have.
Pure functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .preflight import Case, Check, Facts, Finding, listed

_WILD = ("0.0.0.0", "::")  # noqa: S104  (compared with, not bound to)
_DATAGRAM = 2


def _loopback(host: str) -> bool:
    return host.startswith("127.") or host == "::1"


def _end(address: list[Any]) -> str:
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    return f"{host}:{address[1]}"


def outside(case: Case) -> list[Facts]:
    """Connections that would not survive: the other end stays on the source, or the local address does."""
    connected = case.tree["sockets"]["tcp_connected"]
    ends = {(tuple(item["local"]), tuple(item["peer"])) for item in connected}
    found = []
    for item in connected:
        inside = (tuple(item["peer"]), tuple(item["local"])) in ends
        host, peer = item["local"][0], item["peer"][0]
        moves = host == case.service_address and bool(host)
        if not (inside if _loopback(host) else moves and (inside or peer != host)):
            found.append(item)
    return found


def check_connections(case: Case) -> Iterator[Finding]:
    if not case.tree.get("found"):
        return
    node, connected = case.names["source"], case.tree["sockets"]["tcp_connected"]
    if not connected:
        return
    if case.params.get("tcp_close"):
        text = f"tcp_close=true: {len(connected)} TCP connections will be closed: {_ends(connected)}."
        yield Finding("connections", node, text, "", True)
        return
    if not case.params.get("tcp_established"):
        text = f"tcp_established=false, but there are {len(connected)} TCP connections: {_ends(connected)}."
        remedy = "Give tcp_established=true to carry them over, or tcp_close=true to close them."
        yield Finding("connections", node, text, remedy)
        return
    staying = outside(case)
    if staying:
        close = "tcp_close=true closes them."
        local = [item for item in staying if _loopback(item["local"][0])]
        remote = [item for item in staying if item not in local]
        if local:
            text = f"TCP connections to processes that stay on the source: {_ends(local)}."
            yield Finding("connections", node, text, f"End those clients. Or {close}")
        if remote:
            text = f"TCP connections by an address that stays on the source: {_ends(remote)}."
            advice = f"Let clients connect to an address that moves along: service_address=ADDRESS. Or {close}"
            yield Finding("connections", node, text, advice)


def _ends(items: list[Facts]) -> str:
    return listed(f"{_end(item['local'])} with {_end(item['peer'])}" for item in items)


def check_addresses(case: Case) -> Iterator[Finding]:
    """What is bound to one address needs that address on the destination."""
    if not case.tree.get("found"):
        return
    here = {item["address"] for item in case.destination["addresses"]} | {case.service_address}
    bound = [*case.tree["sockets"]["tcp_listening"], *case.tree["sockets"]["udp"]]
    hosts = {item["local"][0] for item in bound if item["local"][0] not in _WILD and not _loopback(item["local"][0])}
    missing = sorted(hosts - here)
    if missing and case.destination["addresses"]:
        ports = listed(_end(item["local"]) for item in bound if item["local"][0] in missing)
        text = f"The process is bound to an address that this node does not have: {ports}."
        advice = "Let the program listen on 0.0.0.0, or on an address that moves along: service_address=ADDRESS."
        yield Finding("addresses", case.names["destination"], text, advice)


def check_ports(case: Case) -> Iterator[Finding]:
    for item in case.there.get("ports_taken", []):
        who = f"{item['pid']} ({item['name']})" if item["pid"] else "another process"
        text = f"The process's port {item['kind']} {_end([item['address'], item['port']])} is taken here by {who}."
        remedy = f"Stop it: kill {item['pid']}" if item["pid"] else "Stop it."
        yield Finding("ports", case.names["destination"], text, remedy)


def check_kinds(case: Case) -> Iterator[Finding]:
    if not case.tree.get("found"):
        return
    for item in case.tree["sockets"]["unsupported"]:
        text = f"PID {item['pid']} holds a socket of {item['what']} (descriptor {item['fd']}), which CRIU cannot dump."
        go = "Go programs: GODEBUG=multipathtcp=0." if item["what"].startswith("MPTCP") else ""
        yield Finding("sockets", case.names["source"], text, go or "Start the program so that it does not use it.")


def check_unix(case: Case) -> Iterator[Finding]:
    if not case.tree.get("found"):
        return
    away = [item for item in case.tree["sockets"]["unix"] if item["outside"]]
    streams = [item for item in away if item["type"] != _DATAGRAM]
    if streams:
        text = f"Unix connections to processes that stay on the source: {_unix(streams)}."
        advice = "End them; a systemd service writes to a file instead of the journal with StandardOutput=append:FILE."
        yield Finding("unix", case.names["source"], text, advice)
    datagrams = [item for item in away if item["type"] == _DATAGRAM]
    if datagrams and not case.params.get("ext_unix_sk"):
        text = f"Unix sockets whose other end stays on the source: {_unix(datagrams)}."
        yield Finding("unix", case.names["source"], text, "Give ext_unix_sk=true.")
    for folder in case.there.get("unix_missing", []):
        text = f"The folder {folder} of a unix socket is missing."
        yield Finding("unix", case.names["destination"], text, f"mkdir -p {folder}")


def _unix(items: list[Facts]) -> str:
    return listed(f"PID {item['pid']} descriptor {item['fd']} to {item['outside']}" for item in items)


CHECKS: tuple[Check, ...] = (check_connections, check_addresses, check_ports, check_kinds, check_unix)
