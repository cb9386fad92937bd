#!/usr/bin/python
"""The module service_address; its documentation is below, its work in module_utils."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service_address
short_description: Put the address that clients connect to on a node, or take it off
description:
  - The service address is a secondary IPv4 address that moves along with a process. During a migration the guards
    move it; this module is for before and after.
options:
  address:
    description: The IPv4 address, with or without C(/prefix).
    type: str
    required: true
  interface:
    description: The interface; by default the one whose subnet holds the address, else the one towards it.
    type: str
    default: ''
  state:
    description: Whether the node has it.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode:
    description: Reports whether something would change.
    support: full
  idempotent:
    description: Nothing changes when the address already is as asked.
    support: full
author: criu-migrate
"""

EXAMPLES = r"""
- name: Put the service address on the source
  service_address:
    address: 192.0.2.50
"""

RETURN = r"""
interface:
  description: Where the address is, or was.
  returned: success
  type: str
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.criu_migrate import net
from ..module_utils.criu_migrate.errors import MigrationError


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "address": {"type": "str", "required": True},
            "interface": {"type": "str", "default": ""},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    address, _slash, prefix = module.params["address"].partition("/")
    present = module.params["state"] == "present"
    try:
        found = net.find_address(address)
        place = found or (net.interface_for(address) if present else {"interface": ""})
        name = module.params["interface"] or place["interface"]
        changed = bool(found) != present
        if changed and not module.check_mode:
            if present:
                net.add_address(address, name, int(prefix or place.get("prefix", 32)))
                net.announce(address, name)
            else:
                net.remove_address(address)
    except MigrationError as error:
        module.fail_json(msg=error.text(), error=error.as_dict())
    module.exit_json(changed=changed, interface=name)


if __name__ == "__main__":
    main()
