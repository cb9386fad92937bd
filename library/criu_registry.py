#!/usr/bin/python
"""The module criu_registry; its documentation is below, its work in module_utils."""

from __future__ import annotations

DOCUMENTATION = r"""
module: criu_registry
short_description: Say which processes of a node are to be saved when it goes
description:
  - Each has a file in C(/etc/criu-migrate/processes.d) with its name, its priority, how it is found, and the parameters
    of its migration. C(playbooks/evacuate.yml) moves them all.
options:
  state:
    description:
      - V(found) says which process O(pid), O(pidfile) or O(run_id) means.
      - V(present) registers it, V(absent) takes the entry O(name) away and leaves the process alone.
      - V(listed) returns all entries.
    type: str
    choices: [found, present, absent, listed]
    default: listed
  name:
    description: Name of the entry, 1 to 40 small letters, digits, C(-) and C(_).
    type: str
    default: ""
  priority:
    description: Those of a higher priority are saved first.
    type: int
    default: 0
  pid:
    description: The process, by its PID; 0 where it is named otherwise.
    type: int
    default: 0
  pidfile:
    description: A file that holds its PID, also of a later process of the same service.
    type: path
    default: ""
  run_id:
    description: The process that a migration of this collection has brought to this node.
    type: str
    default: ""
  params:
    description: What C(migration_parameters) returned, for V(present).
    type: dict
    default: {}
attributes:
  check_mode:
    description: Nothing is written in check mode.
    support: full
  idempotent:
    description: A second time nothing changes.
    support: full
author: criu-migrate
"""

EXAMPLES = r"""
- name: Which process is it?
  criu_registry:
    state: found
    name: web
    pidfile: /run/web.pid
  register: found

- name: List what is registered
  criu_registry:
  register: registered
"""

RETURN = r"""
process:
  description: C(pid), C(start) (clock ticks), C(command) and C(by), how it is found again.
  returned: O(state=found), O(state=present)
  type: dict
entries:
  description: C(name), C(priority), C(pid) (0 where it does not run), C(by), C(params) and C(text), a line, of each.
  returned: O(state=listed)
  type: list
problems:
  description: What is wrong with entries, in words.
  returned: O(state=listed)
  type: list
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.criu_migrate import answering, naming, registry
from ..module_utils.criu_migrate.errors import MigrationError


def act(given: dict[str, Any], check: bool) -> dict[str, Any]:
    state = given["state"]
    if state == "listed":
        entries, problems = registry.listed()
        return {"changed": False, "entries": entries, "problems": problems}
    if state == "absent":
        return {"changed": registry.drop(given["name"], check)}
    registry.check_name(given["name"])
    named = [name for name in ("pid", "pidfile", "run_id") if given[name]]
    if len(named) != 1:
        raise MigrationError(
            f"{len(named) or 'None'} of pid, pidfile and run_id were given: it takes one.", "Give one of them."
        )
    found = registry.find(given["pid"], given["pidfile"], given["run_id"])
    if state == "found":
        return {"changed": False, "process": found}
    params = naming.kept(given["params"])
    entry = {"name": given["name"], "priority": given["priority"], "by": found["by"], "params": params}
    return {"changed": registry.put(entry, check), "process": found}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "default": "listed", "choices": ["found", "present", "absent", "listed"]},
            "name": {"type": "str", "default": ""},
            "priority": {"type": "int", "default": 0},
            "pid": {"type": "int", "default": 0},
            "pidfile": {"type": "path", "default": ""},
            "run_id": {"type": "str", "default": ""},
            "params": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    answering.answer(module, act)


if __name__ == "__main__":
    main()
