#!/usr/bin/python
"""A lab's record and its network namespace."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_network
short_description: The record and the network of a lab, or its removal
description:
  - Makes a network namespace with a bridge, chooses a network 10.77.x.0/24 that no other lab has, makes host keys.
  - V(absent) removes every trace of the lab from this machine, whatever state it is in, and what killed runs left of
    half-made images.
options:
  name:
    description: Name of the lab.
    type: str
    required: true
  state:
    description: Whether the lab is there.
    type: str
    choices: [present, absent]
    default: present
  nodes:
    description: Number of nodes.
    type: int
    default: 2
  rate:
    description: Link rate of every host in tc's notation, empty for none.
    type: str
    default: ""
  image:
    description: Folder of the root file system.
    type: path
    default: ""
  vm:
    description: For nodes that are virtual machines, what M(lab_vm_image) returned as C(vm), and C(clock_offset).
    type: dict
    default: {}
attributes:
  check_mode:
    support: full
    description: Nothing is made or removed.
  idempotent:
    support: full
    description: A second run changes nothing.
author: criu.migrate contributors
"""

EXAMPLES = r"""
- name: Make the network of a lab
  lab_network:
    name: lab
    image: /var/cache/criu-migrate/images/0123456789abcdef
"""

RETURN = r"""
hosts:
  description: Address of every host of the lab.
  type: dict
  returned: O(state=present)
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.criu_migrate.errors import MigrationError
from ..module_utils.criu_migrate.lab_cache import CACHE, clear_abandoned
from ..module_utils.criu_migrate.lab_store import Lab


def present(lab: Lab, params: dict[str, Any], check: bool) -> dict[str, Any]:
    asked = (params["nodes"], params["rate"], params["image"] or lab.record.get("image", ""), params["vm"])
    if check:
        planned = lab.planned(*asked)
        return {"changed": planned != lab.record, "hosts": list(planned["hosts"])}
    changed = lab.ensure_network(*asked)
    return {"changed": changed, "hosts": lab.hosts()}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "default": "present", "choices": ["present", "absent"]},
            "nodes": {"type": "int", "default": 2},
            "rate": {"type": "str", "default": ""},
            "image": {"type": "path", "default": ""},
            "vm": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    try:
        lab = Lab(module.params["name"])
        if module.params["state"] == "present":
            module.exit_json(**present(lab, module.params, module.check_mode))
        if module.check_mode:
            module.exit_json(changed=lab.exists())
        clear_abandoned(CACHE)
        module.exit_json(changed=lab.remove())
    except MigrationError as error:
        module.fail_json(msg=error.text(), **error.details)


if __name__ == "__main__":
    main()
