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
    description: What the nodes are. Only V(namespace) is offered.
    type: str
    default: namespace
  suite:
    description: The Debian suite of the image.
    type: str
    default: trixie
  inputs:
    description: Files and folders (patterns) that decide what is in the image; they are part of its key.
    type: list
    elements: str
    default: []
  contents:
    description: Other things that decide what is in the image, for instance names of packages.
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
  description: Whether the image and the base it is made of exist, and where they lie.
  type: dict
  returned: success
  contains:
    path: {description: Folder of the image., type: str}
    base: {description: Folder of the base., type: str}
    exists: {description: The image is in the cache., type: bool}
    base_exists: {description: The base of it is in the cache., type: bool}
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.criu_migrate import lab_host, lab_net, lab_store
from ..module_utils.criu_migrate.errors import MigrationError
from ..module_utils.criu_migrate.lab_image import Image


def asked_for(name: str, nodes: int, rate: str, backend: str) -> list[lab_host.Problem]:
    """What is wrong with the parameters themselves."""
    found = []
    if backend != "namespace":
        found.append(lab_host.Problem(f"lab_backend={backend} is not offered.", "Use namespace, the only one so far."))
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
            "suite": {"type": "str", "default": "trixie"},
            "inputs": {"type": "list", "elements": "str", "default": []},
            "contents": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    params = module.params
    found = asked_for(params["name"], params["nodes"], params["rate"], params["backend"])
    if found:
        module.fail_json(msg=lab_host.message(found))
    image = Image.of(params["suite"], params["inputs"], params["contents"])
    found = lab_host.problems(image.exists(), image.cache, lab_store.DISK_ROOT, params["rate"])
    if found:
        module.fail_json(msg=lab_host.message(found))
    module.exit_json(
        changed=False,
        missing_packages=lab_host.missing_packages(image.exists()),
        image={"path": image.path, "base": image.base, "exists": image.exists(), "base_exists": image.base_exists()},
    )


if __name__ == "__main__":
    main()
