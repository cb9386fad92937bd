"""The inventory of a lab: hosts.yml, SSH's settings, and the key made for this lab."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping

from . import lab_net, lab_store
from .errors import MigrationError

MARK = "# Made by playbooks/lab.yml. Ansible reads no other file here: the rest is hidden or named *.cfg.\n"


def zones(hosts: Mapping[str, str]) -> dict[str, list[str]]:
    """The nodes by zone, in turn, as in a cloud with two zones."""
    nodes = [name for name in hosts if name.startswith("node-")]
    return {zone: nodes[index :: len(lab_store.ZONES)] for index, zone in enumerate(lab_store.ZONES)}


def _group(name: str, members: Mapping[str, str], indent: str = "    ") -> str:
    lines = [f"{indent}{name}:", f"{indent}  hosts:"]
    for host, at in members.items():
        lines += [f"{indent}    {host}:"] + ([f"{indent}      ansible_host: {at}"] if at else [])
    return "\n".join(lines) + "\n"


def hosts_yaml(hosts: Mapping[str, str], service: str, machines: bool = False) -> str:
    """The text of hosts.yml: node-1 is the source, node-2 the destination, every node is in all_nodes by zone."""
    text = MARK + "---\nall:\n  vars:\n"
    text += f"    ansible_user: {lab_store.USER}\n    ansible_python_interpreter: /usr/bin/python3\n"
    text += "    ansible_ssh_common_args: -F {{ inventory_dir }}/ssh.cfg\n"
    if machines:
        text += "    # an emulated machine may need longer than Ansible's 10 s for its first sudo\n"
        text += "    ansible_timeout: 60\n"
    text += f"    # free in this lab: an address that moves with a process\n    lab_service_address: {service}\n"
    text += "    # what has a client outside would lose it, unless told otherwise (-e service_address=...)\n"
    text += "    service_address: \"{{ lab_service_address if workload | default('') == 'redis' else '' }}\"\n"
    text += "  children:\n"
    text += _group("source", {"node-1": hosts["node-1"]})
    text += _group("destination", {"node-2": hosts["node-2"]})
    text += _group("client", {"client-1": hosts["client-1"]})
    text += "    all_nodes:\n      children:\n"
    named = ("node-1", "node-2")
    for zone, members in zones(hosts).items():
        text += _group(zone, {name: "" if name in named else hosts[name] for name in members}, "        ")
    return text


def ssh_config(hosts: Mapping[str, str], folder: str, pin: str, python: str) -> str:
    """The text of ssh.cfg, for Ansible and for a person: ssh -F ssh.cfg node-1."""
    text = "# Made by playbooks/lab.yml; for Ansible, and for you: ssh -F ssh.cfg node-1\n"
    for name, address in hosts.items():
        text += f"Host {name} {address}\n  HostName {address}\n"
    # StrictHostKeyChecking as an argument of Ansible's would come before this file, so it holds for both
    return (
        text
        + f"""\
Host *
  User {lab_store.USER}
  IdentityFile "{folder}/.ssh/id_ed25519"
  IdentitiesOnly yes
  UserKnownHostsFile "{folder}/.ssh/known_hosts"
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
  ProxyUseFdpass yes
  ProxyCommand {python} -I -S "{folder}/.ssh/connect.py" {pin} %h %p
"""
    )


def known_hosts(hosts: Mapping[str, str], keys: Mapping[str, str]) -> str:
    """The text of known_hosts, by name and by address."""
    return "".join(f"{name},{address} {' '.join(keys[name].split()[:2])}\n" for name, address in hosts.items())


def write(path: str, text: str, mode: int = 0o644) -> bool:
    """Write a file unless it is like that; True when it was changed."""
    try:
        with open(path, encoding="utf-8") as handle:
            if handle.read() == text:
                return False
    except FileNotFoundError:
        pass
    with open(os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as handle:
        handle.write(text)
    os.replace(path + ".new", path)
    return True


def ensure_key(folder: str, comment: str) -> tuple[bool, str]:
    """The lab's own SSH key in the inventory; returns whether it was made, and the public part."""
    os.makedirs(f"{folder}/.ssh", 0o700, exist_ok=True)
    made = not os.path.exists(f"{folder}/.ssh/id_ed25519")
    if made:
        lab_store.make_key(f"{folder}/.ssh/id_ed25519", comment)
    with open(f"{folder}/.ssh/id_ed25519.pub", encoding="ascii") as handle:
        return made, handle.read().strip()


def ensure(lab: lab_store.Lab, folder: str, connect: str, python: str) -> bool:
    """Write the inventory of a lab whose record exists; True when something was changed.

    connect is the path of the ProxyCommand program that is copied there.
    """
    if not lab.record:
        raise MigrationError(f"There is no lab {lab.name}.", "Run playbooks/lab.yml.")
    hosts = lab.hosts()
    changed, _ = ensure_key(folder, f"the lab {lab.name}")
    with open(connect, encoding="utf-8") as handle:
        program = handle.read()
    texts = {
        ".gitignore": "*\n",
        ".ssh/connect.py": program,
        ".ssh/known_hosts": known_hosts(hosts, {name: lab.host_key(name) for name in hosts}),
        "ssh.cfg": ssh_config(hosts, folder, lab.pin, python),
        "hosts.yml": hosts_yaml(
            hosts, lab_net.address(int(lab.record["subnet"]), lab_store.SERVICE), bool(lab.record.get("vm"))
        ),
    }
    for name, text in texts.items():
        changed = write(os.path.join(folder, name), text) or changed
    return changed


def remove(folder: str) -> bool:
    """Remove the inventory that `ensure` wrote; a folder that is not one is left alone (MigrationError)."""
    if not os.path.isdir(folder):
        return False
    if not os.path.isdir(f"{folder}/.ssh"):
        raise MigrationError(f"{folder} was not made by playbooks/lab.yml.", "Choose another lab_name, or remove it.")
    shutil.rmtree(folder)
    return True
