"""The default inventory: two nodes from the environment, from a servers.yaml, or from the lab."""

from __future__ import annotations

DOCUMENTATION = r"""
name: criu_nodes
short_description: Source and destination of a migration
description:
  - Finds the two nodes in the first of these places that names any. The extra variables C(source_ip) and C(dest_ip),
    or C(SOURCE_NODE_IP) and C(DEST_NODE_IP) in the environment; a C(servers.yaml) as Terraform writes it;
    C(AZ_A_INSTANCES_IP) and its like in the environment, lists of addresses, of which the first two of a zone are
    taken; the inventory of the lab.
  - Makes the groups C(source), C(destination) and C(all_nodes), the last with one child group a zone.
  - The variable C(criu_nodes_from) says which it was.
  - Where none of them is there, or one is broken, the groups are empty, so that playbooks that need no
    node can run. The variable C(criu_nodes_problem) then says what is wrong.
options:
  plugin:
    description: The name of this plugin.
    required: true
    choices: [criu.migrate.criu_nodes, criu_nodes]
  source_ip:
    description: Address of the source.
    type: str
    default: ''
    env:
      - name: SOURCE_NODE_IP
    vars:
      - name: source_ip
  destination_ip:
    description: Address of the destination.
    type: str
    default: ''
    env:
      - name: DEST_NODE_IP
    vars:
      - name: dest_ip
  ssh_user:
    description: Account on both nodes, with sudo. By default C(ubuntu).
    type: str
    default: ''
    env:
      - name: SSH_USER
    vars:
      - name: ssh_user
  ssh_key:
    description: File with the private key for that account.
    type: str
    default: ''
    env:
      - name: SSH_KEY
    vars:
      - name: ssh_key
  servers_files:
    description: Where a C(servers.yaml) is looked for, from the current directory on.
    type: list
    elements: str
    default: [servers.yaml, config/servers.yaml]
  lab_inventory:
    description: The lab's inventory, from the directory of this file on.
    type: str
    default: lab/hosts.yml
"""

EXAMPLES = r"""
# inventories/default.yml
plugin: criu.migrate.criu_nodes
"""

import os
from pathlib import Path
from typing import Any

import yaml
from ansible.inventory.data import InventoryData
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.inventory import BaseInventoryPlugin
from ansible.plugins.loader import inventory_loader

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import nodes


class InventoryModule(BaseInventoryPlugin):
    """Fills Ansible's inventory with the nodes that were found."""

    NAME = "criu.migrate.criu_nodes"

    def verify_file(self, path: str) -> bool:
        """Tell whether the file names this plugin, so that other inventories go past it."""
        if not super().verify_file(path) or not path.endswith((".yml", ".yaml")):
            return False
        try:
            data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeError, yaml.YAMLError):
            return False
        return isinstance(data, dict) and data.get("plugin") in (self.NAME, "criu_nodes")

    def parse(self, inventory: InventoryData, loader: DataLoader, path: str, cache: bool = True) -> None:
        """Fill the inventory. What is wrong goes into a variable: a failure would only try other plugins."""
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        for group in ("source", "destination", "all_nodes"):
            inventory.add_group(group)
        try:
            found = self._found()
        except nodes.NodesError as error:
            self.display.warning(str(error))
            inventory.set_variable("all", "criu_nodes_problem", str(error))
            return
        if found is not None:
            where, described = found
            inventory.set_variable("all", "criu_nodes_from", where)
            self._fill(described)
            return
        lab = Path(path).parent / self.get_option("lab_inventory")
        if lab.is_file():
            # inventory_dir of a host is the directory of what is parsed just now: the lab's, with its ssh.cfg
            inventory.set_variable("all", "criu_nodes_from", "lab")
            before, inventory.current_source = inventory.current_source, str(lab)
            inventory_loader.get("ansible.builtin.yaml").parse(inventory, loader, str(lab), cache=cache)
            inventory.current_source = before

    def _found(self) -> tuple[str, dict[str, Any]] | None:
        """Return where the nodes are described, and how; None where they are not."""
        options = {"SOURCE_NODE_IP": "source_ip", "DEST_NODE_IP": "destination_ip",
                   "SSH_USER": "ssh_user", "SSH_KEY": "ssh_key"}
        given = {name: self.get_option(option) or "" for name, option in options.items()}
        found = nodes.from_environment(given)
        if found is not None:
            return "addresses", {**found, "all_nodes": nodes.zones(os.environ)}
        for name in self.get_option("servers_files"):
            servers = Path(name).expanduser()
            if servers.is_file():
                return "servers.yaml", nodes.with_account(nodes.read_servers(self._load(servers), str(servers)), given)
        found = nodes.from_zones({**os.environ, **given})
        return ("zones", found) if found is not None else None

    def _load(self, servers: Path) -> Any:
        try:
            return yaml.safe_load(servers.read_text(encoding="utf-8"))
        except (OSError, UnicodeError, yaml.YAMLError) as error:
            raise nodes.NodesError(f"{servers} cannot be read: {error}") from error

    def _fill(self, found: dict[str, Any]) -> None:
        hosts, groups = nodes.build_inventory(found)
        for name, variables in hosts.items():
            self.inventory.add_host(name)
            for key, value in variables.items():
                self.inventory.set_variable(name, key, value)
        for zone, members in groups.items():
            group = self.inventory.add_group(self._sanitize_group_name(zone))
            if zone in (found.get("all_nodes") or {}):
                self.inventory.add_child("all_nodes", group)
            for member in members:
                self.inventory.add_host(member, group=group)
