#!/usr/bin/python
"""The inventory of a lab."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_inventory
short_description: Write or remove the inventory of a lab
description:
  - Writes C(hosts.yml), C(ssh.cfg) (for Ansible and for C(ssh -F)), the lab's own SSH key and the known host keys.
  - Runs as the user who runs Ansible, since the key is for that user.
options:
  name:
    description: Name of the lab.
    type: str
    required: true
  state:
    description: V(key) only makes the SSH key, for the host that fills the image.
    type: str
    choices: [present, key, absent]
    default: present
  path:
    description: The inventory's folder.
    type: path
    required: true
  connect:
    description: The program by which SSH reaches the lab's network namespace; copied into the inventory.
    type: path
    default: ""
attributes:
  check_mode:
    support: full
    description: Nothing is written or removed.
  idempotent:
    support: full
    description: A second run changes nothing.
author: criu.migrate contributors
"""

EXAMPLES = r"""
- name: Write the inventory
  lab_inventory:
    name: lab
    path: inventories/lab
    connect: roles/lab/files/connect.py
"""

RETURN = r"""
public_key:
  description: The public part of the lab's key.
  type: str
  returned: when it exists
"""

import os
import sys
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.criu_migrate import lab_inventory
from ..module_utils.criu_migrate.errors import MigrationError
from ..module_utils.criu_migrate.lab_store import Lab


def apply(lab: Lab, state: str, folder: str, connect: str, check: bool) -> dict[str, Any]:
    if check:
        there = os.path.isdir(f"{folder}/.ssh")
        return {"changed": there if state == "absent" else not there, "public_key": ""}
    if state == "absent":
        return {"changed": lab_inventory.remove(folder)}
    changed, public_key = lab_inventory.ensure_key(folder, f"the lab {lab.name}")
    if state == "present":
        python = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
        changed = lab_inventory.ensure(lab, folder, connect, python) or changed
    return {"changed": changed, "public_key": public_key}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "default": "present", "choices": ["present", "key", "absent"]},
            "path": {"type": "path", "required": True},
            "connect": {"type": "path", "default": ""},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        lab = Lab(params["name"])
        folder = os.path.abspath(params["path"])
        module.exit_json(**apply(lab, params["state"], folder, params["connect"], module.check_mode))
    except MigrationError as error:
        module.fail_json(msg=error.text(), **error.details)


if __name__ == "__main__":
    main()
