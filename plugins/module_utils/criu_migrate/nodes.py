"""Which two machines: from the environment, from a ``servers.yaml``, or the lab. Plain functions of data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NO_NODES = """\
There is no source and no destination. Name them in one of these three ways:
  1. SOURCE_NODE_IP and DEST_NODE_IP in the environment
     (SSH_USER and SSH_KEY too, where they are not ubuntu and your own key);
  2. a servers.yaml, here or in config/, as Terraform writes it (see inventories/terraform);
  3. the lab on this machine: ansible-playbook playbooks/lab.yml
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
    for key, name in (("ssh_user", "SSH_USER"), ("ssh_key", "SSH_KEY")):
        if environ.get(name):
            nodes[key] = environ[name]
    return nodes


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
