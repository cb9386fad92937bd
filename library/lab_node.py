#!/usr/bin/python
"""The power switch of a lab's hosts."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_node
short_description: Switch hosts of a lab on or off
description:
  - Switching off is pulling the plug. The disk of a host stays, its memory and tmpfs do not, and a start is a new boot
    with a boot_id of its own.
  - Runs as root on the machine that carries the lab.
options:
  lab:
    description: Name of the lab.
    type: str
    default: lab
  name:
    description: The hosts, all of the lab if empty.
    type: list
    elements: str
    default: []
  state:
    description: V(restarted) switches off and on.
    type: str
    choices: [started, stopped, restarted]
    default: started
  authorized_key:
    description: Public SSH key of the hosts' user; needed once, later starts remember it.
    type: str
    default: ""
  limit:
    description: Seconds to wait for a host's sshd, as it is 30, for virtual machines 180.
    type: float
attributes:
  check_mode:
    support: full
    description: Nothing is switched.
  idempotent:
    support: full
    description: V(started) and V(stopped) change nothing the second time.
author: criu.migrate contributors
"""

EXAMPLES = r"""
- name: The destination loses its power and comes back
  lab_node:
    lab: lab
    name: [node-2]
    state: restarted
"""

RETURN = r"""
switched:
  description: The hosts that were switched.
  type: list
  elements: str
  returned: success
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.criu_migrate.errors import MigrationError
from ..module_utils.criu_migrate.lab_store import Lab
from ..module_utils.criu_migrate.lab_vm import BOOT_LIMIT


def switch(lab: Lab, state: str, names: list[str], key: str, limit: float | None, check: bool) -> dict[str, Any]:
    for name in names:
        lab.known(name)
    due = [name for name in names if state == "restarted" or lab.running(name) != (state == "started")]
    if check:
        return {"changed": bool(due), "switched": due}
    if state in ("stopped", "restarted"):
        for name in due:
            lab.stop_node(name)
    if state in ("started", "restarted"):
        for name in due:
            lab.start_node(name, key)
        seconds = limit or (BOOT_LIMIT if any(lab.is_machine(name) for name in due) else 30.0)
        with ThreadPoolExecutor(max_workers=max(len(due), 1)) as pool:  # machines boot side by side
            list(pool.map(lambda name: lab.wait_ssh(name, seconds), due))
    return {"changed": bool(due), "switched": due}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "lab": {"type": "str", "default": "lab"},
            "name": {"type": "list", "elements": "str", "default": []},
            "state": {"type": "str", "default": "started", "choices": ["started", "stopped", "restarted"]},
            "authorized_key": {"type": "str", "default": "", "no_log": False},
            "limit": {"type": "float"},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        lab = Lab(params["lab"])
        if module.check_mode and not lab.record:  # a lab that would have been made by now
            module.exit_json(changed=True, switched=params["name"])
        names = params["name"] or list(lab.record.get("hosts", {}))
        key, limit = params["authorized_key"], params["limit"]
        module.exit_json(**switch(lab, params["state"], names, key, limit, module.check_mode))
    except MigrationError as error:
        module.fail_json(msg=error.text(), **error.details)


if __name__ == "__main__":
    main()
