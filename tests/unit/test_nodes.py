"""Which two machines."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import nodes

SERVERS: dict[str, Any] = {
    "nodes": {
        "ssh_user": "ubuntu",
        "ssh_key": "~/.ssh/id_ed25519",
        "source": {"ip": "192.168.10.100", "name": "az-a-node-0"},
        "destination": {"ip": "192.168.10.101", "name": "az-a-node-1"},
        "all_nodes": {
            "az_a": [{"ip": "192.168.10.100", "name": "az-a-node-0"}, {"ip": "192.168.10.101", "name": "az-a-node-1"}],
            "az_c": [{"ip": "192.168.20.100", "name": "az-c-node-0"}],
        },
    }
}


def test_servers_yaml_makes_the_groups() -> None:
    hosts, groups = nodes.build_inventory(nodes.read_servers(SERVERS, "servers.yaml"))
    assert groups["source"] == ["az-a-node-0"]
    assert groups["destination"] == ["az-a-node-1"]
    assert groups["all_nodes"] == ["az-a-node-0", "az-a-node-1", "az-c-node-0"]
    assert groups["az_c"] == ["az-c-node-0"]
    assert hosts["az-c-node-0"] == {
        "ansible_user": "ubuntu",
        "ansible_ssh_private_key_file": "~/.ssh/id_ed25519",
        "ansible_host": "192.168.20.100",
    }


def test_one_name_for_two_addresses_gives_two_hosts() -> None:
    described = {"source": {"ip": "10.0.0.1", "name": "n"}, "destination": {"ip": "10.0.0.2", "name": "n"}}
    groups = nodes.build_inventory(described)[1]
    assert (groups["source"], groups["destination"]) == (["n"], ["n-10.0.0.2"])


@pytest.mark.parametrize(
    "data",
    [None, [], {}, {"nodes": 3}, {"nodes": {"source": {"ip": "1"}}},
     {"nodes": {"source": {}, "destination": {"ip": "1"}}},
     {"nodes": {"source": {"ip": "1"}, "destination": {"ip": "2"}, "all_nodes": ["a"]}},
     {"nodes": {"source": {"ip": "1"}, "destination": {"ip": "2"}, "all_nodes": {"az": [{"name": "x"}]}}}],
)  # fmt: skip
def test_broken_servers_yaml(data: Any) -> None:
    with pytest.raises(nodes.NodesError, match=r"^servers.yaml: "):
        nodes.read_servers(data, "servers.yaml")


def test_environment() -> None:
    assert nodes.from_environment({}) is None
    assert nodes.from_environment({"SOURCE_NODE_IP": "", "DEST_NODE_IP": ""}) is None
    assert nodes.from_environment({"SOURCE_NODE_IP": "a", "DEST_NODE_IP": "b", "SSH_USER": "me"}) == {
        "source": {"ip": "a"},
        "destination": {"ip": "b"},
        "ssh_user": "me",
    }
    for one, other in (("SOURCE_NODE_IP", "DEST_NODE_IP"), ("DEST_NODE_IP", "SOURCE_NODE_IP")):
        with pytest.raises(nodes.NodesError, match=f"^{one} is set .* {other} is not"):
            nodes.from_environment({one: "a"})


def test_zones_of_the_environment() -> None:
    assert nodes.from_zones({}) is None
    both = nodes.from_zones({"AZ_A_INSTANCES_IP": "a0 a1 a2", "AZ_C_INSTANCES_IP": "c0", "SSH_KEY": "k"})
    assert both is not None
    assert (both["source"]["ip"], both["destination"]["ip"], both["ssh_key"]) == ("a0", "a1", "k")
    assert [node["ip"] for node in both["all_nodes"]["az_c"]] == ["c0"]
    across = nodes.from_zones({"AZ_A_INSTANCES_IP": "a0", "AZ_C_INSTANCES_IP": "c0"})
    assert across is not None
    assert (across["source"]["ip"], across["destination"]["ip"]) == ("a0", "c0")
    with pytest.raises(nodes.NodesError, match="names one node only"):
        nodes.from_zones({"AZ_A_INSTANCES_IP": "a0"})


def test_options_that_nothing_reads_are_refused() -> None:
    assert nodes.check_options({"ssh_user": "me"}, "servers.yaml") == []
    assert nodes.check_options({}, "lab") == []
    assert "leave it out" in nodes.check_options({"ssh_user": "me"}, "lab")[0]
    assert "with -i" in nodes.check_options({"source_ip": "a"}, "")[0]


def pair(source: list[str], destination: list[str], **hostvars: dict[str, Any]) -> list[str]:
    return nodes.check_pair({"source": source, "destination": destination}, hostvars)


def test_pair() -> None:
    assert pair(["a"], ["b"]) == []
    assert pair(["a"], ["b"], a={"ansible_host": "h"}, b={"ansible_host": "h", "ansible_port": "2222"}) == []
    assert pair([], []) == [nodes.NO_NODES]
    assert "group source must have one host, it has 2 (a, c)" in pair(["a", "c"], ["b"])[0]
    assert "group destination must have one host, it has none" in pair(["a"], [])[0]
    assert pair(["a"], ["a"])[0].startswith("The destination is the source: a")
    same = pair(["a"], ["b"], a={"ansible_host": "10.0.0.1"}, b={"ansible_host": "10.0.0.1", "ansible_port": 22})
    assert same == ["The destination is the source: a and b are both 10.0.0.1. Name two nodes."]
