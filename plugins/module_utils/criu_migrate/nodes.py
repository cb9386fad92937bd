"""Which two machines: from the environment, from a ``servers.yaml``, or the lab. Plain functions of data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

ACCOUNT = {"ssh_user": "SSH_USER", "ssh_key": "SSH_KEY"}
NO_NODES = """\
There is no source and no destination. Name them in one of these ways:
  1. -e source_ip=... -e dest_ip=..., or SOURCE_NODE_IP and DEST_NODE_IP in the environment
     (ssh_user and ssh_key, or SSH_USER and SSH_KEY, where they are not ubuntu and your own key);
  2. a servers.yaml, here or in config/, as Terraform writes it (see inventories/terraform);
  3. AZ_A_INSTANCES_IP in the environment, two or more addresses;
  4. the lab on this machine: ansible-playbook playbooks/lab.yml
Or give an inventory of your own with the groups source and destination: -i inventories/example"""

Host = dict[str, Any]


class NodesError(Exception):
    """The description of the nodes cannot be used; the text says why and what to do."""


def from_environment(environ: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the nodes that the environment names, in the form of a ``servers.yaml``; None if it names none.

    :raises NodesError: only one of the two addresses is there
    """
    source, destination = environ.get("SOURCE_NODE_IP", ""), environ.get("DEST_NODE_IP", "")
    if not source and not destination:
        return None
    if not source or not destination:
        names = ("SOURCE_NODE_IP", "DEST_NODE_IP")
        there, missing = names if source else reversed(names)
        raise NodesError(f"{there} is set in the environment and {missing} is not: set both, or unset it.")
    nodes: dict[str, Any] = {"source": {"ip": source}, "destination": {"ip": destination}}
    return with_account(nodes, environ)


def with_account(nodes: dict[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the nodes with the account and the key that SSH_USER and SSH_KEY name, where they do."""
    given = {key: environ[name] for key, name in ACCOUNT.items() if environ.get(name)}
    return {**nodes, **given}


def zones(environ: Mapping[str, str]) -> dict[str, list[Host]]:
    """Return the nodes of each zone that ``AZ_<ZONE>_INSTANCES_IP`` names, addresses with blanks between them."""
    found: dict[str, list[Host]] = {}
    for name in sorted(environ):
        match = re.fullmatch(r"AZ_([A-Z0-9]+)_INSTANCES_IP", name)
        addresses = environ[name].split() if match else []
        if match and addresses:
            zone = f"az_{match.group(1).lower()}"
            label = zone.replace("_", "-")
            found[zone] = [{"ip": ip, "name": f"{label}-node-{place}"} for place, ip in enumerate(addresses)]
    return found


def from_zones(environ: Mapping[str, str]) -> dict[str, Any] | None:
    """Return two nodes of one zone where a zone has two, else one of each of the first two zones; None without zones.

    :raises NodesError: there is one node only
    """
    named = zones(environ)
    if not named:
        return None
    pair = next((members[:2] for members in named.values() if len(members) > 1), None)
    pair = pair or [members[0] for members in named.values()][:2]
    if len(pair) < 2:
        raise NodesError("AZ_*_INSTANCES_IP in the environment names one node only: it takes two, a blank between.")
    return with_account({"source": pair[0], "destination": pair[1], "all_nodes": named}, environ)


def read_servers(data: Any, where: str) -> dict[str, Any]:
    """Return the part ``nodes`` of a parsed ``servers.yaml``.

    :raises NodesError: it is not one
    """
    nodes = data.get("nodes") if isinstance(data, Mapping) else None
    if not isinstance(nodes, Mapping):
        raise NodesError(f"{where}: it has no 'nodes:'; see inventories/terraform/servers.yaml.example.")
    for group in ("source", "destination"):
        if not isinstance(nodes.get(group), Mapping) or not nodes[group].get("ip"):
            raise NodesError(f"{where}: nodes.{group}.ip is missing.")
    zones = nodes.get("all_nodes") or {}
    if not isinstance(zones, Mapping) or not all(_is_zone(zone) for zone in zones.values()):
        raise NodesError(f"{where}: nodes.all_nodes must map each zone to a list of nodes with an ip.")
    return dict(nodes)


def _is_zone(zone: Any) -> bool:
    return isinstance(zone, Sequence) and all(isinstance(node, Mapping) and node.get("ip") for node in zone)


def build_inventory(nodes: Mapping[str, Any]) -> tuple[dict[str, Host], dict[str, list[str]]]:
    """Return the hosts with their variables, and the hosts of each group.

    A node is one host, however often it is named: its address decides.
    """
    common: Host = {"ansible_user": nodes.get("ssh_user") or "ubuntu"}
    if nodes.get("ssh_key"):
        common["ansible_ssh_private_key_file"] = nodes["ssh_key"]
    hosts: dict[str, Host] = {}
    groups: dict[str, list[str]] = {"source": [], "destination": [], "all_nodes": []}
    names: dict[str, str] = {}

    def add(node: Mapping[str, Any], *into: str) -> None:
        address = str(node["ip"])
        if address not in names:
            name = str(node.get("name") or address)
            names[address] = name if name not in hosts else f"{name}-{address}"
            hosts[names[address]] = {**common, "ansible_host": address}
        for group in into:
            if names[address] not in groups.setdefault(group, []):
                groups[group].append(names[address])

    for zone, members in (nodes.get("all_nodes") or {}).items():
        for node in members:
            add(node, "all_nodes", str(zone))
    add(nodes["source"], "source", "all_nodes")
    add(nodes["destination"], "destination", "all_nodes")
    if isinstance(nodes.get("client"), Mapping) and nodes["client"].get("ip"):
        add(nodes["client"], "client")
    return hosts, groups


def check_options(given: Mapping[str, Any], used: str) -> list[str]:
    """Say which of source_ip, dest_ip, ssh_user and ssh_key nothing reads.

    :param given: those that were given as extra variables
    :param used: where the inventory plugin took the nodes from, '' where another inventory was given
    """
    if used == "lab" or not used:
        where = "the lab has its own account and addresses" if used else "it is for the default inventory"
        instead = "ansible_host, ansible_user and ansible_ssh_private_key_file in your inventory"
        hint = "leave it out" if used else f"with -i, set {instead}"
        return [f"{name}: {where}; {hint}." for name in sorted(given)]
    return []


def check_pair(
    groups: Mapping[str, Sequence[str]], hostvars: Mapping[str, Mapping[str, Any]], problem: str = ""
) -> list[str]:
    """Say what hinders a migration from the group ``source`` to the group ``destination``.

    :param problem: what the inventory said of itself
    """
    source, destination = list(groups.get("source", ())), list(groups.get("destination", ()))
    if not source and not destination:
        return [problem or NO_NODES]
    problems = []
    for name, members in (("source", source), ("destination", destination)):
        if len(members) != 1:
            found = f"{len(members)} ({', '.join(members)})" if members else "none"
            problems.append(f"The inventory's group {name} must have one host, it has {found}.")
    if problems:
        return problems
    if source == destination:
        return [f"The destination is the source: {source[0]} is in both groups. Name two nodes."]
    where = [_address(hostvars.get(name, {}), name) for name in (source[0], destination[0])]
    if where[0] == where[1]:
        pair = f"{source[0]} and {destination[0]}"
        return [f"The destination is the source: {pair} are both {where[0]}. Name two nodes."]
    return []


def _address(variables: Mapping[str, Any], name: str) -> str:
    port = variables.get("ansible_port") or 22
    host = variables.get("ansible_host") or name
    return f"{host}" if int(port) == 22 else f"{host} port {port}"
