#!/usr/bin/python
"""The network cable of a lab's host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_link
short_description: Cut or restore the link of a host in a lab
description:
  - Sets the host's port of the lab's bridge down or up; the host itself sees its carrier go and come.
  - Ansible cannot reach a host whose link is down, since it uses the same cable.
  - Runs as root on the machine that carries the lab.
options:
  lab:
    description: Name of the lab.
    type: str
    default: lab
  name:
    description: The host.
    type: str
    required: true
  state:
    description: Whether the link is there.
    type: str
    choices: [up, down]
    required: true
attributes:
  check_mode:
    support: full
    description: No link is touched.
  idempotent:
    support: full
    description: A second run changes nothing.
author: criu.migrate contributors
"""

EXAMPLES = r"""
- name: Cut the destination off
  lab_link:
    name: node-2
    state: down
"""

RETURN = r"""
links:
  description: Every host of the lab and whether its link is V(up) or V(down), before the change.
  type: dict
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.criu_migrate import lab_net
from ..module_utils.criu_migrate.errors import MigrationError
from ..module_utils.criu_migrate.lab_store import Lab


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "lab": {"type": "str", "default": "lab"},
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "required": True, "choices": ["up", "down"]},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        lab = Lab(params["lab"])
        lab.known(params["name"])
        links = lab_net.ports(lab.pin)
        changed = links.get(params["name"]) != params["state"]
        if not module.check_mode:
            changed = lab.set_link(params["name"], params["state"])
        module.exit_json(changed=changed, links=links)
    except MigrationError as error:
        module.fail_json(msg=error.text(), **error.details)


if __name__ == "__main__":
    main()
