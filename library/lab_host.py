#!/usr/bin/python
"""Whether this machine can carry the lab."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_host
short_description: Tell whether this machine can carry the lab, and whether its image is there
description:
  - Tries what the lab is made of (namespaces, overlayfs, links, cgroups) in child processes, so that nothing stays.
  - Fails once, with everything that is missing; packages of Debian that are merely not installed are returned.
options:
  name:
    description: Name of the lab.
    type: str
    required: true
  nodes:
    description: Number of nodes.
    type: int
    default: 2
  rate:
    description: Link rate in tc's notation, empty for none.
    type: str
    default: ""
  backend:
    description: What the nodes are, V(namespace) or V(vm).
    type: str
    default: namespace
  memory:
    description: Memory of a virtual machine in MiB.
    type: int
    default: 2048
  clock_offset:
    description: Seconds by which the destination's clock is to be off.
    type: int
    default: 0
  suite:
    description: The Debian suite of the image.
    type: str
    default: trixie
  inputs:
    description: Files and folders (patterns) that decide how the image is made; they are part of its key.
    type: list
    elements: str
    default: []
  contents:
    description:
      - Packages that have to be in the image.
      - One that holds more serves as well, except for virtual machines, each of which has a copy of it.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    support: full
    description: Nothing is ever changed.
  idempotent:
    support: full
    description: A second run changes nothing.
author: criu.migrate contributors
"""

EXAMPLES = r"""
- name: Look at this machine
  lab_host:
    name: lab
    rate: 1gbit
  register: host
"""

RETURN = r"""
missing_packages:
  description: Debian packages to be installed on this machine.
  type: list
  elements: str
  returned: success
image:
  description: The image that serves, for M(lab_image).
  type: dict
  returned: success
  contains:
    path: {description: Folder of the image., type: str}
    base: {description: Folder of the base., type: str}
    start: {description: 'What its making starts from, another image or the base.', type: str}
    suite: {description: Its Debian suite., type: str}
    inputs: {description: Key of the files that decide how it is made., type: str}
    contents: {description: The packages that it is (to be) filled with., type: list, elements: str}
exists:
  description: The image is in the cache.
  type: bool
  returned: success
start_exists:
  description: What its making starts from is in the cache.
  type: bool
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.criu_migrate import lab_host, lab_net, lab_store, lab_vm_host
from ..module_utils.criu_migrate.errors import MigrationError
from ..module_utils.criu_migrate.lab_cache import Image
from ..module_utils.criu_migrate.lab_vm_image import VmImage


def asked_for(name: str, nodes: int, rate: str, backend: str, clock_offset: int) -> list[lab_host.Problem]:
    """What is wrong with the parameters themselves."""
    found = []
    if backend not in ("namespace", "vm"):
        found.append(lab_host.Problem(f"lab_backend={backend} is not offered.", "Use namespace or vm."))
    if clock_offset and backend != "vm":
        found.append(lab_host.Problem("Nodes of namespaces have this machine's clock.",
                                      "Leave lab_clock_offset at 0, or use lab_backend=vm."))  # fmt: skip
    try:
        lab_store.Lab(name)
        lab_store.planned_hosts(nodes)
    except MigrationError as error:
        found.append(lab_host.Problem(error.message, error.remedy))
    try:
        if rate:
            lab_net.rate_bits(rate)
    except ValueError as error:
        found.append(lab_host.Problem(f"lab_rate: {error}.", ""))
    return found


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "nodes": {"type": "int", "default": 2},
            "rate": {"type": "str", "default": ""},
            "backend": {"type": "str", "default": "namespace"},
            "memory": {"type": "int", "default": 2048},
            "clock_offset": {"type": "int", "default": 0},
            "suite": {"type": "str", "default": "trixie"},
            "inputs": {"type": "list", "elements": "str", "default": []},
            "contents": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    params = module.params
    found = asked_for(params["name"], params["nodes"], params["rate"], params["backend"], params["clock_offset"])
    if found:
        module.fail_json(msg=lab_host.message(found))
    vm = params["backend"] == "vm"
    lab = lab_store.Lab(params["name"])
    current = lab.record.get("image", "")
    image = Image.of(params["suite"], params["inputs"], params["contents"], current=current, exact=vm)
    found = lab_host.problems(image.exists(), image.cache, lab_store.DISK_ROOT, params["rate"])
    missing = lab_host.missing_packages(image.exists() or image.start_exists())
    if vm:
        started = sum(lab.is_machine(name) and lab.running(name) for name in lab.record.get("hosts", {}))
        there = VmImage(image.path).exists()
        found += lab_vm_host.problems(params["nodes"] - started, params["memory"], image.cache, there)
        missing = sorted({*missing, *lab_vm_host.missing_packages()})
    if found:
        module.fail_json(msg=lab_host.message(found))
    module.exit_json(
        changed=False,
        missing_packages=missing,
        image=image._asdict(),
        exists=image.exists(),
        start_exists=image.start_exists(),
    )


if __name__ == "__main__":
    main()
